"""Bring cameras from a frame of their own, at unknown scale, into the frame of an asset.

Predicted cameras agree among themselves; one similarity places them all. Its scale and shift follow from where the
silhouettes are and how large; its rotation is searched over all turns, because an object's frame says nothing about the
first photograph's. Candidates are compared by silhouettes and colours, the best few and their half turns (objects are
often nearly symmetric) are refined through the renderer, and the best one stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial import cKDTree
from torch import Tensor

from nvdiffrec.asset import Asset
from nvdiffrec.camera_fit import corrected, corrected_cameras, rotation_of
from nvdiffrec.camera_newton import align_camera
from nvdiffrec.from_scratch import render_colors
from nvdiffrec.light import filter_light
from nvdiffrec.losses import log_tonemapped_l1, mask_l2, silhouette_iou
from nvdiffrec.material import mip_pyramid, sample
from nvdiffrec.similarity import IDENTITY, Similarity, moved
from nvdiffrec.views import Views
from trellis.errors import InputError
from trellis.export.simplify import simplify
from trellis.renderers.cameras import Cameras, hammersley
from trellis.renderers.rotations import quaternion_to_matrix
from trellis.representations.flexicubes.surface import Surface

_SEARCH_SIZE, _REFINE_SIZE = 40, 96  # pixels
_SEARCH_VIEWS = 6
_NUM_ROTATIONS = 400  # about 25 degrees from any rotation to the nearest
_KEPT = 4  # candidates that are refined
_REFINE_STEPS = 50
_MASK_WEIGHT = 4.0
_LEAST_IOU = 0.5  # a view below has not been placed ...
_LEAST_SHARE = 0.75  # ... nor has one that agrees this much worse than the others
_COLOR_SHARE = 0.5  # of the score, beside the silhouettes' IoU
_NUM_HALF_TURNS = 3
_PROXY_FACES = 2500
_PROXY_LEVEL = 2.0  # of the mip pyramid, for the colours of its vertices
_SINGLE_STEPS = 6  # on each of the two sizes

Callback = Callable[[int, int], None]


@dataclass(frozen=True)
class ViewPlacement:
    """iou: of the silhouettes. residual: mean distance of their outlines in pixels of the search's picture, in percent
    of its side. color_error: mean tone-mapped difference inside. confidence: in [0, 1]. placed: whether it is used."""

    name: str
    iou: float
    residual: float
    color_error: float
    confidence: float
    placed: bool


@dataclass(frozen=True, eq=False)
class Registration:
    """views: those that could be placed, with cameras in the asset's frame. together: the same cameras as placed by one
    similarity, before each moved by itself. placements: of all views, in order. message: which views were left out, in
    a sentence, empty if none."""

    views: Views
    together: Cameras
    similarity: Similarity
    placements: tuple[ViewPlacement, ...]
    message: str


def register(
    views: Views,
    asset: Asset,
    guess: Similarity | None = None,
    seed: int = 0,
    *,
    search: bool = True,
    single: bool | None = None,
    callback: Callback = lambda step, of: None,
) -> Registration:
    """Place the cameras of `views` around the asset.

    Args:
        views: with cameras in any frame and at any scale, consistent with each other up to a few that may be wrong.
        asset: its geometry and base colours (its own light if it has one) are compared.
        guess: a placement to try as well, for instance the identity for cameras that should be in the frame already.
        search: look through all turns; else only `guess` is followed.
        single: afterwards also move every camera by itself, a little; None does so if they were predicted.
        callback: called as (step, of) after every candidate and every refined one; may raise to stop.

    Raises:
        InputError: fewer than two views, or no placement in which two views agree with the asset.
    """
    if len(views) < 2:
        raise InputError("One view cannot be registered to an asset; at least two views are needed.")
    comparison = _Comparison(views, asset)
    if not search:
        final = comparison.refine(guess or IDENTITY)
        callback(1, 1 + len(views))
        return _settled(views, asset, comparison, final, single, callback, 1 + len(views))
    start = _scale_and_shift(views, comparison.proxy)
    candidates = [start.with_rotation(rotation) for rotation in _rotations(seed)]
    picked = _spread(len(views))
    extra = [guess] if guess is not None else []
    of = len(candidates) + _KEPT + len(extra) + _NUM_HALF_TURNS + len(views)
    scores = []
    for number, candidate in enumerate(candidates, start=1):
        scores.append(comparison.score(candidate, picked, _SEARCH_SIZE))
        callback(number, of)
    order = np.argsort(scores)[::-1][:_KEPT]
    everyone = list(range(len(views)))
    final, best = None, -math.inf
    for number, candidate in enumerate([candidates[int(i)] for i in order] + extra, start=len(candidates) + 1):
        refined = comparison.refine(candidate)
        score = comparison.score(refined, everyone, _REFINE_SIZE)
        final, best = (refined, score) if score > best else (final, best)
        callback(number, of)
    for number, flipped in enumerate(_half_turns(final, asset), start=of - len(views) - _NUM_HALF_TURNS + 1):
        refined = comparison.refine(flipped)
        score = comparison.score(refined, everyone, _REFINE_SIZE)
        final, best = (refined, score) if score > best else (final, best)
        callback(number, of)
    return _settled(views, asset, comparison, final, single, callback, of)


def _settled(
    views: Views, asset: Asset, comparison: _Comparison, final: Similarity, single: bool | None, callback: Callback,
    of: int,
) -> Registration:  # fmt: skip
    """What a placement of all views together comes to, after the cameras by themselves if that is wanted."""
    together = placed = views.with_cameras(final.apply(views.cameras))
    if views.predicted if single is None else single:
        placed = place_singly(placed, asset, lambda step, _: callback(of - len(views) + step, of))
    callback(of, of)
    return judge(placed, asset, final, together.cameras)


def judge(
    views: Views, asset: Asset, similarity: Similarity | None = None, together: Cameras | None = None
) -> Registration:
    """What cameras that stand around the asset already are worth: those that show something else are left out.

    Args:
        similarity, together: how they came there; see `Registration`.

    Raises:
        InputError: fewer than two views agree with the asset.
    """
    placements = _Comparison(views, asset).placements()
    kept = [index for index, placement in enumerate(placements) if placement.placed]
    if len(kept) < 2:
        raise InputError(
            "The photographs could not be matched to the asset: no placement agrees with two or more of them. "
            "Check that they show the same object, and that its masks are right."
        )
    lost = [placement.name for placement in placements if not placement.placed]
    message = f"Left out because they could not be placed: {', '.join(lost)}." if lost else ""
    together = (views.cameras if together is None else together)[kept]
    return Registration(views.subset(kept), together, similarity or IDENTITY, placements, message)


def agreement(views: Views, asset: Asset) -> list[float]:
    """IoU of the silhouettes of every view with its camera as it is."""
    comparison = _Comparison(views, asset)
    return [iou for iou, _ in comparison.agreements(IDENTITY, list(range(len(views))), _REFINE_SIZE)]


def place_singly(views: Views, asset: Asset, callback: Callback = lambda step, of: None) -> Views:
    """Move every camera by itself, within what its prior allows, to where the asset looks more like its photograph.

    A view that agrees no better afterwards keeps its camera.
    """
    comparison = _Comparison(views, asset)
    cameras = views.cameras
    twists, log_focals = torch.zeros(len(views), 6), torch.zeros(len(views))
    for index in range(len(views)):
        twists[index], log_focals[index] = comparison.refine_single(index)
        callback(index + 1, len(views))
    return views.with_cameras(corrected_cameras(cameras, twists, log_focals))


@dataclass(frozen=True)
class _Start:
    """What is known before the rotation: scale, and the two centres that must meet."""

    scale: float
    world_center: Tensor
    asset_center: Tensor

    def with_rotation(self, rotation: Tensor) -> Similarity:
        return Similarity(rotation, self.scale, self.asset_center - self.scale * rotation @ self.world_center)


class _Comparison:
    """Renders the asset into the views for a placement and says how well both agree."""

    def __init__(self, views: Views, asset: Asset) -> None:
        self.views, self.proxy = views, _proxy(asset)
        self._sizes = {size: views.scaled(size) for size in (_SEARCH_SIZE, _REFINE_SIZE)}
        self._targets = {
            size: [scaled.linear(index) for index in range(len(views))] for size, scaled in self._sizes.items()
        }

    def image(
        self, index: int, size: int, extrinsics: Tensor | None = None, intrinsics: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The asset as a view shows it, by default with the view's own camera, and the photograph."""
        camera = self._sizes[size].cameras
        extrinsics = camera.extrinsics[index] if extrinsics is None else extrinsics
        intrinsics = camera.intrinsics[index] if intrinsics is None else intrinsics
        return render_colors(self.proxy, extrinsics, intrinsics, camera.height_width(index)), self._targets[size][index]

    @torch.no_grad()
    def agreements(self, similarity: Similarity, indices: list[int], size: int) -> list[tuple[float, float]]:
        """IoU and colour error of each view."""
        cameras = similarity.apply(self._sizes[size].cameras)
        pairs = (self.image(index, size, cameras.extrinsics[index]) for index in indices)
        return [(silhouette_iou(i[..., 3], t[..., 3]), _color_error(i, t)) for i, t in pairs]

    def score(self, similarity: Similarity, indices: list[int], size: int) -> float:
        """Median over the views, so that a few wrong cameras do not decide."""
        values = [iou - _COLOR_SHARE * error for iou, error in self.agreements(similarity, indices, size)]
        return float(np.median(values))

    def refine(self, similarity: Similarity) -> Similarity:
        """Follow the gradients of silhouettes and colours; views that agree far worse than the others have no say."""
        indices = list(range(len(self.views)))
        ious = np.array([iou for iou, _ in self.agreements(similarity, indices, _REFINE_SIZE)])
        trusted = [i for i in indices if ious[i] >= 0.6 * np.median(ious)][: 2 * _SEARCH_VIEWS]
        change = torch.zeros(7, requires_grad=True)
        optimiser = torch.optim.Adam([change], lr=0.02)
        base = self._sizes[_REFINE_SIZE].cameras.extrinsics
        best, best_loss = similarity, math.inf
        for step in range(_REFINE_STEPS):
            optimiser.param_groups[0]["lr"] = 0.02 * 0.1 ** (step / _REFINE_STEPS)
            turn, grow = rotation_of(change[:3]), change[3].exp()
            rotation, scale = turn @ similarity.rotation, similarity.scale * grow
            shift = grow * turn @ similarity.shift + change[4:]
            loss = torch.zeros(())
            for index in trusted:
                image, target = self.image(index, _REFINE_SIZE, moved(base[index], rotation, scale, shift))
                loss = loss + _MASK_WEIGHT * mask_l2(image[..., 3], target[..., 3])
                loss = loss + log_tonemapped_l1(image[..., :3], target[..., :3])
            if float(loss.detach()) < best_loss:
                best_loss = float(loss.detach())
                best = Similarity(rotation.detach(), float(scale.detach()), shift.detach())
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
        return best

    def refine_single(self, index: int) -> tuple[Tensor, Tensor]:
        """The correction of one camera: twist [6] and logarithm of the focal length []."""
        correction = torch.zeros(6), torch.zeros(())
        for size in (_SEARCH_SIZE, _REFINE_SIZE):
            render = partial(self._moved_image, index, size)
            correction = align_camera(render, self._targets[size][index], *correction, _SINGLE_STEPS)
        return correction

    def _moved_image(self, index: int, size: int, twist: Tensor, log_focal: Tensor) -> Tensor:
        return self.image(index, size, *corrected(self._sizes[size].cameras, index, twist, log_focal))[0]

    @torch.no_grad()
    def placements(self) -> tuple[ViewPlacement, ...]:
        pairs = [self.image(index, _REFINE_SIZE) for index in range(len(self.views))]
        agreements = [(silhouette_iou(i[..., 3], t[..., 3]), _color_error(i, t)) for i, t in pairs]
        usual = float(np.median([iou for iou, _ in agreements]))
        result = []
        for index, ((image, target), (iou, error)) in enumerate(zip(pairs, agreements, strict=True)):
            residual = outline_distance(image[..., 3] > 0.5, target[..., 3] > 0.5) / max(image.shape[:2]) * 100
            placed = iou >= max(_LEAST_IOU, _LEAST_SHARE * usual)
            confidence = min(1.0, iou / 0.95) * math.exp(-2 * error)
            result.append(ViewPlacement(self.views.names[index], iou, residual, error, confidence, placed))
        return tuple(result)


def outline_distance(first: Tensor, second: Tensor) -> float:
    """Mean distance in pixels between the outlines of two masks [H, W], both ways; the diagonal if one is empty."""
    outlines = [mask.numpy() & ~ndimage.binary_erosion(mask.numpy()) for mask in (first, second)]
    if not all(outline.any() for outline in outlines):
        return float(np.hypot(*first.shape))
    distances = [ndimage.distance_transform_edt(~outline) for outline in outlines]
    return float((distances[0][outlines[1]].mean() + distances[1][outlines[0]].mean()) / 2)


def _scale_and_shift(views: Views, proxy: Surface) -> _Start:
    """From the rays through the silhouettes' middles, and the silhouettes' sizes; medians, so a few may be wrong."""
    cameras = views.cameras
    pixels, sizes = [], []
    for mask in views.masks:
        inside = (mask[0] > 0.5).nonzero().float() + 0.5
        pixels.append(inside.mean(0).flip(0))
        sizes.append(math.sqrt(len(inside) / math.pi))
    focal = cameras.intrinsics[:, [0, 1], [0, 1]]
    rays = torch.cat([(torch.stack(pixels) - cameras.intrinsics[:, :2, 2]) / focal, torch.ones(len(views), 1)], dim=1)
    rays = torch.nn.functional.normalize(rays, dim=1)
    rays = (cameras.rotations.transpose(1, 2) @ rays[..., None])[..., 0]
    weights = torch.ones(len(views))
    for _ in range(10):  # least absolute distances by reweighting
        projectors = (torch.eye(3) - rays[:, :, None] * rays[:, None, :]) * weights[:, None, None]
        right = (projectors @ cameras.centers[..., None]).sum(0)
        center = torch.linalg.lstsq(projectors.sum(0), right).solution[:, 0]
        offset = center - cameras.centers
        away = (offset - (offset * rays).sum(1, keepdim=True) * rays).norm(dim=1)
        weights = 1 / (away + 1e-3 * offset.norm(dim=1).mean())
        weights = weights / weights.max()
    depth = ((cameras.rotations @ center) + cameras.translations)[:, 2]
    usable = depth > 0
    if not bool(usable.any()):
        raise InputError("The cameras look away from each other, so that no place for the object is left.")
    radius = float((torch.tensor(sizes) / focal.mean(1) * depth)[usable].median())
    asset_radius, asset_center = _size_of(proxy)
    return _Start(asset_radius / radius, center, asset_center)


def _size_of(proxy: Surface) -> tuple[float, Tensor]:
    """Radius of a disc as large as the asset's usual silhouette, and the middle of its silhouettes."""
    center = (proxy.vertices.amin(0) + proxy.vertices.amax(0)) / 2
    moved = replace(proxy, vertices=proxy.vertices - center)
    reach = float(moved.vertices.norm(dim=1).max())
    cameras = hammersley(12, radius=8 * reach, fov=15.0, size=64)
    sizes = []
    for index in range(len(cameras)):
        image = render_colors(moved, cameras.extrinsics[index], cameras.intrinsics[index], (64, 64))
        area = float(image[..., 3].sum())
        sizes.append(math.sqrt(area / math.pi) / float(cameras.intrinsics[index, 0, 0]) * 8 * reach)
    return float(np.median(sizes)), center


@torch.no_grad()
def _proxy(asset: Asset) -> Surface:
    """The asset as pictures this small show it: few faces, with one colour per vertex, diffusely lit."""
    atlas = asset.atlas
    pyramid = mip_pyramid(asset.material.base_color)
    level = torch.full((len(atlas.uvs),), _PROXY_LEVEL)
    colors = sample(pyramid, torch.from_numpy(atlas.uvs), level)
    if asset.environment is not None:
        colors = colors * filter_light(asset.environment).irradiance(torch.from_numpy(atlas.normals))
    low = simplify(asset.surface, 0.0, _PROXY_FACES)
    nearest = cKDTree(atlas.vertices).query(low.vertices)[1]
    return Surface(torch.from_numpy(low.vertices), torch.from_numpy(low.faces).long(), colors[nearest])


def _rotations(seed: int) -> list[Tensor]:
    """Random rotations, thinned to be spread evenly: of many, always the one farthest from those taken."""
    generator = torch.Generator().manual_seed(seed)
    quats = torch.nn.functional.normalize(torch.randn(4 * _NUM_ROTATIONS, 4, generator=generator), dim=1)
    closeness = torch.zeros(len(quats))
    taken = []
    for _ in range(_NUM_ROTATIONS):
        index = int(closeness.argmin())
        taken.append(index)
        closeness = torch.maximum(closeness, (quats @ quats[index]).abs())
    return list(quaternion_to_matrix(quats[taken]))


def _half_turns(similarity: Similarity, asset: Asset) -> list[Similarity]:
    """The placement after half a turn about each axis through the asset's middle: where near symmetry misleads."""
    vertices = asset.geometry.vertices
    center = (vertices.amin(0) + vertices.amax(0)) / 2
    turns = (torch.diag(torch.tensor(signs)) for signs in ((1.0, -1, -1), (-1.0, 1, -1), (-1.0, -1, 1)))
    return [
        Similarity(turn @ similarity.rotation, similarity.scale, turn @ (similarity.shift - center) + center)
        for turn in turns
    ]


def _color_error(image: Tensor, target: Tensor) -> float:
    both = (image[..., 3] > 0.5) & (target[..., 3] > 0.5)
    if not bool(both.any()):
        return 1.0
    return float(log_tonemapped_l1(image[..., :3][both], target[..., :3][both]))


def _spread(count: int) -> list[int]:
    return sorted({round(k * (count - 1) / (_SEARCH_VIEWS - 1)) for k in range(_SEARCH_VIEWS)})
