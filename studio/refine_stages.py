"""The stages of a refinement, each a function from what it needs to what it makes; see `studio.stages`.

A stage calls `report(step, of, preview, loss, psnr)` before its first step and after every step; what the call raises
stops the stage there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from nvdiffrec import registration
from nvdiffrec.asset import Asset
from nvdiffrec.asset_files import load_asset
from nvdiffrec.finish import finish
from nvdiffrec.fit import FitOptions
from nvdiffrec.free_shape import free_shape
from nvdiffrec.from_scratch import GridSettings
from nvdiffrec.optimise import Progress, RefineResult, refine, score_asset, verdict
from nvdiffrec.optimise import RefineSettings as LoopSettings
from nvdiffrec.registration import Registration
from nvdiffrec.result import quantised
from nvdiffrec.similarity import IDENTITY
from nvdiffrec.view_files import load_views
from nvdiffrec.views import Views, linear_to_srgb
from studio import previews, stages
from studio.events import Cancelled
from studio.inputs import BadViewsError, View
from studio.refine_settings import RefineSettings
from studio.stages import Stage
from trellis.errors import InputError
from trellis.export.gutter import dilate
from trellis.pipelines.image_preparation import cut_out, has_usable_alpha
from trellis.pipelines.trellis_vggt_to_3d import TrellisVGGTTo3DPipeline
from trellis.renderers.cameras import Cameras

STAGES = (
    Stage("open", "Photos", "Opening the asset and the photos"),
    Stage("register", "Cameras", "Placing the cameras around the asset"),
    Stage("optimise", "Refine", "Making the asset agree with the photos"),
    Stage("bake", "Texture", "Finishing the textures"),
    Stage("report", "Check", "Comparing before and after"),
    Stage("relight", "Lights", "Filming the asset under other lights"),
    Stage("write", "Files", "Writing the files"),
)

_TRUSTED_IOU = 0.75  # silhouettes that agree this well as they are need no search for the cameras' frame
_CLEARLY = 0.15  # more of it speaks for another frame than the one that cameras came in
_CLOSE_IOU = 0.87  # silhouettes that agree less have parts missing or added, which moving vertices cannot mend
_SOLID = 0.8  # of the alpha; prepared views are black below it
_EVALUATIONS = 10  # of a whole refinement: scores, previews and saved states
_GRID_STEPS = 0.4  # of the steps, before those of the mesh
_STEPS_OF_FIT = 0.6  # of those, in each of the four fits where cameras are estimates


class Report(Protocol):
    """Takes a stage's progress; raises to stop it."""

    def __call__(
        self, step: int, of: int, preview: bytes | None = None, loss: float | None = None, psnr: float | None = None
    ) -> None: ...


def open_asset(file: Path, settings: RefineSettings) -> Asset:
    """The asset with textures of the size asked for."""
    return load_asset(file, settings.texture_size)


def open_views(
    photos: tuple[View, ...],
    cameras: Path | None,
    settings: RefineSettings,
    pipeline: TrellisVGGTTo3DPipeline,
    report: Report,
) -> Views:
    """The photographs, cut out, with their cameras: from a file, or as the networks estimate them.

    Raises BadViewsError with a sentence per photograph that cannot be used, InputError if cameras and photographs do
    not belong together.
    """
    report(0, len(photos) + 1)
    if cameras is None:
        prepared = stages.prepare(photos, pipeline, lambda step, of, preview=None: report(step, of + 1, preview))
        found = stages.cameras(prepared, pipeline, lambda step, of, preview=None: None).cameras
        images, masks = zip(*(_planes(_shrunk(view.sharpest, settings)) for view in prepared), strict=True)
        sized = Cameras.cat([camera.scaled(*image.shape[1:]) for camera, image in zip(found, images, strict=True)])
        views = Views(sized, images, masks, [view.name for view in prepared], predicted=True)
    elif photos:
        views = _matched(photos, cameras, settings, report)
    else:
        views = load_views(cameras)
    if len(views) < 2:
        raise InputError("One view cannot tell shape from picture; at least two views are needed to refine.")
    views = views.scaled(settings.resolution)
    sheet = [Image.fromarray(_bytes(torch.cat([image, mask])), "RGBA")
             for image, mask in zip(views.images, views.masks, strict=True)]  # fmt: skip
    report(len(photos) + 1, len(photos) + 1, previews.contact_sheet(sheet))
    return views


def register(views: Views, asset: Asset, settings: RefineSettings, report: Report) -> Registration:
    """Bring the cameras into the asset's frame, leaving out and naming those that cannot be placed."""
    report(0, 1)
    if trusts(views, settings):
        try:
            return registration.judge(views, asset)
        except InputError as error:
            raise InputError(
                "The asset does not look as the photos do from the cameras that were stated for them; with "
                "registration 'search' it is found out where they stand."
            ) from error
    if settings.registration == "keep":
        return registration.judge(views, asset)
    if settings.registration == "auto":
        if not views.predicted and float(np.median(registration.agreement(views, asset))) >= _TRUSTED_IOU:
            return registration.judge(views, asset)
        near = None
        with suppress(InputError):  # nothing fits near where they are
            near = registration.register(views, asset, IDENTITY, search=False, callback=report)
            if _usual_iou(near) >= _TRUSTED_IOU:
                return near
        try:
            found = registration.register(views, asset, None, settings.seed, callback=report)
        except InputError:
            if near is None:
                raise
            return near
        # Of hundreds of turns some fit a shape that is itself wrong a little better, by chance.
        return found if near is None or _usual_iou(found) >= _usual_iou(near) + _CLEARLY else near
    return registration.register(views, asset, None, settings.seed, callback=report)


def trusts(views: Views, settings: RefineSettings) -> bool:
    """Whether the cameras are taken as they are: all of them were stated, around the asset."""
    return settings.registration == "auto" and views.registered and not views.predicted


def _usual_iou(found: Registration) -> float:
    return float(np.median([placement.iou for placement in found.placements]))


def optimise(
    placed: Registration,
    asset: Asset,
    settings: RefineSettings,
    report: Report,
    cancelled: Callable[[], bool] = lambda: False,
    state_file: Path | None = None,
) -> tuple[RefineResult, Asset]:
    """Fit asset and cameras to the placed views. If `cancelled` says so, the best state so far is the result; before
    there is one, it raises Cancelled.

    `state_file` is where the running state is kept; one that exists is gone on from.

    Returns the result, and the asset that the loop started from (another than `asset` if its topology was free).
    """
    report(0, settings.steps)
    views = placed.views
    start, cameras, done = asset, views.cameras, 0
    if settings.geometry == "volume" or (settings.geometry == "auto" and _is_far_off(views, asset)):
        done = round(_GRID_STEPS * settings.steps)
        start, cameras = _from_volume(placed, asset, settings, done, report, cancelled)
    moved = views.with_cameras(cameras)
    fit = FitOptions(
        geometry=settings.geometry != "fixed",
        material=settings.material,
        light=settings.light,
        cameras=settings.correct_cameras,
        exposure=settings.correct_exposure,
        normal_map=settings.normal_map,
        turntable=settings.turntable,
    )
    steps = settings.steps - done
    loop = LoopSettings(steps, settings.resolution, evaluate_every=max(1, steps // _EVALUATIONS), seed=settings.seed,
                        fit=fit)  # fmt: skip
    stop = threading.Event()
    for item in refine(moved, start, loop, baseline=(asset, views.cameras), cancel=stop, state_file=state_file):
        if isinstance(item, Progress):
            preview = None if item.preview is None else previews.array(_bytes(item.preview.permute(2, 0, 1)))
            if cancelled():
                stop.set()
            else:
                report(done + item.step, settings.steps, preview, item.loss, item.score)
    return item, start


def bake(
    result: RefineResult, start: Asset, asset: Asset, views: Views, settings: RefineSettings, report: Report
) -> RefineResult:
    """Complete the textures, and judge what comes of it once more, as it will be written."""
    report(0, 1)
    if result.helped and settings.material:
        finished = quantised(finish(result.asset, start))
        small = views.with_cameras(result.cameras)
        after = score_asset(finished, small, settings.turntable, result.exposures)
        helped, numbers = verdict(result.before, after)
        if helped:
            message = f"Refining helped: {numbers}."
            result = replace(result, asset=finished, after=after, message=message)
        else:
            message = f"Refining did not help ({numbers}); the asset and its cameras are unchanged."
            result = replace(result, asset=asset, cameras=views.cameras, helped=False, after=result.before,
                             message=message, exposures=None)  # fmt: skip
    texture = linear_to_srgb(result.asset.material.base_color)
    report(1, 1, previews.array(_bytes(texture)))
    return result


def _is_far_off(views: Views, asset: Asset) -> bool:
    return float(np.median(registration.agreement(views, asset))) < _CLOSE_IOU


def _from_volume(
    placed: Registration, asset: Asset, settings: RefineSettings, steps: int, report: Report,
    cancelled: Callable[[], bool],
) -> tuple[Asset, Cameras]:  # fmt: skip
    """A start whose topology was free, and the cameras that go with it.

    Raises Cancelled if `cancelled` says so, for a grid is no asset yet.
    """
    views = placed.views
    if settings.correct_cameras is not None:
        views = replace(views, predicted=settings.correct_cameras)

    def follow(share: float, loss: float | None) -> None:
        report(round(share * steps), settings.steps, loss=loss)
        if cancelled():
            raise Cancelled

    each = max(1, round(_STEPS_OF_FIT * steps)) if views.predicted else steps
    grid = GridSettings(steps=each, resolution=min(settings.resolution, GridSettings.resolution))
    start, moved = free_shape(views, asset, grid, together=placed.together, seed=settings.seed,
                              texture_size=settings.texture_size, callback=follow)  # fmt: skip
    return start, moved.cameras


def _matched(photos: tuple[View, ...], cameras: Path, settings: RefineSettings, report: Report) -> Views:
    """Photographs with the cameras that a file states for their names."""
    pictures: dict[str, Any] = {}
    sentences = []
    for number, view in enumerate(photos, start=1):
        key = view.source.name if isinstance(view.source, Path) else view.name
        if key in pictures:
            raise InputError(f"Two photos are called '{key}'; their cameras could not be told apart.")
        try:
            image = _shrunk(view.open(), settings)
            pictures[key] = _planes(image if has_usable_alpha(image) else cut_out(image))
        except InputError as error:
            sentences.append(str(error) if view.name in str(error) else f"'{view.name}': {error}")
        report(number, len(photos) + 1)
    if sentences:
        raise BadViewsError(sentences)
    views = load_views(cameras, pictures=pictures)
    return replace(views, names=[view.name for view in photos])


def _shrunk(image: Image.Image, settings: RefineSettings) -> Image.Image:
    """A copy with at most twice the pixels that are compared: 32 photographs at full size would fill gigabytes."""
    image = image.copy()
    image.thumbnail((2 * settings.resolution,) * 2)
    return image


def _planes(image: Image.Image) -> tuple[torch.Tensor, torch.Tensor]:
    """Colour [3, H, W] and alpha [1, H, W] in [0, 1] of an RGBA picture.

    Thin pixels take the colour of the nearest solid one: theirs has the background in it, or has been blackened.
    """
    pixels = np.array(image.convert("RGBA"), dtype=np.float32) / 255
    pixels[..., :3] = dilate(pixels[..., :3], pixels[..., 3] >= _SOLID)
    planes = torch.from_numpy(pixels).permute(2, 0, 1)
    return planes[:3].contiguous(), planes[3:].contiguous()


def _bytes(image: torch.Tensor) -> np.ndarray:
    """[C, H, W] in [0, 1] as [H, W, C] uint8."""
    return (image.clamp(0, 1).permute(1, 2, 0).numpy() * 255 + 0.5).astype(np.uint8)
