"""Random photographs of object instances: cameras as people take them, simple lights, tight crops on black."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.objects import Instances, ObjectLibrary, linear_to_srgb
from training.data.rasterise import rasterise

# Evenly spaced views can be told apart without being compared: half of the scenes on circles taught VGGT little more
# than the quarter in which a view lies (training/LOG.md, run 4).
TRAINING_AZIMUTHS = {"circles": 0.25, "sectors": 0.35}
CROP_MARGIN = 1.1  # the longer side of the object's box fills 1/1.1 of a prepared view


@dataclass
class Views:
    """B instances seen by S cameras at `size` x `size` pixels; N = B * S, instance-major.

    extrinsics [N, 4, 4] world-to-camera (OpenCV) in the canonical frame, intrinsics [N, 3, 3] pixels with the
    principal point at the centre, fov [N] radians, view_owner [N] the instance.
    """

    extrinsics: Tensor
    intrinsics: Tensor
    fov: Tensor
    view_owner: Tensor
    size: int


@dataclass
class Rendering:
    """images [N, 3, H, W] sRGB in [0, 1] on black; alpha [N, 1, H, W]; points, normals [N, 3, H, W] canonical frame;
    albedo [N, 3, H, W] sRGB."""

    images: Tensor
    alpha: Tensor
    points: Tensor
    normals: Tensor
    albedo: Tensor


def look_at(eye: Tensor, target: Tensor, roll: Tensor) -> Tensor:
    """World-to-camera [N, 4, 4], OpenCV axes, up +z turned by `roll` [N] about the optical axis."""
    forward = F.normalize(target - eye, dim=1)
    up = torch.tensor([0.0, 0.0, 1.0], device=eye.device).expand_as(eye)
    right = F.normalize(torch.cross(forward, up, dim=1), dim=1)
    down = torch.cross(forward, right, dim=1)
    c, s = roll.cos()[:, None], roll.sin()[:, None]
    rotation = torch.stack([c * right + s * down, c * down - s * right, forward], 1)
    extrinsics = torch.eye(4, device=eye.device).repeat(len(eye), 1, 1)
    extrinsics[:, :3, :3] = rotation
    extrinsics[:, :3, 3] = -torch.einsum("nij,nj->ni", rotation, eye)
    return extrinsics


def random_views(
    instances: Instances,
    per_instance: int,
    size: int,
    generator: torch.Generator,
    circles: float = 0.5,
    sectors: float = 0.0,
) -> Views:
    """Cameras at elevation -10..60 degrees, small roll, distance 1.4..4 (28..85 mm framings), first azimuth 0.

    Azimuths are a jittered circle in a share `circles` of the scenes and random in the others, of which a share
    `sectors` keeps within a part of the circle. Each view is then cropped to the object: the camera turns to the
    centre of the object's box and the focal length fills the frame.
    """
    device = instances.vertices.device
    count = len(instances.objects)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=device)

    circle = torch.arange(per_instance, device=device) / per_instance + (uniform(count, per_instance) - 0.5) * 0.1
    on_circle, anywhere = uniform(count, 1) < circles, uniform(count, per_instance)
    if sectors:
        width = torch.where(uniform(count, 1) < sectors, 0.1 + 0.5 * uniform(count, 1), 1.0)
        anywhere = (anywhere - uniform(count, 1)) * width
    azimuth = torch.where(on_circle, circle, anywhere) * 2 * torch.pi
    order = torch.cat([torch.zeros(count, 1, device=device), 1 + uniform(count, per_instance - 1)], 1).argsort(1)
    azimuth = azimuth.gather(1, order)
    azimuth[:, 0] = 0.0
    base_elevation = uniform(count, 1) * 0.9 - 0.1
    elevation = base_elevation + (uniform(count, per_instance) - 0.5) * 0.6
    wild = uniform(count, per_instance) < 0.3
    elevation = torch.where(wild, uniform(count, per_instance) * 1.25 - 0.2, elevation).clamp(-0.2, 1.1)
    distance = torch.exp(torch.log(torch.tensor(1.4)) + uniform(count, 1) * torch.log(torch.tensor(4.0 / 1.4)))
    distance = distance * torch.exp((uniform(count, per_instance) - 0.5) * 0.3)
    roll = (uniform(count, per_instance) - 0.5) * 0.26 * (uniform(count, 1) < 0.5)
    direction = torch.stack(
        [azimuth.sin() * elevation.cos(), azimuth.cos() * elevation.cos(), elevation.sin()], -1
    )
    eye = (direction * distance[..., None]).reshape(-1, 3)
    view_owner = torch.arange(count, device=device).repeat_interleave(per_instance)
    return crop_to_object(instances, eye, roll.reshape(-1), view_owner, size, generator)


def crop_to_object(
    instances: Instances, eye: Tensor, roll: Tensor, view_owner: Tensor, size: int, generator: torch.Generator | None
) -> Views:
    """Turn each camera to the centre of the projected box and choose the focal length that fills 1/1.1 of the frame."""
    device, views = eye.device, len(view_owner)
    target = torch.zeros(views, 3, device=device)
    hull = instances.hull[view_owner]
    half = torch.ones(views, device=device)
    for _ in range(3):
        extrinsics = look_at(eye, target, roll)
        camera = torch.einsum("nij,nvj->nvi", extrinsics[:, :3, :3], hull) + extrinsics[:, None, :3, 3]
        plane = camera[..., :2] / camera[..., 2:].clamp(min=1e-3)
        low, high = plane.amin(1), plane.amax(1)
        centre, half = (low + high) / 2, (high - low).amax(1) / 2
        ray = torch.cat([centre, torch.ones(views, 1, device=device)], 1)
        world_ray = torch.einsum("nji,nj->ni", extrinsics[:, :3, :3], ray)
        target = eye + world_ray * (-(eye * world_ray).sum(1, keepdim=True) / world_ray.square().sum(1, keepdim=True))
    extrinsics = look_at(eye, target, roll)
    margin = CROP_MARGIN
    if generator is not None:  # masks are never exact
        margin = CROP_MARGIN + (torch.rand(views, generator=generator, device=device) - 0.5) * 0.06
    tangent = half * margin
    intrinsics = torch.zeros(views, 3, 3, device=device)
    intrinsics[:, 0, 0] = intrinsics[:, 1, 1] = size / 2 / tangent
    intrinsics[:, 0, 2] = intrinsics[:, 1, 2] = size / 2
    intrinsics[:, 2, 2] = 1
    return Views(extrinsics, intrinsics, 2 * torch.atan(tangent), view_owner, size)


def _project(instances: Instances, views: Views) -> tuple[Tensor, Tensor, Tensor]:
    """Screen triangles [T', 3, 3] of every view, the view of each, and its index into `instances.triangles`."""
    device = instances.vertices.device
    count = len(instances.objects)
    per_view = torch.bincount(instances.owner, minlength=count)[views.view_owner]
    first = (torch.cumsum(torch.bincount(instances.owner, minlength=count), 0) - torch.bincount(
        instances.owner, minlength=count))[views.view_owner]
    view = torch.repeat_interleave(torch.arange(len(views.view_owner), device=device), per_view)
    start = torch.cumsum(per_view, 0) - per_view
    triangle = torch.arange(len(view), device=device) - start[view] + first[view]
    corners = instances.vertices[instances.triangles[triangle]]  # [T', 3, 3]
    camera = torch.einsum("tij,tvj->tvi", views.extrinsics[view, :3, :3], corners) + views.extrinsics[view, None, :3, 3]
    depth = camera[..., 2]
    focal = views.intrinsics[view, 0, 0][:, None]
    safe = depth.clamp(min=1e-4)
    screen = torch.stack(
        [camera[..., 0] / safe * focal + views.size / 2, camera[..., 1] / safe * focal + views.size / 2, depth], -1
    )
    return screen, view, triangle


def render(library: ObjectLibrary, instances: Instances, views: Views, generator: torch.Generator) -> Rendering:
    """Rasterise and shade every view under one random light set per instance."""
    screen, view, triangle = _project(instances, views)
    n, size = len(views.view_owner), views.size
    seen, _ = rasterise(screen, view, n, size)
    pixel = torch.nonzero(seen.reshape(-1) >= 0)[:, 0]
    hit = seen.reshape(-1)[pixel]
    image_index = pixel // (size * size)
    corners = screen[hit]
    weights = _perspective_weights(
        corners, (pixel % size).float() + 0.5, (pixel // size % size).float() + 0.5
    )
    index = instances.triangles[triangle[hit]]  # [P, 3]
    points = (instances.vertices[index] * weights[..., None]).sum(1)
    uvs = (instances.uvs[index] * weights[..., None]).sum(1)
    owner = instances.owner[triangle[hit]]
    objects = instances.objects[owner]
    p = instances.vertices[index]
    flat = F.normalize(torch.cross(p[:, 1] - p[:, 0], p[:, 2] - p[:, 0], dim=1), dim=1)
    smooth = F.normalize((instances.normals[index] * weights[..., None]).sum(1), dim=1)
    normals = torch.where(library.smooth[objects][:, None], smooth, flat)
    rotation = views.extrinsics[:, :3, :3]
    eye = -torch.einsum("nji,nj->ni", rotation, views.extrinsics[:, :3, 3])
    to_eye = F.normalize(eye[image_index] - points, dim=1)
    normals = torch.where((flat * to_eye).sum(1, keepdim=True) < 0, -flat, normals)
    normals = torch.where((normals * to_eye).sum(1, keepdim=True) < -0.2, -normals, normals)
    albedo = library.sample_albedo(instances.textures[owner], uvs)
    albedo = apply_each(instances.hue[owner], albedo).clamp(0, 1)
    colour = shade(albedo, normals, to_eye, owner, len(instances.objects), generator)

    def image(values: Tensor) -> Tensor:
        canvas = torch.zeros(n * size * size, values.shape[1], device=values.device)
        canvas[pixel] = values.to(canvas.dtype)
        return canvas.reshape(n, size, size, -1).permute(0, 3, 1, 2).contiguous()

    exposure = torch.exp((torch.rand(n, 1, generator=generator, device=screen.device) - 0.5) * 0.2)
    srgb = linear_to_srgb((colour * exposure[image_index]).clamp(0, 1))
    ones = torch.ones(len(pixel), 1, device=screen.device)
    return Rendering(image(srgb), image(ones), image(points), image(normals), image(linear_to_srgb(albedo)))


def apply_each(matrices: Tensor, vectors: Tensor) -> Tensor:
    """Each of millions of matrices [P, 3, 3] times its vector [P, 3]; as a batched product it took a tenth of the
    time of drawing a batch."""
    x, y, z = vectors.split(1, dim=1)
    return torch.addcmul(torch.addcmul(matrices[:, :, 0] * x, matrices[:, :, 1], y), matrices[:, :, 2], z)


def _perspective_weights(corners: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Perspective-correct barycentrics [P, 3] of pixels (x, y) in screen triangles [P, 3, 3]."""
    ax, ay = corners[:, :, 0] - x[:, None], corners[:, :, 1] - y[:, None]
    w0 = ax[:, 1] * ay[:, 2] - ax[:, 2] * ay[:, 1]
    w1 = ax[:, 2] * ay[:, 0] - ax[:, 0] * ay[:, 2]
    w2 = ax[:, 0] * ay[:, 1] - ax[:, 1] * ay[:, 0]
    weights = torch.stack([w0, w1, w2], 1) / corners[:, :, 2]
    # Slivers: rounding can leave no weight at all, or a negative one.
    weights = torch.nan_to_num(weights / weights.sum(1, keepdim=True), nan=1 / 3, posinf=1.0, neginf=0.0).clamp(0, 1)
    return weights / weights.sum(1, keepdim=True)


def shade(
    albedo: Tensor, normals: Tensor, to_eye: Tensor, owner: Tensor, count: int, generator: torch.Generator
) -> Tensor:
    """Linear radiance [P, 3]: hemisphere ambient, two directional lights and a faint Blinn highlight per instance."""
    device = albedo.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=device)

    ambient = 0.35 + 0.6 * uniform(count, 1)
    contrast = 0.35 * uniform(count, 1)
    tint = 1 + (uniform(count, 2, 3) - 0.5) * 0.16
    direction = F.normalize(torch.cat([uniform(count, 2, 2) * 2 - 1, 0.1 + uniform(count, 2, 1)], -1), dim=-1)
    strength = (1.15 - ambient)[:, None] * torch.stack([0.5 + 0.5 * uniform(count, 1), 0.5 * uniform(count, 1)], 1)
    shine = 0.25 * uniform(count, 1) * (uniform(count, 1) < 0.3)
    radiance = ambient[owner] * (1 - contrast[owner] * (0.5 - 0.5 * normals[:, 2:])) * albedo
    for light in range(2):
        cosine = (normals * direction[owner, light]).sum(1, keepdim=True).clamp(min=0)
        half = F.normalize(direction[owner, light] + to_eye, dim=1)
        gloss = shine[owner] * (normals * half).sum(1, keepdim=True).clamp(min=0) ** 30
        radiance = radiance + strength[owner, light] * tint[owner, light] * cosine * (albedo + gloss)
    return radiance


def cut_out(rendering: Rendering, generator: torch.Generator) -> Tensor:
    """The rendering's images as a segmenter leaves them, [N, 3, H, W] on black.

    In half of the views the outline is uneven: parts of the edge are missing, elsewhere a rim of the background (one
    colour a view) is left, each up to some 1.5 pixels wide.
    """
    images, alpha = rendering.images, rendering.alpha
    n, device = len(images), images.device
    uneven = torch.rand(n, 1, 1, 1, generator=generator, device=device) < 0.5
    shift = (torch.rand(n, 1, 1, 1, generator=generator, device=device) - 0.5) * 0.3
    waves = 0.15 * torch.randn(n, 1, alpha.shape[2] // 6, alpha.shape[3] // 6, generator=generator, device=device)
    background = torch.rand(n, 3, 1, 1, generator=generator, device=device)
    # Twice a mean over 3 x 3 falls from 1 to 0 within five pixels across an edge, and spares what is two pixels thin.
    cover = F.avg_pool2d(F.avg_pool2d(alpha, 3, 1, 1), 3, 1, 1)
    error = (shift + F.interpolate(waves, alpha.shape[2:], mode="bilinear")).clamp(-0.33, 0.33)
    mask = (3 * (cover + error - 0.5) + 0.5).clamp(0, 1)
    return torch.where(uneven, mask * torch.lerp(background.expand_as(images), images, alpha), images)


def degrade(images: Tensor, generator: torch.Generator) -> Tensor:
    """What cameras and resizing add: a random small blur per view and faint noise."""
    n = len(images)
    amount = torch.rand(n, 1, 1, 1, generator=generator, device=images.device)
    kernel = torch.tensor([1.0, 2.0, 1.0], device=images.device) / 4
    blur = (kernel[:, None] * kernel).expand(3, 1, 3, 3)
    images = torch.lerp(images, F.conv2d(images, blur, padding=1, groups=3), amount)
    noise = torch.randn(images.shape, generator=generator, device=images.device) * 0.01
    return (images + noise * (images > 0)).clamp(0, 1)
