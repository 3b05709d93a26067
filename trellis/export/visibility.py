"""How many of many cameras see each face: a z-buffer per camera, cameras side by side on the cores.

The general rasteriser keeps barycentrics and derivatives for one picture at a time. Here only "seen or not" is wanted,
of half a million faces from dozens of sides, which this does several times faster. On a GPU the general one is fast.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from trellis import backends
from trellis.export.surface import Surface
from trellis.renderers import mesh_raster
from trellis.renderers.cameras import Cameras
from trellis.renderers.numba_runtime import exclusive, kernel, prange

_TASKS = 8  # cameras are dealt to this many tasks, each with counters of its own
_MIN_COSINE = 0.15  # flatter than this, a pixel spans so much depth that its neighbour behind would pass the test
_NEAR_PIXELS = 8  # a middle farther than this many pixels behind the picture is hidden, however slanted its face
_NEAR = 1e-6
_FAR = np.float32(1e30)
_WIDE = 8  # columns from which a face's own columns are found before its pixels are looked at
_NO_AREA = np.float32(1e-12)  # square pixels
_ZERO, _THIRD, _HALF, _ONE = np.float32(0), np.float32(1 / 3), np.float32(0.5), np.float32(1)


@dataclass(frozen=True, eq=False)
class Sightings:
    """Of each face, the number of cameras that see its front and its back, two [F] int32 arrays."""

    front: np.ndarray
    back: np.ndarray
    num_views: int

    @property
    def fraction(self) -> np.ndarray:
        """[F] float64 in [0, 1]: share of the cameras that see the face at all."""
        return np.minimum((self.front + self.back) / max(self.num_views, 1), 1)


def count_sightings(surface: Surface, cameras: Cameras, device: torch.device | str = "cpu") -> Sightings:
    """Count the cameras that see each face.

    A face is seen if it is the nearest at some pixel centre; or, for faces that fall between pixel centres, if it
    faces the camera and its middle is as near as the picture says, within what a slanted pixel spans.

    Args:
        surface: finite.
        cameras: square pixels, all of the same image size, none inside the surface.
        device: where to do it.
    """
    device = backends.place("mesh_rasterisation", device)
    if torch.device(device).type != "cpu":
        return count_in_torch(surface, cameras, device)
    height, width = cameras.height_width(0)
    front = np.zeros((_TASKS, len(surface.faces)), dtype=np.uint16)
    back = np.zeros_like(front)
    with exclusive():
        _count(
            np.ascontiguousarray(surface.vertices, dtype=np.float32),
            np.ascontiguousarray(surface.faces, dtype=np.int32),
            surface.face_normals(),
            cameras.extrinsics.numpy().astype(np.float32),
            cameras.intrinsics.numpy().astype(np.float32),
            height,
            width,
            front,
            back,
        )
    return Sightings(front.sum(axis=0, dtype=np.int32), back.sum(axis=0, dtype=np.int32), len(cameras))


def count_in_torch(surface: Surface, cameras: Cameras, device: torch.device | str) -> Sightings:
    """`count_sightings` with the rasteriser of any device."""
    vertices, faces = torch.from_numpy(surface.vertices).to(device), torch.from_numpy(surface.faces).to(device)
    cameras, count = cameras.to(device), len(surface.faces)
    a, b, c = vertices[faces.long()].unbind(1)
    normals = torch.nn.functional.normalize(torch.linalg.cross(b - a, c - a), dim=1, eps=1e-30)
    front, back = torch.zeros(2, count + 1, dtype=torch.int32, device=device)  # the last one stands for no face
    for k in range(len(cameras)):
        height, width = cameras.height_width(k)
        screen = mesh_raster.project(vertices, cameras.extrinsics[k], cameras.intrinsics[k])
        raster = mesh_raster.rasterize(screen, faces, height, width, near=_NEAR)
        corners = screen[faces.long()]
        ab, ac = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
        is_front = ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0] < 0
        column, row, z = corners.mean(1).unbind(1)
        inside = (column >= 0) & (row >= 0) & (column < width) & (row < height)
        there = torch.where(inside, row.floor() * width + column.floor(), 0).long()
        pixel = z / cameras.intrinsics[k, 0, 0]
        behind = (z - torch.where(raster.mask, raster.depth, float("inf")).view(-1)[there]).abs()
        cosine = (normals * cameras.extrinsics[k, 2, :3]).sum(1).abs()
        allowed = (0.5 + (1 - cosine * cosine).clamp_min(0).sqrt() / cosine).clamp_max(_NEAR_PIXELS)
        seen = torch.zeros(count + 1, dtype=torch.bool, device=device)
        seen[:count] = inside & is_front & (cosine >= _MIN_COSINE) & (behind <= pixel * allowed)
        seen[torch.where(raster.mask, raster.face_ids, count).view(-1).long()] = True
        front[:count] += seen[:count] & is_front
        back[:count] += seen[:count] & ~is_front
    return Sightings(front[:count].cpu().numpy(), back[:count].cpu().numpy(), len(cameras))


@kernel(parallel=True)
def _count(vertices, faces, normals, extrinsics, intrinsics, height, width, front, back):
    """Add to `front` and `back` [tasks, F]; task t takes cameras t, t + tasks, ..."""
    tasks = front.shape[0]
    for task in prange(tasks):
        screen = np.empty((len(vertices), 3), dtype=np.float32)
        depth = np.empty((height, width), dtype=np.float32)
        owner = np.empty((height, width), dtype=np.int32)
        pixel = np.empty(len(faces), dtype=np.int32)
        middle = np.empty(len(faces), dtype=np.float32)
        last_seen = np.full(len(faces), -1, dtype=np.int32)
        for k in range(task, len(extrinsics), tasks):
            _project(vertices, extrinsics[k], intrinsics[k], screen)
            depth[:] = _FAR
            owner[:] = -1
            for face in range(len(faces)):
                _enter(screen, faces, face, depth, owner, pixel, middle)
            for row in range(height):
                for column in range(width):
                    face = owner[row, column]
                    if face >= 0 and last_seen[face] != k:
                        last_seen[face] = k
                        if _screen_area(screen, faces, face) < 0:
                            front[task, face] += 1
                        else:
                            back[task, face] += 1
            for face in range(len(faces)):
                if pixel[face] >= 0 and last_seen[face] != k:
                    behind = abs(middle[face] - depth.flat[pixel[face]])
                    if _is_near(behind, middle[face] / intrinsics[k, 0, 0], normals[face], extrinsics[k, 2]):
                        front[task, face] += 1


@kernel
def _project(vertices, e, intrinsics, screen):
    for i in range(len(vertices)):
        x, y, z = vertices[i, 0], vertices[i, 1], vertices[i, 2]
        depth = e[2, 0] * x + e[2, 1] * y + e[2, 2] * z + e[2, 3]
        across = e[0, 0] * x + e[0, 1] * y + e[0, 2] * z + e[0, 3]
        down = e[1, 0] * x + e[1, 1] * y + e[1, 2] * z + e[1, 3]
        screen[i, 0] = intrinsics[0, 0] * across / depth + intrinsics[0, 2]
        screen[i, 1] = intrinsics[1, 1] * down / depth + intrinsics[1, 2]
        screen[i, 2] = depth


@kernel
def _screen_area(screen, faces, face):
    """Twice the signed area in pixels; negative for a front, because the image's y axis points down."""
    a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
    bx, by = screen[b, 0] - screen[a, 0], screen[b, 1] - screen[a, 1]
    cx, cy = screen[c, 0] - screen[a, 0], screen[c, 1] - screen[a, 1]
    return bx * cy - by * cx


@kernel
def _enter(screen, faces, face, depth, owner, pixel, middle):
    """Enter a face where it is nearest; and the pixel of its middle, -1 for a back or outside, and the depth of that.

    Float32 throughout: most of all time is spent here.
    """
    a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
    ax, ay, az = screen[a, 0], screen[a, 1], screen[a, 2]
    bx, by = screen[b, 0] - ax, screen[b, 1] - ay
    cx, cy = screen[c, 0] - ax, screen[c, 1] - ay
    bz, cz = screen[b, 2] - az, screen[c, 2] - az
    area = bx * cy - by * cx
    pixel[face] = -1
    if area < 0:
        column, row = int(np.floor(ax + (bx + cx) * _THIRD)), int(np.floor(ay + (by + cy) * _THIRD))
        if row >= 0 and column >= 0 and row < depth.shape[0] and column < depth.shape[1]:
            pixel[face] = row * depth.shape[1] + column
            middle[face] = az + (bz + cz) * _THIRD
    # Pixel centres lie at half integers; most faces of a dense mesh have none in their bounding box.
    px, py = ax - _HALF, ay - _HALF
    first_row = max(int(np.ceil(py + min(_ZERO, by, cy))), 0)
    last_row = min(int(np.floor(py + max(_ZERO, by, cy))), depth.shape[0] - 1)
    first_column = max(int(np.ceil(px + min(_ZERO, bx, cx))), 0)
    last_column = min(int(np.floor(px + max(_ZERO, bx, cx))), depth.shape[1] - 1)
    if first_row > last_row or first_column > last_column:
        return
    if abs(area) < _NO_AREA:
        return
    inverse = _ONE / area
    v_x, v_y = cy * inverse, -cx * inverse
    w_x, w_y = -by * inverse, bx * inverse
    wide = last_column - first_column >= _WIDE
    for row in range(first_row, last_row + 1):
        y = np.float32(row) - py
        first, last = first_column, last_column
        if wide:  # a needle across the image fills its bounding box hardly at all
            first, last = _span(first, last, px, v_x, y * v_y)
            first, last = _span(first, last, px, w_x, y * w_y)
            first, last = _span(first, last, px, -v_x - w_x, _ONE - y * (v_y + w_y))
        for column in range(first, last + 1):
            x = np.float32(column) - px
            v = x * v_x + y * v_y
            w = x * w_x + y * w_y
            # Depth is taken as linear on screen: wrong by less than the square of the face's share of the distance.
            if v >= _ZERO and w >= _ZERO and v + w <= _ONE:
                z = az + v * bz + w * cz
                if z < depth[row, column]:
                    depth[row, column] = z
                    owner[row, column] = face


@kernel
def _span(first, last, origin, slope, height):
    """Columns from `first` to `last` where slope (column - origin) + height may be positive, with one to spare."""
    if slope == 0:
        return first, last
    zero = min(max(origin - height / slope, np.float32(-1e6)), np.float32(1e6))
    if slope > 0:
        return max(first, int(np.floor(zero)) - 1), last
    return first, min(last, int(np.ceil(zero)) + 1)


@kernel
def _is_near(behind, pixel, normal, axis):
    """Whether a middle is `behind` the picture by less than a pixel of its slanted face spans."""
    if behind > _NEAR_PIXELS * pixel:  # cheap, and rejects nearly all that is hidden
        return False
    cosine = abs(axis[0] * normal[0] + axis[1] * normal[1] + axis[2] * normal[2])
    if cosine < _MIN_COSINE:
        return False
    return behind <= pixel * (0.5 + np.sqrt(max(1 - cosine * cosine, 0.0)) / cosine)
