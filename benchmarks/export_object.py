"""Made-up decoder results: a bumpy, painted torus, or a textured GLB, each with the inner wall of real decodes."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial import cKDTree
from skimage.measure import marching_cubes

from trellis.export.distance import sample_surface
from trellis.export.frame import from_gltf_frame
from trellis.export.surface import Surface
from trellis.representations.gaussian import SH_DC, Gaussian

BAND = 0.03  # half thickness of the sparse shell in object units
_MARGIN = 0.94  # of the unit cube that a loaded object fills, so that its shell stays inside
_SAMPLES = 1_500_000  # of a loaded object's surface, from which distances are measured


@dataclass
class DecodedMesh:
    """What export reads of a decoded mesh."""

    vertices: torch.Tensor  # [V, 3] float32
    faces: torch.Tensor  # [F, 3] int64
    vertex_attrs: torch.Tensor | None  # [V, 3] sRGB in [0, 1]


def torus_distance(points: np.ndarray) -> np.ndarray:
    """Approximate signed distance [...] of a bumpy torus leaning by 30 degrees, negative inside."""
    x, y, z = np.moveaxis(points, -1, 0)
    y, z = 0.866 * y - 0.5 * z, 0.5 * y + 0.866 * z
    ring = np.hypot(x, y) - 0.3
    angle, around = np.arctan2(y, x), np.arctan2(z, ring)
    return np.hypot(ring, z) - 0.13 - 0.012 * np.sin(9 * angle) * np.sin(4 * around)


def torus_paint(points: np.ndarray) -> np.ndarray:
    """sRGB [N, 3]: coarse hue by place, stripes and a sharp checker that shows how much detail a texture keeps."""
    hue = 0.5 + 0.45 * np.sin(np.stack([5 * points[:, 0], 6 * points[:, 1] + 2, 7 * points[:, 2] + 4], axis=1))
    checker = (np.floor(points * 12).sum(axis=1) % 2)[:, None]
    return (hue * (0.55 + 0.45 * checker)).clip(0, 1).astype(np.float32)


def decoded_torus(resolution: int = 160, num_gaussians: int = 60_000, seed: int = 0) -> tuple[DecodedMesh, Gaussian]:
    """Mesh on a grid of `resolution` cells and splats on its outer surface (160 gives about 200k faces)."""
    grid = _grid(resolution)
    field = torus_distance(grid)
    speck = np.linalg.norm(grid - [0.4, 0.4, 0.42], axis=-1) - 1.2 / resolution
    vertices, faces = _with_inner_wall(field, speck)
    mesh = _decoded(vertices, faces, torus_paint(vertices))
    middles = vertices[faces].mean(axis=1)
    outer = Surface(vertices, faces).select_faces(np.abs(torus_distance(middles)) < 0.5 / resolution)
    points, chosen = sample_surface(outer, num_gaussians, np.random.default_rng(seed))
    spacing = np.sqrt(outer.face_areas().sum() / num_gaussians)
    return mesh, flat_splats(points, outer.face_normals()[chosen], torus_paint(points), spacing)


def decoded_glb(
    path: str | PathLike[str], resolution: int = 160, num_gaussians: int = 60_000, seed: int = 0
) -> tuple[DecodedMesh, Gaussian]:
    """The same of a textured GLB (one mesh, faces outward): what a perfect decoder would make of the object."""
    surface, colors_at = load_textured(path)
    rng = np.random.default_rng(seed)
    points, chosen = sample_surface(surface, _SAMPLES, rng)
    outer = _reached_from_outside(points, 128)  # layers inside one another are no part of what a decoder makes
    points, chosen = points[outer], chosen[outer]
    normals = surface.face_normals()[chosen]
    vertices, faces = _with_inner_wall(_distance_field(points, normals, resolution))
    tree = cKDTree(points)
    colors = colors_at(points, chosen)
    mesh = _decoded(vertices, faces, colors[tree.query(vertices, workers=-1)[1]])
    spacing = np.sqrt(surface.face_areas().sum() * outer.mean() / num_gaussians)
    some = rng.choice(len(points), num_gaussians, replace=False)
    return mesh, flat_splats(points[some], normals[some], colors[some], spacing)


def load_textured(path: str | PathLike[str]):
    """A GLB in the object frame, scaled to fit, and a function (points [N, 3], faces [N]) -> sRGB [N, 3]."""
    import trimesh

    loaded = trimesh.load(path, force="mesh", process=False)
    vertices = from_gltf_frame(np.asarray(loaded.vertices, dtype=np.float64))
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    vertices = (vertices - (low + high) / 2) * (_MARGIN / (high - low).max())
    surface = Surface(vertices.astype(np.float32), np.asarray(loaded.faces, dtype=np.int32))
    uvs = np.asarray(loaded.visual.uv)
    image = np.asarray(loaded.visual.material.baseColorTexture.convert("RGB"), dtype=np.float32) / 255
    corners = surface.corner_positions()

    def colors_at(points: np.ndarray, faces: np.ndarray) -> np.ndarray:
        weights = trimesh.triangles.points_to_barycentric(corners[faces], points)
        u, v = np.einsum("nk,nkc->nc", weights, uvs[surface.faces[faces]]).T
        size = np.array(image.shape[:2])
        place = np.stack([(1 - v) * size[0], u * size[1]]) - 0.5
        return np.stack([ndimage.map_coordinates(image[..., k], place, order=1, mode="nearest") for k in range(3)], 1)

    return surface, colors_at


def flat_splats(points: np.ndarray, normals: np.ndarray, colors: np.ndarray, spacing: float) -> Gaussian:
    """Flat round splats at points [N, 3] across normals [N, 3], coloured sRGB [N, 3], `spacing` apart on average."""
    count = len(points)
    # The rotation taking z to the normal, as a quaternion: (1 + z.n, z x n), normalised by its user.
    quats = np.stack([1 + normals[:, 2] + 1e-6, -normals[:, 1], normals[:, 0], np.zeros(count)], axis=1)
    gaussian = Gaussian([-0.5, -0.5, -0.5, 1, 1, 1], mininum_kernel_size=0.0, scaling_activation="exp")
    gaussian.from_xyz(torch.from_numpy(points).float())
    gaussian.from_features(((torch.from_numpy(colors).float() - 0.5) / SH_DC)[:, None])
    gaussian.from_scaling(torch.tensor([0.7, 0.7, 0.1]).repeat(count, 1) * float(spacing))
    gaussian.from_rotation(torch.nn.functional.normalize(torch.from_numpy(quats).float()))
    gaussian.from_opacity(torch.full((count, 1), 0.95))
    return gaussian


def _grid(resolution: int) -> np.ndarray:
    axis = np.linspace(-0.5, 0.5, resolution + 1)
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)


def _reached_from_outside(points: np.ndarray, resolution: int) -> np.ndarray:
    """[N] bool: which of the points [N, 3] on a surface lie within two cells of what a flood from outside reaches."""
    cells = tuple(np.rint((points + 0.5) * resolution).astype(int).T)
    wall = np.zeros((resolution + 1,) * 3, dtype=bool)
    wall[cells] = True
    labels, _ = ndimage.label(~wall)
    return ndimage.binary_dilation(labels == labels[0, 0, 0], iterations=2)[cells]


def _distance_field(points: np.ndarray, normals: np.ndarray, resolution: int) -> np.ndarray:
    """Signed distances at the corners of a grid, negative inside; beyond the shell just some large number."""
    side = resolution + 1
    wall = np.zeros((side,) * 3, dtype=bool)
    wall[tuple(np.rint((points + 0.5) * resolution).astype(int).T)] = True
    near = ndimage.binary_dilation(wall, iterations=int(np.ceil(BAND * resolution)) + 1)
    labels, _ = ndimage.label(~ndimage.binary_dilation(wall, iterations=1))
    field = np.ones((side,) * 3)
    corners = np.argwhere(near)
    offset = corners / resolution - 0.5
    distance, nearest = cKDTree(points).query(offset, workers=-1)
    before = np.einsum("nk,nk->n", offset - points[nearest], normals[nearest]) > 0
    # Away from the surface a flood from the corner of the grid knows better than the nearest normal.
    label = labels[near]
    before = np.where(label == 0, before, label == labels[0, 0, 0])
    field[near] = np.where(before, distance, -distance)
    return field


def _with_inner_wall(field: np.ndarray, *others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and faces of the zero level, outward, where corners outside the sparse shell count as empty.

    That makes the second, inner wall. `others` are joined as they are.
    """
    resolution = len(field) - 1
    field = np.where(np.abs(field) < BAND, field, 1.0)
    for other in others:
        field = np.minimum(field, other)
    vertices, faces, _, _ = marching_cubes(field, 0.0, spacing=(1 / resolution,) * 3)
    vertices = (vertices - 0.5).astype(np.float32)
    corners = vertices[faces]
    volume = np.einsum("fk,fk->", corners[:, 0], np.cross(corners[:, 1], corners[:, 2]))
    return vertices, np.ascontiguousarray(faces if volume > 0 else faces[:, ::-1], dtype=np.int32)


def _decoded(vertices: np.ndarray, faces: np.ndarray, colors: np.ndarray) -> DecodedMesh:
    return DecodedMesh(torch.from_numpy(vertices), torch.from_numpy(faces.astype(np.int64)), torch.from_numpy(colors))
