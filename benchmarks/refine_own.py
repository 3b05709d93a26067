"""Bar b: what refining adds to assets and cameras that a checkpoint made itself."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.refine_objects import load_object, photograph
from studio.engine import Engine
from studio.events import RUN
from studio.reconstruct import reconstruct
from studio.refine_job import make_refine_job
from studio.refine_runner import run_refine
from studio.refine_settings import RefineSettings
from trellis.errors import InputError
from trellis.renderers.camera_formats import from_transforms
from trellis.renderers.cameras import Cameras, orbit

GAIN_DB, GAIN_IOU, SHARE = 2.0, 0.03, 0.8  # the bar, and of how many objects it is asked
_SIZE = 512


@dataclass(frozen=True)
class Row:
    """One object. psnr (dB, over the object), iou: (before, after), means of the held-out views. angle: median error of
    the cameras' relative rotations in degrees (before, after). seconds: of refining, wall clock. failure: why not."""

    name: str
    psnr: tuple[float, float] = (math.nan, math.nan)
    iou: tuple[float, float] = (math.nan, math.nan)
    angle: tuple[float, float] = (math.nan, math.nan)
    helped: bool = False
    seconds: float = math.nan
    failure: str = ""

    @property
    def reached(self) -> bool:
        return self.psnr[1] - self.psnr[0] >= GAIN_DB and self.iou[1] - self.iou[0] >= GAIN_IOU

    @property
    def worse(self) -> bool:
        return self.psnr[1] < self.psnr[0] or self.iou[1] < self.iou[0] - 0.005

    def __str__(self) -> str:
        if self.failure:
            return f"{self.name:32s} {self.failure}"
        return (
            f"{self.name:32s} {self.psnr[0]:5.2f} -> {self.psnr[1]:5.2f} dB, IoU {self.iou[0]:.3f} -> {self.iou[1]:.3f}"
            f", cameras {self.angle[0]:4.1f} -> {self.angle[1]:4.1f} degrees, {self.seconds:4.0f} s"
            f"{', reached' if self.reached else ''}{'' if self.helped else ', unchanged'}"
        )


def run_object(
    file: Path, environment: Path, engine: Engine, settings: RefineSettings, views: int, work: Path
) -> Row:
    """Photograph an object, reconstruct it (unless `work` holds that already), and refine the result."""
    folder = work / file.stem
    asset, texture = load_object(file)
    truth = walk_around(views)
    if not (folder / "own" / RUN).is_file():
        _save(photograph(asset, texture, environment, truth), folder / "photos")
        photos = sorted((folder / "photos").glob("*.png"))
        try:
            for _ in reconstruct(photos, engine.defaults, folder / "own", engine.pipeline):
                pass
        except InputError as error:
            return Row(file.stem, failure=f"not reconstructed: {error}")
    try:
        refined = run_refine(make_refine_job(folder / "own", settings, folder / "refined"), engine)
    except InputError as error:
        return Row(file.stem, failure=f"not refined: {error}")
    judges = [view for view in refined.views if view.held_out] or [view for view in refined.views if view.placed]
    placed = [index for index, view in enumerate(refined.views) if view.placed]
    return Row(
        file.stem,
        (_mean(v.psnr_before for v in judges), _mean(v.psnr_after for v in judges)),
        (_mean(v.iou_before for v in judges), _mean(v.iou_after for v in judges)),
        (_turned(_cameras(folder / "own")[placed], truth[placed]), _turned(_cameras(refined.folder), truth[placed])),
        refined.helped,
        refined.seconds,
    )


def summary(rows: list[Row]) -> str:
    """The bar over all objects."""
    done = [row for row in rows if not row.failure]
    if not done:
        return "No object was refined."
    share = sum(row.reached for row in done) / len(rows)
    gains = [row.psnr[1] - row.psnr[0] for row in done], [row.iou[1] - row.iou[0] for row in done]
    return (
        f"{sum(row.reached for row in done)} of {len(rows)} objects gained {GAIN_DB} dB and {GAIN_IOU} of IoU "
        f"({share:.0%}, asked {SHARE:.0%}); median gain {np.median(gains[0]):.2f} dB and {np.median(gains[1]):.3f}; "
        f"{sum(row.worse for row in done)} got worse, {sum(not row.helped for row in done)} came back unchanged, "
        f"{len(rows) - len(done)} failed."
    )


def walk_around(count: int) -> Cameras:
    """As a person takes pictures: once around, from changing heights, the first from the front."""
    k = torch.arange(count)
    elevation = 0.2 + 0.3 * (k % 2) + 0.1 * torch.sin(2.4 * k)
    return orbit(k / count * 2 * math.pi, elevation, radius=2.4, fov=32.0, size=_SIZE)


def _turned(cameras: Cameras, truth: Cameras) -> float:
    """Median angle in degrees between the relative rotations of all pairs of views."""
    first, second = torch.triu_indices(len(truth), len(truth), offset=1)
    relative = [c.rotations[first] @ c.rotations[second].transpose(1, 2) for c in (cameras, truth)]
    product = relative[0].double() @ relative[1].double().transpose(1, 2)
    cosine = (product.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2
    return float(torch.rad2deg(torch.acos(cosine.clamp(-1, 1))).median())


def _cameras(folder: Path) -> Cameras:
    return from_transforms(json.loads((folder / "transforms.json").read_text()))[0]


def _save(views, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, (image, mask) in enumerate(zip(views.images, views.masks, strict=True)):
        pixels = torch.cat([image, mask]).permute(1, 2, 0).numpy()
        Image.fromarray((pixels * 255 + 0.5).astype(np.uint8), "RGBA").save(folder / f"{number:03d}.png")


def _mean(values) -> float:
    return float(np.mean(list(values)))

