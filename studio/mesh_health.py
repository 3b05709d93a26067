"""The state of a triangle mesh in numbers: is it closed, is it one piece, are its triangles sound?"""

from __future__ import annotations

from typing import Any

import numpy as np

from trellis.export.gltf import TexturedMesh
from trellis.export.surface import Surface
from trellis.export.topology import EdgeTable, pieces, position_ids

_SLIVER = 0.02  # 4 sqrt(3) area / sum of squared sides: 1 for an equilateral triangle


def mesh_health(asset: TexturedMesh) -> dict[str, Any]:
    """Numbers on an asset, with vertices that chart borders repeat counted once.

    volume is in object units cubed and means something only if `watertight`; `uv_use` is the share of the texture that
    charts cover.
    """
    ids = position_ids(asset.vertices)
    faces = ids[asset.faces]
    proper = (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])
    undirected = np.sort(faces[proper][:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    _, uses = np.unique(undirected, axis=0, return_counts=True)
    surface = Surface(asset.vertices, asset.faces)
    corners = surface.corner_positions()
    areas = surface.face_areas()
    sides = np.square(corners - np.roll(corners, 1, axis=1)).sum(axis=(1, 2))
    quality = 4 * np.sqrt(3) * areas / np.maximum(sides, 1e-30)
    open_edges, crowded = int((uses == 1).sum()), int((uses > 2).sum())
    component_count, _ = pieces(EdgeTable.build(faces[proper]))
    uv = asset.uvs[asset.faces].astype(np.float64)
    first, second = uv[:, 1] - uv[:, 0], uv[:, 2] - uv[:, 0]
    return {
        "vertices": len(np.unique(faces)),
        "triangles": len(faces),
        "pieces": int(component_count),
        "watertight": open_edges == 0 and crowded == 0,
        "open_edges": open_edges,
        "edges_of_more_than_two_faces": crowded,
        "degenerate_triangles": int((~proper | (areas <= 1e-14)).sum()),
        "sliver_triangles": int((quality < _SLIVER).sum()),
        "area": round(float(areas.sum()), 5),
        "volume": round(float(np.einsum("fk,fk->", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])) / 6), 6),
        "bounds": [[round(float(v), 5) for v in bound] for bound in (asset.vertices.min(0), asset.vertices.max(0))],
        "uv_use": round(float(0.5 * np.abs(first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]).sum()), 4),
    }
