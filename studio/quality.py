"""What may be wrong with a photograph, as data that a page can show: blur, crop, exposure, near-duplicates.

A note is a plain dictionary: `kind`, `value` (the measurement), and `message`, a sentence with advice. Notes never stop
a job.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from trellis.pipelines.image_files import OPAQUE

Note = dict[str, Any]

_SIDE = 384  # pixels at which sharpness is measured, so that the threshold means the same for every camera
_MIN_SHARPNESS = 15.0  # variance of the Laplacian of 8-bit grey on the object; plain ones reach 20, most hundreds
_MAX_BORDER = 0.02  # share of the picture's border that the object may cover
_DARK, _BRIGHT = 0.06, 0.97  # of full scale; mean luminance of the object below or above is badly exposed
_SAME = 0.02  # root mean square difference of 16 x 16 thumbnails below which two views show the same


def sharpness(grey: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Variance of the Laplacian of grey values [H, W] in 0 to 255, over a mask [H, W] (Pech-Pacheco et al., 2000)."""
    response = ndimage.laplace(grey.astype(np.float32), mode="mirror")
    values = response if mask is None else response[mask]
    return float(values.var()) if values.size else 0.0


def notes_on(image: Image.Image) -> tuple[Note, ...]:
    """Notes on one cut-out photograph, RGBA."""
    alpha = np.asarray(image.getchannel("A")) > OPAQUE
    if not alpha.any():
        return ()
    notes: list[Note] = []
    border = np.concatenate([alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]]).mean()
    if border > _MAX_BORDER:
        notes.append(_note("crop", border, "The object runs out of the picture; step back until all of it is inside."))

    scale = _SIDE / max(image.size)
    size = [max(1, round(side * min(scale, 1))) for side in image.size]
    small = image.resize(size, Image.Resampling.BOX)
    grey = np.asarray(small.convert("L"))
    inside = np.asarray(small.getchannel("A")) > OPAQUE
    if not inside.any():
        return tuple(notes)
    brightness = float(grey[inside].mean()) / 255
    if not _DARK <= brightness <= _BRIGHT:
        word, advice = ("dark", "more light") if brightness < _DARK else ("bright", "a shorter exposure")
        notes.append(_note("exposure", brightness, f"The object is too {word} to show detail; it needs {advice}."))
    if scale <= 1:  # a smaller picture has been shrunk by somebody, which hides blur
        inner = ndimage.binary_erosion(inside, np.ones((7, 7)), border_value=1)  # the outline is always sharp
        value = sharpness(grey, inner)
        if inner.sum() > 400 and value < _MIN_SHARPNESS:
            notes.append(_note("blur", value, "The object looks blurred (or has no texture); hold still and focus."))
    return tuple(notes)


def duplicates(prepared: Sequence[Image.Image]) -> dict[int, Note]:
    """By index, a note on each prepared view that shows nearly the same as an earlier one."""
    notes: dict[int, Note] = {}
    thumbnails = [np.asarray(image.convert("RGB").resize((16, 16), Image.Resampling.BOX)) / 255 for image in prepared]
    for index, thumbnail in enumerate(thumbnails):
        for earlier in range(index):
            difference = float(np.sqrt(np.mean((thumbnail - thumbnails[earlier]) ** 2)))
            if difference < _SAME:
                message = f"Shows nearly the same as view {earlier + 1}; a view from another side would say more."
                notes[index] = _note("duplicate", difference, message)
                break
    return notes


def _note(kind: str, value: float, message: str) -> Note:
    return {"kind": kind, "value": round(float(value), 4), "message": message}
