"""Reading assets from GLB files: geometry, base colour, roughness, metallic and normal map."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn.functional import interpolate

from nvdiffrec.asset import Asset, check_texture_size, plain_material, welded
from nvdiffrec.losses import on_white
from nvdiffrec.material import Material
from nvdiffrec.shading import PreparedMaterial, render
from nvdiffrec.views import srgb_to_linear
from trellis.errors import InputError
from trellis.export.bake import bake_views
from trellis.export.frame import from_gltf_frame
from trellis.export.simplify import simplify
from trellis.export.surface import Surface
from trellis.export.texels import paint, texels_of
from trellis.export.unwrap import unwrap
from trellis.export.views import View
from trellis.renderers.cameras import Cameras, hammersley

MAX_BYTES = 256 * 2**20
MAX_FACES = 20_000  # more are simplified: a photograph of 512 pixels shows no more of them
_MOST_FACES = 5_000_000  # more than this is not read at all
_PICTURES, _PICTURE_SIZE = 24, 512  # of a dense mesh, from which its simplified copy is painted


def load_asset(path: str | PathLike[str], texture_size: int = 512, max_faces: int = MAX_FACES) -> Asset:
    """An asset from a GLB file in the glTF frame; several meshes become one.

    A mesh without texture coordinates is unwrapped and takes its vertex colours or its one colour. One with more than
    `max_faces` triangles is simplified, unwrapped anew and painted from pictures of itself; it keeps its base colour,
    and roughness and metallic as their means.

    Raises:
        InputError: the file is too large, cannot be read, or holds no triangles or values that are not finite.
    """
    import trimesh

    check_texture_size(texture_size)
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"'{path.name}' is larger than {MAX_BYTES // 2**20} MB.")
        # As a stream, so that the file cannot refer to others beside it.
        with path.open("rb") as stream:
            mesh = trimesh.load(stream, file_type="glb", force="mesh", process=False)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"'{path.name}' cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # parsers of foreign files raise whatever they please
        raise InputError(f"'{path.name}' cannot be read as a binary glTF (.glb) mesh.") from error
    if len(getattr(mesh, "faces", ())) == 0:
        raise InputError(f"'{path.name}' holds no triangles.")
    if len(mesh.faces) > _MOST_FACES:
        raise InputError(f"'{path.name}' has {len(mesh.faces)} triangles; up to {_MOST_FACES} are read.")
    vertices = from_gltf_frame(np.asarray(mesh.vertices, np.float32))
    if not np.isfinite(vertices).all():
        raise InputError(f"'{path.name}' has vertices that are not finite.")
    faces, uvs = np.asarray(mesh.faces), getattr(mesh.visual, "uv", None)
    if uvs is None or not np.isfinite(uvs).all():
        return _unwrapped(Surface(vertices, faces.astype(np.int32)), mesh.visual, texture_size, max_faces)
    asset = Asset(welded(vertices, faces, np.asarray(uvs, np.float32)), _material(mesh.visual.material, texture_size))
    if len(asset.geometry.faces) == 0:
        raise InputError(f"'{path.name}' holds only triangles without area.")
    return slimmed(asset, max_faces, texture_size) if len(asset.geometry.faces) > max_faces else asset


@torch.no_grad()
def slimmed(asset: Asset, max_faces: int, texture_size: int) -> Asset:
    """A copy with at most `max_faces` triangles and texture coordinates of its own, painted from pictures of it."""
    geometry = asset.geometry
    low, high = geometry.vertices.amin(0), geometry.vertices.amax(0)
    center, reach = (low + high) / 2, float((high - low).norm()) / 2
    cameras = hammersley(_PICTURES, radius=3.2 * reach, fov=40.0, size=_PICTURE_SIZE)
    extrinsics = cameras.extrinsics.clone()
    extrinsics[:, :3, 3] -= cameras.rotations @ center
    cameras = Cameras(extrinsics, cameras.intrinsics, cameras.image_size)
    material = PreparedMaterial.of(asset.material)
    atlas = unwrap(simplify(asset.surface, 0.0, max_faces), texture_size)

    def pictures():
        for index in range(len(cameras)):
            image = render(geometry, material, None, extrinsics[index], cameras.intrinsics[index],
                           cameras.height_width(index))  # fmt: skip
            yield View(on_white(image), image[..., 3])

    texels = texels_of(atlas, texture_size)
    colors, _ = bake_views(atlas, texels, cameras, pictures())
    means = asset.material.orm.flatten(1).mean(1)
    painted = srgb_to_linear(torch.from_numpy(paint(texels, colors)).permute(2, 0, 1).contiguous())
    orm = means[:, None, None].expand(2, texture_size, texture_size).clone()
    return Asset(welded(atlas.vertices, atlas.faces, atlas.uvs), Material(painted, orm), asset.environment)


def _unwrapped(surface: Surface, visual: Any, texture_size: int, max_faces: int) -> Asset:
    """A mesh without texture coordinates, in its vertex colours or its one colour."""
    atlas = unwrap(simplify(surface, 0.0, max_faces), texture_size)
    texels = texels_of(atlas, texture_size)
    if visual.kind == "vertex":
        nearest = cKDTree(surface.vertices).query(texels.positions)[1]
        colors = np.asarray(visual.vertex_colors)[nearest, :3].astype(np.float32) / 255
    else:
        main = np.asarray(getattr(visual, "main_color", (180, 180, 180, 255)), np.float32)[:3] / 255
        colors = np.broadcast_to(main, (len(texels), 3)).copy()
    color = srgb_to_linear(torch.from_numpy(paint(texels, colors)).permute(2, 0, 1).contiguous())
    return Asset(welded(atlas.vertices, atlas.faces, atlas.uvs), plain_material(color))


def _material(source: Any, size: int) -> Material:
    """Maps times factors, as glTF defines them; a map that is absent counts as one."""
    base = _map(getattr(source, "baseColorTexture", None) or getattr(source, "image", None), size)
    base = torch.ones(3, size, size) if base is None else srgb_to_linear(base)
    factor = getattr(source, "baseColorFactor", None)
    if factor is not None:
        factor = np.asarray(factor)
        tint = factor[:3].astype(np.float32) / (255 if np.issubdtype(factor.dtype, np.integer) else 1)
        base = base * torch.from_numpy(tint)[:, None, None]
    packed = _map(getattr(source, "metallicRoughnessTexture", None), size)
    channels = torch.ones(2, size, size) if packed is None else packed[1:]  # green roughness, blue metallic
    factors = [getattr(source, name, None) for name in ("roughnessFactor", "metallicFactor")]
    factors = torch.tensor([1.0 if value is None else float(value) for value in factors])
    normal = _map(getattr(source, "normalTexture", None), size)
    return Material(
        base.clamp(0, 1), (channels * factors[:, None, None]).clamp(0, 1), None if normal is None else 2 * normal - 1
    )


def _map(picture: Image.Image | None, size: int) -> Tensor | None:
    """A picture as [3, size, size] float32 in [0, 1]."""
    if picture is None:
        return None
    pixels = torch.from_numpy(np.array(picture.convert("RGB"), dtype=np.float32) / 255).permute(2, 0, 1)
    return interpolate(pixels[None], (size, size), mode="bilinear", align_corners=False, antialias=True)[0].clamp(0, 1)
