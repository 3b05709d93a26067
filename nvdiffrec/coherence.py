"""Turn cameras around an object until the silhouettes of all views can be those of one shape.

"Silhouette Coherence for Camera Calibration under Circular Motion" (Hernandez, Schmitt and Cipolla, PAMI 2007): what
all silhouettes allow, their visual hull, must fill each of them. A camera that stands elsewhere cuts away what another
view shows. Estimated cameras are held level by whoever took the photographs; what they get wrong is from where around
the object, and from how high. So every view is tried from many azimuths and elevations, one view after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from nvdiffrec.views import Views
from trellis.renderers.cameras import Cameras

_CELLS = 40  # of the cube in which the hull is carved, per side
_SIZE = 64  # pixels of the silhouettes
_COVER_SIZE = 32  # of those that must be filled, coarser than the cells
_ROOM = 1.4  # side of the cube in those of the object
# Reach and step of azimuths and of elevations in degrees, and the pixels that a silhouette may be off.
_SWEEPS = (
    ((60.0, 12.0), (24.0, 8.0), 3),
    ((36.0, 9.0), (12.0, 6.0), 2),
    ((12.0, 4.0), (8.0, 4.0), 2),
    ((6.0, 2.0), (4.0, 2.0), 1),
)
_USUAL = (25.0, 12.0)  # degrees by which an estimate's azimuth and elevation are off, one standard deviation
_PRIOR_WEIGHT = 0.01


@dataclass(frozen=True, eq=False)
class Place:
    """A camera about an object: extrinsics [4, 4], and how far it is from its estimate, azimuth and elevation in
    degrees."""

    extrinsics: Tensor
    azimuth: float = 0.0
    elevation: float = 0.0

    @property
    def unlikely(self) -> float:
        """Squared distance from the estimate in its usual errors."""
        return (self.azimuth / _USUAL[0]) ** 2 + (self.elevation / _USUAL[1]) ** 2

    def moved(self, azimuth: float, elevation: float, center: Tensor) -> Place:
        """Carried about the object: around the vertical, and up or down about the camera's own horizontal."""
        rotation = self.extrinsics[:3, :3]
        turned = _about_x(elevation) @ rotation @ _about_x(azimuth).roll((-1, -1), (0, 1))
        extrinsics = self.extrinsics.clone()
        extrinsics[:3, :3] = turned
        extrinsics[:3, 3] += rotation @ center - turned @ center
        return Place(extrinsics, self.azimuth + azimuth, self.elevation + elevation)

    def around(self, azimuths: tuple[float, float], elevations: tuple[float, float], center: Tensor) -> list[Place]:
        """Places on a lattice about this one; reach and step of each in degrees."""
        return [self.moved(azimuth, up, center) for azimuth in _lattice(*azimuths) for up in _lattice(*elevations)]

    def shifted(self, right: float, down: float, away: float, center: Tensor) -> Place:
        """Moved so that the object is elsewhere in the picture, or smaller; in parts of its depth."""
        extrinsics = self.extrinsics.clone()
        middle = extrinsics[:3, :3] @ center + extrinsics[:3, 3]
        extrinsics[:3, 3] += middle.new_tensor([right, down, 0.0]) * middle[2] + middle * away
        return Place(extrinsics, self.azimuth, self.elevation)


def make_coherent(
    views: Views,
    center: Tensor,
    side: float,
    callback: Callable[[int, int], None] = lambda step, of: None,
) -> Views:
    """Turn the cameras about the object until their silhouettes agree best.

    Args:
        views: with cameras about the object, upright in a frame whose z is up.
        center, side: of a cube around the object.
        callback: called as (step, of) after every view of every sweep; may raise to stop.
    """
    search = _Search(views, center, side)
    places = [Place(extrinsics) for extrinsics in views.cameras.extrinsics]
    for number, (azimuths, elevations, slack) in enumerate(_SWEEPS):
        search.allow(slack, places)
        # An estimate's elevations tend to be off together, which no view alone can mend.
        together = ([place.moved(0.0, up, center) for place in places] for up in _lattice(*elevations))
        places = max(together, key=search.coherence)
        search.allow(slack, places)
        for index in range(len(views)):
            turned = search.put_best(index, places[index].around(azimuths, elevations, center))
            step = slack / _SIZE / 4
            shifts = [turned.shifted(step * x, step * y, 0.0, center) for x in range(-2, 3) for y in range(-2, 3)]
            shifts += [turned.shifted(0.0, 0.0, step * 4 * away, center) for away in (-3, -2, -1, 1, 2, 3)]
            places[index] = search.put_best(index, shifts)
            callback(number * len(views) + index + 1, len(_SWEEPS) * len(views))
    extrinsics = torch.stack([place.extrinsics for place in places])
    return views.with_cameras(Cameras(extrinsics, views.cameras.intrinsics, views.cameras.image_size))


class _Search:
    """The hull of all views as they are placed, and what becomes of it when one is placed elsewhere."""

    def __init__(self, views: Views, center: Tensor, side: float) -> None:
        axis = ((torch.arange(_CELLS) + 0.5) / _CELLS - 0.5) * side * _ROOM
        self.points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).view(-1, 3) + center
        self.intrinsics = views.cameras.normalised_intrinsics
        small = (_square(views, index, _SIZE) for index in range(len(views)))
        self.masks = [mask > 0.5 for mask in small]
        self.wanted = [_square(views, index, _COVER_SIZE) > 0.5 for index in range(len(views))]

    def allow(self, slack: int, places: list[Place]) -> None:
        """Let silhouettes be off by so many pixels, and carve anew."""
        width = 2 * slack + 1
        self.allowed = [max_pool2d(m[None].float(), width, 1, slack)[0] > 0.5 for m in self.masks]
        self.inside = torch.zeros(len(places), len(self.points), dtype=torch.bool)
        self.pixels = torch.zeros(len(places), len(self.points), dtype=torch.long)
        for index, place in enumerate(places):
            self.put(index, place)

    def put(self, index: int, place: Place) -> None:
        self.inside[index], self.pixels[index] = self._seen(index, place, self.points)

    def put_best(self, index: int, candidates: list[Place]) -> Place:
        """Place one view where all are the most coherent."""
        values = self._coherences(index, candidates)
        best = candidates[max(range(len(values)), key=values.__getitem__)]
        self.put(index, best)
        return best

    def _coherences(self, index: int, candidates: list[Place]) -> list[float]:
        others = [other for other in range(len(self.inside)) if other != index]
        left = self.inside[others].all(0).nonzero().squeeze(1)
        points, pixels = self.points[left], self.pixels[:, left]
        values = []
        for candidate in candidates:
            inside, own = self._seen(index, candidate, points)
            filled = [self._filled(other, pixels[other][inside]) for other in others]
            filled = (sum(filled) + self._filled(index, own[inside])) / len(self.inside)
            values.append(filled - _PRIOR_WEIGHT * candidate.unlikely)
        return values

    def coherence(self, places: list[Place]) -> float:
        """Mean part of the silhouettes that the hull fills, less what is unlikely about the places."""
        seen = [self._seen(index, place, self.points) for index, place in enumerate(places)]
        hull = torch.stack([inside for inside, _ in seen]).all(0)
        filled = sum(self._filled(index, pixels[hull]) for index, (_, pixels) in enumerate(seen)) / len(places)
        return filled - _PRIOR_WEIGHT * sum(place.unlikely for place in places) / len(places)

    def _filled(self, index: int, pixels: Tensor) -> float:
        covered = torch.zeros(_COVER_SIZE * _COVER_SIZE, dtype=torch.bool)
        covered[pixels] = True
        wanted = self.wanted[index].view(-1)
        return float((covered & wanted).sum() / wanted.sum().clamp(min=1))

    def _seen(self, index: int, place: Place, points: Tensor) -> tuple[Tensor, Tensor]:
        """Which points [P] the view allows, and the pixels [P] of the coarse silhouette that they fall into."""
        seen = points @ place.extrinsics[:3, :3].T + place.extrinsics[:3, 3]
        intrinsics = self.intrinsics[index]
        at = seen[:, :2] / seen[:, 2:].clamp(min=1e-6) * intrinsics[[0, 1], [0, 1]] + intrinsics[:2, 2]
        within = ((at >= 0) & (at < 1)).all(1) & (seen[:, 2] > 0)
        fine, coarse = ((at * size).long().clamp(0, size - 1) for size in (_SIZE, _COVER_SIZE))
        return within & self.allowed[index][fine[:, 1], fine[:, 0]], coarse[:, 1] * _COVER_SIZE + coarse[:, 0]


def _square(views: Views, index: int, size: int) -> Tensor:
    """A mask as [size, size], whatever its shape was."""
    return torch.nn.functional.adaptive_avg_pool2d(views.masks[index], size)[0]


def _lattice(reach: float, step: float) -> list[float]:
    count = round(reach / step)
    return [step * k for k in range(-count, count + 1)]


def _about_x(degrees: float) -> Tensor:
    angle = torch.deg2rad(torch.tensor(degrees))
    result = torch.eye(3)
    result[1, 1], result[1, 2], result[2, 1], result[2, 2] = angle.cos(), -angle.sin(), angle.sin(), angle.cos()
    return result
