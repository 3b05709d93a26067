"""Textured meshes as glTF binary (GLB), by way of trimesh."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from trellis.errors import InputError
from trellis.files import replacing

if TYPE_CHECKING:
    import trimesh


def to_gltf_frame(vectors: np.ndarray) -> np.ndarray:
    """Points or directions [..., 3] from the object frame (z up) to glTF's (y up): (x, y, z) -> (x, z, -y)."""
    x, y, z = np.moveaxis(np.asarray(vectors), -1, 0)
    return np.stack([x, z, -y], axis=-1)


def from_gltf_frame(vectors: np.ndarray) -> np.ndarray:
    """The inverse of `to_gltf_frame`: (x, y, z) -> (x, -z, y)."""
    x, y, z = np.moveaxis(np.asarray(vectors), -1, 0)
    return np.stack([x, -z, y], axis=-1)


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

    def to_trimesh(self) -> trimesh.Trimesh:
        """In the glTF frame, with a rough dielectric material; `.export("x.glb")` writes it."""
        return build_trimesh(self)

    def export(self, path: str | PathLike[str]) -> None:
        """Write a GLB; the file appears complete or not at all."""
        write_glb(path, self.to_trimesh())


def build_trimesh(mesh: TexturedMesh) -> trimesh.Trimesh:
    """A `trimesh.Trimesh` in the glTF frame with the texture as base colour: metallic 0, roughness 1, opaque."""
    import trimesh
    from trimesh.visual.material import PBRMaterial

    material = PBRMaterial(
        name="surface",
        baseColorTexture=Image.fromarray(mesh.texture),
        baseColorFactor=np.array([255, 255, 255, 255], dtype=np.uint8),
        metallicFactor=0.0,
        roughnessFactor=1.0,
        alphaMode="OPAQUE",
        doubleSided=False,
    )
    # trimesh measures v upwards, as we do, and turns it over for the file (glTF measures it downwards).
    return trimesh.Trimesh(
        vertices=to_gltf_frame(mesh.vertices),
        faces=mesh.faces,
        vertex_normals=to_gltf_frame(mesh.normals),
        visual=trimesh.visual.TextureVisuals(uv=mesh.uvs, material=material),
        process=False,
    )


def write_glb(path: str | PathLike[str], mesh: trimesh.Trimesh | trimesh.Scene) -> None:
    """Write a mesh or scene that is already in the glTF frame as GLB; the file appears complete or not at all."""
    if not str(path).lower().endswith(".glb"):
        raise InputError(f"The asset is written as binary glTF, so the file name must end in .glb, not {str(path)!r}.")
    with replacing(path) as temporary:
        mesh.export(temporary, file_type="glb")
