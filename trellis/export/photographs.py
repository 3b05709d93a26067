"""Photographs painted over the colours of a surface where they see it well.

Each point, be it a texel or a splat, asks every photograph whose camera sees it. A photograph counts more the more
frontal it looks, and fades out towards silhouettes, depth edges and the rim of the image, so that none of its borders
shows. Before blending, the photographs' exposures and white balances are matched to each other where they see the same
points.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage, sparse

from trellis.errors import InputError
from trellis.export.bake import DEPTH_TOLERANCE, SeenColors
from trellis.export.surface import Surface, unit
from trellis.export.texels import SurfacePoints
from trellis.export.topology import position_ids
from trellis.export.views import Looker
from trellis.renderers.cameras import Cameras

_FEATHER = 0.03  # of the image's shorter side: the width over which a photograph fades in
_STEEP = 4.0  # depth per pixel's width that a single sheet may have
_FRONTAL = 0.3  # squared cosine from which on a point is the photographs' alone: seen from within 57 degrees
_PIXELS_PER_POINT = 1.25  # along a line; of a photograph with more, points would skip some
_ROUNDS = 4  # of averaging normals, a ring of triangles each
_MAX_GAIN = 2.0  # a photograph is made at most this many times brighter or darker
_GAIN_PRIOR = 0.02  # of the usual weight: photographs without overlap keep their exposure
_MAX_PAIRS = 60_000  # points that take part in matching exposures
_DARK, _BRIGHT = 0.02, 0.97  # sRGB; outside, a pixel is clipped or noise and tells nothing about exposure


@dataclass(frozen=True, eq=False)
class Photographs:
    """Pictures of the object with known cameras.

    Attributes:
        images: N of [3, H, W] float in [0, 1], sRGB.
        cameras: N, object frame, each of its image's size.
        alphas: N of [1, H, W] float in [0, 1], the object, cut out; None trusts the outline of the mesh.

    Raises:
        InputError: numbers or sizes that do not fit together.
    """

    images: Sequence[torch.Tensor]
    cameras: Cameras
    alphas: Sequence[torch.Tensor] | None = None

    def __post_init__(self) -> None:
        alphas = self.alphas if self.alphas is not None else [None] * len(self.images)
        if not len(self.images) == len(alphas) == len(self.cameras):
            raise InputError(
                f"Every photograph needs a camera and a cut-out: {len(self.images)} photographs came with "
                f"{len(self.cameras)} cameras and {len(alphas)} cut-outs."
            )
        for k, (image, alpha) in enumerate(zip(self.images, alphas, strict=True)):
            size = self.cameras.height_width(k)
            if tuple(image.shape) != (3, *size) or (alpha is not None and tuple(alpha.shape) != (1, *size)):
                raise InputError(
                    f"Photograph {k} must be [3, {size[0]}, {size[1]}] like its camera, but is {list(image.shape)}."
                )

    @classmethod
    def of(cls, views: Sequence[Image.Image], cameras: Cameras) -> Photographs:
        """Views with alpha, and their cameras, which may be those of larger or smaller copies of them."""
        planes, sized = [], []
        for view, camera in zip(views, cameras, strict=True):
            pixels = np.asarray(view.convert("RGBA"), dtype=np.float32)
            planes.append(torch.from_numpy(pixels.transpose(2, 0, 1) / 255))
            sized.append(camera.scaled(view.height, view.width))
        return cls([plane[:3] for plane in planes], Cameras.cat(sized), [plane[3:] for plane in planes])


@dataclass(frozen=True, eq=False)
class PhotoColors:
    """colors: [T, 3] of the points. share: [T] in [0, 1], how far photographs decided. gains: [N, 3], linear light."""

    colors: np.ndarray
    share: np.ndarray
    gains: np.ndarray


def blend_photographs(
    surface: Surface,
    points: SurfacePoints,
    photographs: Photographs,
    base: np.ndarray,
    on_view: Callable[[int], None] | None = None,
) -> PhotoColors:
    """Lay photographs over `base` colours [T, 3] (sRGB in [0, 1], from splats or vertex colours).

    Args:
        surface: hides itself from the photographs.
        points: T points on it.
        photographs: the pictures.
        base: what remains where no photograph looks, and what they fade into.
        on_view: called with the number of photographs done; may raise to stop.
    """
    looker, (center, radius) = Looker(surface), surface.bounding_sphere()
    radius = max(radius, 1e-6)
    points_per_unit = np.sqrt(len(points) / max(surface.face_areas().sum(), 1e-30))
    seen: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # point indices, linear colours, weights
    for k in range(len(photographs.cameras)):
        color, alpha, camera = _no_finer(photographs, k, center, _PIXELS_PER_POINT * points_per_unit)
        hit = looker.look(camera, 0)
        depth = hit.depth.masked_fill(hit.face_ids < 0, float("inf"))
        pixel = float(hit.depth.max()) / float(camera.intrinsics[0, 0, 0])
        trusted = torch.from_numpy(_feathered(depth.numpy(), alpha, DEPTH_TOLERANCE * radius + _STEEP * pixel))
        shown = SeenColors(points)
        shown.add(camera, 0, color, trusted, depth, DEPTH_TOLERANCE * radius)
        sums, weights = shown.sums.numpy(), shown.weights.numpy()
        index = np.flatnonzero(weights > 0)
        seen.append((index, to_linear(sums[index] / weights[index, None]), weights[index]))
        if on_view is not None:
            on_view(k + 1)
    gains = match_exposures(seen, len(points))
    sums, weights = np.zeros((len(points), 3), np.float32), np.zeros(len(points), np.float32)
    best = np.zeros(len(points), np.float32)
    for (index, color, weight), gain in zip(seen, gains, strict=True):
        best[index] = np.maximum(best[index], np.sqrt(weight))  # which grows with the fourth power of the cosine
        weight = weight**2  # the best view decides; averaging many blurs what their cameras do not agree on
        sums[index] += weight[:, None] * to_srgb(color * gain)
        weights[index] += weight
    share = (best / _FRONTAL).clip(0, 1)
    share = share * share * (3 - 2 * share)
    colors = np.where(weights[:, None] > 0, sums / np.maximum(weights, 1e-12)[:, None], base)
    return PhotoColors((base + share[:, None] * (colors - base)).clip(0, 1), share, gains)


def calm_normals(surface: Surface) -> np.ndarray:
    """[V, 3] float32 unit normals of a surface's vertices, averaged over `_ROUNDS` rings of triangles around them.

    How frontal a photograph looks must follow the shape: the noise of single triangles would take neighbouring points
    from different photographs, which speckles the texture wherever the cameras are not exact.
    """
    place = position_ids(surface.vertices)  # chart borders repeat vertices
    faces = place[surface.faces]
    around = sparse.csr_matrix((np.ones(faces.size), (faces.ravel(), np.arange(faces.size) // 3)))
    vectors = surface.face_vectors()
    areas = np.linalg.norm(vectors, axis=1, keepdims=True)
    for _ in range(_ROUNDS):
        normals = unit(around @ vectors)
        vectors = areas * unit(normals[faces].mean(axis=1))
    return unit(around @ vectors)[place].astype(np.float32)


def match_exposures(seen: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], num_points: int) -> np.ndarray:
    """Gains [N, 3] for linear colours that make N photographs agree where they see the same points.

    With l the logarithm of a colour and m the unknown one of a point, sum of w (l + g - m)^2 is smallest for the g that
    solve an N x N system per channel, after each m is eliminated as the weighted mean. The gains' product is 1.
    """
    count = len(seen)
    step = max(1, num_points // _MAX_PAIRS)
    rows = -(-num_points // step)
    logs, weights = np.zeros((count, rows, 3)), np.zeros((count, rows, 3))
    for k, (index, color, weight) in enumerate(seen):
        chosen = index % step == 0
        usable = (color[chosen] > to_linear(np.array(_DARK))) & (color[chosen] < to_linear(np.array(_BRIGHT)))
        logs[k, index[chosen] // step] = np.log(np.maximum(color[chosen], 1e-4))
        weights[k, index[chosen] // step] = weight[chosen, None] * usable
    gains = np.ones((count, 3))
    for channel in range(3):
        w, value = weights[..., channel], logs[..., channel]
        total = np.maximum(w.sum(axis=0), 1e-12)
        matrix = np.diag(w.sum(axis=1)) - (w / total) @ w.T
        right = ((value * w).sum(axis=0) / total * w - w * value).sum(axis=1)
        prior = _GAIN_PRIOR * max(np.trace(matrix) / count, 1e-9)
        solution = np.linalg.solve(matrix + prior * np.eye(count), right)
        gains[:, channel] = np.exp((solution - solution.mean()).clip(-np.log(_MAX_GAIN), np.log(_MAX_GAIN)))
    return gains


def to_linear(srgb: np.ndarray) -> np.ndarray:
    """Linear light of sRGB values in [0, 1] (IEC 61966-2-1)."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((np.maximum(srgb, 0.04045) + 0.055) / 1.055) ** 2.4)


def to_srgb(linear: np.ndarray) -> np.ndarray:
    """sRGB of linear light; the inverse of `to_linear`."""
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * np.maximum(linear, 0.0031308) ** (1 / 2.4) - 0.055)


def _no_finer(
    photographs: Photographs, index: int, center: np.ndarray, pixels_per_unit: float
) -> tuple[torch.Tensor, np.ndarray | None, Cameras]:
    """Colour [H, W, 3], alpha [H, W] and camera of one photograph, shrunk if it has more pixels per unit of length at
    the object's `center` [3].

    Single pixels of a photograph are read: where those lie many pixels apart, what is between them must have been
    averaged, or fine patterns come out as noise.
    """
    camera = photographs.cameras[index]
    planes = photographs.images[index].detach().cpu().float()
    if photographs.alphas is not None:
        planes = torch.cat([planes, photographs.alphas[index].detach().cpu().float()])
    distance = float(np.linalg.norm(camera.centers[0].detach().cpu().numpy() - center))
    factor = pixels_per_unit * distance / float(camera.intrinsics[0, 0, 0])
    if factor < 1:
        size = tuple(max(2, round(side * factor)) for side in camera.height_width(0))
        planes, camera = _shrunk(planes, size), camera.scaled(*size)
    alpha = None if photographs.alphas is None else planes[3].numpy()
    return planes[:3].permute(1, 2, 0), alpha, camera


def _shrunk(planes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """[3 or 4, H, W] averaged to `size`; colours count as far as they are opaque."""
    alpha = planes[3:] if len(planes) == 4 else torch.ones_like(planes[:1])
    stack = torch.cat([planes[:3] * alpha, alpha])[None]
    stack = F.interpolate(stack, size, mode="bilinear", align_corners=False, antialias=True)[0]
    return torch.cat([(stack[:3] / stack[3:].clamp_min(1e-4)).clamp(0, 1), stack[3:]])


def _feathered(depth: np.ndarray, alpha: np.ndarray | None, step: float) -> np.ndarray:
    """[H, W] float32 in [0, 1]: 0 at the border of what a photograph shows of one sheet of surface, rising inwards.

    Neighbouring pixels whose depths differ by more than `step` show two sheets.
    """
    near = ndimage.minimum_filter(depth, 3)  # empty pixels are infinitely far
    inside = np.isfinite(depth)
    inside[inside] = depth[inside] - near[inside] <= step
    if alpha is not None:
        inside &= alpha > 0.5
    framed = np.pad(inside, 1)  # outside the image there is nothing
    distance = ndimage.distance_transform_edt(framed)[1:-1, 1:-1]
    ramp = (distance / max(_FEATHER * min(depth.shape), 1)).clip(0, 1)
    return (ramp * ramp * (3 - 2 * ramp)).astype(np.float32)
