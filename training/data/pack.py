"""Pack a folder of GLB objects (and procedural solids) into one file that loads in seconds.

    python -m training.data.pack OBJECTS -o objects.safetensors --exclude OBJECTS/validation.csv --procedural 700

OBJECTS holds `index.csv` (column `id`, `file`, `kind`) and the GLB files: one mesh and one base-colour texture each,
centred, longest side 1, glTF frame. Vertices are stored in the object frame (z up).
"""

from __future__ import annotations

import argparse
import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import trimesh
from PIL import Image
from safetensors.torch import save_file

from training.data.procedural import random_solid

TEXTURE_SIDE = 256  # views are 168 px, so nothing finer is ever seen
RECODE_ABOVE_BYTES = 24_000


@dataclass(frozen=True)
class PackedMesh:
    """One textured mesh in the object frame; `texture` holds encoded PNG or JPEG bytes, `uvs` have v pointing up."""

    name: str
    vertices: np.ndarray  # [V, 3] float
    uvs: np.ndarray  # [V, 2] float in [0, 1]
    faces: np.ndarray  # [F, 3] int
    texture: bytes
    smooth: bool


def encode_texture(image: Image.Image, side: int = TEXTURE_SIDE) -> bytes:
    """Encode a texture as PNG when that is small (palettes), else as JPEG with sides of at most `side`."""
    image = image.convert("RGB")
    png = io.BytesIO()
    image.save(png, "PNG", optimize=True)
    if png.tell() <= RECODE_ABOVE_BYTES:
        return png.getvalue()
    image.thumbnail((side, side), Image.Resampling.BOX)
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=90)
    return jpeg.getvalue()


def load_glb(path: Path, smooth: bool, texture_side: int = TEXTURE_SIDE) -> PackedMesh:
    """Read one object; glTF (x, y, z) becomes the object frame (x, -z, y)."""
    mesh = trimesh.load(path, process=False, force="mesh")
    x, y, z = np.asarray(mesh.vertices, dtype=np.float64).T
    return PackedMesh(
        name=path.stem,
        vertices=np.stack([x, -z, y], axis=1),
        uvs=np.clip(np.asarray(mesh.visual.uv), 0.0, 1.0),
        faces=np.asarray(mesh.faces),
        texture=encode_texture(mesh.visual.material.baseColorTexture, texture_side),
        smooth=smooth,
    )


def pack(meshes: list[PackedMesh]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Concatenate meshes into flat tensors with offsets, and the JSON metadata that names them."""

    def offsets(counts: list[int]) -> torch.Tensor:
        return torch.tensor([0, *np.cumsum(counts)], dtype=torch.int64)

    tensors = {
        "vertices": torch.from_numpy(np.concatenate([m.vertices for m in meshes])).half(),
        "uvs": torch.from_numpy(np.round(np.concatenate([m.uvs for m in meshes]) * 65535).astype(np.uint16)),
        "faces": torch.from_numpy(np.concatenate([m.faces for m in meshes]).astype(np.uint16)),
        "smooth": torch.tensor([m.smooth for m in meshes]),
        "textures": torch.from_numpy(np.frombuffer(b"".join(m.texture for m in meshes), dtype=np.uint8).copy()),
        "vertex_offsets": offsets([len(m.vertices) for m in meshes]),
        "face_offsets": offsets([len(m.faces) for m in meshes]),
        "texture_offsets": offsets([len(m.texture) for m in meshes]),
    }
    return tensors, {"names": json.dumps([m.name for m in meshes])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("objects", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--exclude", type=Path, help="CSV whose column `id` names objects to leave out")
    parser.add_argument("--only", type=Path, help="CSV whose column `id` names the only objects to take")
    parser.add_argument("--role", help="with --only: take just the rows whose column `role` has this value")
    parser.add_argument("--procedural", type=int, default=0, help="number of procedural solids to add")
    parser.add_argument("--texture-side", type=int, default=TEXTURE_SIDE, help="longest side of a photographic texture")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    excluded = {row["id"] for row in csv.DictReader(args.exclude.open())} if args.exclude else set()
    rows = [row for row in csv.DictReader((args.objects / "index.csv").open()) if row["id"] not in excluded]
    if args.only:
        wanted = {r["id"] for r in csv.DictReader(args.only.open()) if not args.role or r["role"] == args.role}
        rows = [row for row in rows if row["id"] in wanted]
    meshes = [load_glb(args.objects / row["file"], row["kind"] == "scan", args.texture_side) for row in rows]
    rng = np.random.default_rng(args.seed)
    for index in range(args.procedural):
        vertices, uvs, faces, texture, smooth = random_solid(rng)
        meshes.append(PackedMesh(f"solid-{index}", vertices, uvs, faces, encode_texture(texture), smooth))
    tensors, metadata = pack(meshes)
    save_file(tensors, args.output, metadata)
    print(f"{len(meshes)} meshes, {len(tensors['faces'])} faces, {args.output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
