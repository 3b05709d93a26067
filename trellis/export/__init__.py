"""From decoded mesh and Gaussians to a textured asset file: clean, simplify, unwrap, bake, write."""

from trellis.export.gltf import TexturedMesh, write_glb
from trellis.export.pipeline import STAGES, ExportOptions, export_mesh

__all__ = ["STAGES", "ExportOptions", "TexturedMesh", "export_mesh", "write_glb"]
