"""Surface samples of object instances and what is inside them, for meshes that need not be watertight.

Every object is looked at once from many directions: samples that no direction sees are dropped (hidden inner parts),
and a point of space counts as outside when some direction sees it in front of the surface.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.objects import Instances, ObjectLibrary, directions, linear_to_srgb, rotation_x, rotation_z
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


def misalign(samples: SurfaceSamples, generator: torch.Generator) -> SurfaceSamples:
    """Turn and shift each surface a little against its photographs, as sampled structures are."""
    count, device = len(samples.points), samples.points.device

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    turn = rotation_z(normal(count) * 0.05) @ rotation_x(normal(count) * 0.03)
    shift, scale = normal(count, 1, 3) * 0.01, 1 + normal(count, 1, 1) * 0.015
    points = torch.einsum("bij,bpj->bpi", turn, samples.points) * scale + shift
    return SurfaceSamples(
        points.clamp(-0.4999, 0.4999), torch.einsum("bij,bpj->bpi", turn, samples.normals), samples.colours
    )


def interpolate(values: Tensor, corners: Tensor, weights: Tensor) -> Tensor:
    """Values [V, C] of vertices at places in triangles: corners [..., 3] indices, weights [..., 2] of the first two."""
    a, b, c = (values[index] for index in corners.unbind(-1))
    first, second = weights.split(1, dim=-1)
    return c + first * (a - c) + second * (b - c)


class SurfaceCache:
    """Per object: where on its triangles the visible surface samples lie, and depth maps from all sides in the object's
    own (base) frame."""

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
        self.library, self.size, self.count = library, size, samples
        self.rotations = look_at(
            directions(views, device) * FAR, torch.zeros(views, 3, device=device), torch.zeros(views, device=device)
        )
        self.focal = size / 2 / (OBJECT_RADIUS * 1.05) * (FAR - OBJECT_RADIUS)
        count = len(library)
        self.faces = torch.empty(count, samples, dtype=torch.int32, device=device)  # of the object
        self.weights = torch.empty(count, samples, 2, dtype=torch.float16, device=device)  # of its first two corners
        self.outward = torch.empty(count, samples, dtype=torch.int8, device=device)  # 1, or -1: seen from behind
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
            self.faces[objects], self.weights[objects], self.outward[objects] = self._samples(
                instances, depth, samples, generator
            )

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
        self, instances: Instances, depth: Tensor, wanted: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Triangles, weights and sides of `wanted` area-weighted samples; each object repeats its visible ones."""
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
        face = face.reshape(count, draw)
        b = torch.rand(count, draw, 2, generator=generator, device=device)
        root = b[..., :1].sqrt()
        weights = torch.cat([1 - root, root * (1 - b[..., 1:])], 2)
        points = interpolate(instances.vertices, instances.triangles[face], weights)
        normals = self._normals(instances, face, weights)
        # Seen from the front by some view? The best-facing view that sees a sample also orients its normal.
        gap = self._depth_gap(depth, points)
        facing = torch.einsum("vi,bpi->bvp", -self.rotations[:, 2, :3], normals)
        seen = gap < 0.006
        score = torch.where(seen, facing.abs(), -1.0)
        best, which = score.max(1)
        sign = facing.gather(1, which[:, None])[:, 0].sign()
        visible = best > 0.03
        order = torch.argsort((~visible).to(torch.int8), dim=1, stable=True)
        usable = visible.sum(1, keepdim=True).clamp(min=1)
        slot = torch.arange(wanted, device=device)[None] % usable
        pick = order.gather(1, slot)
        face = face - self.library.first_triangles(instances.objects)[:, None]
        return (
            face.gather(1, pick).int(),
            weights.gather(1, pick[..., None].expand(-1, -1, 2)).half(),
            sign.gather(1, pick).to(torch.int8),
        )

    def _depth_gap(self, depth: Tensor, points: Tensor) -> Tensor:
        """How far behind the first surface each point lies, [B, views, P]; negative is in front."""
        screen = self._project(points)
        column = screen[..., 0].long().clamp(0, self.size - 1)
        row = screen[..., 1].long().clamp(0, self.size - 1)
        first = depth.flatten(2).gather(2, row * self.size + column)
        return screen[..., 2] - first.clamp(max=FAR + 4)

    def points(self, instances: Instances, generator: torch.Generator) -> Tensor:
        """All samples of each instance in the canonical frame, from a random one on, [B, P, 3]."""
        face, weights, _ = self._drawn(instances, self.count, generator)
        return interpolate(instances.vertices, instances.triangles[face], weights)

    def sample(self, instances: Instances, count: int, generator: torch.Generator) -> SurfaceSamples:
        """`count` random samples of each instance, in the canonical frame with its texture and hue change."""
        face, weights, outward = self._drawn(instances, count, generator)
        corners = instances.triangles[face]
        textures = instances.textures[:, None].expand(face.shape).flatten()
        albedo = self.library.sample_albedo(textures, interpolate(instances.uvs, corners, weights).flatten(0, 1))
        albedo = torch.einsum("bij,bpj->bpi", instances.hue, albedo.unflatten(0, face.shape)).clamp(0, 1)
        return SurfaceSamples(
            interpolate(instances.vertices, corners, weights),
            self._normals(instances, face, weights) * outward[..., None],
            linear_to_srgb(albedo),
        )

    def _drawn(
        self, instances: Instances, count: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Triangles of the instances' list [B, count], weights [B, count, 2] and sides [B, count] of random samples."""
        objects, stored = instances.objects, self.faces.shape[1]
        start = torch.randint(stored, (len(objects), 1), generator=generator, device=self.faces.device)
        slot = (start + torch.arange(count, device=self.faces.device)) % stored
        rows = objects[:, None]
        face = self.library.first_triangles(objects)[:, None] + self.faces[rows, slot]
        return face, self.weights[rows, slot].float(), self.outward[rows, slot]

    def _normals(self, instances: Instances, face: Tensor, weights: Tensor) -> Tensor:
        """Unit normals [B, P, 3] as the triangles are oriented in the object: mirrored ones turn their edges round."""
        corners = instances.triangles[face]
        smooth = interpolate(instances.normals, corners, weights)
        p = instances.vertices[corners]
        flat = torch.cross(p[:, :, 1] - p[:, :, 0], p[:, :, 2] - p[:, :, 0], dim=2)
        flat = flat * torch.linalg.det(instances.linear).sign()[:, None, None]
        shaded = self.library.smooth[instances.objects][:, None, None]
        return F.normalize(torch.where(shaded, smooth, flat), dim=2)

    def inside(self, instances: Instances, points: Tensor, owner: Tensor) -> Tensor:
        """Whether canonical points [N, 3] of the instances owner [N] are hidden from every direction, [N] bool; of
        warped instances, from every direction before the deformation.

        A pixel's neighbours must agree before a point counts as seen, so that grazing surfaces do not leak.
        """
        inverse = torch.linalg.inv(instances.linear)[owner]
        base = (inverse * (points - instances.offset[owner])[:, None]).sum(2)
        if instances.warp is not None:
            base = instances.warp.origins(base, owner)
        objects = instances.objects[owner]
        base = base * self.base_scale[objects][:, None] + self.base_offset[objects]
        depth, size = self.depth.view(-1), self.size
        first_row = objects * (len(self.rotations) * size)
        outside = torch.zeros(len(points), dtype=torch.bool, device=points.device)
        for rotation in self.rotations:
            camera = base @ rotation[:3, :3].T + rotation[:3, 3]
            pixel = camera[:, :2] / camera[:, 2:] * self.focal + size / 2 - 0.5
            column, row = pixel.floor().long().clamp(0, size - 2).unbind(1)
            place = (first_row + row) * size + column
            first = torch.stack([depth[place + step] for step in (0, 1, size, size + 1)]).amin(0)
            outside |= camera[:, 2] - FAR < first.float() + 0.001
            first_row = first_row + size
        return ~outside
