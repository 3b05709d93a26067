"""Previews under the names of the original package; the work is done in `trellis.renderers`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from trellis.errors import InputError
from trellis.renderers.cameras import Cameras, hammersley, orbit, turntable
from trellis.renderers.turntable import gaussian_frames, mesh_frames
from trellis.representations.gaussian import Gaussian

Frames = dict[str, list[np.ndarray]]


def render_frames(
    sample: Any,
    cameras: Cameras,
    bg_color: Sequence[float] = (0.0, 0.0, 0.0),
    ssaa: int = 1,
    callback: Callable[[str, int, int], None] | None = None,
) -> Frames:
    """Render a sample from each camera.

    Args:
        sample: a `Gaussian` (gives "color"), a mesh (gives "normal", and "color" if its vertices have colours), or
            the pipeline's result {"gaussian": ..., "mesh": ...}, each one item or a list whose first item is shown:
            then "color" comes from the Gaussians and "normal" from the mesh.
        cameras: where to look from.
        bg_color: behind the colours, in [0, 1].
        ssaa: supersampling of the Gaussians per axis; 4 equals the published previews and takes several times longer.
        callback: called as ("render", done, of); may raise to stop.

    Returns:
        Lists of images [H, W, 3] uint8.

    Raises:
        InputError: the sample is none of these, or its mesh has no faces.
    """
    gaussian, mesh = _parts(sample)
    total = len(cameras) * ((gaussian is not None) + (mesh is not None))

    def count_from(offset: int) -> Callable[[int, int], None] | None:
        return None if callback is None else lambda done, of: callback("render", offset + done, total)

    frames: Frames = {}
    if mesh is not None:
        frames.update(mesh_frames(mesh, cameras, bg_color, count_from(0)))
    if gaussian is not None:
        offset = 0 if mesh is None else len(cameras)
        frames["color"] = gaussian_frames(gaussian, cameras, bg_color, ssaa, count_from(offset))
    return frames


def render_video(
    sample: Any,
    resolution: int = 512,
    bg_color: Sequence[float] = (0.0, 0.0, 0.0),
    num_frames: int = 120,
    r: float = 2.0,
    fov: float = 40.0,
    ssaa: int = 1,
    callback: Callable[[str, int, int], None] | None = None,
) -> Frames:
    """One turn around the sample; see `render_frames`. Write it with `trellis.renderers.turntable.write_video`."""
    return render_frames(sample, turntable(num_frames, r, fov, resolution), bg_color, ssaa, callback)


def render_multiview(sample: Any, resolution: int = 512, nviews: int = 30) -> tuple[Frames, Cameras]:
    """`nviews` pictures from all around at radius 2 and 40 degrees, and their cameras."""
    cameras = hammersley(nviews, size=resolution)
    return render_frames(sample, cameras), cameras


def render_snapshot(
    sample: Any,
    resolution: int = 512,
    bg_color: Sequence[float] = (0.0, 0.0, 0.0),
    offset: tuple[float, float] = (-16 / 180 * math.pi, 20 / 180 * math.pi),
    r: float = 10.0,
    fov: float = 8.0,
) -> Frames:
    """Four pictures a quarter turn apart, seen from `offset` (yaw, pitch in radians) through a long lens."""
    yaw = offset[0] + torch.arange(4) * (math.pi / 2)
    return render_frames(sample, orbit(yaw, torch.full((4,), offset[1]), r, fov, resolution), bg_color)


def _parts(sample: Any) -> tuple[Gaussian | None, Any]:
    """The Gaussian and the mesh in a sample, at least one of them."""
    if isinstance(sample, Mapping):
        gaussian, mesh = _first(sample.get("gaussian")), _first(sample.get("mesh"))
    elif isinstance(sample, Gaussian):
        gaussian, mesh = sample, None
    elif hasattr(sample, "vertices") and hasattr(sample, "faces"):
        gaussian, mesh = None, sample
    else:
        raise InputError(f"Only Gaussians, meshes or a pipeline result can be rendered, not {type(sample).__name__}.")
    if gaussian is None and mesh is None:
        raise InputError("The result holds neither Gaussians nor a mesh, so there is nothing to render.")
    if mesh is not None and len(mesh.faces) == 0:
        if gaussian is None:
            raise InputError("The mesh is empty: no surface was found in the decoded volume.")
        mesh = None
    return gaussian, mesh


def _first(item: Any) -> Any:
    if isinstance(item, (list, tuple)):
        return item[0] if item else None
    return item
