"""Everything that has to be seen on a GPU, in one command: `python -m benchmarks.gpu`.

    doctor     what this machine has, and which backend works
    tests      `pytest -m gpu`: every kernel and package against its reference, in value and gradient
    backends   how long the candidates for one need take for the same work
    stages     ours beside a plain path: time, peak memory, difference
    ablation   the stages with each backend in turn replaced by its reference
    profile    the kernels that the stages spend most time in
    views      growth with the number of views
    voxels     growth with the number of voxels
    memory     peaks with and without offloading, and 16 views within 8 GiB
    disk       a checkpoint of the published size written, loaded and run

What does not fit into --minutes is left out and said to be; a section that fails says why and the next one runs.
With `--device cpu --checkpoint FOLDER` it runs on a CPU, which is how it is tested.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks import full_size, gpu_stages
from benchmarks.gpu_backends import compare_backends
from benchmarks.gpu_profile import ablation, kernels
from studio import memory
from trellis.pipelines import TrellisVGGTTo3DPipeline
from trellis.pipelines.conditioning import read_views
from trellis.pipelines.warm_up import warm_up

ROOT = Path(__file__).resolve().parents[1]
SECTIONS = ("doctor", "tests", "backends", "stages", "ablation", "profile", "views", "voxels", "memory", "disk")
_GIB = 2**30
# Stage of `gpu_stages`: the studio's, whose networks are on the device meanwhile.
_PLACES = {
    "vggt": "cameras", "structure": "structure", "latent": "latent", "gaussians": "decode", "mesh": "decode",
    "surface": "mesh",
}  # fmt: skip


class Run:
    """One run of the benchmark: its pipeline, made when the first section needs it, and what was measured."""

    def __init__(self, options: argparse.Namespace, sizes: full_size.Sizes | None = None) -> None:
        self.options, self.sizes = options, sizes
        self.device = torch.device(options.device)
        self.results: dict[str, Any] = {}
        self.deadline = time.perf_counter() + 60 * options.minutes
        self._pipeline: TrellisVGGTTo3DPipeline | None = None

    @property
    def pipeline(self) -> TrellisVGGTTo3DPipeline:
        if self._pipeline is None:
            started = time.perf_counter()
            if self.options.checkpoint:
                self._pipeline = TrellisVGGTTo3DPipeline.from_pretrained(self.options.checkpoint, self.device)
            else:
                sizes = self.sizes or full_size.published_sizes()
                self._pipeline = full_size.random_pipeline(sizes, self.device, self.options.image_resolution)
            print(f"networks ready after {time.perf_counter() - started:.1f} s")
            started = time.perf_counter()
            used = {need: candidate.name for need, candidate in warm_up(self._pipeline).items()}
            print(f"warmed up after {time.perf_counter() - started:.1f} s; backends: {used}", flush=True)
        return self._pipeline

    def coords(self, voxels: int) -> torch.Tensor:
        """A ball of about so many voxels on the pipeline's grid."""
        return full_size.shell(voxels, self.pipeline.models["slat_flow_model"].resolution)

    def measure(self, call: Callable[[], Any], repeats: int | None = None) -> tuple[float, float, Any]:
        """Median milliseconds after one untimed call, GiB at the peak beyond what was there (CPU: 0), the result."""
        self._collect()
        before = self._allocated()
        result, times = call(), []
        self._synchronise()
        for _ in range(self.options.repeats if repeats is None else repeats):
            result = None
            started = time.perf_counter()
            result = call()
            self._synchronise()
            times.append(1000 * (time.perf_counter() - started))
        return statistics.median(times), self._allocated(at_peak=True) - before, result

    def _allocated(self, at_peak: bool = False) -> float:
        """GiB that tensors take on the GPU, now or at most since the last `_collect`; 0 on a CPU."""
        if self.device.type != "cuda":
            return 0.0
        count = torch.cuda.max_memory_allocated if at_peak else torch.cuda.memory_allocated
        return count(self.device) / _GIB

    def _weights(self, names: tuple[str, ...]) -> float:
        """GiB of some networks on a GPU; 0 on a CPU."""
        networks = {**self.pipeline.models, "vggt": self.pipeline.vggt.aggregator}
        parameters = (p for name in names for p in networks[name].parameters())
        return sum(p.numel() * p.element_size() for p in parameters) / _GIB if self.device.type == "cuda" else 0.0

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _collect(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def in_time(self, work: str) -> bool:
        """Whether there is time left for some work; if not, that is said."""
        if time.perf_counter() <= self.deadline:
            return True
        print(f"{work}: left out, {self.options.minutes:g} minutes have passed", flush=True)
        return False

    def chosen_stages(self) -> Iterator[gpu_stages.Stage]:
        """The stages that were asked for, while there is time."""
        coords = self.coords(self.options.voxels)
        for stage in gpu_stages.stages(self.pipeline, self.options.views, coords, *self._steps()):
            if stage.key in self.options.stages and self.in_time(stage.title):
                yield stage

    def doctor(self) -> None:
        # By itself, because it needs nothing but Python, so it also explains a machine where nothing else works.
        subprocess.run([sys.executable, "-m", "studio.doctor"], cwd=ROOT)

    def tests(self) -> None:
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-rs", "-p", "no:cacheprovider",
                   "--continue-on-collection-errors"]
        rooms = ("modules", "renderers", "pipelines", "export", "test_backends.py")
        self.results["tests"] = subprocess.run([*command, *(f"tests/{room}" for room in rooms)], cwd=ROOT).returncode

    def backends(self) -> None:
        self.results["backends"] = compare_backends(self.device, self.measure, self.options.tiny)

    def stages(self) -> None:
        """Peak GiB: what a stage allocates, and its own networks."""
        rows = []
        _line("stage", "plain ms", "ours ms", "faster", "plain GiB", "ours GiB", "difference")
        for stage in self.chosen_stages():
            ours_ms, ours_gib, ours = self.measure(stage.ours)
            ours_gib += self._weights(stage.networks)
            with gpu_stages.plain_path(self.pipeline):
                plain_ms, plain_gib, plain = self.measure(stage.plain, 1)
                plain_gib += self._weights(stage.networks)
            apart = gpu_stages.difference(ours, plain)
            del ours, plain
            rows.append({"stage": stage.title, "plain_ms": plain_ms, "ours_ms": ours_ms, "plain_gib": plain_gib,
                         "ours_gib": ours_gib, "difference": apart})  # fmt: skip
            _line(stage.title, plain_ms, ours_ms, plain_ms / ours_ms, plain_gib, ours_gib, f"{apart:.1e}")
        if rows:
            total = [sum(row[key] for row in rows) for key in ("plain_ms", "ours_ms")]
            peaks = [max(row[key] for row in rows) for key in ("plain_gib", "ours_gib")]
            _line("total", *total, total[0] / total[1], *peaks, "")
        self.results["stages"] = rows

    def ablation(self) -> None:
        self.results["ablation"] = [
            row for stage in self.chosen_stages() for row in ablation(stage, self.device, self.measure)
        ]

    def profile(self) -> None:
        self.results["profile"] = [kernels(stage, self.device) for stage in self.chosen_stages()]

    def views(self) -> None:
        self._growth("views", self.options.view_counts, lambda n: (n, self.options.voxels), ("VGGT", "latent"))

    def voxels(self) -> None:
        parts = ("latent", "Gaussian", "mesh", "FlexiCubes")
        self._growth("voxels", self.options.voxel_counts, lambda n: (self.options.views, n), parts)

    def _growth(
        self, name: str, counts: list[int], size: Callable[[int], tuple[int, int]], wanted: tuple[str, ...]
    ) -> None:
        rows = []
        for count in counts:
            views, voxels = size(count)
            if not self.in_time(f"{count} {name}"):
                break
            for stage in gpu_stages.stages(self.pipeline, views, self.coords(voxels), *self._steps()):
                if stage.title.startswith(wanted):
                    ms, gib, _ = self.measure(stage.ours, 1)
                    gib += self._weights(stage.networks)
                    rows.append({name: count, "stage": stage.title, "ms": ms, "gib": gib})
        _line(name, *dict.fromkeys(row["stage"] for row in rows), "(ms | GiB)")
        for count in dict.fromkeys(row[name] for row in rows):
            cells = [f"{row['ms']:.0f} | {row['gib']:.1f}" for row in rows if row[name] == count]
            _line(str(count), *cells)
        self.results[name] = rows

    def memory(self) -> None:
        """Peak of whole generations, with the networks of one stage at a time on the device and step halves apart."""
        plans = [("all networks", n, False, None) for n in self.options.memory_views]
        plans += [("one stage at a time", n, True, None) for n in self.options.memory_views]
        plans += [("within 8 GiB", self.options.memory_views[-1 if len(self.options.memory_views) < 3 else 2], True, 8)]
        rows = []
        _line("plan", "views", "seconds", "peak GiB")
        for title, views, offload, limit in plans:
            if not self.in_time(f"{title}, {views} views"):
                break
            seconds, peak = self._generate(views, offload, limit)
            rows.append({"plan": title, "views": views, "seconds": seconds, "gib": peak})
            _line(title, str(views), f"{seconds:.1f}", peak)
        self.results["memory"] = rows

    def _generate(self, views: int, offload: bool, limit_gib: float | None) -> tuple[float, float]:
        pipeline, on_gpu = self.pipeline, self.device.type == "cuda"
        if offload:
            memory.place(pipeline, "write")  # before the limit, which what is there already might break
        self._collect()
        if limit_gib and on_gpu:
            whole = torch.cuda.get_device_properties(self.device).total_memory
            _cap(min(1.0, limit_gib * _GIB / whole), self.device)
        started = time.perf_counter()
        try:
            self._read_views(views, offload)
            coords = self.coords(self.options.voxels)
            for stage in gpu_stages.stages(pipeline, views, coords, *self._steps(), batched=not offload):
                if offload:
                    memory.place(pipeline, _PLACES[stage.key])
                stage.ours()
            self._synchronise()
            return time.perf_counter() - started, self._allocated(at_peak=True)
        finally:
            if limit_gib and on_gpu:
                _cap(1.0, self.device)
            memory.place(pipeline, None)

    def _read_views(self, views: int, offload: bool) -> None:
        conditioners = "sparse_structure_vggt_cond", "slat_vggt_cond"
        if offload:
            memory.place(self.pipeline, "cameras")
        images = torch.rand(views, 3, *(self.pipeline.image_resolution,) * 2).to(self.device)
        networks = (self.pipeline.models[name] for name in conditioners)
        with torch.no_grad():
            read_views(images, self.pipeline.vggt, self.pipeline.image_cond_model, *networks,
                       at_once=4 if offload else None)  # fmt: skip

    def disk(self) -> None:
        with tempfile.TemporaryDirectory(dir=self.options.folder) as folder:
            started = time.perf_counter()
            sizes = self.sizes or full_size.published_sizes()
            resolution = self.options.image_resolution
            size = full_size.write_checkpoint(sizes, Path(folder), self.device, resolution)
            written = time.perf_counter() - started
            self._pipeline = None
            self._collect()
            before, started = _resident(), time.perf_counter()
            pipeline = TrellisVGGTTo3DPipeline.from_pretrained(folder, self.device)
            self._synchronise()
            loaded, grown = time.perf_counter() - started, _resident() - before
            started = time.perf_counter()
            warm_up(pipeline)
            print(f"{size / 1e9:.2f} GB written in {written:.1f} s, loaded in {loaded:.1f} s; the process's own memory "
                  f"grew by {grown / _GIB:.2f} GiB; every network ran after {time.perf_counter() - started:.1f} s; "
                  f"complete: {pipeline.report.complete}")  # fmt: skip
        self.results["disk"] = {"bytes": size, "load_s": loaded, "grown": grown, "complete": pipeline.report.complete}

    def _steps(self) -> tuple[dict[str, Any], dict[str, Any]]:
        if not self.options.tiny:
            return gpu_stages.STRUCTURE, gpu_stages.LATENT
        return {**gpu_stages.STRUCTURE, "steps": 2}, {**gpu_stages.LATENT, "steps": 2}


def main(arguments: list[str] | None = None, sizes: full_size.Sizes | None = None) -> dict[str, Any]:
    """Run the sections asked for; `sizes` replaces the published ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--checkpoint", help="networks to measure, instead of random ones of the published sizes")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--stages", nargs="+", choices=gpu_stages.KEYS, default=gpu_stages.KEYS,
                        help="of the sections stages, ablation and profile")  # fmt: skip
    parser.add_argument("--minutes", type=float, default=8.0, help="nothing more is begun after these")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--voxels", type=int, default=full_size.VOXELS)
    parser.add_argument("--view-counts", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--voxel-counts", type=int, nargs="+", default=[5_000, 10_000, 20_000, 40_000])
    parser.add_argument("--memory-views", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--image-resolution", type=int, default=518)
    parser.add_argument("--folder", type=Path, help="where the disk section may write; default the system's")
    parser.add_argument("--json", type=Path, help="write all figures to this file as well")
    parser.add_argument("--tiny", action="store_true", help="few steps and small scenes, to see that it works")
    options = parser.parse_args(arguments)

    print(f"torch {torch.__version__} on {_device_name(options.device)}", flush=True)
    run, started = Run(options, sizes), time.perf_counter()
    for section in options.only:
        if not run.in_time(f"\n== {section}"):
            continue
        print(f"\n== {section} ({time.perf_counter() - started:.0f} s)", flush=True)
        try:
            getattr(run, section)()
        except Exception as error:  # the rest of a rented machine's minutes should not be lost
            run.results.setdefault("failed", {})[section] = f"{type(error).__name__}: {error}"
            traceback.print_exc()
        if options.json:
            options.json.write_text(json.dumps(run.results, indent=1))
    return run.results


def _cap(fraction: float, device: torch.device) -> None:
    """What this process may take of the device's memory."""
    torch.cuda.set_per_process_memory_fraction(fraction, device.index or 0)


def _resident() -> int:
    """Bytes of memory of this process that are no file's pages."""
    import psutil

    memory = psutil.Process().memory_info()
    return memory.rss - getattr(memory, "shared", 0)


def _device_name(device: str) -> str:
    if torch.device(device).type != "cuda":
        return "CPU"
    properties = torch.cuda.get_device_properties(device)
    return f"{properties.name}, {properties.total_memory / _GIB:.0f} GiB, CUDA {torch.version.cuda}"


def _line(first: str, *cells: Any) -> None:
    texts = [cell if isinstance(cell, str) else f"{cell:.1f}" if cell >= 100 else f"{cell:.3g}" for cell in cells]
    print(f"{first:<24}" + "".join(f"{text:>18}" for text in texts), flush=True)


if __name__ == "__main__":
    main()
