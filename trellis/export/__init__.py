"""From decoded mesh and Gaussians to a textured asset in files: clean, simplify, unwrap, bake, write."""

from trellis.export.bundle import FORMATS, export_files
from trellis.export.gltf import TexturedMesh, write_glb
from trellis.export.health import MeshHealth, mesh_health
from trellis.export.pipeline import STAGES, ExportOptions, export_mesh
from trellis.export.splat_colors import painted_splats
from trellis.export.splat_places import laid_on_surface

__all__ = [
    "FORMATS",
    "STAGES",
    "ExportOptions",
    "MeshHealth",
    "TexturedMesh",
    "export_files",
    "export_mesh",
    "laid_on_surface",
    "mesh_health",
    "painted_splats",
    "write_glb",
]
