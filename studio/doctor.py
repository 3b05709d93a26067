"""What this machine has for the studio, and what it lacks: one line each."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from studio.cache import StageCache, default_folder
from trellis.errors import InputError


@dataclass(frozen=True)
class Finding:
    """state: "ok", "optional" (missing, not needed), or "problem" (the studio will not work)."""

    name: str
    state: Literal["ok", "optional", "problem"]
    text: str


def examine(checkpoint: str | None = None) -> Iterator[Finding]:
    """Look at everything; a check that itself fails is a finding, never an exception."""
    for name, check in (
        ("python", _python),
        ("torch", _torch),
        ("memory", _memory),
        ("kernels", _kernels),
        ("checkpoint", lambda: _checkpoint(checkpoint)),
        ("video", _video),
        ("background removal", _background),
        ("stage cache", _cache),
    ):
        yield _examined(name, check)


def _examined(name: str, check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except Exception as error:
        return Finding(name, "problem", f"{type(error).__name__}: {error}")


def _python() -> Finding:
    return Finding("python", "ok", f"{platform.python_version()} on {platform.platform()}")


def _torch() -> Finding:
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return Finding("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads, {gpu}")


def _memory() -> Finding:
    import torch

    from studio.memory import free

    available = free(torch.device("cpu")).bytes / 2**30
    return Finding("memory", "ok" if available > 2 else "problem", f"{available:.1f} GB free (2 GB are needed)")


def _kernels() -> Finding:
    import time

    from studio.engine import warm_up

    started = time.monotonic()
    warm_up()
    return Finding("kernels", "ok", f"all renderers ran after {time.monotonic() - started:.1f} s")


def _checkpoint(checkpoint: str | None) -> Finding:
    from studio.engine import chosen_checkpoint

    try:
        return Finding("checkpoint", "ok", chosen_checkpoint(checkpoint))
    except InputError as error:
        return Finding("checkpoint", "problem", str(error))


def _video() -> Finding:
    import imageio_ffmpeg

    return Finding("video", "ok", f"ffmpeg {imageio_ffmpeg.get_ffmpeg_version()}")


def _background() -> Finding:
    from trellis.pipelines.background import rembg_available

    if rembg_available():
        return Finding("background removal", "ok", "rembg")
    return Finding("background removal", "optional", "GrabCut; rembg or its model is not installed")


def _cache() -> Finding:
    folder = default_folder()
    if folder is None:
        return Finding("stage cache", "optional", "switched off")
    parent = next(place for place in (folder, *folder.parents) if place.exists())
    room = shutil.disk_usage(parent).free / 2**30
    used = StageCache(folder).size() / 2**20
    return Finding("stage cache", "ok" if room > 1 else "optional", f"{folder}: {used:.0f} MB, {room:.0f} GB free")
