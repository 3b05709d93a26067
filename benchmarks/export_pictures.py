"""Pictures of an export beside what it was made from: `python -m benchmarks.export_pictures OUT OBJECT.glb ...`.

Each textured GLB is made into a decode (dense mesh with an inner wall, splats) and exported. OUT/NAME.png then shows
splats and wires of the decode, and the textured mesh, its charts' borders and its wires, from the front, from behind,
and from near where seams meet; and the texture. Look for seams, speckles, dark or blurred texels, and for back sides of
faces (magenta).
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from benchmarks.export_object import decoded_glb
from trellis.export import ExportOptions, TexturedMesh, export_mesh, mesh_health
from trellis.export.surface import Surface, surface_of
from trellis.export.topology import EdgeTable, position_ids
from trellis.export.views import Hit, Looker, gaussian_views
from trellis.renderers.cameras import Cameras, orbit
from trellis.representations.gaussian import Gaussian

SIDE = 420  # pixels of one picture
_BEHIND = (0.93, 0.93, 0.92)
_HOLE = (1.0, 0.0, 1.0)
_WIRE = 1.2  # pixels


def main() -> None:
    """Write one sheet per object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("objects", type=Path, nargs="+", help="GLBs of one textured mesh each")
    parser.add_argument("--resolution", type=int, default=200, help="cells of the decode along each axis")
    parser.add_argument("--gaussians", type=int, default=150_000)
    parser.add_argument("--faces", type=int, default=10_000)
    parser.add_argument("--texture-size", type=int, default=1024)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for path in arguments.objects:
        mesh, gaussian = decoded_glb(path, arguments.resolution, arguments.gaussians)
        options = ExportOptions(max_faces=None, target_faces=arguments.faces)
        asset = export_mesh(mesh, gaussian, texture_size=arguments.texture_size, options=options)
        sheet(asset, gaussian, surface_of(mesh)).save(arguments.out / f"{path.stem}.png")
        print(f"{path.stem}: {len(mesh.faces)} faces decoded; {mesh_health(asset)}", flush=True)


def sheet(asset: TexturedMesh, gaussian: Gaussian, decoded: Surface) -> Image.Image:
    """Three rows (front, back, near a seam) of splats and wires before, texture, chart borders and wires after; the
    texture beside them."""
    rows = []
    for camera in (_around(asset, 0.5), _around(asset, 0.5 + math.pi), _at_seam(asset)):
        (splats,) = gaussian_views(gaussian, camera)
        blended = splats.color * splats.alpha[..., None] + np.array(_BEHIND) * (1 - splats.alpha[..., None])
        rows.append(np.concatenate([blended, _wires(decoded, camera), *_mesh_pictures(asset, camera)], axis=1))
    image = Image.fromarray((np.concatenate(rows).clip(0, 1) * 255 + 0.5).astype(np.uint8))
    texture = Image.fromarray(asset.texture).resize((3 * SIDE, 3 * SIDE), Image.Resampling.LANCZOS)
    full = Image.new("RGB", (image.width + texture.width, image.height))
    full.paste(image, (0, 0))
    full.paste(texture, (image.width, 0))
    draw = ImageDraw.Draw(full)
    for k, name in enumerate(("splats", "decoded", "exported", "chart borders", "exported", "texture")):
        draw.text((k * SIDE + 8, 6), name, fill=(60, 60, 60))
    return full


def _mesh_pictures(asset: TexturedMesh, camera: Cameras) -> list[np.ndarray]:
    """[SIDE, SIDE, 3] each: texture, texture with the borders of its charts, and shaded wires."""
    surface = Surface(asset.vertices, asset.faces)
    looker = Looker(surface)
    hit = looker.look(camera, 0)
    face_ids = hit.face_ids.numpy()
    inside = face_ids >= 0
    uvs = looker.interpolate(hit, asset.uvs).numpy()
    lookup = torch.from_numpy(np.stack([2 * uvs[..., 0] - 1, 1 - 2 * uvs[..., 1]], axis=-1))[None]
    image = torch.from_numpy(asset.texture).float().permute(2, 0, 1)[None] / 255
    shown = F.grid_sample(image, lookup, align_corners=False, padding_mode="border")[0].permute(1, 2, 0).numpy()
    textured = np.where(inside[..., None], shown, _BEHIND)
    textured[inside & (_facing(surface, hit, camera) < -0.05)] = _HOLE  # a back side: one looks into the object
    border = _border_sides(asset)[face_ids]  # [H, W, 3] by the corner across from the side
    lines = ((_pixels_to_sides(hit) < _WIRE) & border).any(axis=-1) & inside
    return [textured, np.where(lines[..., None], (0.9, 0.1, 0.1), textured), _wires(surface, camera)]


def _wires(surface: Surface, camera: Cameras) -> np.ndarray:
    """[SIDE, SIDE, 3]: shaded faces and their sides, back sides in a colour of their own."""
    hit = Looker(surface).look(camera, 0)
    facing = _facing(surface, hit, camera)
    wire = _pixels_to_sides(hit).min(axis=-1) < _WIRE / 2
    gray = np.repeat((0.45 + 0.5 * facing.clip(0, 1))[..., None], 3, axis=-1)
    gray[facing < -0.05] = _HOLE
    return np.where((hit.face_ids.numpy() >= 0)[..., None], np.where(wire[..., None], gray * 0.45, gray), _BEHIND)


def _facing(surface: Surface, hit: Hit, camera: Cameras) -> np.ndarray:
    """[H, W]: cosine between each pixel's face and the way to the camera."""
    toward = camera.centers[0].numpy() - Looker(surface).interpolate(hit, surface.vertices).numpy()
    toward /= np.maximum(np.linalg.norm(toward, axis=-1, keepdims=True), 1e-9)
    return np.einsum("hwk,hwk->hw", surface.face_normals()[hit.face_ids.numpy()], toward)


def _pixels_to_sides(hit: Hit) -> np.ndarray:
    """[H, W, 3]: to each side of the face, from barycentrics and their growth per pixel."""
    barycentrics = hit.barycentrics.numpy()
    growth = np.linalg.norm(np.stack(np.gradient(barycentrics, axis=(0, 1))), axis=0)
    return barycentrics / np.maximum(growth, 1e-6)


def _border_sides(asset: TexturedMesh) -> np.ndarray:
    """[F, 3] bool: the side across from each corner is the border of a chart."""
    edges = EdgeTable.build(asset.faces)
    sides = np.zeros((len(asset.faces), 3), dtype=bool)
    for (a, b), face in zip(edges.boundary, edges.boundary_faces, strict=True):
        sides[face] |= (asset.faces[face] != a) & (asset.faces[face] != b)
    return sides


def _around(asset: TexturedMesh, yaw: float) -> Cameras:
    center, radius = Surface(asset.vertices, asset.faces).bounding_sphere()
    return _moved(orbit(torch.tensor([yaw]), torch.tensor([0.35]), 3.0 * radius, 40.0, SIDE), center)


def _at_seam(asset: TexturedMesh) -> Cameras:
    """Straight down on a place where many chart borders meet, near enough to count texels."""
    surface = Surface(asset.vertices, asset.faces)
    radius = surface.bounding_sphere()[1]
    ids = position_ids(asset.vertices)
    copies = np.bincount(ids)[ids]
    # Of the vertices with the most copies that look sideways or up, the first.
    normals = surface.vertex_normals()
    vertex = int(np.lexsort((normals[:, 2] < -0.2, -copies))[0])
    normal = asset.normals[vertex]
    yaw, pitch = math.atan2(normal[0], normal[1]), math.asin(float(np.clip(normal[2], -0.99, 0.99)))
    return _moved(orbit(torch.tensor([yaw]), torch.tensor([pitch]), 0.6 * radius, 40.0, SIDE), asset.vertices[vertex])


def _moved(cameras: Cameras, center: np.ndarray) -> Cameras:
    """Cameras around the origin, moved to stand around `center` [3]."""
    move = torch.eye(4)
    move[:3, 3] = torch.from_numpy(-np.asarray(center, dtype=np.float32))
    return Cameras(cameras.extrinsics @ move, cameras.intrinsics, cameras.image_size)


if __name__ == "__main__":
    main()
