"""Surface samples, voxels and signed distances of object instances, for meshes that need not be watertight.

Every object is looked at once from many directions: samples that no direction sees are dropped (hidden inner parts),
and a point of space counts as outside when some direction sees it in front of the surface.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.objects import Instances, ObjectLibrary, directions, linear_to_srgb
from training.data.rasterise import rasterise
from training.data.scenes import look_at

FAR = 20.0  # so distant that the views are nearly parallel
OBJECT_RADIUS = 0.88  # half the diagonal of the unit cube


@dataclass
class SurfaceSamples:
    """Samples of B instances in the canonical frame, P each: points, normals, colours (sRGB) [B, P, 3]."""

    points: Tensor
    normals: Tensor
    colours: Tensor


class SurfaceCache:
    """Per object: visible surface samples and depth maps from all sides, in the object's own (base) frame."""

    def __init__(
        self,
        library: ObjectLibrary,
        samples: int = 65536,
        views: int = 40,
        size: int = 288,
        chunk: int = 16,
        seed: int = 0,
    ):
        device = library.device
        generator = torch.Generator(device=device).manual_seed(seed)
        self.size, self.count = size, samples
        self.rotations = look_at(
            directions(views, device) * FAR, torch.zeros(views, 3, device=device), torch.zeros(views, device=device)
        )
        self.focal = size / 2 / (OBJECT_RADIUS * 1.05) * (FAR - OBJECT_RADIUS)
        count = len(library)
        self.points = torch.empty(count, samples, 3, dtype=torch.float16, device=device)
        self.normals = torch.empty(count, samples, 3, dtype=torch.int8, device=device)
        self.albedo = torch.empty(count, samples, 3, dtype=torch.float16, device=device)
        self.depth = torch.empty(count, views, size, size, dtype=torch.float16, device=device)  # relative to FAR
        self.base_scale = torch.empty(count, device=device)
        self.base_offset = torch.empty(count, 3, device=device)
        identity = torch.eye(3, device=device)
        for start in range(0, count, chunk):
            objects = torch.arange(start, min(start + chunk, count), device=device)
            instances = library.instances(objects, identity.expand(len(objects), 3, 3))
            self.base_scale[objects] = instances.linear[:, 0, 0]
            self.base_offset[objects] = instances.offset
            depth = self._depth_maps(instances)
            self.depth[objects] = (depth - FAR).clamp(max=4.0).half()
            points, normals, albedo = self._samples(library, instances, depth, samples, generator)
            self.points[objects] = points.half()
            self.normals[objects] = (normals * 127).round().to(torch.int8)
            self.albedo[objects] = albedo.half()

    def _project(self, points: Tensor) -> Tensor:
        """Base-frame points [B, P, 3] to (pixel x, pixel y, depth) in every view, [B, views, P, 3]."""
        camera = torch.einsum("vij,bpj->bvpi", self.rotations[:, :3, :3], points) + self.rotations[None, :, None, :3, 3]
        return torch.cat([camera[..., :2] / camera[..., 2:] * self.focal + self.size / 2, camera[..., 2:]], -1)

    def _depth_maps(self, instances: Instances) -> Tensor:
        views, count = len(self.rotations), len(instances.objects)
        corners = instances.vertices[instances.triangles]  # [T, 3, 3]
        screen = self._project(corners.reshape(1, -1, 3))[0].reshape(views, -1, 3, 3)
        view = instances.owner[None] * views + torch.arange(views, device=screen.device)[:, None]
        _, depth = rasterise(screen.reshape(-1, 3, 3), view.reshape(-1), count * views, self.size)
        return depth.reshape(count, views, self.size, self.size)

    def _samples(
        self, library: ObjectLibrary, instances: Instances, depth: Tensor, wanted: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Area-weighted samples, the visible ones first; each object repeats its visible samples to fill `wanted`."""
        device, count = depth.device, len(instances.objects)
        corners = instances.vertices[instances.triangles]
        cross = torch.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0], dim=1)
        area = cross.norm(dim=1).double().clamp(min=1e-12)
        cumulative = torch.cumsum(area, 0)
        total = torch.zeros(count, dtype=torch.float64, device=device).index_add_(0, instances.owner, area)
        start = torch.cumsum(total, 0) - total
        draw = wanted * 2
        u = torch.rand(count, draw, generator=generator, device=device, dtype=torch.float64)
        face = torch.searchsorted(cumulative, (start[:, None] + u * total[:, None] * (1 - 1e-9)).reshape(-1))
        face = face.clamp(max=len(area) - 1)
        b = torch.rand(len(face), 2, generator=generator, device=device)
        root = b[:, :1].sqrt()
        weights = torch.cat([1 - root, root * (1 - b[:, 1:]), root * b[:, 1:]], 1)
        index = instances.triangles[face]
        points = (corners[face] * weights[..., None]).sum(1)
        uvs = (instances.uvs[index] * weights[..., None]).sum(1)
        objects = instances.objects[instances.owner[face]]
        albedo = library.sample_albedo(objects, uvs)
        smooth = F.normalize((instances.normals[index] * weights[..., None]).sum(1), dim=1)
        flat = F.normalize(cross[face], dim=1)
        normals = torch.where(library.smooth[objects][:, None], smooth, flat)
        points, normals, albedo = (x.reshape(count, draw, 3) for x in (points, normals, albedo))
        # Seen from the front by some view? The best-facing view that sees a sample also orients its normal.
        gap = self._depth_gap(depth, points)
        facing = torch.einsum("vi,bpi->bvp", -self.rotations[:, 2, :3], normals)
        seen = gap < 0.006
        score = torch.where(seen, facing.abs(), -1.0)
        best, which = score.max(1)
        sign = facing.gather(1, which[:, None])[:, 0].sign()
        normals = normals * sign[..., None]
        visible = best > 0.03
        order = torch.argsort((~visible).to(torch.int8), dim=1, stable=True)
        usable = visible.sum(1, keepdim=True).clamp(min=1)
        slot = torch.arange(wanted, device=device)[None] % usable
        pick = order.gather(1, slot)[..., None].expand(-1, -1, 3)
        return points.gather(1, pick), normals.gather(1, pick), albedo.gather(1, pick)

    def _depth_gap(self, depth: Tensor, points: Tensor) -> Tensor:
        """How far behind the first surface each point lies, [B, views, P]; negative is in front."""
        screen = self._project(points)
        column = screen[..., 0].long().clamp(0, self.size - 1)
        row = screen[..., 1].long().clamp(0, self.size - 1)
        first = depth.flatten(2).gather(2, row * self.size + column)
        return screen[..., 2] - first.clamp(max=FAR + 4)

    def sample(self, instances: Instances, count: int, generator: torch.Generator) -> SurfaceSamples:
        """`count` random samples of each instance, in the canonical frame with its hue change."""
        stored, device = self.points.shape[1], self.points.device
        start = torch.randint(stored, (len(instances.objects), 1), generator=generator, device=device)
        slot = (start + torch.arange(count, device=device)) % stored
        rows = instances.objects[:, None]
        points = torch.einsum("bij,bpj->bpi", instances.linear, self._unnormalise(instances, rows, slot))
        points = points + instances.offset[:, None]
        inverse_transpose = torch.linalg.inv(instances.linear).transpose(1, 2)
        normals = torch.einsum("bij,bpj->bpi", inverse_transpose, self.normals[rows, slot].float())
        albedo = torch.einsum("bij,bpj->bpi", instances.hue, self.albedo[rows, slot].float()).clamp(0, 1)
        return SurfaceSamples(points, F.normalize(normals, dim=2), linear_to_srgb(albedo))

    def _unnormalise(self, instances: Instances, rows: Tensor, slot: Tensor) -> Tensor:
        return (self.points[rows, slot].float() - self.base_offset[instances.objects][:, None]) / self.base_scale[
            instances.objects
        ][:, None, None]

    def inside(self, instances: Instances, points: Tensor) -> Tensor:
        """Whether canonical points [B, P, 3] are hidden from every direction, [B, P] bool.

        A pixel's neighbours must agree before a point counts as seen, so that grazing surfaces do not leak.
        """
        base = torch.einsum("bij,bpj->bpi", torch.linalg.inv(instances.linear), points - instances.offset[:, None])
        base = base * self.base_scale[instances.objects][:, None, None] + self.base_offset[instances.objects][:, None]
        outside = torch.zeros(points.shape[:2], dtype=torch.bool, device=points.device)
        for view in range(len(self.rotations)):
            rotation = self.rotations[view]
            camera = torch.einsum("ij,bpj->bpi", rotation[:3, :3], base) + rotation[:3, 3]
            pixel = camera[..., :2] / camera[..., 2:] * self.focal + self.size / 2 - 0.5
            column = pixel[..., 0].floor().long().clamp(0, self.size - 2)
            row = pixel[..., 1].floor().long().clamp(0, self.size - 2)
            depth = self.depth[instances.objects, view].flatten(1)
            first = depth.gather(1, row * self.size + column)
            for dy, dx in ((0, 1), (1, 0), (1, 1)):
                first = torch.minimum(first, depth.gather(1, (row + dy) * self.size + column + dx))
            outside |= camera[..., 2] - FAR < first.float() + 0.001
        return ~outside
