"""Refinement against its quality bars: `python -m benchmarks.refine OBJECT.glb... --environment SKY.hdr [--bar a]`.

a: known cameras, 24 views, from scratch. b: 8 views, asset and cameras of a checkpoint's own making (kept in --work, so
that a second run only refines). c: known shape, cameras wrong by 3 degrees and 3 percent in place and focal length.
d: the mesh stage of bar a on --device: iterations per second, and the held-out PSNR of loops made to last 10, 30, 60 s.
Times are wall clock and processor seconds of this process, kernels compiled beforehand.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from benchmarks.refine_objects import load_object, photograph
from benchmarks.refine_own import run_object, summary
from nvdiffrec.asset import Asset, asset_from_views
from nvdiffrec.camera_fit import pose_errors
from nvdiffrec.fit import FitOptions
from nvdiffrec.from_scratch import GridSettings, fit_grid
from nvdiffrec.optimise import RefineResult, refine
from nvdiffrec.optimise import RefineSettings as LoopSettings
from nvdiffrec.pictures import comparison, write_picture
from nvdiffrec.views import Views
from studio.engine import load_engine
from studio.refine_settings import RefineSettings
from studio.settings import make_settings
from trellis.renderers.cameras import Cameras, hammersley
from trellis.renderers.mesh_raster import warm_up

_PACED = 40  # iterations, half of them at half the size as in any loop, by which the pace is measured


def main() -> None:
    """Run the bars on each object and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("objects", nargs="+", type=Path, help="GLB files with one textured mesh")
    parser.add_argument("--environment", type=Path, required=True, help="Radiance HDR file to light them with")
    parser.add_argument("--bar", choices=("a", "b", "c", "d"), default="a")
    parser.add_argument("--views", type=int, help="default 24, for bar b 8")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, help="refinement steps")
    parser.add_argument("--grid-steps", type=int, default=GridSettings.steps)
    parser.add_argument("--images", type=Path, help="folder for pictures: truth, start, result")
    parser.add_argument("--checkpoint", help="bar b: default the embedded one")
    parser.add_argument("--device", default="cpu", help="bars a, c and d: of the loop; b: of the networks")
    parser.add_argument("--work", type=Path, default=Path("refine-work"), help="bar b: folder for what is made")
    parser.add_argument("--geometry", choices=("auto", "surface", "volume", "fixed"), help="bar b")
    arguments = parser.parse_args()
    if arguments.bar == "b":
        own_assets(arguments)
        return
    arguments.views = arguments.views or 24
    warm_up()
    bar = {"a": from_scratch, "c": lost_cameras, "d": against_time}[arguments.bar]
    for file in arguments.objects:
        asset, texture = load_object(file)
        cameras = hammersley(arguments.views, radius=2.2, fov=32.0, size=arguments.size)
        views = photograph(asset, texture, arguments.environment, cameras)
        print(f"{file.stem:40s} {bar(file.stem, asset, views, arguments)}", flush=True)


def own_assets(arguments: argparse.Namespace) -> None:
    """Bar b."""
    engine = load_engine(arguments.checkpoint, arguments.device, print)
    given = {"steps": arguments.steps, "resolution": arguments.size, "geometry": arguments.geometry}
    settings = make_settings(given, RefineSettings())
    rows = []
    for file in arguments.objects:
        processor = time.process_time()
        row = run_object(file, arguments.environment, engine, settings, arguments.views or 8, arguments.work)
        rows.append(row)
        print(f"{row}; {time.process_time() - processor:.0f} s CPU in all", flush=True)
    print(summary(rows))


def from_scratch(name: str, truth: Asset, views: Views, arguments: argparse.Namespace) -> str:
    """Bar a."""
    wall, processor = time.time(), time.process_time()
    settings = LoopSettings(steps=arguments.steps or 600, resolution=arguments.size, device=arguments.device)
    training = [i for i in range(len(views)) if i % 8 != 3]
    for progress in fit_grid(views.subset(training), GridSettings(steps=arguments.grid_steps)):
        surface = progress.surface
    start = asset_from_views(surface, views.subset(training))
    grid_wall = time.time() - wall
    result = _last(refine(views, start, settings))
    wall, processor = time.time() - wall, time.process_time() - processor
    if arguments.images:
        shown = [i for i, score in enumerate(result.after) if score.held_out] + [0, 6, 12, 18]
        cameras = views.cameras[shown]
        sheet = comparison(views.subset(shown), [(start, cameras), (result.asset, cameras)])
        write_picture(arguments.images / f"{name}.png", sheet)
    held = [s for s in result.after if s.held_out]
    before = [s for s in result.before if s.held_out]
    return (
        f"held-out PSNR {_mean(s.psnr for s in held):5.2f} dB (object only {_mean(s.object_psnr for s in held):5.2f}), "
        f"IoU {_mean(s.iou for s in held):.3f}; before the mesh stage {_mean(s.psnr for s in before):5.2f} / "
        f"{_mean(s.iou for s in before):.3f}; {wall:.0f} s wall (grid {grid_wall:.0f}), {processor:.0f} s CPU"
    )


def against_time(name: str, truth: Asset, views: Views, arguments: argparse.Namespace) -> str:
    """Bar d. Rates fall towards the end of a loop, so each time is a loop of its own, as long as the pace allows."""
    training = [i for i in range(len(views)) if i % 8 != 3]
    for progress in fit_grid(views.subset(training), GridSettings(steps=arguments.grid_steps)):
        surface = progress.surface
    start = asset_from_views(surface, views.subset(training))

    def loop(steps: int) -> tuple[float, RefineResult]:
        settings = LoopSettings(steps=steps, resolution=arguments.size, evaluate_every=steps, device=arguments.device)
        begun = time.time()
        result = _last(refine(views, start, settings))
        return time.time() - begun, result

    loop(4)  # compiles what is compiled on first use
    pace = _PACED / loop(_PACED)[0]
    parts = [f"{pace:.1f} iterations/s at {arguments.size} px on {arguments.device}"]
    for seconds in (10, 30, 60):
        took, result = loop(max(1, round(pace * seconds)))
        score = _mean(s.psnr for s in result.after if s.held_out)
        parts.append(f"{took:.0f} s {score:.2f} dB")
    return ", ".join(parts)


def lost_cameras(name: str, truth: Asset, views: Views, arguments: argparse.Namespace) -> str:
    """Bar c: turn each camera by 3 degrees about a random axis through it, move it by 3 percent of its distance, make
    its focal length 3 percent longer or shorter."""
    wrong = perturbed(views.cameras, 3.0, 0.03, 0.03)
    wall, processor = time.time(), time.process_time()
    steps = arguments.steps or 24 * len(views)
    options = FitOptions(geometry=False, cameras=True, camera_rate=8e-3)
    settings = LoopSettings(steps=steps, resolution=arguments.size, fit=options, evaluate_every=4 * len(views),
                            device=arguments.device)  # fmt: skip
    result = _last(refine(views.with_cameras(wrong), truth, settings))
    wall, processor = time.time() - wall, time.process_time() - processor
    before, after = pose_errors(wrong, views.cameras), pose_errors(result.cameras, views.cameras)
    return (
        f"median angle {before[0].median():.2f} -> {after[0].median():.2f} degrees, "
        f"centre {before[1].median():.2%} -> {after[1].median():.2%}, focal {before[2].median():.2%} -> "
        f"{after[2].median():.2%} (worst {after[0].max():.2f}, {after[1].max():.2%}); "
        f"{wall:.0f} s wall, {processor:.0f} s CPU; {result.message}"
    )


def perturbed(cameras: Cameras, degrees: float, part: float, focal: float = 0.0, seed: int = 0) -> Cameras:
    """Every camera turned by exactly `degrees` and moved by exactly `part` of its distance, in random directions, its
    focal length longer or shorter by exactly the part `focal`."""
    generator = torch.Generator().manual_seed(seed)
    axes, shifts = torch.nn.functional.normalize(torch.randn(2, len(cameras), 3, generator=generator), dim=2)
    twist = torch.zeros(len(cameras), 4, 4)
    for k, (i, j) in enumerate(((2, 1), (0, 2), (1, 0))):
        twist[:, i, j], twist[:, j, i] = axes[:, k], -axes[:, k]
    turn = torch.linalg.matrix_exp(twist * torch.deg2rad(torch.tensor(degrees)))
    extrinsics = turn @ cameras.extrinsics
    extrinsics[:, :3, 3] += shifts * part * cameras.centers.norm(dim=1, keepdim=True)
    extrinsics[:, 3] = torch.tensor([0.0, 0, 0, 1])
    factors = 1 + focal * torch.randn(len(cameras), generator=generator).sign()
    intrinsics = cameras.intrinsics.clone()
    intrinsics[:, [0, 1], [0, 1]] *= factors[:, None]
    return Cameras(extrinsics, intrinsics, cameras.image_size)


def _last(steps) -> RefineResult:
    for item in steps:
        result = item
    return result


def _mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
