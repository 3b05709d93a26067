"""FlexiCubes: a differentiable isosurface with adjustable dual vertices (Shen et al., SIGGRAPH 2023)."""

from .bridges import bridge_gaps
from .cubes import build_corner_grid, cubes_to_mesh, map_weights
from .surface import Surface, extract_surface, flexicubes
from .topology import Topology, build_topology

__all__ = [
    "Surface",
    "Topology",
    "bridge_gaps",
    "build_corner_grid",
    "build_topology",
    "cubes_to_mesh",
    "extract_surface",
    "flexicubes",
    "map_weights",
]
