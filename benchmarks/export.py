"""Where the time of an export goes: `python -m benchmarks.export [--resolution 160] [--gaussians 60000] [--out x.glb]`.

The object is a painted, bumpy torus with the inner wall and specks of a real decode. Kernels are compiled beforehand;
times are wall clock and processor seconds of this process.
"""

from __future__ import annotations

import argparse
import time
from contextlib import contextmanager

from benchmarks.export_object import decoded_torus
from trellis.export.bake import bake_views
from trellis.export.clean import clean
from trellis.export.gltf import TexturedMesh
from trellis.export.pipeline import ExportOptions, export_mesh
from trellis.export.refine import refine_texture
from trellis.export.simplify import simplify
from trellis.export.surface import surface_of
from trellis.export.texels import paint, texels_of
from trellis.export.unwrap import unwrap
from trellis.export.views import gaussian_views, surface_views, surround


def main() -> None:
    """Run the steps one by one and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolution", type=int, default=160, help="grid cells per side of the made-up decode")
    parser.add_argument("--gaussians", type=int, default=60_000, help="0 bakes from vertex colours")
    parser.add_argument("--texture-size", type=int, default=1024)
    parser.add_argument("--simplify", type=float, default=0.95)
    parser.add_argument("--refine-steps", type=int, default=0)
    parser.add_argument("--out", help="also write the GLB here")
    arguments = parser.parse_args()

    options = ExportOptions(refine_steps=arguments.refine_steps)
    small = decoded_torus(32, 500)
    export_mesh(small[0], small[1] if arguments.gaussians else None, texture_size=64)  # compiles the kernels

    mesh, gaussian = decoded_torus(arguments.resolution, max(arguments.gaussians, 1))
    rows: list[tuple[str, float, float, str]] = []
    with _timed(rows, "clean") as note:
        dense = clean(surface_of(mesh), options.clean)
        note(f"{len(mesh.faces)} -> {len(dense.faces)} faces")
    with _timed(rows, "simplify") as note:
        low = simplify(dense, arguments.simplify, options.max_faces)
        note(f"-> {len(low.faces)} faces")
    with _timed(rows, "unwrap") as note:
        atlas = unwrap(low, arguments.texture_size, options.unwrap)
        note(f"{atlas.num_charts} charts")
    with _timed(rows, "texels") as note:
        texels = texels_of(atlas, arguments.texture_size)
        note(f"{len(texels) / arguments.texture_size**2:.0%} of the texture used")
    with _timed(rows, "pictures") as note:
        cameras = surround(dense, options.num_views, options.view_resolution)
        views = list(gaussian_views(gaussian, cameras) if arguments.gaussians else surface_views(dense, cameras))
        note(f"{len(views)} at {options.view_resolution} px")
    with _timed(rows, "bake") as note:
        colors, shown = bake_views(atlas, texels, cameras, views)
        note(f"{shown:.1%} of the texels shown")
    with _timed(rows, "paint and gutters"):
        texture = paint(texels, colors)
    with _timed(rows, "refine") as note:
        texture = refine_texture(texture, atlas, cameras, views, options.refine_steps)
        note(f"{options.refine_steps} steps")
    with _timed(rows, "write") as note:
        asset = TexturedMesh(atlas.vertices, atlas.faces, atlas.uvs, atlas.normals, (texture * 255).astype("uint8"))
        data = asset.to_trimesh().export(file_type="glb")
        note(f"{len(data) / 1e6:.1f} MB")
    if arguments.out:
        asset.export(arguments.out)

    rows.append(("total", sum(row[1] for row in rows), sum(row[2] for row in rows), ""))
    print(f"{'step':<20}{'wall s':>8}{'cpu s':>8}  note")
    for name, wall, cpu, text in rows:
        print(f"{name:<20}{wall:>8.2f}{cpu:>8.2f}  {text}")


@contextmanager
def _timed(rows: list, name: str):
    texts: list[str] = []
    wall, cpu = time.perf_counter(), time.process_time()
    yield texts.append
    rows.append((name, time.perf_counter() - wall, time.process_time() - cpu, "; ".join(texts)))


if __name__ == "__main__":
    main()
