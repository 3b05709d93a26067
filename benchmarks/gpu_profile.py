"""Where the time of a stage goes: kernel by kernel, and what each backend takes off it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_stages import PLAIN, Stage, difference
from trellis import backends
from trellis.errors import InputError
from trellis.modules import launch_graph, norms_torch

_ROWS = 15

Measure = Callable[[Callable[[], Any]], tuple[float, float, Any]]


def kernels(stage: Stage, device: torch.device) -> dict[str, Any]:
    """Print and return the kernels (on a CPU: operations) that one call of a stage spends most time in.

    Also how long the host takes to launch them: a device that waits for it would need fewer, larger kernels.
    """
    on_gpu = device.type == "cuda"
    with torch.no_grad():
        stage.once()
        _synchronise(device)
        started = time.perf_counter()
        stage.once()
        launched = time.perf_counter() - started
        _synchronise(device)
        whole = time.perf_counter() - started
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        with profile(activities=activities) as recorded:
            stage.once()
            _synchronise(device)
    rows = []
    for event in recorded.key_averages():
        if on_gpu and event.device_type != torch.autograd.DeviceType.CUDA:
            continue  # an operation, whose kernels are counted by themselves
        ms = (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1000
        rows.append({"kernel": event.key, "calls": event.count, "ms": ms})
    rows.sort(key=lambda row: -row["ms"])
    total = sum(row["ms"] for row in rows)
    print(f"{stage.once_title}: {1000 * whole:.2f} ms, of which the host launches for {1000 * launched:.2f} ms; "
          f"{sum(row['calls'] for row in rows)} kernels, together {total:.2f} ms")  # fmt: skip
    for row in rows[:_ROWS]:
        print(f"{row['ms']:>10.3f} ms {row['ms'] / max(total, 1e-9):>6.1%} {row['calls']:>6} x  {row['kernel'][:130]}")
    print(flush=True)
    return {"stage": stage.title, "ms": 1000 * whole, "launch_ms": 1000 * launched, "kernels": rows[:_ROWS]}


def ablation(stage: Stage, device: torch.device, measure: Measure) -> list[dict[str, Any]]:
    """Print and return the time of a stage as it is, with each need in turn left to its reference, and in variants.

    Beside each time: how far the result is from the one as it is, see `gpu_stages.difference`.
    """
    before = {need: candidate.name for need, candidate in backends.choose(device, **_names(device)).items()}
    as_it_is, _, expected = measure(stage.ours)
    rows = [{"stage": stage.title, "change": "as it is", "ms": as_it_is, "difference": 0.0}]

    def row(title: str, call: Callable[[], Any]) -> None:
        ms, _, result = measure(call)
        rows.append({"stage": stage.title, "change": title, "ms": ms, "difference": difference(result, expected)})

    changes = {f"{need} by {name}": {need: name} for need, name in PLAIN.items()}
    changes |= stage.choices if device.type == "cuda" else {}
    try:
        for title, change in changes.items():
            if before != before | change:
                try:
                    backends.choose(device, **{**before, **change})
                except InputError as error:
                    print(f"{title}: {error}")
                    continue
                row(title, stage.ours)
        backends.choose(device, **before)
        if before["norms"] != PLAIN["norms"]:
            with _step_by_step(device):
                row("residual sums and norms step by step", stage.ours)
    finally:
        backends.choose(device, **before)
        launch_graph.forget()  # what would count as memory of the next stage
    for title, call in stage.variants.items():
        row(title, call)
    for entry in rows:
        print(f"{entry['stage']:<24}{entry['change']:<40}{entry['ms']:>10.2f} ms  {entry['ms'] - as_it_is:+10.2f} ms  "
              f"{entry['difference']:.1e} off")  # fmt: skip
    print(flush=True)
    return rows


@contextmanager
def _step_by_step(device: torch.device) -> Iterator[None]:
    """The reference's residual sums and norms of whole rows, and all other norms as they are."""
    norms = backends.of("norms", device)
    names = "add_branch", "modulated_norm", "add_and_modulated_norm", "add_and_norm"
    kept = {name: getattr(norms, name) for name in names}
    launch_graph.forget()  # what was recorded with the others
    try:
        for name in names:
            setattr(norms, name, getattr(norms_torch, name))
        norms.add_and_norm = partial(norms_torch.add_and_norm, norm=norms.row_norm)
        yield
    finally:
        launch_graph.forget()
        for name, function in kept.items():
            setattr(norms, name, function)


def _names(device: torch.device) -> dict[str, str]:
    return {need: candidate.name for need, candidate in backends.used(device).items()}


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
