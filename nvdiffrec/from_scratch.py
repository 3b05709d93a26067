"""A shape of free topology on a FlexiCubes grid: from silhouettes and pictures alone, or from a first mesh."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nvdiffrec.grid import FlexiGrid, Placement, around, hull_distance, locate, mesh_distance
from nvdiffrec.losses import log_tonemapped_l1, mask_l2
from nvdiffrec.views import Views
from trellis.renderers.mesh_raster import antialias, interpolate, project, rasterize
from trellis.representations.flexicubes.surface import Surface

_MASK_WEIGHT = 2.0
_ROUGHNESS_WEIGHT = 0.05
_ENTROPY_WEIGHT = (0.02, 0.002)  # Munkberg's sign-change entropy, first and last step
_RATES = {"sdf": 0.15, "deform": 0.02, "color": 0.05}  # sdf: in cells


@dataclass(frozen=True)
class GridSettings:
    """cells: per side of the grid. steps: optimiser steps, one view each. resolution: longest image side in pixels."""

    cells: int = 48
    steps: int = 240
    resolution: int = 128


@dataclass(frozen=True, eq=False)
class GridProgress:
    """After `step` of `of`; `surface` in the unit cube is filled at the last step."""

    step: int
    of: int
    loss: float
    placement: Placement
    surface: Surface | None = None


def fit_grid(views: Views, settings: GridSettings, seed: int = 0) -> Iterator[GridProgress]:
    """Fit a grid to the views; yields after every step, the last time with the surface.

    Raises:
        InputError: the silhouettes have nothing in common.
    """
    placement = locate(views)
    views = views.with_cameras(placement.to_unit(views.cameras)).scaled(settings.resolution)
    yield from _fit_distance(hull_distance(views, settings.cells), views, placement, settings, seed)


def fit_mesh(
    vertices: Tensor, faces: Tensor, views: Views, settings: GridSettings, seed: int = 0
) -> Iterator[GridProgress]:
    """The same from a mesh (vertices [V, 3], faces [F, 3], in the frame of the views) whose topology may be wrong.

    Raises:
        InputError: the mesh encloses no volume.
    """
    placement = around(vertices)
    unit = (vertices - vertices.new_tensor(placement.center)) / placement.side
    views = views.with_cameras(placement.to_unit(views.cameras)).scaled(settings.resolution)
    yield from _fit_distance(mesh_distance(unit, faces, settings.cells), views, placement, settings, seed)


def _fit_distance(
    distance: Tensor, views: Views, placement: Placement, settings: GridSettings, seed: int
) -> Iterator[GridProgress]:
    """From any signed distance on the grid; the views stand around the unit cube."""
    grid = FlexiGrid(distance)
    rates = {**_RATES, "sdf": _RATES["sdf"] / grid.cells}
    groups = [{"params": [grid.parameters[name]], "lr": rate} for name, rate in rates.items()]
    optimiser = torch.optim.Adam(groups, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 0.1 ** (step / max(1, settings.steps)))
    targets = [views.linear(index) for index in range(len(views))]
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    for step in range(1, settings.steps + 1):
        order = order or torch.randperm(len(views), generator=generator).tolist()
        index = order.pop()
        surface = grid.extract()
        image = render_colors(surface, views, index)
        share = step / settings.steps
        entropy_weight = _ENTROPY_WEIGHT[0] + (_ENTROPY_WEIGHT[1] - _ENTROPY_WEIGHT[0]) * share
        loss = (
            log_tonemapped_l1(image[..., :3], targets[index][..., :3])
            + _MASK_WEIGHT * mask_l2(image[..., 3], targets[index][..., 3])
            + _ROUGHNESS_WEIGHT * grid.roughness()
            + entropy_weight * grid.sign_entropy()
        )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        if step < settings.steps:
            yield GridProgress(step, settings.steps, float(loss.detach()), placement)
    with torch.no_grad():
        surface = grid.extract()
    yield GridProgress(settings.steps, settings.steps, float(loss.detach()), placement, surface)


def render_colors(surface: Surface, views: Views, index: int) -> Tensor:
    """[H, W, 4]: the surface's vertex colours (linear) multiplied by coverage, and coverage; differentiable."""
    cameras = views.cameras
    screen = project(surface.vertices, cameras.extrinsics[index], cameras.intrinsics[index])
    raster = rasterize(screen, surface.faces, *cameras.height_width(index))
    colors = interpolate(surface.attributes, screen, surface.faces, raster)
    image = torch.cat([colors, raster.mask[..., None].to(colors)], dim=-1)
    return antialias(image, screen, surface.faces, raster)
