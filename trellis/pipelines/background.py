"""Telling the object from its background when a photograph brings no alpha.

Two methods, picked by `segmenter("auto")`: rembg's U2-Net (Qin et al., 2020) if the package and its weights are already
on this machine, else GrabCut (`trellis.pipelines.grabcut`). Nothing is downloaded here.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from trellis.errors import InputError
from trellis.pipelines.grabcut import grabcut_mask, no_object

Segmenter = Callable[[Image.Image], np.ndarray]
METHODS = ("auto", "rembg", "grabcut")


def segmenter(method: str = "auto") -> Segmenter:
    """A function from an RGB image to a mask, uint8 [H', W'] with 255 on the object (of any size, the caller resizes).

    method: "rembg", "grabcut", or "auto" for the first of them that works here. Raises InputError for another name, or
    if rembg is asked for by name and is not there. The function itself raises InputError if it sees no object.
    """
    if method not in METHODS:
        raise InputError(f"Unknown background removal {method!r}; choose one of {', '.join(METHODS)}.")
    if method == "grabcut" or (method == "auto" and not rembg_available()):
        return grabcut_mask
    if not rembg_available():
        raise InputError(
            f"Background removal by rembg needs the package rembg and its weights at {_u2net_path()}; "
            "install both or choose grabcut."
        )
    return rembg_mask


def rembg_available() -> bool:
    """Whether rembg can run without fetching anything."""
    return find_spec("rembg") is not None and _u2net_path().is_file()


def rembg_mask(image: Image.Image) -> np.ndarray:
    """Mask by U2-Net; soft, uint8 [H, W]."""
    mask = np.asarray(_rembg(os.getpid())(image.convert("RGB")))
    if not (mask > 128).any():
        raise no_object()
    return mask


def _u2net_path() -> Path:
    """Where rembg keeps its default weights."""
    home = os.environ.get("U2NET_HOME") or os.path.join(os.environ.get("XDG_DATA_HOME", "~"), ".u2net")
    return Path(home).expanduser() / "u2net.onnx"


@cache
def _rembg(process: int) -> Callable[[Image.Image], Image.Image]:
    """A session of this process: the threads of one do not come along to a process that is forked off."""
    from rembg import new_session, remove

    session = new_session("u2net")
    return lambda image: remove(image, session=session, only_mask=True)
