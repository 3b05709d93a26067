"""Keys of the stage cache: hashes of everything that a stage's output depends on.

A stage's key covers its name, its own settings, the hashes of the networks that it runs, the code and library versions,
the kind of device, and the keys of the stages that it builds on. The first stage after the photographs builds on the
pixels of the prepared views instead, so that the same views come to the same key from wherever they come: from
photographs, or from the `views` folder of a finished run. No other value that flows between stages need be read, so
finding out that everything is there already costs milliseconds.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from PIL import Image

from studio.inputs import View

_ROOT = Path(__file__).resolve().parent.parent
# The code that decides what a stage's output is.
_CODE = ("trellis/**/*.py", "nvdiffrec/**/*.py", "studio/stages.py", "studio/recipe.py", "studio/refine_stages.py",
         "studio/refine_runner.py", "studio/codec.py", "studio/inputs.py", "studio/quality.py", "studio/video.py",
         "studio/view_cameras.py", "studio/photo_cameras.py")  # fmt: skip
_LIBRARIES = (
    "torch", "numpy", "scipy", "numba", "opencv-python-headless", "xatlas", "fast-simplification", "pillow",
    "imageio-ffmpeg", "rembg",
)  # fmt: skip


def stage_key(name: str, depends_on: Iterable[str], settings: Mapping[str, Any], environment: str) -> str:
    """The key of a stage: 32 hexadecimal digits.

    Args:
        name: of the stage.
        depends_on: keys of the stages (or inputs) that it reads.
        settings: the settings and other plain values that it reads.
        environment: from `environment_key`.
    """
    content = [name, list(depends_on), {key: settings[key] for key in sorted(settings)}, environment]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def environment_key(weights: Mapping[str, str], device: str, threads: int, backends: Mapping[str, str]) -> str:
    """One hash for the networks (what tells each from others), the code, the libraries, and the machine's way of
    calculating.

    backends: by need, the name of what does the work.
    """
    content = [dict(sorted(weights.items())), code_version(), device, threads, platform.machine(), dict(backends)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def pace_key(weights: Mapping[str, str], device: str, threads: int) -> str:
    """One hash for what decides how long a job takes: the networks and the machine. It outlives changes of the code."""
    content = [dict(sorted(weights.items())), device, threads, platform.machine(), "pace"]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def view_key(view: View) -> str:
    """A hash of a view: the bytes of its files (of its mask too), or its pixels. Its stated camera is no part of it.

    Raises OSError if a file cannot be read.
    """
    digest = hashlib.sha256(view.name.encode())
    for source in (view.source, view.mask, view.sharp):
        if isinstance(source, Image.Image):
            digest.update(f"{source.mode} {source.size}".encode())
            digest.update(source.tobytes())
        elif source is not None:
            with Path(source).open("rb") as stream:
                while block := stream.read(2**20):
                    digest.update(block)
        digest.update(b"|")
    digest.update(b"photograph" if view.earlier is None else f"prepared {view.earlier}".encode())
    return digest.hexdigest()[:32]


def images_key(images: Iterable[Image.Image]) -> str:
    """A hash of the pixels of some images, in their order."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(f"{image.mode} {image.size}|".encode())
        digest.update(image.tobytes())
    return digest.hexdigest()[:32]


@lru_cache(maxsize=1)
def code_version() -> str:
    """A hash of the source files and library versions that shape what stages put out."""
    digest = hashlib.sha256()
    for pattern in _CODE:
        for file in sorted(_ROOT.glob(pattern)):
            digest.update(file.relative_to(_ROOT).as_posix().encode() + b"\0" + file.read_bytes())
    for library in _LIBRARIES:
        try:
            digest.update(f"{library} {version(library)}\0".encode())
        except PackageNotFoundError:
            digest.update(f"{library} absent\0".encode())
    return digest.hexdigest()[:16]
