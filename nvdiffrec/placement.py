"""Find the camera of a view anew, by looking at a shape from around where it is thought to stand.

Estimated cameras can be wrong by tens of degrees, which no gradient crosses. So a view is compared with renderings from
many azimuths and elevations; where the object is in the picture, and how large, says where along each it stands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from scipy.spatial import cKDTree
from torch import Tensor

from nvdiffrec.camera_fit import corrected, corrected_cameras
from nvdiffrec.camera_newton import align_camera, color_difference
from nvdiffrec.coherence import Place
from nvdiffrec.from_scratch import render_colors
from nvdiffrec.losses import silhouette_iou
from nvdiffrec.views import Views
from trellis.export.simplify import simplify
from trellis.export.surface import surface_of
from trellis.renderers.cameras import Cameras
from trellis.representations.flexicubes.surface import Surface

_SEARCH_SIZE, _FINE_SIZE = 40, 96  # pixels
_COLOR_SHARE = 0.5  # of the score, beside the silhouettes' IoU
_FAR_SHARE = 0.005  # taken off the score for a camera as far off as estimates usually are
_AZIMUTHS, _ELEVATIONS = (60.0, 10.0), (20.0, 10.0)  # degrees around where it is thought to stand, and their steps
_KEPT = 2  # candidates that are aligned
_STEPS = (3, 4)  # of aligning, on the two sizes
_FACES = 1500  # that pictures this small show


def place_around(
    views: Views,
    surface: Surface,
    indices: Sequence[int] | None = None,
    callback: Callable[[int, int], None] = lambda step, of: None,
) -> Views:
    """Move each camera to where the surface looks most like its photograph.

    Args:
        views: with cameras around the surface, held level in a frame whose z is up.
        surface: with colours [V, 3] (linear) as attributes.
        indices: of the views to place; default all.
        callback: called as (step, of) after every view; may raise to stop.

    A view keeps its camera if none that shows the surface more like it is found.
    """
    surface = _reduced(surface)
    small, fine = views.scaled(_SEARCH_SIZE), views.scaled(_FINE_SIZE)
    middle = (surface.vertices.amin(0) + surface.vertices.amax(0)) / 2
    extrinsics, intrinsics = views.cameras.extrinsics.clone(), views.cameras.normalised_intrinsics.clone()
    indices = range(len(views)) if indices is None else indices
    for number, index in enumerate(indices, start=1):
        target = small.linear(index)
        here = views.cameras.extrinsics[index]
        start = Place(here)
        found = [(_score(surface, target, here, small.cameras, index), start, here)]
        for place in start.around(_AZIMUTHS, _ELEVATIONS, middle):
            pose = _centred(surface, target, place.extrinsics, small.cameras, index)
            score = _score(surface, target, pose, small.cameras, index) - _FAR_SHARE * place.unlikely
            found.append((score, place, pose))
        found = found[:1] + sorted(found[1:], key=lambda entry: -entry[0])[:_KEPT]
        best = -math.inf
        for _, place, pose in found:
            camera = _aligned(surface, views, small, fine, index, pose)
            score = _score(surface, fine.linear(index), camera.extrinsics[0],
                           camera.scaled(*fine.cameras.height_width(index)), 0)  # fmt: skip
            score -= _FAR_SHARE * place.unlikely
            if score > best:
                best = score
                extrinsics[index], intrinsics[index] = camera.extrinsics[0], camera.normalised_intrinsics[0]
        callback(number, len(indices))
    return views.with_cameras(Cameras.from_normalised(extrinsics, intrinsics, views.cameras.image_size))


@torch.no_grad()
def _reduced(surface: Surface) -> Surface:
    """With fewer faces, and the colours of the nearest vertices."""
    low = simplify(surface_of(surface), 0.0, _FACES)
    nearest = cKDTree(surface.vertices.numpy()).query(low.vertices)[1]
    vertices, faces = torch.from_numpy(low.vertices), torch.from_numpy(low.faces).long()
    return Surface(vertices, faces, surface.attributes[nearest])


@torch.no_grad()
def _centred(surface: Surface, target: Tensor, extrinsics: Tensor, cameras: Cameras, index: int) -> Tensor:
    """The camera moved so that the silhouette is where that of the photograph is, and as large."""
    intrinsics = cameras.intrinsics[index]
    mask = render_colors(surface, extrinsics, intrinsics, cameras.height_width(index))[..., 3]
    shown, wanted = _extent(mask), _extent(target[..., 3])
    if shown is None or wanted is None:
        return extrinsics
    middle = (surface.vertices.amin(0) + surface.vertices.amax(0)) / 2
    depth = float(extrinsics[2, :3] @ middle + extrinsics[2, 3])
    nearer = wanted[1] / shown[1]
    result = extrinsics.clone()
    center = (extrinsics[:3, :3] @ middle + extrinsics[:3, 3]) / depth  # on the plane at depth 1
    focal, principal = intrinsics[[0, 1], [0, 1]], intrinsics[:2, 2]
    offset = (shown[0] - principal) / focal - center[:2]  # of the silhouette's middle from that of the box
    new_depth = depth / nearer
    new_center = (wanted[0] - principal) / focal - offset * nearer
    moved = torch.cat([new_center, center.new_ones(1)]) * new_depth
    result[:3, 3] = moved - extrinsics[:3, :3] @ middle
    return result


def _extent(mask: Tensor) -> tuple[Tensor, float] | None:
    """Middle (x, y) in pixels of a silhouette [H, W], and the root of its area; None for an empty one."""
    area = float(mask.sum())
    if area < 1:
        return None
    rows, columns = (torch.arange(side) + 0.5 for side in mask.shape)
    middle = torch.stack([(mask.sum(0) * columns).sum(), (mask.sum(1) * rows).sum()]) / area
    return middle, math.sqrt(area)


@torch.no_grad()
def _score(surface: Surface, target: Tensor, extrinsics: Tensor, cameras: Cameras, index: int) -> float:
    image = render_colors(surface, extrinsics, cameras.intrinsics[index], cameras.height_width(index))
    return silhouette_iou(image[..., 3], target[..., 3]) - _COLOR_SHARE * color_difference(image, target)


def _aligned(surface: Surface, views: Views, small: Views, fine: Views, index: int, pose: Tensor) -> Cameras:
    """One camera after following the picture from a pose."""
    start = Cameras(pose[None], views.cameras.intrinsics[index][None], views.cameras.image_size[index][None])
    correction = torch.zeros(6), torch.zeros(())
    for scaled, steps in zip((small, fine), _STEPS, strict=True):
        camera = start.scaled(*scaled.cameras.height_width(index))
        correction = align_camera(partial(_view, surface, camera), scaled.linear(index), *correction, steps)
    return corrected_cameras(start, correction[0][None], correction[1][None])


def _view(surface: Surface, camera: Cameras, twist: Tensor, log_focal: Tensor) -> Tensor:
    return render_colors(surface, *corrected(camera, 0, twist, log_focal), camera.height_width(0))

