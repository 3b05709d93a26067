"""Where a refinement starts when its asset's shape is too far from the photographs to be moved there.

Two starts are made on a grid, where parts can appear and vanish: one from the asset, and, where cameras are estimates,
one from the silhouettes alone after the cameras have been made to agree about them. The better one goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

import numpy as np
import torch

from nvdiffrec.asset import Asset, asset_from_views
from nvdiffrec.coherence import make_coherent
from nvdiffrec.from_scratch import GridProgress, GridSettings, fit_grid, fit_mesh, render_colors
from nvdiffrec.losses import on_white, psnr
from nvdiffrec.optimise import held_out_views
from nvdiffrec.placement import place_around
from nvdiffrec.views import Views
from trellis.errors import InputError
from trellis.renderers.cameras import Cameras
from trellis.representations.flexicubes.surface import Surface

_LEAST_VIEWS = 4  # that carve a shape worth starting from


def free_shape(
    views: Views,
    asset: Asset,
    settings: GridSettings,
    *,
    together: Cameras | None = None,
    seed: int = 0,
    texture_size: int = 512,
    callback: Callable[[float, float | None], None] = lambda share, loss: None,
) -> tuple[Asset, Views]:
    """A start of another topology, painted from the photographs, and the views with the cameras that go with it.

    Args:
        views: with each camera where the asset looks most like the photograph.
        settings: of each fit; one of each start, two where cameras are estimates and are placed anew in between.
        together: cameras that were placed around the asset as one, which a wrong shape has pulled apart less; None for
            those of `views`.
        callback: called as (share of the work done, loss) after every step; may raise to stop.

    Raises:
        InputError: the asset encloses no volume, and the silhouettes have none in common.
    """
    held_out = held_out_views(len(views))
    vertices, faces = asset.geometry.vertices, asset.geometry.faces
    from_silhouettes = views.predicted and len(views) >= _LEAST_VIEWS
    rounds = 2 if views.predicted else 1
    fits = rounds * (2 if from_silhouettes else 1)

    def followed(number: int, steps: Iterator[GridProgress]) -> GridProgress:
        for progress in steps:
            callback((number + progress.step / progress.of) / fits, progress.loss)
        return progress

    def after(number: int) -> Callable[[int, int], None]:
        """Between fits nothing is gained, but somebody may want to stop."""
        return lambda step, of: callback(number / fits, None)

    def finished(number: int, steps: Iterator[GridProgress], views: Views) -> tuple[Surface, Views]:
        fitted = followed(number, steps)
        views = views.with_cameras(fitted.cameras)
        if views.predicted:  # a shape that agrees with where the views now look to be
            views = place_around(views, fitted.surface, callback=after(number + 1))
            steps = fit_mesh(fitted.surface.vertices, fitted.surface.faces, views, settings, seed, held_out)
            fitted = followed(number + 1, steps)
            views = views.with_cameras(fitted.cameras)
            views = place_around(views, fitted.surface, held_out, after(number + 2)) if held_out else views
        return fitted.surface, views

    starts = []
    problem = None
    try:
        starts.append(finished(0, fit_mesh(vertices, faces, views, settings, seed, held_out), views))
    except InputError as error:
        if not from_silhouettes:
            raise
        problem = error
    if from_silhouettes:
        low, high = vertices.amin(0), vertices.amax(0)
        turned = views if together is None else views.with_cameras(together)
        turned = make_coherent(turned, (low + high) / 2, float((high - low).max()), after(rounds))
        with suppress(InputError):
            starts.append(finished(rounds, fit_grid(turned, settings, seed, held_out), turned))
    if not starts:
        raise problem
    surface, placed = max(starts, key=lambda start: _agreement(*start, held_out))
    training = placed.subset([index for index in range(len(views)) if index not in held_out])
    return asset_from_views(surface, training, texture_size), placed


@torch.no_grad()
def _agreement(surface: Surface, views: Views, held_out: list[int]) -> float:
    """Mean PSNR in dB over the object, of the held-out views, or of all if none is."""
    values = []
    for index in held_out or range(len(views)):
        cameras, target = views.cameras, views.linear(index)
        size = cameras.height_width(index)
        image = render_colors(surface, cameras.extrinsics[index], cameras.intrinsics[index], size)
        region = (image[..., 3] > 0.5) | (target[..., 3] > 0.5)
        values.append(psnr(on_white(image), on_white(target), region))
    return float(np.mean(values))
