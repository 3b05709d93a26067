"""Training steps replayed as CUDA graphs, and batches drawn while the step before them trains.

A step of these small networks is thousands of short kernels: launching them takes longer than running them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

Batch = dict[str, Any]


class GraphedStep:
    """`step(batch) -> Tensor`, recorded once for each set of shapes and replayed from then on.

    The step may neither wait for the device nor draw random numbers, and its batches hold tensors only: batches with
    anything else are not recorded. Its first calls for new shapes run as they are, so that everything is compiled and
    every optimiser state exists.
    """

    WARM_UP = 3

    def __init__(self, step: Callable[[Batch], Tensor]):
        self.step = step
        self.calls: Counter = Counter()
        self.recorded: dict[tuple, tuple[list[Tensor], torch.cuda.CUDAGraph, Tensor]] = {}
        self.pool = None

    def __call__(self, batch: Batch) -> Tensor:
        if not all(isinstance(value, Tensor) for value in batch.values()):
            return self.step(batch)
        key = tuple((name, value.shape) for name, value in batch.items())
        self.calls[key] += 1
        if self.calls[key] <= self.WARM_UP:
            return self.step(batch)
        if key not in self.recorded:
            self.recorded[key] = self._record(batch)
        inputs, graph, output = self.recorded[key]
        torch._foreach_copy_(inputs, list(batch.values()))
        graph.replay()
        return output.clone()

    def _record(self, batch: Batch) -> tuple[list[Tensor], torch.cuda.CUDAGraph, Tensor]:
        inputs = {name: value.clone() for name, value in batch.items()}
        graph = torch.cuda.CUDAGraph()
        # One pool for all: whatever a replay leaves in it is read, and copied, before the next one.
        # Thread-local, for the thread that watches over NCCL may do as it likes meanwhile.
        with torch.cuda.graph(
            graph, pool=self.pool, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"
        ):
            output = self.step(inputs)
        self.pool = graph.pool()
        return list(inputs.values()), graph, output


def drawn_ahead(draw: Callable[[int], Batch], first: int, device: torch.device) -> Iterator[Batch]:
    """Yield `draw(first)`, `draw(first + 1)`, ...

    On a GPU each is drawn on a stream of its own, after the consumer has launched its work on the one before.
    """
    if device.type != "cuda":
        step = first
        while True:
            with torch.no_grad():
                batch = draw(step)
            yield batch
            step += 1
    own, consumer = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    own.wait_stream(consumer)

    def make(step: int) -> tuple[Batch, torch.cuda.Event]:
        with torch.cuda.stream(own), torch.no_grad():
            return draw(step), own.record_event()

    ready, used, step = make(first), None, first
    while True:
        batch, done = ready
        consumer.wait_event(done)
        yield batch
        if used is not None:
            own.wait_event(used)  # the memory of the batch before this one is free only when its step has ended
        used = consumer.record_event()
        step += 1
        ready = make(step)
