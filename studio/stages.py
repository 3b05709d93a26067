"""The stages of a reconstruction, each a function from what it needs to what it makes.

A stage calls `report(step, of)` before its first step and after every step; what that raises stops the stage there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from studio.inputs import BadViewsError, View
from studio.settings import ReconstructSettings
from trellis.errors import InputError
from trellis.export.clean import clean
from trellis.export.gltf import TexturedMesh
from trellis.export.pipeline import ExportOptions, bake_texture
from trellis.export.simplify import simplify
from trellis.export.surface import Surface, surface_of
from trellis.export.unwrap import Atlas, unwrap
from trellis.modules.sparse import SparseTensor
from trellis.pipelines.background import rembg_available
from trellis.pipelines.conditioning import Conditions
from trellis.pipelines.image_preparation import has_usable_alpha
from trellis.pipelines.trellis_vggt_to_3d import TrellisVGGTTo3DPipeline
from trellis.renderers.turntable import write_video
from trellis.representations.gaussian import Gaussian
from trellis.representations.mesh import MeshExtractResult
from trellis.utils.render_utils import render_video

Report = Callable[[int, int], None]


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
    Stage("mesh", "Mesh", "Cleaning, simplifying and unfolding the surface"),
    Stage("bake", "Texture", "Painting the texture"),
    Stage("video", "Video", "Filming the turntable"),
    Stage("write", "Files", "Writing the files"),
)

VIDEO_FRAMES = 120
VIDEO_RESOLUTION = 512  # pixels
VIDEO_BACKGROUND = (0.5, 0.5, 0.5)  # the grey that a picture of normals has where there is nothing


@dataclass(frozen=True, eq=False)
class PreparedView:
    """image: RGBA, square, of the networks' resolution. cut_out_by: "alpha", "rembg" or "grabcut"."""

    name: str
    image: Image.Image
    cut_out_by: str


def prepare(views: Sequence[View], pipeline: TrellisVGGTTo3DPipeline, report: Report) -> list[PreparedView]:
    """Open every view, cut the object out, and centre it. Raises BadViewsError with a sentence per unusable view."""
    report(0, len(views))
    prepared, sentences = [], []
    for number, view in enumerate(views, start=1):
        try:
            image = view.open()
        except InputError as error:
            sentences.append(str(error))  # names the file
        else:
            try:
                method = "alpha" if has_usable_alpha(image) else "rembg" if rembg_available() else "grabcut"
                prepared.append(PreparedView(view.name, pipeline.preprocess_image(image), method))
            except InputError as error:
                sentences.append(f"'{view.name}': {error}")
        report(number, len(views))
    if sentences:
        raise BadViewsError(sentences)
    return prepared


def cameras(prepared: Sequence[PreparedView], pipeline: TrellisVGGTTo3DPipeline, report: Report) -> Conditions:
    """Read all views together: their cameras, and what the two flows need to know of them."""
    return pipeline.get_cond([view.image for view in prepared], _callback(report))


def structure(
    conditions: Conditions, settings: ReconstructSettings, pipeline: TrellisVGGTTo3DPipeline, report: Report
) -> Tensor:
    """Sample the occupied voxels, int32 [N, 4] (0, x, y, z)."""
    params = settings.structure.model_dump()
    return pipeline.sample_sparse_structure(conditions.structure, settings.seed, params, _callback(report))


def latent(
    conditions: Conditions,
    coords: Tensor,
    settings: ReconstructSettings,
    pipeline: TrellisVGGTTo3DPipeline,
    report: Report,
) -> SparseTensor:
    """Sample the structured latent at those voxels."""
    params = settings.latent.model_dump()
    return pipeline.sample_slat(conditions.latent, coords, settings.seed, params, settings.mode, _callback(report))


def decode(slat: SparseTensor, pipeline: TrellisVGGTTo3DPipeline, report: Report) -> tuple[Gaussian, MeshExtractResult]:
    """Decode splats and mesh. Raises InputError if there is no usable surface among them."""
    outputs = pipeline.decode_slat(slat, ("gaussian", "mesh"), _callback(report))
    gaussian, mesh = outputs["gaussian"][0].to("cpu"), outputs["mesh"][0].to("cpu")
    if not mesh.success:
        raise InputError("No surface came out of these views; add views from other sides, or try another seed.")
    return gaussian, mesh


def mesh(decoded: MeshExtractResult, settings: ReconstructSettings, report: Report) -> tuple[Surface, Atlas]:
    """The cleaned surface at full detail, and the simplified one with texture coordinates."""
    options = ExportOptions()
    report(0, 3)
    dense = clean(surface_of(decoded), options.clean)
    report(1, 3)
    low = simplify(dense, settings.simplify, options.max_faces)
    report(2, 3)
    atlas = unwrap(low, settings.texture_size, options.unwrap)
    report(3, 3)
    return dense, atlas


def bake(
    dense: Surface, atlas: Atlas, gaussian: Gaussian, settings: ReconstructSettings, report: Report
) -> TexturedMesh:
    """The simplified surface, painted from the splats."""
    texture = bake_texture(atlas, dense, gaussian, settings.texture_size, ExportOptions(), _callback(report))
    return TexturedMesh(atlas.vertices, atlas.faces, atlas.uvs, atlas.normals, texture)


def video(gaussian: Gaussian, decoded: MeshExtractResult, file: Path, report: Report) -> None:
    """Write the turntable: colours of the splats beside the normals of the mesh."""
    sample: Mapping[str, Any] = {"gaussian": gaussian, "mesh": decoded}
    frames = render_video(sample, VIDEO_RESOLUTION, VIDEO_BACKGROUND, VIDEO_FRAMES, callback=_callback(report))
    write_video(file, frames["color"], frames["normal"])


def _callback(report: Report) -> Callable[[str, int, int], None]:
    """The library's callbacks also name a stage of theirs, which the caller of a stage knows already."""
    return lambda stage, step, of: report(step, of)
