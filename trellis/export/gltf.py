"""The finished asset: a mesh with its texture, as files and as a trimesh object."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from trellis.errors import InputError
from trellis.export.frame import metres_per_unit, to_gltf_frame
from trellis.export.glb import glb_bytes
from trellis.export.obj import obj_zip_bytes, stl_bytes
from trellis.files import replacing

if TYPE_CHECKING:
    import trimesh


@dataclass(frozen=True, eq=False)
class TexturedMesh:
    """The finished asset, in the object frame (right-handed, z up).

    Attributes:
        vertices: [V, 3] float32.
        faces: [F, 3] int32, counter-clockwise seen from outside.
        uvs: [V, 2] float32 in [0, 1], origin at the lower left of the texture.
        normals: [V, 3] float32, unit.
        texture: [S, S, 3] uint8 sRGB base colour, first row at the top (v = 1).
    """

    vertices: np.ndarray
    faces: np.ndarray
    uvs: np.ndarray
    normals: np.ndarray
    texture: np.ndarray

    def to_trimesh(self, longest_side: float | None = None) -> trimesh.Trimesh:
        """In the glTF frame, with the texture as base colour: metallic 0, roughness 1, opaque. `write_glb` writes it.

        `longest_side` is that of the bounding box in metres; None keeps one object unit as one metre.
        """
        import trimesh

        material = opaque_material(metallic=0.0, baseColorTexture=Image.fromarray(self.texture))
        # trimesh measures v upwards, as we do, and turns it over for the file (glTF measures it downwards).
        return trimesh.Trimesh(
            vertices=to_gltf_frame(self.vertices) * metres_per_unit(self.vertices, longest_side),
            faces=self.faces,
            vertex_normals=to_gltf_frame(self.normals),
            visual=trimesh.visual.TextureVisuals(uv=self.uvs, material=material),
            process=False,
        )

    def export(
        self, path: str | PathLike[str], longest_side: float | None = None, image_format: str = "png"
    ) -> None:
        """Write the asset in the glTF frame; the file appears complete or not at all.

        Args:
            path: its suffix decides: .glb, .zip (OBJ, MTL and PNG) or .stl.
            longest_side: metres of the longest side of the bounding box; None keeps one object unit as one metre.
            image_format: texture inside a GLB, "png" or (lossless) "webp".

        Raises:
            InputError: another suffix or image format, or a length that cannot be.
        """
        path = Path(path)
        scale = metres_per_unit(self.vertices, longest_side)
        suffix = path.suffix.lower()
        if suffix == ".glb":
            content = glb_bytes(self, scale, image_format)
        elif suffix == ".zip":
            content = obj_zip_bytes(self, scale, path.stem)
        elif suffix == ".stl":
            content = stl_bytes(self, scale)
        else:
            raise InputError(f"The asset is written as .glb, .zip (OBJ) or .stl, so {path.name!r} cannot be written.")
        with replacing(path) as temporary:
            temporary.write_bytes(content)


def opaque_material(metallic: float, **textures: Image.Image):
    """A trimesh `PBRMaterial`: opaque, one-sided, roughness 1 and `metallic`, each times its texture if there is one.

    textures: by their glTF names, "baseColorTexture" and so on.
    """
    from trimesh.visual.material import PBRMaterial

    return PBRMaterial(
        name="surface",
        baseColorFactor=np.array([255, 255, 255, 255], dtype=np.uint8),
        metallicFactor=metallic,
        roughnessFactor=1.0,
        alphaMode="OPAQUE",
        doubleSided=False,
        **textures,
    )


def write_glb(path: str | PathLike[str], mesh: trimesh.Trimesh | trimesh.Scene) -> None:
    """Write a mesh or scene that is already in the glTF frame as GLB; the file appears complete or not at all."""
    if not str(path).lower().endswith(".glb"):
        raise InputError(f"The asset is written as binary glTF, so the file name must end in .glb, not {str(path)!r}.")
    with replacing(path) as temporary:
        mesh.export(temporary, file_type="glb")
