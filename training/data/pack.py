"""Pack a folder of GLB objects (with procedural solids, and unions of all) into one file that loads in seconds.

    python -m training.data.pack OBJECTS -o objects.safetensors --exclude OBJECTS/validation.csv \\
        --procedural 500 --unions 1400

OBJECTS holds `index.csv` (column `id`, `file`, `kind`) and the GLB files: one mesh and one base-colour texture each,
centred, longest side 1, glTF frame. Vertices are stored in the object frame (z up). OBJECTS may also be a packed file,
to add to what it holds.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
import trimesh
from safetensors.torch import save_file

from training.data.packed import TEXTURE_SIDE, PackedMesh, encode_texture, pack, unpack
from training.data.procedural import random_solid
from training.data.unions import random_unions


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


def read_folder(objects: Path, args: argparse.Namespace) -> list[PackedMesh]:
    """The objects of a folder that the options ask for."""
    excluded = {row["id"] for row in csv.DictReader(args.exclude.open())} if args.exclude else set()
    rows = [row for row in csv.DictReader((objects / "index.csv").open()) if row["id"] not in excluded]
    if args.only:
        wanted = {r["id"] for r in csv.DictReader(args.only.open()) if not args.role or r["role"] == args.role}
        rows = [row for row in rows if row["id"] in wanted]
    return [load_glb(objects / row["file"], row["kind"] == "scan", args.texture_side) for row in rows]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("objects", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--exclude", type=Path, help="CSV whose column `id` names objects to leave out")
    parser.add_argument("--only", type=Path, help="CSV whose column `id` names the only objects to take")
    parser.add_argument("--role", help="with --only: take just the rows whose column `role` has this value")
    parser.add_argument("--procedural", type=int, default=0, help="number of procedural solids to add")
    parser.add_argument("--unions", type=int, default=0, help="number of unions of two of all these to add")
    parser.add_argument("--texture-side", type=int, default=TEXTURE_SIDE, help="longest side of a photographic texture")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    meshes = unpack(args.objects) if args.objects.is_file() else read_folder(args.objects, args)
    rng = np.random.default_rng(args.seed)
    for index in range(args.procedural):
        vertices, uvs, faces, texture, smooth = random_solid(rng)
        meshes.append(PackedMesh(f"solid-{index}", vertices, uvs, faces, encode_texture(texture), smooth))
    meshes += random_unions(meshes, args.unions, rng)
    tensors, metadata = pack(meshes)
    save_file(tensors, args.output, metadata)
    print(f"{len(meshes)} meshes, {len(tensors['faces'])} faces, {args.output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
