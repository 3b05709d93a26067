"""Where the time of an export goes, against the original's recipe: `python -m benchmarks.export [--quick]`.

The object is a painted, bumpy torus with the inner wall and specks of a real decode: 528k faces and 200k Gaussians
become 25k faces with a texture of 1024. Kernels are compiled beforehand; times are wall clock and processor seconds of
this process and its children, medians of some runs, one step after the other, and of the whole export, which draws the
pictures while xatlas works. The original's recipe is run in full, once, some five minutes on two cores; --quick leaves
it out. --small makes everything smaller (grid 100, a tenth of the recipe's views and steps): its times say little, but
every step is run. --object takes a textured GLB instead of the torus.

On a GPU the splats are drawn by what `trellis.backends` finds there. gsplat may compile for minutes at its first use:
`--splatting numba` draws them on the CPU.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch loads OpenMP

import numpy as np
import torch

from benchmarks.export_object import decoded_glb, decoded_torus
from benchmarks.export_original import Recipe, optimise, pictures, unseen_psnr, visibility
from trellis import backends
from trellis.export.bake import bake_views
from trellis.export.clean import clean
from trellis.export.distance import surface_distance
from trellis.export.gltf import TexturedMesh
from trellis.export.health import mesh_health
from trellis.export.pipeline import ExportOptions, bake_texture, enlarged, export_mesh, resolved_size
from trellis.export.simplify import simplify
from trellis.export.solve import TextureSystem
from trellis.export.surface import Surface, surface_of
from trellis.export.texels import paint, texels_of
from trellis.export.unwrap import Atlas, unwrap
from trellis.export.views import gaussian_views, surround

SMALL = Recipe(visibility_views=100, visibility_size=512, picture_size=256, supersampling=2, steps=250)


def main() -> None:
    """Run the steps one by one and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="where pictures are drawn and compared: cpu or cuda")
    parser.add_argument("--splatting", default="auto", help="what draws the Gaussians, by its name in trellis.backends")
    parser.add_argument("--quick", action="store_true", help="leave the original's recipe out")
    parser.add_argument("--small", action="store_true", help="a small object and a tenth of the original's recipe")
    parser.add_argument("--repeats", type=int, default=3, help="runs of which the medians are printed")
    parser.add_argument("--profile", action="store_true", help="also list the costliest functions of one more export")
    parser.add_argument("--texture-size", type=int, default=1024)
    parser.add_argument("--object", help="a GLB of one textured mesh, made into a decode, instead of the torus")
    parser.add_argument("--out", help="also write the GLB here")
    arguments = parser.parse_args()
    recipe, resolution, count, target = Recipe(), 250, 200_000, 25_000
    if arguments.small:
        recipe, resolution, count, target = SMALL, 100, 30_000, 5_000
    device, size = torch.device(arguments.device), arguments.texture_size

    started = time.perf_counter()
    backends.choose(device, gaussian_splatting=arguments.splatting)
    print(f"{_device_name(device)}, {os.cpu_count()} cores, torch {torch.__version__}")
    for need, what in (("gaussian_splatting", "pictures"), ("mesh_rasterisation", "surface")):
        print(f"{what} by {backends.name_of(need, device)}, on the {backends.place(need, device)}")
    options = ExportOptions(max_faces=None, target_faces=target)
    export_mesh(*decoded_torus(32, 500), texture_size=64, device=device)  # compiles the kernels
    print(f"kernels ready after {time.perf_counter() - started:.1f} s", flush=True)
    if arguments.object:
        mesh, gaussian = decoded_glb(arguments.object, resolution, count)
    else:
        mesh, gaussian = decoded_torus(resolution, count)
    mesh.vertices, mesh.faces, mesh.vertex_attrs = (
        tensor.to(device) for tensor in (mesh.vertices, mesh.faces, mesh.vertex_attrs)
    )
    gaussian = gaussian.to(device)
    print(f"{len(mesh.faces)} faces, {len(gaussian)} Gaussians; load of this machine: {_load()}", flush=True)

    ours, whole = _Table("ours, step by step", device), _Table("the whole export", device)
    for repeat in range(arguments.repeats):
        # Another number makes other options, whose answer is not remembered.
        fresh = replace(options, unwrap=replace(options.unwrap, time_limit=60.0 + 1e-3 * repeat))
        made = _steps(mesh, gaussian, size, fresh, device, ours, arguments.out)
        fresh = replace(options, unwrap=replace(options.unwrap, time_limit=61.0 + 1e-3 * repeat))
        with whole.timed("export_mesh") as note:
            asset = export_mesh(mesh, gaussian, texture_size=size, options=fresh)
            note(f"{len(asset.faces)} faces")
        with whole.timed("write"), tempfile.TemporaryDirectory() as folder:
            asset.export(Path(folder) / "asset.glb")
    ours.print(f"PSNR {unseen_psnr(made.texture, made.atlas, gaussian, device):.2f} dB from 20 unseen cameras")
    print(f"averaged only: {unseen_psnr(made.averaged, made.atlas, gaussian, device):.2f} dB\n{made.health}")
    atlas = Atlas(asset.vertices, asset.faces, asset.uvs, asset.normals)
    whole.print(f"PSNR {unseen_psnr(np.float32(asset.texture) / 255, atlas, gaussian, device):.2f} dB")
    if arguments.profile:
        fresh = replace(options, unwrap=replace(options.unwrap, time_limit=62.0))
        with cProfile.Profile() as profile:
            export_mesh(mesh, gaussian, texture_size=size, options=fresh)
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)

    again = _Table("at twice the texture size", device)
    with again.timed("unwrap") as note:
        larger = unwrap(made.low, 2 * size, made.options.unwrap)
        note("remembered" if larger is made.atlas else "")
    with again.timed("bake and solve"):
        cameras = surround(made.dense, options.num_views, options.view_resolution)
        views = gaussian_views(gaussian, cameras, device)
        texture = bake_texture(larger, cameras, views, 2 * size, options, lambda *step: None, device=device) / 255
    again.print(f"PSNR {unseen_psnr(texture, larger, gaussian, device):.2f} dB")
    if arguments.quick:
        return

    original = _Table("the original's recipe" + (" (a tenth)" if arguments.small else ""), device)
    with original.timed("visibility") as note:
        visibility(surface_of(mesh), recipe)
        note(f"{recipe.visibility_views} views at {recipe.visibility_size} px")
    for step in ("simplify", "unwrap"):
        original.add(step, *ours.median(step))
    with original.timed("pictures") as note:
        cameras, views = pictures(gaussian, made.dense, recipe)
        note(f"{recipe.pictures} at {recipe.picture_size} px, {recipe.supersampling}x supersampled")
    with original.timed("optimise") as note:
        texture = optimise(made.atlas, size, cameras, views, recipe.steps)
        note(f"{recipe.steps} steps")
    original.print(
        f"PSNR {unseen_psnr(texture, made.atlas, gaussian, device):.2f} dB from 20 unseen cameras, on the CPU"
    )
    (seconds, processor), (our_seconds, our_processor) = original.total(), ours.total()
    faster, less = seconds / our_seconds, processor / our_processor
    print(f"\nours is {faster:.0f} times faster and takes {less:.0f} times less processor time; load now {_load()}")


@dataclass(frozen=True, eq=False)
class _Made:
    """What the steps made."""

    dense: Surface
    low: Surface
    atlas: Atlas
    options: ExportOptions
    averaged: np.ndarray
    texture: np.ndarray
    health: Any


def _steps(mesh, gaussian, size: int, options: ExportOptions, device, table: _Table, out: str | None) -> _Made:
    """Every step of an export by itself, timed."""
    with table.timed("clean") as note:
        dense = clean(surface_of(mesh), options.clean, device)
        note(f"{len(mesh.faces)} -> {len(dense.faces)} faces")
    with table.timed("simplify") as note:
        low = simplify(dense, target_faces=options.target_faces, device=device)
        note(f"-> {len(low.faces)} faces")
    with table.timed("distance") as note:
        apart = surface_distance(dense, low)
        note(f"Hausdorff {apart.hausdorff:.5f}, mean {apart.mean:.6f} object units; no part of export_mesh")
    with table.timed("unwrap") as note:
        atlas = unwrap(low, size, options.unwrap)
        note(f"{atlas.num_charts} charts, {atlas.method}")
    with table.timed("pictures") as note:
        cameras = surround(dense, options.num_views, options.view_resolution)
        views = list(gaussian_views(gaussian, cameras, device))
        note(f"{len(views)} at {options.view_resolution} px, by {backends.name_of('gaussian_splatting', device)}")
    with table.timed("bake") as note:
        baked_size = resolved_size(atlas, cameras, size)
        texels, system = texels_of(atlas, baked_size, device), TextureSystem(atlas, baked_size, device)
        colors, shown = bake_views(atlas, texels, cameras, views, system=system, device=device)
        averaged = paint(texels, colors)
        note(f"{shown:.1%} of the texels shown, texture of {baked_size}")
    with table.timed("solve"):
        texture = enlarged(system.solve(averaged, options.refine_steps), size)
    with table.timed("write"), tempfile.TemporaryDirectory() as folder:
        asset = TexturedMesh(atlas.vertices, atlas.faces, atlas.uvs, atlas.normals, (texture * 255 + 0.5).astype("u1"))
        file = Path(out or Path(folder) / "asset.glb")
        asset.export(file)
        health = mesh_health(asset, file, apart.hausdorff)
    return _Made(dense, low, atlas, options, averaged, texture, health)


def _load() -> str:
    return f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


class _Table:
    """Steps with their times; of those done several times the medians."""

    def __init__(self, title: str, device: torch.device) -> None:
        self.title = title
        self._device = device
        self._runs: dict[str, list[tuple[float, float]]] = {}
        self._notes: dict[str, str] = {}

    def add(self, name: str, wall: float, processor: float, note: str = "") -> None:
        """Enter a run of a step: its wall clock and processor seconds."""
        self._runs.setdefault(name, []).append((wall, processor))
        self._notes[name] = note

    def median(self, name: str) -> tuple[float, float]:
        """Wall clock and processor seconds of a step."""
        wall, processor = zip(*self._runs[name], strict=True)
        return statistics.median(wall), statistics.median(processor)

    def total(self) -> tuple[float, float]:
        """Of all steps."""
        wall, processor = zip(*map(self.median, self._runs), strict=True)
        return sum(wall), sum(processor)

    @contextmanager
    def timed(self, name: str) -> Iterator[Any]:
        """Times what is done inside; the callable that it gives takes a note."""
        texts: list[str] = []
        wall, processor = time.perf_counter(), _processor_seconds()
        yield texts.append
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.add(name, time.perf_counter() - wall, _processor_seconds() - processor, "; ".join(texts))

    def print(self, remark: str) -> None:
        """The table, with a remark beside the total."""
        print(f"\n{self.title:<26}{'wall s':>8}{'cpu s':>8}  note")
        for name in self._runs:
            wall, processor = self.median(name)
            print(f"{name:<26}{wall:>8.2f}{processor:>8.2f}  {self._notes[name]}")
        wall, processor = self.total()
        print(f"{'total':<26}{wall:>8.2f}{processor:>8.2f}  {remark}", flush=True)


def _processor_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


if __name__ == "__main__":
    main()
