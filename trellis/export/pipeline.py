"""From a decoded mesh and its splats to a textured asset, in steps that report and can be stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from trellis.errors import InputError
from trellis.export.bake import bake_views
from trellis.export.clean import CleanOptions, clean
from trellis.export.gltf import TexturedMesh
from trellis.export.gutter import dilate
from trellis.export.photographs import Photographs, blend_photographs, calm_normals
from trellis.export.simplify import simplify as simplify_surface
from trellis.export.solid import make_watertight
from trellis.export.solve import TextureSystem
from trellis.export.surface import Surface, surface_of
from trellis.export.texels import paint, texels_of
from trellis.export.unwrap import Atlas, UnwrapOptions, unwrap
from trellis.export.views import View, gaussian_views, surface_views, surround
from trellis.renderers.cameras import Cameras
from trellis.representations.gaussian import Gaussian

Progress = Callable[[str, int, int], None]  # (stage, step, of); may raise to cancel

STAGES = ("clean", "simplify", "unwrap", "bake")
_AHEAD = 16_000_000  # pixels of pictures to keep until the texture coordinates are there; 20 bytes each
_LEAST_SIZE = 256  # of a texture that is baked for enlarging: gutters of two texels must remain


@dataclass(frozen=True)
class ExportOptions:
    """Everything `export_mesh` can be told beyond its own arguments.

    Attributes:
        max_faces: bound on the exported triangles whatever the ratio; unwrapping time grows faster than this number.
            None lifts it.
        target_faces: number of triangles to aim at instead of a fraction; None lets the fraction decide.
        num_views: pictures to bake from.
        view_resolution: their side in pixels.
        refine_steps: at most this many conjugate-gradient steps that sharpen the bake, some tens of milliseconds
            each; 0 for none.
        clean: what counts as visible, as a speck, as a hole.
        unwrap: how to cut and pack the charts.
    """

    max_faces: int | None = 10_000
    target_faces: int | None = None
    num_views: int = 48
    view_resolution: int = 512
    refine_steps: int = 24
    clean: CleanOptions = field(default_factory=CleanOptions)
    unwrap: UnwrapOptions = field(default_factory=UnwrapOptions)

    def __post_init__(self) -> None:
        for name in ("num_views", "view_resolution"):
            if getattr(self, name) < 1:
                raise InputError(f"The export option {name} must be at least 1, but is {getattr(self, name)}.")
        if self.refine_steps < 0:
            raise InputError(f"The number of refinement steps cannot be negative, but is {self.refine_steps}.")


def export_mesh(
    mesh: Any,
    gaussian: Gaussian | None = None,
    simplify: float = 0.95,
    texture_size: int = 1024,
    options: ExportOptions | None = None,
    callback: Progress | None = None,
    photographs: Photographs | None = None,
    device: torch.device | str | None = None,
) -> TexturedMesh:
    """Clean, simplify, unwrap and texture a decoded mesh.

    Args:
        mesh: `vertices` [V, 3] and `faces` [F, 3] in the object frame (z up), optionally `vertex_attrs` [V, 3+] whose
            first three channels are sRGB in [0, 1].
        gaussian: splats of the same object, which give the colours. Without them the vertex colours do, and without
            those the texture is a neutral grey.
        simplify: fraction of the triangles to remove, in [0, 1).
        texture_size: side of the square texture in texels, 16 to 8192.
        options: the rest.
        callback: called as (stage, step, of) with a stage of `STAGES`; an exception from it stops the export.
        photographs: pictures with known cameras, which replace the colours where they see the surface well.
        device: where to draw and compare pictures; None for where the mesh is.

    Returns:
        The asset in the object frame; its `.export("x.glb")` writes it in glTF's frame, `.to_trimesh()` converts it.

    Raises:
        InputError: the mesh is empty or broken beyond use, or a number is out of its range.
    """
    options = options or ExportOptions()
    report = callback or _silent
    if device is None:
        device = getattr(mesh.vertices, "device", "cpu") if isinstance(mesh.vertices, torch.Tensor) else "cpu"

    report("clean", 0, 1)
    dense = clean(surface_of(mesh), options.clean, device)
    report("clean", 1, 1)

    report("simplify", 0, 1)
    low = simplified(dense, simplify, options, device)
    report("simplify", 1, 1)

    return textured(low, dense, gaussian, texture_size, options, report, photographs, device)


def simplified(dense: Surface, ratio: float, options: ExportOptions, device: torch.device | str = "cpu") -> Surface:
    """A clean surface with a fraction `ratio` of its triangles removed, or as many as the options aim at."""
    low = simplify_surface(dense, ratio, options.max_faces, options.target_faces, device)
    return make_watertight(low) if options.clean.watertight else low  # collapsing edges may pinch a closed surface


def textured(
    low: Surface,
    dense: Surface,
    gaussian: Gaussian | None,
    texture_size: int,
    options: ExportOptions,
    report: Progress,
    photographs: Photographs | None = None,
    device: torch.device | str = "cpu",
) -> TexturedMesh:
    """Unwrap the simplified surface and paint it as `bake_texture` does.

    While xatlas works, in a process of its own, the pictures are drawn.
    """
    report("unwrap", 0, 1)
    cameras = surround(dense, options.num_views, options.view_resolution)
    views = _views(dense, gaussian, cameras, device)
    with ThreadPoolExecutor(1) as executor:
        unwrapping = executor.submit(unwrap, low, texture_size, options.unwrap)
        views = _drawn_until(unwrapping, views, _AHEAD // options.view_resolution**2)
        atlas = unwrapping.result()
    report("unwrap", 1, 1)
    texture = bake_texture(atlas, cameras, views, texture_size, options, report, photographs, device)
    return TexturedMesh(atlas.vertices, atlas.faces, atlas.uvs, atlas.normals, texture)


def bake_texture(
    atlas: Atlas,
    cameras: Cameras,
    views: Iterator[View],
    texture_size: int,
    options: ExportOptions,
    report: Progress,
    photographs: Photographs | None = None,
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """The base colour [S, S, 3] uint8 sRGB of an atlas, from pictures of the object in the order of the cameras.

    With photographs, those replace it where they see the surface well.
    """
    count = len(cameras)
    total = count + (0 if photographs is None else len(photographs.cameras))
    report("bake", 0, total)
    size = resolved_size(atlas, cameras, texture_size)
    texels = texels_of(atlas, size, device)
    system = TextureSystem(atlas, size, device) if options.refine_steps else None
    colors, _ = bake_views(atlas, texels, cameras, views, lambda done: report("bake", done, total), system, device)
    texture = paint(texels, colors)
    if system is not None:
        texture = system.solve(texture, options.refine_steps, lambda step: report("bake", count, total))
        known = system.touched
        known[texels.rows, texels.columns] = True
        texture = dilate(texture, known)
    texture = enlarged(texture, texture_size)
    if photographs is not None:
        texels = texels_of(atlas, texture_size, device, calm_normals(atlas.surface))
        base = texture[texels.rows, texels.columns]
        blended = blend_photographs(
            atlas.surface, texels, photographs, base, lambda done: report("bake", count + done, total)
        )
        texture = paint(texels, blended.colors)
    report("bake", total, total)
    return (texture * 255 + 0.5).clip(0, 255).astype(np.uint8)


def resolved_size(atlas: Atlas, cameras: Cameras, texture_size: int) -> int:
    """The texture size, halved as long as its texels stay smaller than the pixels of the pictures on the surface.

    Finer texels would only interpolate, which `enlarged` does faster and without the noise of few pixels per texel.
    """
    center, _ = atlas.surface.bounding_sphere()
    distance = np.linalg.norm(cameras.centers.numpy() - center, axis=1).mean()
    pixels_per_unit = float(cameras.intrinsics[:, 0, 0].mean()) / distance
    a, b, c = np.moveaxis(atlas.uvs[atlas.faces].astype(np.float64), 1, 0)
    covered = 0.5 * np.abs((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]).sum()
    textures_per_unit = np.sqrt(covered / max(atlas.surface.face_areas().sum(), 1e-30))
    size = texture_size
    while size // 2 * textures_per_unit >= pixels_per_unit and size // 2 >= _LEAST_SIZE:
        size //= 2
    return size


def enlarged(texture: np.ndarray, size: int) -> np.ndarray:
    """A texture [S, S, 3] at `size` texels a side, interpolated linearly."""
    if len(texture) == size:
        return texture
    image = torch.from_numpy(texture).permute(2, 0, 1)[None]
    image = F.interpolate(image, (size, size), mode="bilinear", align_corners=False)
    return np.ascontiguousarray(image[0].permute(1, 2, 0).numpy())


def _views(dense: Surface, gaussian: Gaussian | None, cameras: Cameras, device: torch.device | str) -> Iterator[View]:
    if gaussian is not None and len(gaussian):
        return gaussian_views(gaussian, cameras, device)
    return surface_views(dense, cameras, device) if dense.colors is not None else iter(())


def _drawn_until(future: Future, views: Iterator[View], limit: int) -> Iterator[View]:
    """The same pictures, some of them, `limit` at most, drawn now while something else is going on."""
    drawn: list[View] = []
    while len(drawn) < limit and not future.done():
        view = next(views, None)
        if view is None:
            break
        drawn.append(view)
    return chain(drawn, views)


def _silent(stage: str, step: int, of: int) -> None:
    del stage, step, of
