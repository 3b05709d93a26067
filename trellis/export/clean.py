"""From decoder output to one outer surface: no broken faces, no specks, no hidden inner wall, small holes closed.

The isosurface decoder leaves a second wall inside the object, because corners outside the sparse volume count as
"outside". Nobody can see that wall, so visibility from all around decides what stays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trellis.errors import InputError
from trellis.export.surface import Surface
from trellis.export.topology import EdgeTable, boundary_loops, flips_to_agree, pieces, position_ids, row_ids
from trellis.export.views import count_sightings, surround


@dataclass(frozen=True)
class CleanOptions:
    """What counts as visible, as a speck and as a hole.

    Attributes:
        num_views: cameras around the object.
        resolution: side of their images in pixels. A face is found once it covers a pixel centre in any view.
        crevice_rings: faces this many neighbours away from a seen one count as seen, so that crevices survive.
        min_seen_fraction: a separate piece of which less than this part of the area is seen is inner wall.
        speck_size: a separate piece smaller than this part of the whole (bounding-box diagonals) is dropped.
        fill_holes: whether to close holes at all.
        max_hole_area: the largest hole to close: area of its lid, object units squared.
    """

    num_views: int = 48
    resolution: int = 512
    crevice_rings: int = 3
    min_seen_fraction: float = 0.05
    speck_size: float = 0.03
    fill_holes: bool = True
    max_hole_area: float = 0.04


def clean(surface: Surface, options: CleanOptions | None = None) -> Surface:
    """The visible outer surface, consistently wound with its faces outward.

    Raises:
        InputError: nothing usable is left.
    """
    options = options or CleanOptions()
    surface = drop_broken_faces(surface)
    surface = drop_specks(surface, options.speck_size)
    surface = drop_hidden(surface, options)
    return fill_small_holes(surface, options.max_hole_area) if options.fill_holes else surface


def drop_broken_faces(surface: Surface) -> Surface:
    """Without faces that touch a non-finite vertex, have no area, or repeat another face.

    Raises:
        InputError: no face is left.
    """
    finite = np.isfinite(surface.vertices).all(axis=1)
    faces = surface.faces[finite[surface.faces].all(axis=1)]
    ids = position_ids(surface.vertices)[faces]
    distinct = (ids[:, 0] != ids[:, 1]) & (ids[:, 1] != ids[:, 2]) & (ids[:, 2] != ids[:, 0])
    faces, ids = faces[distinct], ids[distinct]
    if len(faces):
        first = np.unique(row_ids(np.sort(ids, axis=1)), return_index=True)[1]
        faces = faces[np.sort(first)]
        faces = faces[Surface(surface.vertices, faces).face_areas() > 0]
    if len(faces) == 0:
        raise InputError(
            f"None of the mesh's {len(surface.faces)} triangles has an area and finite corners, "
            "so there is nothing to export."
        )
    return surface.with_faces(faces)


def drop_specks(surface: Surface, speck_size: float) -> Surface:
    """Without separate pieces whose bounding-box diagonal is below `speck_size` times that of the whole."""
    number, labels = pieces(_edges(surface))
    if number == 1:
        return surface
    corners = surface.corner_positions()
    low, high = np.full((number, 3), np.inf), np.full((number, 3), -np.inf)
    np.minimum.at(low, labels, corners.min(axis=1))
    np.maximum.at(high, labels, corners.max(axis=1))
    diagonals = np.linalg.norm(high - low, axis=1)
    return surface.select_faces((diagonals >= min(speck_size, 1) * diagonals.max())[labels])


def drop_hidden(surface: Surface, options: CleanOptions) -> Surface:
    """Without what no camera around the object sees; pieces turned so that their front is what is seen.

    Separate pieces go as a whole when hardly any of them is visible. Within a visible piece, a hidden patch goes if
    the lids over its rims are small against the patch itself: a wall reached through a narrow neck goes, while the
    bottom of a crevice, hardly larger than its opening, stays. This is a cheap stand-in for a minimum cut.
    """
    edges = _edges(surface)
    flip = flips_to_agree(edges)
    surface = Surface(surface.vertices, _reversed_where(flip, surface.faces), surface.colors)
    front, back = count_sightings(surface, surround(surface, options.num_views, options.resolution))
    number, labels = pieces(edges)
    areas = surface.face_areas()
    seen = front + back > 0

    piece_area = np.bincount(labels, areas, number)
    visible = np.bincount(labels, np.where(seen, areas, 0), number) >= options.min_seen_fraction * piece_area
    if not visible.any():  # everything is thinner than a pixel; judging visibility would delete it all
        return surface

    # Sheets are seen from both sides alike, so a piece is only turned on clear evidence.
    turned = np.bincount(labels, back, number) > 2 * np.bincount(labels, front, number)
    faces = _reversed_where(turned[labels], surface.faces)
    keep = visible[labels] & ~_behind_necks(surface, edges, edges.grow(seen, options.crevice_rings), areas)
    return surface.with_faces(faces[keep])


def fill_small_holes(surface: Surface, max_area: float) -> Surface:
    """With boundary loops closed by a fan around their centroid, where the fan's area is at most `max_area`."""
    ids = position_ids(surface.vertices)
    representative = np.unique(ids, return_index=True)[1]
    vertices, faces, colors = [surface.vertices], [surface.faces], [surface.colors]
    count = len(surface.vertices)
    for loop in boundary_loops(EdgeTable.build(ids[surface.faces])):
        ring = representative[loop].astype(np.int32)
        points = surface.vertices[ring].astype(np.float64)
        spokes = points - points.mean(axis=0)
        if 0.5 * np.linalg.norm(np.cross(spokes, np.roll(spokes, -1, axis=0)), axis=1).sum() > max_area:
            continue
        following = np.roll(ring, -1)
        if len(ring) == 3:
            faces.append(ring[None, ::-1])
            continue
        # The hole lies on the other side of its boundary edges, hence the reversed direction.
        faces.append(np.stack([following, ring, np.full_like(ring, count)], axis=1))
        vertices.append(points.mean(axis=0, keepdims=True).astype(np.float32))
        if surface.colors is not None:
            colors.append(surface.colors[ring].mean(axis=0, keepdims=True))
        count += 1
    return Surface(
        np.concatenate(vertices),
        np.concatenate(faces),
        None if surface.colors is None else np.concatenate(colors),
    )


def _behind_necks(surface: Surface, edges: EdgeTable, seen: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """[F] bool: hidden patches whose rims could be closed with less than half of the patch's area."""
    if seen.all():
        return np.zeros_like(seen)
    number, labels = pieces(edges, among=~seen)
    patch_area = np.bincount(labels, areas, number)
    # Rims: edges between a hidden face and a seen one.
    a, b = edges.pairs[seen[edges.pairs[:, 0]] != seen[edges.pairs[:, 1]]].T
    hidden = np.where(seen[a], b, a)
    rim = np.bincount(labels[hidden], _shared_edge_lengths(surface, a, b), number)
    return ~seen & (_circle_area(rim) < 0.5 * patch_area)[labels]


def _shared_edge_lengths(surface: Surface, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[P] lengths of the edges between faces a [P] and b [P]."""
    ids = position_ids(surface.vertices)[surface.faces]
    shared = (ids[a][:, :, None] == ids[b][:, None, :]).any(axis=2)
    shared[shared.all(axis=1), 2] = False  # a face folded onto another one; any of its edges will do
    corners = surface.corner_positions()[a][shared].reshape(-1, 2, 3)
    return np.linalg.norm(corners[:, 0] - corners[:, 1], axis=1)


def _circle_area(perimeter: np.ndarray) -> np.ndarray:
    """The largest area that a closed curve of this length can enclose in the plane."""
    return perimeter**2 / (4 * np.pi)


def _reversed_where(flip: np.ndarray, faces: np.ndarray) -> np.ndarray:
    return np.where(flip[:, None], faces[:, ::-1], faces) if flip.any() else faces


def _edges(surface: Surface) -> EdgeTable:
    return EdgeTable.build(position_ids(surface.vertices)[surface.faces])
