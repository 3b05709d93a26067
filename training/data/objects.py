"""The packed objects on one device, and random instances of them in the canonical frame.

Canonical frame: z up, the first view looks from azimuth 0 (+y), the object's box is centred and its longest side is 1.
"""

from __future__ import annotations

import io
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from training.data.deform import Warp

HALF_SIDE = 0.49  # keeps surfaces off the outermost voxel layer
SUPPORTS = 256  # directions in which an object's outermost vertex is known; affine maps keep it outermost, warps nearly
WARPED = 0.6  # share of the instances that are deformed when drawn at random
REPAINTED = 0.25  # share of them that wear another object's texture


def directions(count: int, device: torch.device) -> Tensor:
    """A Fibonacci sphere, [count, 3]."""
    k = torch.arange(count, device=device) + 0.5
    z = 1 - 2 * k / count
    angle = k * math.pi * (3 - math.sqrt(5))
    r = (1 - z * z).sqrt()
    return torch.stack([r * angle.cos(), r * angle.sin(), z], 1)


def ragged_arange(starts: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Indices `starts[i] .. starts[i]+counts[i]` of every i in a row, and the i that each belongs to."""
    owner = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    first = torch.cumsum(counts, 0) - counts
    return torch.arange(len(owner), device=counts.device) - first[owner] + starts[owner], owner


@dataclass
class Instances:
    """B transformed objects, their triangles in one list.

    triangles [T, 3] index `vertices` [V, 3] (canonical frame), `normals` [V, 3], `uvs` [V, 2]; `owner` [T] and
    `vertex_owner` [V] give the instance; `objects` [B] the library index, `textures` [B] that of the object whose
    texture each wears; canonical = base @ linear^T + offset, where base is deformed by `warp` before.
    """

    objects: Tensor
    textures: Tensor
    warp: Warp | None
    linear: Tensor  # [B, 3, 3]
    offset: Tensor  # [B, 3]
    vertices: Tensor
    normals: Tensor
    uvs: Tensor
    triangles: Tensor
    owner: Tensor
    vertex_owner: Tensor
    hue: Tensor  # [B, 3, 3] colour matrix applied to linear albedo
    hull: Tensor  # [B, SUPPORTS, 3] the vertices farthest out in many directions: enough for boxes

    def first(self, count: int) -> Instances:
        """The first `count` instances; the lists of vertices and triangles stay as long as they are."""
        each = "objects", "textures", "linear", "offset", "hue", "hull"
        warp = self.warp and self.warp.first(count)
        return replace(self, warp=warp, **{name: getattr(self, name)[:count] for name in each})


class ObjectLibrary:
    """All packed meshes on one device: flat vertex, face and texel tensors with offsets."""

    def __init__(self, path: Path | str, device: torch.device | str = "cpu", limit: int | None = None):
        with safe_open(path, framework="pt") as file:
            self.names: list[str] = json.loads(file.metadata()["names"])[:limit]
            raw = {key: file.get_tensor(key) for key in file.keys()}
        count = len(self.names)
        self.device = torch.device(device)
        self.vertex_offsets = raw["vertex_offsets"][: count + 1].to(device)
        self.face_offsets = raw["face_offsets"][: count + 1].to(device)
        vertex_end, face_end = int(self.vertex_offsets[-1]), int(self.face_offsets[-1])
        self.vertices = raw["vertices"][:vertex_end].to(device).float()
        self.uvs = raw["uvs"][:vertex_end].to(device).float() / 65535
        self.faces = raw["faces"][:face_end].to(device).long()  # local to the object
        self.smooth = raw["smooth"][:count].to(device)
        self._load_textures(raw["textures"].numpy(), raw["texture_offsets"].tolist(), count)
        self.normals = self._vertex_normals()
        self.supports = self._support_vertices()  # [O, SUPPORTS]

    def __len__(self) -> int:
        return len(self.names)

    def _load_textures(self, data: np.ndarray, offsets: list[int], count: int) -> None:
        texels, sizes = [], []
        for start, end in zip(offsets[:count], offsets[1 : count + 1], strict=True):
            image = np.asarray(Image.open(io.BytesIO(data[start:end].tobytes())).convert("RGB"))
            texels.append(torch.from_numpy(image.reshape(-1, 3).copy()))
            sizes.append(image.shape[:2])
        self.texture_sizes = torch.tensor(sizes, device=self.device)  # [O, 2] height, width
        counts = self.texture_sizes.prod(1)
        self.texture_offsets = torch.cumsum(counts, 0) - counts
        self.texels = torch.cat(texels).to(self.device)  # [texels, 3] uint8 sRGB

    def _vertex_normals(self) -> Tensor:
        """Area-weighted normals, shared between vertices at one position (scans are split along texture seams)."""
        owner = torch.repeat_interleave(
            torch.arange(len(self), device=self.device), self.vertex_offsets.diff(), output_size=len(self.vertices)
        )
        key = torch.cat([owner[:, None], (self.vertices * 8192).round().long()], 1)
        _, merged = torch.unique(key, dim=0, return_inverse=True)
        face_owner = torch.repeat_interleave(torch.arange(len(self), device=self.device), self.face_offsets.diff())
        corners = self.faces + self.vertex_offsets[face_owner, None]
        p = self.vertices[corners]
        face_normal = torch.cross(p[:, 1] - p[:, 0], p[:, 2] - p[:, 0], dim=1)
        total = torch.zeros(int(merged.max()) + 1, 3, device=self.device)
        total.index_add_(0, merged[corners.reshape(-1)], face_normal.repeat_interleave(3, 0))
        return torch.nn.functional.normalize(total[merged], dim=1)

    def _support_vertices(self) -> Tensor:
        """Index of the outermost vertex of each object in each direction."""
        toward = directions(SUPPORTS, self.device)
        bounds = self.vertex_offsets.tolist()
        return torch.stack([
            (self.vertices[start:end] @ toward.T).argmax(0) + start
            for start, end in zip(bounds, bounds[1:], strict=False)
        ])

    def sample_albedo(self, objects: Tensor, uvs: Tensor) -> Tensor:
        """Nearest texel, linear light; objects [N], uvs [N, 2] with v up. Returns [N, 3]."""
        size = self.texture_sizes[objects]
        column = (uvs[:, 0] * size[:, 1]).long().clamp_(min=0).minimum(size[:, 1] - 1)
        row = ((1 - uvs[:, 1]) * size[:, 0]).long().clamp_(min=0).minimum(size[:, 0] - 1)
        srgb = self.texels[self.texture_offsets[objects] + row * size[:, 1] + column].float() / 255
        return srgb_to_linear(srgb)

    def first_triangles(self, objects: Tensor) -> Tensor:
        """Where the triangles of each begin in the list of instances of `objects` [B]."""
        counts = self.face_offsets.diff()[objects]
        return torch.cumsum(counts, 0) - counts

    def instances(
        self,
        objects: Tensor,
        linear: Tensor,
        hue: Tensor | None = None,
        warp: Warp | None = None,
        textures: Tensor | None = None,
    ) -> Instances:
        """Deform `objects` [B] by `warp` and transform them by `linear` [B, 3, 3], then centre their boxes and scale
        the longest side to 1."""
        vertex_index, vertex_owner = ragged_arange(self.vertex_offsets[objects], self.vertex_offsets.diff()[objects])
        face_index, owner = ragged_arange(self.face_offsets[objects], self.face_offsets.diff()[objects])
        base, normals = self.vertices[vertex_index], self.normals[vertex_index]
        supports = self.vertices[self.supports[objects]]
        if warp is not None:
            normals = warp.normals(normals, base, vertex_owner)
            base = warp.points(base, vertex_owner)
            support_owner = torch.arange(len(objects), device=self.device).repeat_interleave(SUPPORTS)
            supports = warp.points(supports.flatten(0, 1), support_owner).unflatten(0, (-1, SUPPORTS))
        moved = torch.einsum("vij,vj->vi", linear[vertex_owner], base)
        low = torch.full((len(objects), 3), 1e9, device=self.device)
        index = vertex_owner[:, None].expand(-1, 3)
        high = (-low).scatter_reduce(0, index, moved, "amax")
        low = low.scatter_reduce(0, index, moved, "amin")
        scale = 2 * HALF_SIDE / (high - low).amax(1)
        linear = linear * scale[:, None, None]
        offset = -scale[:, None] * (low + high) / 2
        vertices = moved * scale[vertex_owner, None] + offset[vertex_owner]
        inverse_transpose = torch.linalg.inv(linear).transpose(1, 2)
        normals = torch.einsum("vij,vj->vi", inverse_transpose[vertex_owner], normals)
        first_vertex = torch.cumsum(self.vertex_offsets.diff()[objects], 0) - self.vertex_offsets.diff()[objects]
        return Instances(
            objects=objects,
            textures=objects if textures is None else textures,
            warp=warp,
            linear=linear,
            offset=offset,
            vertices=vertices,
            normals=torch.nn.functional.normalize(normals, dim=1),
            uvs=self.uvs[vertex_index],
            triangles=self.faces[face_index] + first_vertex[owner, None],
            owner=owner,
            vertex_owner=vertex_owner,
            hue=torch.eye(3, device=self.device).expand(len(objects), 3, 3) if hue is None else hue,
            hull=torch.einsum("bij,bkj->bki", linear, supports) + offset[:, None],
        )

    def random_instances(
        self, count: int, generator: torch.Generator, augment: bool = True, warped: float = WARPED
    ) -> Instances:
        """`count` random objects under random yaw and, with `augment`, mirroring, stretch, tilt and changes of colour,
        a share `warped` of them deformed."""
        uniform = _uniform(generator, self.device)

        def draw() -> Tensor:
            return torch.randint(len(self), (count,), generator=generator, device=self.device)

        objects = draw()
        linear = rotation_z(uniform(count) * 2 * torch.pi)
        if not augment:
            return self.instances(objects, linear)
        stretch = torch.exp((uniform(count, 3) - 0.5) * 0.7 * (uniform(count, 1) < 0.6))
        stretch[:, 0] *= torch.where(uniform(count) < 0.5, -1.0, 1.0)
        tilt = rotation_x((uniform(count) - 0.5) * 0.5 * (uniform(count) < 0.2))
        return self.instances(
            objects,
            linear @ tilt @ torch.diag_embed(stretch),
            _random_hue(count, generator, self.device),
            Warp.random(count, warped, generator, self.device) if warped else None,
            torch.where(uniform(count) < REPAINTED, draw(), objects),
        )


def _uniform(generator: torch.Generator, device: torch.device):
    return lambda *shape: torch.rand(shape, generator=generator, device=device)


def rotation_z(angle: Tensor) -> Tensor:
    """Rotation by `angle` [B] about z, [B, 3, 3]."""
    c, s, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    return torch.stack([c, -s, zero, s, c, zero, zero, zero, one], -1).reshape(-1, 3, 3)


def rotation_x(angle: Tensor) -> Tensor:
    """Rotation by `angle` [B] about x, [B, 3, 3]."""
    c, s, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    return torch.stack([one, zero, zero, zero, c, -s, zero, s, c], -1).reshape(-1, 3, 3)


def _random_hue(count: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Colour matrices: half identity, half a channel permutation blended with it and a gain per channel."""
    uniform = _uniform(generator, device)
    order = uniform(count, 3).argsort(1)
    permutation = torch.nn.functional.one_hot(order, 3).float()
    blend = uniform(count, 1, 1) * (uniform(count, 1, 1) < 0.5)
    eye = torch.eye(3, device=device)
    gain = torch.exp((uniform(count, 3, 1) - 0.5) * 0.5)
    return (eye * (1 - blend) + permutation * blend) * gain


def srgb_to_linear(x: Tensor) -> Tensor:
    """IEC 61966-2-1 decoding, values in [0, 1]."""
    return torch.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(x: Tensor) -> Tensor:
    """IEC 61966-2-1 encoding, values in [0, 1]."""
    return torch.where(x <= 0.0031308, x * 12.92, 1.055 * x.clamp(min=1e-8) ** (1 / 2.4) - 0.055)
