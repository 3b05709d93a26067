"""The engine under a real worker process: how soon a cancelled job lets go, what a changed setting costs, how long each
preset takes, and whether memory stays where it was. Prints a table as it is measured.

    python -m benchmarks.engine                                   # the embedded mini checkpoint, its first example
    python -m benchmarks.engine photos/ --jobs 20 --presets draft standard
    python -m benchmarks.engine --parts cancelling

Wall seconds; the load of the machine stands above the table, for anything else that runs makes all of them worse.
"""

from __future__ import annotations

import studio.environment  # noqa: F401  (first: it prepares what torch and numba read at import)

# isort: split
import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import psutil

from studio.cache import StageCache
from studio.engine import ASSETS
from studio.events import Cancelled, Progress, Result
from studio.inputs import View, as_views
from studio.job import make_job
from studio.presets import PRESETS, apply_preset
from studio.replay import revise
from studio.service import Service
from studio.settings import ReconstructSettings, make_settings
from studio.stages import STAGES

Row = tuple[str, str]

_MEGABYTE = 2**20
_PARTS = ("presets", "revisions", "cancelling", "memory")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("views", nargs="?", type=Path, help="a folder of photos; default: the first example")
    parser.add_argument("--checkpoint", help="default: the embedded one")
    parser.add_argument("--device", help="default: a GPU if there is one")
    parser.add_argument("--jobs", type=int, default=6, help="whole jobs in a row whose memory is compared, at least 4")
    parser.add_argument("--presets", nargs="*", default=["draft", "standard"], choices=list(PRESETS))
    parser.add_argument("--parts", nargs="+", default=_PARTS, choices=_PARTS, help="what to measure; default: all")
    options = parser.parse_args()
    folder = options.views or next(sub for sub in sorted((ASSETS / "examples").iterdir()) if sub.is_dir())
    with tempfile.TemporaryDirectory(prefix="reconstudio-benchmark-") as place:
        os.environ["RECONSTUDIO_CACHE"] = str(Path(place) / "cache")
        os.environ["RECONSTUDIO_HISTORY"] = str(Path(place) / "history.jsonl")
        views = as_views(folder)
        print(f"{folder.name}, {len(views)} views, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
        started = time.monotonic()
        with Service(options.checkpoint, [options.device]) as service:
            _print("start of the worker", f"{time.monotonic() - started:.1f} s")
            bench = _Bench(service, views, Path(place))
            parts = {"presets": bench.presets(options.presets), "revisions": bench.revisions(),
                     "cancelling": bench.cancelling(), "memory": bench.memory(max(options.jobs, 4))}  # fmt: skip
            for name in options.parts:
                for row in parts[name]:
                    _print(*row)


def _print(name: str, value: str) -> None:
    print(f"{name:36}  {value}", flush=True)


class _Bench:
    def __init__(self, service: Service, views: list[View], place: Path) -> None:
        self._service, self._views, self._place = service, views, place

    def presets(self, names: list[str]) -> Iterator[Row]:
        """Whole jobs from nothing, with every stage's seconds and peak against its prediction."""
        for name in names:
            result = self._run(apply_preset(name, self._service.defaults), self._place / name, use_cache=False)
            record = json.loads(result.run.read_text(encoding="utf-8"))
            seconds, peaks = record["seconds"], record["peak_memory_bytes"]
            yield f"preset {name}", f"{result.seconds:.1f} s ({result.counts['voxels']} voxels)"
            for stage in peaks["stages"]:
                grown, predicted = peaks["stages"][stage]["grown"], peaks["predicted"][stage]
                yield (f"  {stage}", f"{seconds[stage]:6.1f} s  {grown / _MEGABYTE:6.0f} MB, "
                       f"{predicted / _MEGABYTE:.0f} predicted")  # fmt: skip
            yield "  largest resident size", f"{peaks['rss'] / _MEGABYTE:.0f} MB"

    def revisions(self) -> Iterator[Row]:
        """A finished run with one setting changed."""
        folder = self._place / "revised"
        self._run(self._settings(), folder)
        for changes in ({"texture_size": 1024}, {"simplify": 0.92}, {"latent_seed": 5}, {}):
            started = time.monotonic()
            result = self._service.submit(revise(folder, changes)).wait()
            ran = [stage.name for stage in STAGES if stage.name not in result.cached]
            what = " ".join(f"{key} {value}" for key, value in changes.items()) or "nothing"
            yield f"changed: {what}", f"{time.monotonic() - started:.1f} s ({', '.join(ran)})"

    def cancelling(self) -> Iterator[Row]:
        """From the cancel to the free worker, asked for when a stage has just begun."""
        StageCache(self._place / "cache").clear()  # each job then gets one stage further than the one before
        settings = self._settings(seed=1, structure_steps=25, latent_steps=25, video_frames=240)
        for stage in STAGES:
            ticket = self._service.submit(make_job(self._views, settings, self._place / "cancelled"))
            for event in ticket.events():
                if isinstance(event, Progress) and event.stage == stage.name:
                    break  # leaving the loop cancels
            asked = time.monotonic()
            try:
                ticket.wait()
                yield f"cancelled in {stage.name}", "it had ended before"
            except Cancelled:
                yield f"cancelled in {stage.name}", f"{time.monotonic() - asked:.2f} s"

    def memory(self, jobs: int) -> Iterator[Row]:
        """The worker's resident size after each of several whole jobs."""
        resident = []
        for number in range(jobs):
            self._run(self._settings(seed=100 + number), self._place / "memory")
            time.sleep(1.0)  # it tidies up after it has told of the end
            resident.append(psutil.Process(self._service.workers[0].pid).memory_info().rss / _MEGABYTE)
        yield f"resident after {jobs} jobs", " ".join(f"{value:.0f}" for value in resident) + " MB"
        last = median(resident[-3:])
        yield "  the last three against the third", f"{100 * (last / resident[2] - 1):+.1f} %"

    def _settings(self, **changes: int | float) -> ReconstructSettings:
        """A quick job: what is measured here does not depend on its quality."""
        return make_settings({"texture_size": 512, **changes}, apply_preset("draft", self._service.defaults))

    def _run(self, settings: ReconstructSettings, out: Path, use_cache: bool = True) -> Result:
        return self._service.submit(make_job(self._views, settings, out, use_cache=use_cache)).wait()


if __name__ == "__main__":
    main()
