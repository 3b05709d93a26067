"""One view's camera against an asset that stands still, by damped Gauss-Newton steps.

A camera's seven numbers are badly conditioned: a longer lens from farther away changes nothing but the perspective, a
few tenths of a pixel. Gradient steps stop somewhere along that valley; these go to its bottom.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nvdiffrec.camera_fit import FOCAL_SPREAD, ROTATION_SPREAD, SHIFT_SPREAD, prior
from nvdiffrec.losses import mask_l2, tone_mapped

_PROBES = (0.004, 0.004, 0.004, 0.002, 0.002, 0.002, 0.01)  # differences from which slopes are told: under a pixel
_SMALL = 0.05  # tone-mapped difference, about where a squared error turns into an absolute one
_COVERED = 0.99  # of a pixel that shows nothing but the object
_GAINS = (0.25, 4.0)
_COLOR_WEIGHT = 0.05  # beside silhouettes: neighbouring pixels err alike, and their number says little
_PRIOR_WEIGHT = 0.01
_COLOR_FLOOR, _MASK_FLOOR = 1e-3, 1e-5  # losses that are as good as none
_LEAST_GAIN = 1e-4  # of a step, or it was the last
_DAMPING, _SOFTER, _HARDER, _MOST_DAMPING = 1e-2, 0.2, 10.0, 1e3  # Levenberg and Marquardt

Render = Callable[[Tensor, Tensor], Tensor]


def align_camera(
    render: Render, target: Tensor, twist: Tensor, log_focal: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """The correction (see `camera_fit.corrected`) with which a view is reproduced better, or the given one.

    What falls is the sum of the logarithms of two errors: that of the silhouettes, and that of the colours inside both,
    after a factor per channel. So each counts by how well it can be met: colours in another light, or a shape that is
    not yet right, do not drag the camera after them. A prior keeps corrections small where neither says much.

    Args:
        render: from a correction, twist [6] and log_focal [], to the view [H, W, 4]; differentiable in both.
        target: [H, W, 4], linear light multiplied by coverage, and coverage.
        twist, log_focal: where to start.
        steps: at most so many; each takes a rendering with a gradient and eight without.
    """
    point = torch.cat([twist.detach(), log_focal.detach()[None]])
    damping = _DAMPING
    for _ in range(steps):
        point.requires_grad_()
        image = render(point[:6], point[6])
        colors = _Colors(image.detach(), target)
        losses = torch.stack([colors.loss(image), _mask_loss(image, target)])
        total = _total(losses[0], losses[1], point)
        (gradient,) = torch.autograd.grad(total, point)
        image, point, losses, total = image.detach(), point.detach(), losses.detach(), float(total.detach())
        with torch.no_grad():
            curvature = _curvature(render, image, colors, point, losses)
            better = None
            while better is None and damping < _MOST_DAMPING:
                damped = curvature + torch.diag(damping * curvature.diagonal())
                candidate = point - torch.linalg.solve(damped, gradient.double()).to(point)
                image_there = render(candidate[:6], candidate[6])
                found = _total(colors.loss(image_there), _mask_loss(image_there, target), candidate)
                gain = total - float(found)
                better = candidate if gain > 0 else None
                damping *= _HARDER if better is None else _SOFTER
        point = point if better is None else better
        if better is None or gain < _LEAST_GAIN:
            break
    return point[:6], point[6]


def color_difference(image: Tensor, target: Tensor) -> float:
    """Mean tone-mapped difference of two views [H, W, 4] where both are covered, after a factor per channel; 1 if
    they have nothing in common."""
    colors = _Colors(image, target)
    return float((colors.shown(image) - colors.target).abs().mean()) if len(colors.places) else 1.0


class _Colors:
    """Colours against those of a view, where both are seen, whatever the strength and tint of the light."""

    def __init__(self, image: Tensor, target: Tensor) -> None:
        both = (image[..., 3] > _COVERED) & (target[..., 3] > _COVERED)
        self.places = both.view(-1).nonzero().squeeze(1)
        means = (_pixels(values, self.places).mean(0).clamp(min=1e-3) for values in (target, image))
        self.gain = torch.div(*means).clamp(*_GAINS) if len(self.places) else image.new_ones(3)
        self.target = tone_mapped(_pixels(target, self.places))

    def shown(self, image: Tensor) -> Tensor:
        """Tone-mapped colours [P, 3]."""
        return tone_mapped(_pixels(image, self.places) * self.gain)

    def loss(self, image: Tensor) -> Tensor:
        """A squared difference where it is small, an absolute one where it is large."""
        difference = self.shown(image) - self.target
        return (difference.square() + _SMALL**2).sqrt().sum() / max(1, difference.numel()) - _SMALL + _COLOR_FLOOR

    def weights(self, shown: Tensor) -> Tensor:
        """Of the squares that the loss is locally close to, [P, 3]."""
        return 1 / (((shown - self.target).square() + _SMALL**2).sqrt() * max(1, shown.numel()))


def _total(color: Tensor, mask: Tensor, point: Tensor) -> Tensor:
    return _COLOR_WEIGHT * color.log() + mask.log() + _PRIOR_WEIGHT * prior(point[None, :6], point[6:])


def _pixels(image: Tensor, places: Tensor) -> Tensor:
    return image.reshape(-1, 4)[places, :3]


def _mask_loss(image: Tensor, target: Tensor) -> Tensor:
    return mask_l2(image[..., 3], target[..., 3]) + _MASK_FLOOR


def _curvature(render: Render, image: Tensor, colors: _Colors, point: Tensor, losses: Tensor) -> Tensor:
    """[7, 7] float64, positive definite: of the squares that what falls is locally close to."""
    color, mask = colors.shown(image), image[..., 3].reshape(-1)
    color_slopes, mask_slopes = [], []
    for place, probe in enumerate(_PROBES):
        moved = point.clone()
        moved[place] += probe
        other = render(moved[:6], moved[6])
        color_slopes.append((colors.shown(other) - color).reshape(-1) / probe)
        mask_slopes.append((other[..., 3].reshape(-1) - mask) / probe)
    color_slopes, mask_slopes = torch.stack(color_slopes).double(), torch.stack(mask_slopes).double()
    curvature = (color_slopes * colors.weights(color).reshape(-1)) @ color_slopes.T * (_COLOR_WEIGHT / losses[0])
    curvature += 2 * mask_slopes @ mask_slopes.T / (len(mask) * losses[1])
    spreads = curvature.new_tensor([3**0.5 * ROTATION_SPREAD] * 3 + [3**0.5 * SHIFT_SPREAD] * 3 + [FOCAL_SPREAD])
    return curvature + torch.diag(2 * _PRIOR_WEIGHT / spreads.square())
