"""Where the time of an export goes, against the original's recipe: `python -m benchmarks.export [--quick]`.

The object is a painted, bumpy torus with the inner wall and specks of a real decode: 528k faces and 200k Gaussians
become 25k faces with a texture of 1024. Kernels are compiled beforehand; times are wall clock and processor seconds of
this process and its children, once each. The original's recipe is run in full, some five minutes on two cores; --ours
leaves it out. --quick makes everything smaller (grid 100, a tenth of the recipe's views and steps): its times say
little, but every step is run. --object takes a textured GLB instead of the torus.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from benchmarks.export_object import decoded_glb, decoded_torus
from benchmarks.export_original import Recipe, optimise, pictures, unseen_psnr, visibility
from trellis.export.bake import bake_views
from trellis.export.clean import clean
from trellis.export.distance import surface_distance
from trellis.export.gltf import TexturedMesh
from trellis.export.health import mesh_health
from trellis.export.pipeline import ExportOptions, bake_texture, enlarged, export_mesh, resolved_size
from trellis.export.simplify import simplify
from trellis.export.solve import TextureSystem
from trellis.export.surface import surface_of
from trellis.export.texels import paint, texels_of
from trellis.export.unwrap import unwrap
from trellis.export.views import gaussian_views, surround

QUICK = Recipe(visibility_views=100, visibility_size=512, picture_size=256, supersampling=2, steps=250)


def main() -> None:
    """Run the steps one by one and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small object and a tenth of the original's recipe")
    parser.add_argument("--ours", action="store_true", help="leave the original's recipe out")
    parser.add_argument("--texture-size", type=int, default=1024)
    parser.add_argument("--object", help="a GLB of one textured mesh, made into a decode, instead of the torus")
    parser.add_argument("--out", help="also write the GLB here")
    arguments = parser.parse_args()
    recipe, resolution, count, target = Recipe(), 250, 200_000, 25_000
    if arguments.quick:
        recipe, resolution, count, target = QUICK, 100, 30_000, 5_000

    options, size = ExportOptions(), arguments.texture_size
    export_mesh(*decoded_torus(32, 500), texture_size=64, options=options)  # compiles the kernels
    if arguments.object:
        mesh, gaussian = decoded_glb(arguments.object, resolution, count)
    else:
        mesh, gaussian = decoded_torus(resolution, count)
    print(f"{len(mesh.faces)} faces, {len(gaussian)} Gaussians; load of this machine: {_load()}")

    ours = _Table("ours")
    with ours.timed("clean") as note:
        dense = clean(surface_of(mesh), options.clean)
        note(f"{len(mesh.faces)} -> {len(dense.faces)} faces")
    with ours.timed("simplify") as note:
        low = simplify(dense, target_faces=target)
        note(f"-> {len(low.faces)} faces")
    with ours.timed("distance") as note:
        apart = surface_distance(dense, low)
        note(f"Hausdorff {apart.hausdorff:.5f}, mean {apart.mean:.6f} object units")
    with ours.timed("unwrap") as note:
        atlas = unwrap(low, size, options.unwrap)
        note(f"{atlas.num_charts} charts, {atlas.method}")
    with ours.timed("pictures") as note:
        cameras = surround(dense, options.num_views, options.view_resolution)
        views = list(gaussian_views(gaussian, cameras))
        note(f"{len(views)} at {options.view_resolution} px")
    with ours.timed("bake") as note:
        baked_size = resolved_size(atlas, cameras, size)
        texels, system = texels_of(atlas, baked_size), TextureSystem(atlas, baked_size)
        colors, shown = bake_views(atlas, texels, cameras, views, system=system)
        averaged = paint(texels, colors)
        note(f"{shown:.1%} of the texels shown, texture of {baked_size}")
    with ours.timed("solve"):
        texture = enlarged(system.solve(averaged, options.refine_steps), size)
    with ours.timed("write"), tempfile.TemporaryDirectory() as folder:
        asset = TexturedMesh(atlas.vertices, atlas.faces, atlas.uvs, atlas.normals, (texture * 255 + 0.5).astype("u1"))
        file = Path(arguments.out or Path(folder) / "asset.glb")
        asset.export(file)
        health = mesh_health(asset, file, apart.hausdorff)
    ours.print(f"PSNR {unseen_psnr(texture, atlas, gaussian):.2f} dB from 20 unseen cameras")
    print(f"averaged only: {unseen_psnr(averaged, atlas, gaussian):.2f} dB\n{health}")

    again = _Table("re-bake at twice the texture size")
    with again.timed("unwrap") as note:
        larger = unwrap(low, 2 * size, options.unwrap)
        note("remembered" if larger is atlas else "")
    with again.timed("bake and solve"):
        texture = bake_texture(larger, dense, gaussian, 2 * size, options, lambda stage, step, of: None) / 255
    again.print(f"PSNR {unseen_psnr(texture, larger, gaussian):.2f} dB")
    if arguments.ours:
        return

    original = _Table("the original's recipe" + (" (a tenth)" if arguments.quick else ""))
    with original.timed("visibility") as note:
        visibility(surface_of(mesh), recipe)
        note(f"{recipe.visibility_views} views at {recipe.visibility_size} px")
    for step in ("simplify", "unwrap"):
        original.rows.append(next(row for row in ours.rows if row[0] == step))
    with original.timed("pictures") as note:
        cameras, views = pictures(gaussian, dense, recipe)
        note(f"{recipe.pictures} at {recipe.picture_size} px, {recipe.supersampling}x supersampled")
    with original.timed("optimise") as note:
        texture = optimise(atlas, size, cameras, views, recipe.steps)
        note(f"{recipe.steps} steps")
    original.print(f"PSNR {unseen_psnr(texture, atlas, gaussian):.2f} dB from 20 unseen cameras")
    faster, less = original.seconds / ours.seconds, original.processor_seconds / ours.processor_seconds
    print(f"\nours is {faster:.0f} times faster and takes {less:.0f} times less processor time; load now {_load()}")


def _load() -> str:
    return f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


class _Table:
    """Steps with their times."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.rows: list[tuple[str, float, float, str]] = []

    @property
    def seconds(self) -> float:
        """Wall clock of all steps."""
        return sum(row[1] for row in self.rows)

    @property
    def processor_seconds(self) -> float:
        """Of this process and its children, all steps."""
        return sum(row[2] for row in self.rows)

    @contextmanager
    def timed(self, name: str):
        texts: list[str] = []
        wall, cpu = time.perf_counter(), _processor_seconds()
        yield texts.append
        self.rows.append((name, time.perf_counter() - wall, _processor_seconds() - cpu, "; ".join(texts)))

    def print(self, remark: str) -> None:
        total = ("total", self.seconds, self.processor_seconds, remark)
        print(f"\n{self.title:<24}{'wall s':>8}{'cpu s':>8}  note")
        for name, wall, cpu, text in (*self.rows, total):
            print(f"{name:<24}{wall:>8.2f}{cpu:>8.2f}  {text}", flush=True)


def _processor_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


if __name__ == "__main__":
    main()
