"""From decoded mesh and Gaussians to a textured asset in files: clean, simplify, unwrap, bake, write."""

from trellis.export.bundle import FORMATS, export_files
from trellis.export.gltf import TexturedMesh, write_glb
from trellis.export.pipeline import STAGES, ExportOptions, export_mesh

__all__ = ["FORMATS", "STAGES", "ExportOptions", "TexturedMesh", "export_files", "export_mesh", "write_glb"]
