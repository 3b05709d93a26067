"""Pictures for people: before and after beside the photographs, and the asset relit on a turntable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from os import PathLike

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nvdiffrec.asset import Asset
from nvdiffrec.fit import Fit, FitOptions
from nvdiffrec.hdr import read_hdr
from nvdiffrec.light import LOADED_SIZE, environment_from_hdr, filter_light
from nvdiffrec.losses import on_white
from nvdiffrec.shading import PreparedMaterial, render
from nvdiffrec.views import Views
from trellis.files import replacing
from trellis.renderers.cameras import Cameras, turntable
from trellis.renderers.turntable import write_video

_BRIGHTEST = 30.0  # of the mean; a sun of a few texels would otherwise flicker through the filtered copies
_MEAN_RADIANCE = 0.8  # environments are brought to this brightness


@torch.no_grad()
def photographs(views: Views) -> list[np.ndarray]:
    """The views on white, N images [H, W, 3] uint8."""
    return [_bytes(on_white(views.linear(index))) for index in range(len(views))]


@torch.no_grad()
def renders(
    asset: Asset, cameras: Cameras, turned: bool = False, exposures: Tensor | None = None
) -> list[np.ndarray]:
    """The asset on white as each camera sees it, N images [H, W, 3] uint8.

    Args:
        turned: the light is fixed to the camera (`FitOptions.turntable`).
        exposures: [N] factors.
    """
    fit = Fit(asset, cameras, FitOptions(geometry=False, material=False, light=False, turntable=turned))
    if exposures is not None:
        fit.parameters["exposures"] = exposures.log()
    prepared = fit.prepared()
    return [_bytes(on_white(fit.image(index, prepared))) for index in range(len(cameras))]


def sheet(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Pictures of any sizes as one, a row below the other, each at the upper left of its cell, on white."""
    height = max(image.shape[0] for row in rows for image in row)
    width = max(image.shape[1] for row in rows for image in row)
    columns = max(len(row) for row in rows)
    page = np.full((len(rows) * height, columns * width, 3), 255, dtype=np.uint8)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            page[i * height : i * height + image.shape[0], j * width : j * width + image.shape[1]] = image
    return page


def comparison(
    views: Views, states: Sequence[tuple[Asset, Cameras]], longest_side: int = 256, turned: bool = False
) -> np.ndarray:
    """A sheet with a column per view: the photograph on white, and below it each state of the asset.

    Args:
        states: for instance the input and the result of `refine`, each with its cameras for `views`.
        turned: see `renders`.
    """
    rows = [photographs(views.scaled(longest_side))]
    for asset, cameras in states:
        rows.append(renders(asset, views.with_cameras(cameras).scaled(longest_side).cameras, turned))
    return sheet(rows)


def write_picture(file: str | PathLike[str], pixels: np.ndarray) -> None:
    """Write [H, W, 3] uint8 as PNG; the file appears complete or not at all."""
    with replacing(file) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")


def load_environment(path: str | PathLike[str]) -> Tensor:
    """An HDR file as an environment [3, 32, 64] of a fixed mean brightness, its sun dimmed to what filters well."""
    environment = environment_from_hdr(read_hdr(path), LOADED_SIZE)
    environment = environment / environment.mean().clamp(min=1e-6)
    environment = environment.clamp(max=_BRIGHTEST)
    return environment * (_MEAN_RADIANCE / environment.mean())


@torch.no_grad()
def relit_frames(
    asset: Asset, environment: Tensor, cameras: Cameras | None = None, background: float = 1.0
) -> Iterator[np.ndarray]:
    """The asset under another environment [3, H, 2H], a frame [H, W, 3] uint8 per camera (default: the turntable).

    Wherever it lies and however large it is, the asset is first brought into [-0.5, 0.5]^3.
    """
    cameras = turntable() if cameras is None else cameras
    asset = asset.with_vertices(_in_unit_cube(asset.geometry.vertices))
    material, light = PreparedMaterial.of(asset.material), filter_light(environment)
    for index in range(len(cameras)):
        size = cameras.height_width(index)
        image = render(asset.geometry, material, light, cameras.extrinsics[index], cameras.intrinsics[index], size)
        yield _bytes(on_white(image) - (1 - background) * (1 - image[..., 3:].clamp(0, 1)))


def write_relit_turntable(
    file: str | PathLike[str], asset: Asset, environment_file: str | PathLike[str], cameras: Cameras | None = None
) -> None:
    """Write an MP4 of the asset turning under an HDR file."""
    write_video(file, list(relit_frames(asset, load_environment(environment_file), cameras)))


def _in_unit_cube(vertices: Tensor) -> Tensor:
    low, high = vertices.amin(0), vertices.amax(0)
    return (vertices - (low + high) / 2) / (high - low).max().clamp(min=1e-9)


def _bytes(image: Tensor) -> np.ndarray:
    return (image.clamp(0, 1).numpy() * 255 + 0.5).astype(np.uint8)
