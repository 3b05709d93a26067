"""What a run leaves behind about itself: run.json."""

from __future__ import annotations

import hashlib
import json
import platform
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timezone
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from studio import __version__, memory
from studio.backends import chosen
from studio.engine import Engine
from studio.events import PHOTOS, VIEWS
from studio.fingerprint import code_version
from studio.settings import ReconstructSettings
from studio.stages import PreparedView
from trellis.pipelines.checkpoints import LoadReport

PACKAGES = (
    "torch", "numpy", "scipy", "numba", "opencv-python-headless", "trimesh", "xatlas", "fast-simplification",
    "imageio-ffmpeg", "safetensors", "pillow", "pydantic",
)  # fmt: skip

# What does those parts of the work for which there is no choice (`trellis.backends` has the others), and its licence.
BACKENDS = {
    "simplification": ("fast-simplification", "MIT"),
    "unwrapping": ("xatlas", "MIT"),
    "video": ("imageio-ffmpeg, libx264", "BSD-2-Clause; its ffmpeg binary GPL-2.0-or-later"),
}
BACKGROUND_REMOVAL = {
    "alpha": ("the image's own alpha channel", None),
    "rembg": ("rembg, U2-Net", "MIT; weights Apache-2.0"),
    "grabcut": ("OpenCV GrabCut", "Apache-2.0"),
}

_SAMPLE_SECONDS = 0.1


class PeakMemory(AbstractContextManager):
    """Watches the memory of this process while a job runs.

    Afterwards `rss` is the largest resident size seen, sampled ten times a second, and `vram` the most that torch held
    on the GPU (None without one), both in bytes.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="memory watch")
        self._process = psutil.Process()
        self._stage_rss = self._before = 0
        self.rss = 0
        self.vram: int | None = 0 if device.type == "cuda" else None

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()
        self._read()

    def begin(self) -> None:
        """A stage begins; what the one before has freed no longer counts."""
        memory.release()
        self._stage_rss, self._before = 0, self._process.memory_info().rss
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    def end(self) -> dict[str, int | None]:
        """The peaks since `begin`, in bytes; "grown" is that of `rss` beyond its value at `begin`."""
        self._read()
        vram = torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else None
        if vram is not None:
            self.vram = max(self.vram or 0, vram)
        return {"rss": self._stage_rss, "grown": max(self._stage_rss - self._before, 0), "vram": vram}

    def _read(self) -> None:
        now = self._process.memory_info().rss
        self.rss, self._stage_rss = max(self.rss, now), max(self._stage_rss, now)

    def _watch(self) -> None:
        while not self._done.wait(_SAMPLE_SECONDS):
            self._read()


def photo_name(number: int) -> str:
    """Where a run keeps a prepared view that has more pixels than the networks saw."""
    return f"{PHOTOS}/{number:03d}.png"


def run_record(
    *,
    engine: Engine,
    settings: ReconstructSettings,
    asked: ReconstructSettings,
    views: Sequence[PreparedView],
    photographs: Sequence[str],
    camera_frame: str,
    cameras: Sequence[dict[str, Any] | None],
    files: Mapping[str, str],
    seconds: Mapping[str, float],
    cached: Sequence[str],
    peaks: Mapping[str, Any],
    counts: Mapping[str, int],
    quality: Mapping[str, Any],
    notes: Sequence[str],
) -> dict[str, Any]:
    """The content of run.json.

    Args:
        settings: that the job ran with; `asked` are those that it came with, before the memory had its say.
        photographs: a hash of each view's file, as the job found it.
        camera_frame: "object" if the cameras stand around the asset.
        cameras: of each view whose camera a person states, this one and the one that was found.
        files: SHA-256 of every other file, by its path in the folder; views come as views/000.png and so on, those
            with more pixels than the networks saw also as photos/000.png.
        seconds: of the stages that ran; `cached` names those that did not have to.
        peaks: of memory, predicted and measured.
        quality: agreement with the photographs, state of the mesh, coverage.
        notes: what a person should know about the result.
    """
    pipeline = engine.pipeline
    return {
        "format": 2,
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seed": settings.seed,
        "seeds": {"structure": settings.seed_of_structure, "latent": settings.seed_of_latent},
        "settings": settings.model_dump(mode="json"),
        "asked": asked.model_dump(mode="json"),
        "checkpoint": _public_name(engine.checkpoint),
        "camera_frame": camera_frame,
        "views": [
            {
                "name": view.name,
                "file": f"{VIEWS}/{number:03d}.png",
                "photo": view.sharp and photo_name(number),
                "photograph": photograph,
                "cut_out_by": view.cut_out_by,
                "notes": list(view.notes),
                "crop": view.crop and list(view.crop),
                "camera": camera,
            }
            for number, (view, photograph, camera) in enumerate(zip(views, photographs, cameras, strict=True))
        ],
        "files": dict(files),
        "counts": dict(counts),
        "quality": dict(quality),
        "notes": list(notes),
        "weights": weight_record(pipeline.report),
        "load_report": load_report(pipeline.report),
        "device": device_record(pipeline.device),
        "versions": versions(),
        "code": code_version(),
        "backends": backends(pipeline.device, {view.cut_out_by for view in views}),
        "seconds": {
            **{stage: round(value, 3) for stage, value in seconds.items()},
            "total": round(sum(seconds.values()), 3),
        },
        "cached": list(cached),
        "peak_memory_bytes": dict(peaks),
    }


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write readable JSON."""
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def weight_record(report: LoadReport) -> dict[str, dict[str, str | None]]:
    """Name, SHA-256 and licence (None where nobody states it) of every weight file in use, by network."""
    return {
        model.name: {"file": model.file.name, "sha256": sha256(model.file), "licence": model.licence}
        for model in report.models
    }


def load_report(report: LoadReport) -> dict[str, Any]:
    """Whether the weights fitted, and which did not."""
    return {
        "complete": report.complete,
        "missing": {name: list(keys) for name, keys in report.missing.items()},
        "surplus": {name: list(keys) for name, keys in report.surplus.items()},
    }


def sha256(file: Path) -> str:
    """Hexadecimal digest of a file; remembered until the file changes."""
    state = file.stat()
    return _sha256(file, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=64)
def _sha256(file: Path, size: int, modified: int) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def versions() -> dict[str, str | None]:
    """Of this package, Python, and every package that shapes the result (None if it is not installed)."""
    found: dict[str, str | None] = {"reconstudio": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def backends(device: torch.device, cut_out_by: set[str]) -> dict[str, Any]:
    """What did the work, with licences. `device` is that of the networks."""
    used = {need: {"name": name, "licence": licence} for need, (name, licence) in BACKENDS.items()}
    for need, candidate in chosen(device).items():
        used[need] = {"name": candidate.name, "licence": candidate.licence}
    used["background_removal"] = [
        {"name": name, "licence": licence} for name, licence in (BACKGROUND_REMOVAL[key] for key in sorted(cut_out_by))
    ]
    return used


def _public_name(checkpoint: str | None) -> str | None:
    """A repository id as it is; of a local folder only the name, for where it lies is nobody's business."""
    return Path(checkpoint).name if checkpoint and Path(checkpoint).is_dir() else checkpoint


def device_record(device: torch.device) -> dict[str, Any]:
    """What the work ran on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {"type": device.type, "name": name, "threads": torch.get_num_threads(), "system": platform.platform()}
