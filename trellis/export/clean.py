"""From decoder output to one outer surface: no broken faces, no specks, no hidden inner wall, small holes closed.

The isosurface decoder leaves a second wall inside the object, because corners outside the sparse volume count as
"outside". Nobody can see that wall, so visibility from all around decides what stays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from trellis.errors import InputError
from trellis.export.folds import without_fins
from trellis.export.hidden import behind_necks, cut_between
from trellis.export.holes import fill_small_holes
from trellis.export.manifold import make_manifold
from trellis.export.solid import make_watertight
from trellis.export.surface import Surface
from trellis.export.topology import EdgeTable, first_rows, flips_to_agree, pieces, position_ids, row_ids
from trellis.export.views import surround
from trellis.export.visibility import count_sightings
from trellis.renderers.numba_runtime import exclusive, kernel

_LAYERS = 40  # of surface behind a pixel, on average; an object with an inner wall has two to four
_LEAST_RESOLUTION = 64
MAX_FACES = 1_500_000  # three times a decode at full size; beyond, vertices are merged on a grid first


@dataclass(frozen=True)
class CleanOptions:
    """What counts as visible, as a speck and as a hole.

    Attributes:
        num_views: cameras around the object.
        resolution: side of their images in pixels. A face is found once it covers a pixel centre in any view.
        crevice_rings: faces this many neighbours away from a seen one count as seen, so that crevices survive.
        outer_fraction: a face that this part of the views sees is outside for certain; the minimum cut decides about
            those seen by fewer.
        min_seen_fraction: a separate piece of which less than this part of the area is seen is inner wall.
        speck_size: a separate piece smaller than this part of the whole (bounding-box diagonals) is dropped.
        fill_holes: whether to close holes at all.
        max_hole_area: the largest hole to close: area of its lid, object units squared.
        watertight: close everything, for printing; see `solid.make_watertight`.
    """

    num_views: int = 48
    resolution: int = 512
    crevice_rings: int = 2
    outer_fraction: float = 0.1
    min_seen_fraction: float = 0.05
    speck_size: float = 0.03
    fill_holes: bool = True
    max_hole_area: float = 0.04
    watertight: bool = False


def clean(surface: Surface, options: CleanOptions | None = None, device: torch.device | str = "cpu") -> Surface:
    """The visible outer surface, consistently wound with its faces outward, at most two of them on an edge.

    Args:
        surface: as decoded.
        options: None for the usual ones.
        device: where to look at it from all around; all else is done on the CPU.

    Raises:
        InputError: nothing usable is left.
    """
    options = options or CleanOptions()
    surface = drop_broken_faces(reduced(surface, MAX_FACES))
    surface = drop_specks(surface, options.speck_size)
    surface = drop_hidden(surface, options, device)
    if options.fill_holes:
        surface = fill_small_holes(surface, options.max_hole_area)
    return make_watertight(surface) if options.watertight else make_manifold(surface)


def drop_broken_faces(surface: Surface) -> Surface:
    """Without faces that touch a non-finite vertex, have no area, or repeat another face.

    Raises:
        InputError: no face is left.
    """
    faces = _finite_faces(surface)
    a, b, c = np.ascontiguousarray(position_ids(surface.vertices)[faces].T)
    low, high = np.minimum(np.minimum(a, b), c), np.maximum(np.maximum(a, b), c)
    numbers = row_ids(np.stack([low, a + b + c - low - high, high], axis=1))
    keep = np.zeros(len(faces), dtype=bool)
    keep[first_rows(numbers)] = True
    keep &= (a != b) & (b != c) & (c != a) & (Surface(surface.vertices, faces).face_areas() > 0)
    if not keep.any():
        raise InputError("No triangle of the mesh has an area and finite corners, so there is nothing to export.")
    return surface.with_faces(faces if keep.all() else faces[keep])


def _finite_faces(surface: Surface) -> np.ndarray:
    """[K, 3]: the faces whose corners are finite."""
    finite = np.isfinite(surface.vertices).all(axis=1)
    if finite.all():
        return surface.faces
    a, b, c = surface.faces.T
    return surface.faces[finite[a] & finite[b] & finite[c]]


def reduced(surface: Surface, max_faces: int) -> Surface:
    """About `max_faces` faces at most: vertices in the same cell of a grid become one, in time linear in the mesh.

    It bounds the time and memory of all that follows; detail finer than a cell is lost. Faces with a vertex that is
    not finite go. What is closed stays closed.
    """
    if len(surface.faces) <= max_faces:
        return surface
    finite = np.isfinite(surface.vertices).all(axis=1)
    vertices = np.where(finite[:, None], surface.vertices, 0)
    whole = faces = _finite_faces(surface)
    low = vertices.min(axis=0)
    extent = max(float(np.ptp(vertices, axis=0).max()), 1e-12)
    # A surface of area A meets about 1.5 A / cell^2 cells and has twice as many faces; the total counts folds as well.
    area = Surface(vertices, faces).face_areas().sum()
    cell = max(np.sqrt(3 * area / max_faces), extent / 2**20)
    while len(faces) > max_faces:
        cells = np.floor((vertices - low) / cell).astype(np.int64) @ np.array([1, 2**21, 2**42])
        _, group = np.unique(cells, return_inverse=True)
        merged = group[whole]
        a, b, c = merged.T
        faces = merged[(a != b) & (b != c) & (c != a)]
        cell *= 1.3
    count = np.maximum(np.bincount(group, finite), 1)

    def mean(values: np.ndarray) -> np.ndarray:
        sums = [np.bincount(group, values[:, k] * finite) for k in range(3)]
        return (np.stack(sums, axis=1) / count[:, None]).astype(np.float32)

    colors = None if surface.colors is None else mean(surface.colors)
    # Walls that fell together are faces and their backs on the same corners. One alone would leave its border open.
    return without_fins(Surface(mean(vertices), faces.astype(np.int32), colors))


def drop_specks(surface: Surface, speck_size: float) -> Surface:
    """Without separate pieces whose bounding-box diagonal is below `speck_size` times that of the whole."""
    number, labels = pieces(EdgeTable.welded(surface))
    if number == 1:
        return surface
    low = np.full((number, 3), np.inf, dtype=np.float32)
    high = -low
    with exclusive():
        _bounds(surface.vertices, surface.faces, labels, low, high)
    diagonals = np.linalg.norm(high - low, axis=1)
    return surface.select_faces((diagonals >= min(speck_size, 1) * diagonals.max())[labels])


@kernel
def _bounds(vertices, faces, labels, low, high):
    """Lower `low` and raise `high` [pieces, 3] to the bounding boxes of the faces with each label [F]."""
    for face in range(len(faces)):
        piece = labels[face]
        for k in range(3):
            for axis in range(3):
                place = vertices[faces[face, k], axis]
                low[piece, axis], high[piece, axis] = min(low[piece, axis], place), max(high[piece, axis], place)


def drop_hidden(surface: Surface, options: CleanOptions, device: torch.device | str = "cpu") -> Surface:
    """Without what no camera around the object sees; pieces turned so that their front is what is seen.

    Separate pieces go as a whole when hardly any of them is visible. Within a visible piece the faces that are seen
    often are divided from those that are never seen by a minimum cut (`hidden.cut_between`), and what lies behind the
    cut goes if it is large against the lid that would close it (`hidden.behind_necks`).
    """
    edges = EdgeTable.welded(surface)
    flip = flips_to_agree(edges)
    surface = Surface(surface.vertices, _reversed_where(flip, surface.faces), surface.colors)
    areas = surface.face_areas()
    resolution = _affordable(options.resolution, surface, areas)
    sightings = count_sightings(surface, surround(surface, options.num_views, resolution), device)
    number, labels = pieces(edges)
    fraction = sightings.fraction
    seen = edges.grow(fraction > 0, options.crevice_rings)

    piece_area = np.bincount(labels, areas, number)
    visible = np.bincount(labels, np.where(fraction > 0, areas, 0), number) >= options.min_seen_fraction * piece_area
    if not visible.any():  # everything is thinner than a pixel; judging visibility would delete it all
        return surface

    # Sheets are seen from both sides alike, so a piece is only turned on clear evidence.
    from_front, from_back = (np.bincount(labels, areas * side, number) for side in (sightings.front, sightings.back))
    faces = _reversed_where((from_back > 2 * from_front)[labels], surface.faces)
    outer = fraction >= min(options.outer_fraction, 0.5 * float(fraction.max()))
    inner = cut_between(surface, edges, outer, ~seen & visible[labels])
    return surface.with_faces(faces[visible[labels] & ~behind_necks(surface, edges, inner, areas)])


def _affordable(resolution: int, surface: Surface, areas: np.ndarray) -> int:
    """The resolution, less where hundreds of faces lie behind each pixel, as in a soup of triangles across the object.

    Time goes with the pixels of all faces together: that of the deepest mesh is that of one of `_LAYERS` layers.
    """
    _, radius = surface.bounding_sphere()
    layers = 0.5 * areas.sum() / max(np.pi * radius**2, 1e-30)  # a face is seen at half of its area on average
    return max(int(resolution * min(1.0, np.sqrt(_LAYERS / max(layers, 1e-9)))), _LEAST_RESOLUTION)


def _reversed_where(flip: np.ndarray, faces: np.ndarray) -> np.ndarray:
    return np.where(flip[:, None], faces[:, ::-1], faces) if flip.any() else faces
