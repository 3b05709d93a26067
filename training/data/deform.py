"""Smooth random deformations of objects, drawn anew each time: what is remembered of a shape does not fit them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

WAVES = 5
WAVELENGTHS = 0.8, 4.0  # the longest taper, shear and bend the whole object
STRAIN = 0.9  # of all waves together, at most; less than 1, so that no surface folds over


@dataclass
class Warp:
    """Displacements of B instances, each a sum of K plane waves: x + sum_k amplitude_k sin(frequency_k . x + phase_k).

    frequency [B, K, 3] in radians per unit of length, amplitude [B, K, 3], phase [B, K]. With sum_k |amplitude_k|
    |frequency_k| < 1 the map is one to one and keeps the orientation.
    """

    frequency: Tensor
    amplitude: Tensor
    phase: Tensor

    @classmethod
    def random(cls, count: int, share: float, generator: torch.Generator, device: torch.device) -> Warp:
        """Warps of a share of `count` instances, and no displacement of the others."""

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator, device=device)

        def direction() -> Tensor:
            return normalize(torch.randn(count, WAVES, 3, generator=generator, device=device), dim=2)

        shortest, longest = WAVELENGTHS
        wavelength = shortest * (longest / shortest) ** uniform(count, WAVES, 1)
        parts = uniform(count, WAVES, 1)
        strain = STRAIN * uniform(count, 1, 1) * parts / parts.sum(1, keepdim=True)
        strain = strain * (uniform(count, 1, 1) < share)
        number = 2 * math.pi / wavelength
        return cls(number * direction(), strain / number * direction(), 2 * math.pi * uniform(count, WAVES))

    def points(self, points: Tensor, owner: Tensor) -> Tensor:
        """Where points [V, 3] of the instances owner [V] go."""
        moved = points
        for k, angle in enumerate(self._angles(points, owner)):
            moved = torch.addcmul(moved, self.amplitude[owner, k], angle.sin()[:, None])
        return moved

    def origins(self, moved: Tensor, owner: Tensor, steps: int = 3) -> Tensor:
        """Where points [V, 3] of the instances owner [V] came from, by Newton's method: within 1e-5 after 3 steps."""
        points = moved
        for _ in range(steps):
            cofactors, determinant = self._cofactors(points, owner)
            missing = (moved - self.points(points, owner))[:, :, None]
            points = points + (cofactors * missing).sum(1) / determinant[:, None]
        return points

    def normals(self, normals: Tensor, points: Tensor, owner: Tensor) -> Tensor:
        """Normals [V, 3] at points [V, 3] as they are after the deformation; their lengths are not kept."""
        return (self._cofactors(points, owner)[0] * normals[:, None]).sum(2)

    def first(self, count: int) -> Warp:
        """The displacements of the first `count` instances."""
        return Warp(self.frequency[:count], self.amplitude[:count], self.phase[:count])

    def _cofactors(self, points: Tensor, owner: Tensor) -> tuple[Tensor, Tensor]:
        """Cofactors [V, 3, 3] and determinant [V] of the Jacobian 1 + sum_k cos(...) amplitude_k frequency_k^T."""
        jacobian = torch.eye(3, dtype=points.dtype, device=points.device).expand(len(points), 3, 3)
        for k, angle in enumerate(self._angles(points, owner)):
            slope = self.amplitude[owner, k] * angle.cos()[:, None]
            jacobian = torch.addcmul(jacobian, slope[:, :, None], self.frequency[owner, k][:, None])
        x, y, z = jacobian.unbind(2)
        cofactors = torch.stack([torch.cross(y, z, dim=1), torch.cross(z, x, dim=1), torch.cross(x, y, dim=1)], 2)
        return cofactors, (x * cofactors[:, :, 0]).sum(1)

    def _angles(self, points: Tensor, owner: Tensor) -> Iterator[Tensor]:
        for k in range(self.phase.shape[1]):
            yield (self.frequency[owner, k] * points).sum(1) + self.phase[owner, k]
