"""The stages of a reconstruction, each a function from what it needs to what it makes.

A stage calls `report(step, of, preview)` before its first step and after every step, `preview` being a small JPEG or
None; what the call raises stops the stage there. Inputs may lie on any device. Stages keep nothing between calls.
`chunked` says that memory is short: work that is usually done in one piece is done piece by piece, with the same result
up to rounding.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from studio import previews, quality
from studio.inputs import BadViewsError, View
from studio.settings import ReconstructSettings
from trellis.errors import InputError
from trellis.export.clean import CleanOptions, clean
from trellis.export.distance import surface_distance
from trellis.export.gltf import TexturedMesh
from trellis.export.photographs import Photographs
from trellis.export.pipeline import ExportOptions, simplified, textured
from trellis.export.splat_colors import painted_splats
from trellis.export.splat_places import laid_on_surface
from trellis.export.surface import Surface, surface_of
from trellis.modules.sparse import SparseTensor
from trellis.pipelines.background import rembg_available
from trellis.pipelines.conditioning import Conditions
from trellis.pipelines.image_files import open_image
from trellis.pipelines.image_preparation import SHARP_SIDE, cut_out, has_usable_alpha, sharp_view, square_crop
from trellis.pipelines.trellis_vggt_to_3d import TrellisVGGTTo3DPipeline
from trellis.renderers.cameras import Cameras, orbit, turntable
from trellis.renderers.turntable import encode_video, gaussian_frames, mesh_frames
from trellis.representations.gaussian import Gaussian
from trellis.representations.mesh import MeshExtractResult


class Report(Protocol):
    """Takes a stage's progress; raises to stop it."""

    def __call__(self, step: int, of: int, preview: bytes | None = None) -> None: ...


@dataclass(frozen=True)
class Stage:
    """name: the key in run.json. title: a word or two for a list. message: what is going on, for a person."""

    name: str
    title: str
    message: str


STAGES = (
    Stage("prepare", "Photos", "Cutting the object out of its background"),
    Stage("cameras", "Cameras", "Finding out where each photo was taken from"),
    Stage("structure", "Shape", "Working out the rough shape"),
    Stage("latent", "Detail", "Working out colour and detail"),
    Stage("decode", "Decode", "Turning the result into splats and a surface"),
    Stage("paint", "Splats", "Colouring the splats"),
    Stage("mesh", "Mesh", "Cleaning and simplifying the surface"),
    Stage("bake", "Texture", "Unfolding the surface and painting its texture"),
    Stage("video", "Video", "Filming the turntable"),
    Stage("report", "Check", "Comparing the result with the photos"),
    Stage("write", "Files", "Writing the files"),
)

CHUNK = 2  # views that DINOv2 reads at once when memory is short
VIDEO_BACKGROUND = (0.5, 0.5, 0.5)  # the grey that a picture of normals has where there is nothing


@dataclass(frozen=True, eq=False)
class PreparedView:
    """image: RGBA, square, of the networks' resolution. cut_out_by: "alpha", "rembg" or "grabcut".

    sharp: the same square with more of the photograph's pixels; None if there are no more.
    notes: what may be wrong with the photograph, see `studio.quality`.
    crop: left, top, width and height of what the view shows of the photograph, in parts of its width and height; a
        margin may lie outside. None if that is not known.
    """

    name: str
    image: Image.Image
    cut_out_by: str
    notes: tuple[quality.Note, ...] = ()
    crop: tuple[float, float, float, float] | None = None
    sharp: Image.Image | None = None

    @property
    def sharpest(self) -> Image.Image:
        """The view with as many pixels as there are."""
        return self.sharp or self.image


@dataclass(frozen=True, eq=False)
class Surfaces:
    """dense: cleaned, at full detail. low: simplified. hausdorff: the greatest distance between them, object units."""

    dense: Surface
    low: Surface
    hausdorff: float


def _anew(_: View, make: Callable[[], PreparedView]) -> PreparedView:
    return make()


def prepare(
    views: Sequence[View],
    pipeline: TrellisVGGTTo3DPipeline,
    report: Report,
    recall: Callable[[View, Callable[[], PreparedView]], PreparedView] = _anew,
) -> list[PreparedView]:
    """Open every view, cut the object out, and centre it.

    Args:
        recall: gives a view as it was prepared before, or calls what it is given to prepare it.

    Raises BadViewsError with a sentence per unusable view.
    """
    report(0, len(views))
    prepared, sentences = [], []
    for number, view in enumerate(views, start=1):
        try:
            prepared.append(recall(view, partial(_prepared, view, pipeline)))
        except InputError as error:
            sentences.append(str(error))
        report(number, len(views))
    if sentences:
        raise BadViewsError(sentences)
    for index, note in quality.duplicates([view.image for view in prepared]).items():
        prepared[index] = replace(prepared[index], notes=(*prepared[index].notes, note))
    report(len(views), len(views), previews.contact_sheet([view.image for view in prepared]))
    return prepared


def cut_out_method(image: Image.Image) -> str:
    """How the object will be told from its background: the name that run.json gives it."""
    return "alpha" if has_usable_alpha(image) else "rembg" if rembg_available() else "grabcut"


def _prepared(view: View, pipeline: TrellisVGGTTo3DPipeline) -> PreparedView:
    """One view, opened and prepared. Raises InputError with a sentence that names it."""
    image = view.open()
    try:
        return _cut_out(view, image, pipeline)
    except InputError as error:
        raise InputError(f"'{view.name}': {error}") from error


def _cut_out(view: View, image: Image.Image, pipeline: TrellisVGGTTo3DPipeline) -> PreparedView:
    if view.earlier is not None:
        if image.size != (pipeline.image_resolution,) * 2:
            raise InputError(f"A prepared view must have {pipeline.image_resolution} pixels a side, not {image.size}.")
        return PreparedView(view.name, image.convert("RGBA"), view.earlier.cut_out_by, view.earlier.notes,
                            view.earlier.crop, _opened_sharp(view))  # fmt: skip
    method = cut_out_method(image)
    cut = cut_out(image)
    prepared = pipeline.preprocess_image(cut)
    sharp = sharp_view(image, cut, pipeline.image_resolution)
    return PreparedView(view.name, prepared, method, quality.notes_on(cut), _crop_of(cut), sharp)


def _opened_sharp(view: View) -> Image.Image | None:
    """What an earlier run kept of a view beyond the networks' resolution."""
    if view.sharp is None:
        return None
    image = open_image(view.sharp).convert("RGBA")
    if image.width != image.height or image.width > SHARP_SIDE:
        raise InputError(f"A prepared view must be square, of at most {SHARP_SIDE} pixels a side, not {image.size}.")
    return image


def _crop_of(image: Image.Image) -> tuple[float, float, float, float] | None:
    box = square_crop(image)
    if box is None:
        return None
    (across, down), (width, height) = box.margins, image.size
    return ((box.left - across) / width, (box.top - down) / height, box.side / width, box.side / height)


def cameras(
    prepared: Sequence[PreparedView], pipeline: TrellisVGGTTo3DPipeline, report: Report, chunked: bool = False
) -> Conditions:
    """Read all views together: their cameras, and what the two flows need to know of them."""
    at_once = CHUNK if chunked else None
    conditions = pipeline.get_cond([view.image for view in prepared], _callback(report), at_once)
    return replace(conditions, cameras=conditions.cameras.to("cpu"))


def structure(
    conditions: Conditions,
    settings: ReconstructSettings,
    pipeline: TrellisVGGTTo3DPipeline,
    report: Report,
    chunked: bool = False,
    prepared: Sequence[PreparedView] = (),
) -> Tensor:
    """Sample the occupied voxels, int32 [N, 4] (0, x, y, z). `prepared` is needed to choose the best of several."""
    params, candidates = settings.structure.model_dump(), settings.structure_candidates
    outlines = pipeline.outlines([view.image for view in prepared], conditions.cameras)
    coords = pipeline.sample_sparse_structure(
        conditions.structure, settings.seed_of_structure, params, _callback(report), False if chunked else None,
        outlines, candidates,
    )  # fmt: skip
    steps = settings.structure.steps * candidates
    report(steps, steps, previews.voxels(coords, pipeline.models["slat_flow_model"].resolution))
    return coords


def latent(
    conditions: Conditions,
    coords: Tensor,
    settings: ReconstructSettings,
    pipeline: TrellisVGGTTo3DPipeline,
    report: Report,
    chunked: bool = False,
) -> SparseTensor:
    """Sample the structured latent at those voxels."""
    params = settings.latent.model_dump()
    return pipeline.sample_slat(
        conditions.latent, coords, settings.seed_of_latent, params, settings.mode, _callback(report),
        False if chunked else None,
    )  # fmt: skip


def decode(slat: SparseTensor, pipeline: TrellisVGGTTo3DPipeline, report: Report) -> tuple[Gaussian, MeshExtractResult]:
    """Decode splats and mesh. Raises InputError if there is no usable surface among them."""
    outputs = pipeline.decode_slat(slat.to(pipeline.device), ("gaussian", "mesh"), _callback(report))
    gaussian, mesh = outputs["gaussian"][0].to("cpu"), outputs["mesh"][0].to("cpu")
    if not mesh.success:
        raise InputError("No surface came out of these views; add views from other sides, or try another seed.")
    report(2, 2, _portrait(gaussian))
    return gaussian, mesh


def _portrait(gaussian: Gaussian) -> bytes:
    camera = orbit(torch.tensor([0.5]), torch.tensor([0.35]), 2.0, 40.0, previews.SIDE)
    return previews.array(gaussian_frames(gaussian, camera, (0.93, 0.93, 0.92))[0])


def paint(
    gaussian: Gaussian,
    decoded: MeshExtractResult,
    report: Report,
    prepared: Sequence[PreparedView] = (),
    cameras: Cameras | None = None,
) -> Gaussian:
    """The splats; if `cameras` are given, laid on the surface, with the views' colours where those see it well."""
    total = 1 if cameras is None else len(cameras)
    report(0, total)
    if cameras is None:
        report(1, total)
        return gaussian
    photographs = Photographs.of([view.sharpest for view in prepared], cameras)
    laid = laid_on_surface(gaussian, decoded)
    painted = painted_splats(laid, decoded, photographs, lambda done: report(done, total))
    report(total, total, _portrait(painted))
    return painted


def mesh(
    decoded: MeshExtractResult, settings: ReconstructSettings, report: Report, device: torch.device | str = "cpu"
) -> Surfaces:
    """The surface before and after simplification. `device` draws the pictures that tell what is hidden."""
    options = ExportOptions(clean=CleanOptions(watertight=settings.watertight))
    report(0, 3)
    dense = clean(surface_of(decoded), options.clean, device)
    report(1, 3)
    low = simplified(dense, settings.simplify, options, device)
    report(2, 3)
    apart = surface_distance(dense, low)
    report(3, 3)
    return Surfaces(dense, low, apart.hausdorff)


def bake(
    surfaces: Surfaces,
    gaussian: Gaussian,
    settings: ReconstructSettings,
    report: Report,
    prepared: Sequence[PreparedView] = (),
    cameras: Cameras | None = None,
    device: torch.device | str = "cpu",
) -> TexturedMesh:
    """The simplified surface, unfolded and painted from the splats, and from the views if their `cameras` are given.

    `device` draws the splats and compares them with the surface.
    """
    options = ExportOptions()
    photographs = None if cameras is None else Photographs.of([view.sharpest for view in prepared], cameras)
    total = 1 + options.num_views + (0 if cameras is None else len(cameras))

    def painted(stage: str, step: int, of: int) -> None:
        report(step if stage == "unwrap" else step + 1, total)

    asset = textured(surfaces.low, surfaces.dense, gaussian, settings.texture_size, options, painted, photographs,
                     device)  # fmt: skip
    report(total, total, previews.array(asset.texture))
    return asset


def video(gaussian: Gaussian, decoded: MeshExtractResult, settings: ReconstructSettings, report: Report) -> bytes:
    """The turntable as MP4: colours of the splats beside the normals of the mesh. Empty if no frames are asked for.

    Raises EncoderError if ffmpeg is missing or failed.
    """
    if not settings.video_frames:
        return b""
    places = turntable(settings.video_frames, size=settings.video_size)
    uncolored = replace(decoded, vertex_attrs=None)

    def frames() -> Iterator[np.ndarray]:
        for index in range(len(places)):
            report(index, len(places))
            place = places[index : index + 1]
            color = gaussian_frames(gaussian, place, VIDEO_BACKGROUND)[0]
            yield np.concatenate([color, mesh_frames(uncolored, place)["normal"][0]], axis=1)

    film = video_bytes(frames())
    report(len(places), len(places))
    return film


def video_bytes(frames: Iterable[np.ndarray]) -> bytes:
    """An MP4 of frames [H, W, 3] uint8 of even height and width. Raises EncoderError."""
    with tempfile.TemporaryDirectory(prefix="reconstudio-video-") as folder:
        file = Path(folder) / "video.mp4"
        encode_video(file, frames)
        return file.read_bytes()


def _callback(report: Report) -> Callable[[str, int, int], None]:
    """The library's callbacks also name a stage of theirs, which the caller of a stage knows already."""
    return lambda stage, step, of: report(step, of)
