"""A shape of free topology on a FlexiCubes grid: from silhouettes and pictures alone, or from a first mesh."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from nvdiffrec.camera_fit import corrected, corrected_cameras
from nvdiffrec.camera_newton import align_camera
from nvdiffrec.grid import FlexiGrid, Placement, around, hull_distance, locate, mesh_distance
from nvdiffrec.losses import log_tonemapped_l1, mask_l2
from nvdiffrec.views import Views
from trellis.renderers.cameras import Cameras
from trellis.renderers.mesh_raster import antialias, interpolate, project, rasterize
from trellis.representations.flexicubes.surface import Surface

_MASK_WEIGHT = 2.0
_ROUGHNESS_WEIGHT = 0.05
_ALIGN_EVERY, _ALIGN_STEPS = 4, 2  # rounds over the views between two alignments of a camera, and steps of each
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
    """After `step` of `of`. At the last step also `surface`, in the frame of the views, and `cameras` for all views,
    corrected if they were predicted."""

    step: int
    of: int
    loss: float
    surface: Surface | None = None
    cameras: Cameras | None = None


def fit_grid(
    views: Views, settings: GridSettings, seed: int = 0, held_out: Sequence[int] = ()
) -> Iterator[GridProgress]:
    """Fit a grid to the views; yields after every step, the last time with the surface.

    Args:
        held_out: views that teach nothing; if cameras are corrected, theirs follow the shape.

    Raises:
        InputError: the silhouettes have nothing in common.
    """
    training = views.subset([index for index in range(len(views)) if index not in held_out])
    placement = locate(training)
    unit = training.with_cameras(placement.to_unit(training.cameras))
    yield from _fit_distance(hull_distance(unit, settings.cells), views, placement, settings, seed, held_out)


def fit_mesh(
    vertices: Tensor, faces: Tensor, views: Views, settings: GridSettings, seed: int = 0, held_out: Sequence[int] = ()
) -> Iterator[GridProgress]:
    """The same from a mesh (vertices [V, 3], faces [F, 3], in the frame of the views) whose topology may be wrong.

    Raises:
        InputError: the mesh encloses no volume.
    """
    placement = around(vertices)
    unit = (vertices - vertices.new_tensor(placement.center)) / placement.side
    yield from _fit_distance(mesh_distance(unit, faces, settings.cells), views, placement, settings, seed, held_out)


def _fit_distance(
    distance: Tensor, views: Views, placement: Placement, settings: GridSettings, seed: int, held_out: Sequence[int]
) -> Iterator[GridProgress]:
    """From any signed distance on the grid over the cube of `placement`."""
    views = views.with_cameras(placement.to_unit(views.cameras))
    small = views.scaled(settings.resolution)
    grid = FlexiGrid(distance)
    rates = {**_RATES, "sdf": _RATES["sdf"] / grid.cells}
    groups = [{"params": [grid.parameters[name]], "lr": rate} for name, rate in rates.items()]
    twists, log_focals = torch.zeros(len(views), 6), torch.zeros(len(views))
    optimiser = torch.optim.Adam(groups, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 0.1 ** (step / max(1, settings.steps)))
    targets = [small.linear(index) for index in range(len(small))]

    def image(surface: Surface, index: int, twist: Tensor, log_focal: Tensor) -> Tensor:
        camera = corrected(small.cameras, index, twist, log_focal)
        return render_colors(surface, *camera, small.cameras.height_width(index))

    def align(surface: Surface, index: int) -> None:
        still = Surface(surface.vertices.detach(), surface.faces, surface.attributes.detach())
        twists[index], log_focals[index] = align_camera(
            partial(image, still, index), targets[index], twists[index], log_focals[index], _ALIGN_STEPS
        )

    taught = [index for index in range(len(views)) if index not in held_out]
    turns = _turns(taught, seed)
    for step in range(1, settings.steps + 1):
        surface = grid.extract()
        share = step / settings.steps
        entropy_weight = _ENTROPY_WEIGHT[0] + (_ENTROPY_WEIGHT[1] - _ENTROPY_WEIGHT[0]) * share
        index, round_number = next(turns), (step - 1) // len(taught)
        if views.predicted and round_number % _ALIGN_EVERY == _ALIGN_EVERY - 1:
            align(surface, index)
            if step % len(taught) == 0:
                for other in held_out:
                    align(surface, other)
        shown = image(surface, index, twists[index], log_focals[index])
        loss = log_tonemapped_l1(shown[..., :3], targets[index][..., :3])
        loss = loss + _MASK_WEIGHT * mask_l2(shown[..., 3], targets[index][..., 3])
        whole = loss + _ROUGHNESS_WEIGHT * grid.roughness() + entropy_weight * grid.sign_entropy()
        optimiser.zero_grad(set_to_none=True)
        whole.backward()
        optimiser.step()
        schedule.step()
        if step < settings.steps:
            yield GridProgress(step, settings.steps, float(loss.detach()))
    with torch.no_grad():
        surface = grid.extract()
    surface = replace(surface, vertices=placement.to_world(surface.vertices))
    cameras = placement.cameras_to_world(corrected_cameras(views.cameras, twists, log_focals))
    yield GridProgress(settings.steps, settings.steps, float(loss.detach()), surface, cameras)


def _turns(indices: list[int], seed: int) -> Iterator[int]:
    """Every index once per round, in random order."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for place in torch.randperm(len(indices), generator=generator).tolist():
            yield indices[place]


def render_colors(
    surface: Surface, extrinsics: Tensor, intrinsics: Tensor, size: tuple[int, int]
) -> Tensor:
    """[H, W, 4]: the surface's vertex colours (linear) multiplied by coverage, and coverage; differentiable.

    Args:
        surface: with colours [V, 3] as attributes.
        extrinsics, intrinsics: [4, 4] and [3, 3] of the camera.
        size: (height, width) in pixels.
    """
    screen = project(surface.vertices, extrinsics, intrinsics)
    raster = rasterize(screen, surface.faces, *size)
    colors = interpolate(surface.attributes, screen, surface.faces, raster)
    image = torch.cat([colors, raster.mask[..., None].to(colors)], dim=-1)
    return antialias(image, screen, surface.faces, raster)
