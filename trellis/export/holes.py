"""Closing holes with fans of triangles."""

from __future__ import annotations

import numpy as np

from trellis.export.surface import Surface
from trellis.export.topology import EdgeTable, boundary_loops, first_rows, position_ids


def fill_small_holes(surface: Surface, max_area: float) -> Surface:
    """With boundary loops closed by a fan around their centroid, where the fan's area is at most `max_area`."""
    ids = position_ids(surface.vertices)
    representative = first_rows(ids)
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
