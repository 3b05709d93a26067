"""Smoothly deformed copies of objects, as new objects: what is remembered of a shape does not fit them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from training.data.packed import PackedMesh

TWIST = 0.8  # at most, radians from the bottom to the top
TAPER = 0.6  # how much wider or narrower, from the bottom to the top
BEND = 0.5  # sideways, of the square of the height
WAVE = 0.05  # amplitude of each of three waves
WAVELENGTH = 0.7, 1.6  # long enough for no surface to fold over


def deformed(mesh: PackedMesh, rng: np.random.Generator, name: str) -> PackedMesh:
    """A copy that is twisted and tapered along its height, bent, or waved, each at random, with the longest side 1."""
    points = mesh.vertices.astype(np.float64)
    if rng.random() < 0.5:
        angle = rng.uniform(-TWIST, TWIST) * points[:, 2]
        c, s = np.cos(angle), np.sin(angle)
        points = np.stack([c * points[:, 0] - s * points[:, 1], s * points[:, 0] + c * points[:, 1], points[:, 2]], 1)
    if rng.random() < 0.5:
        points[:, :2] *= 1 + rng.uniform(-TAPER, TAPER) * points[:, 2:]
    if rng.random() < 0.5:
        points[:, :2] += rng.uniform(-BEND, BEND, 2) * points[:, 2:] ** 2
    for direction, shift in zip(rng.normal(size=(3, 3)), rng.normal(size=(3, 3)), strict=True):
        along = points @ direction / np.linalg.norm(direction)
        phase = 2 * np.pi * (along / rng.uniform(*WAVELENGTH) + rng.random())
        points = points + WAVE * rng.random() * shift / np.linalg.norm(shift) * np.sin(phase)[:, None]
    low, high = points.min(0), points.max(0)
    return replace(mesh, name=name, vertices=(points - (low + high) / 2) / (high - low).max())
