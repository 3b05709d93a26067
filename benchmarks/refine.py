"""Refinement against its quality bars: `python -m benchmarks.refine OBJECT.glb... --environment SKY.hdr [--bar a]`.

a: known cameras, 24 views, from scratch. c: known shape, cameras wrong by 3 degrees and 3 percent in place and focal
length. d: the mesh stage of bar a on --device: iterations per second, and the held-out PSNR of loops made to last
--seconds. Bar b is `benchmarks.refine_own`.
Times are wall clock and processor seconds of this process, kernels compiled beforehand.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.refine_objects import load_object, photograph
from nvdiffrec.asset import Asset, asset_from_views
from nvdiffrec.camera_fit import pose_errors
from nvdiffrec.fit import FitOptions
from nvdiffrec.from_scratch import GridSettings, fit_grid
from nvdiffrec.optimise import RefineResult, ViewScore, refine
from nvdiffrec.optimise import RefineSettings as LoopSettings
from nvdiffrec.pictures import comparison, write_picture
from nvdiffrec.views import Views
from trellis.renderers.cameras import Cameras, hammersley
from trellis.renderers.mesh_raster import warm_up

_PACED = 40  # iterations, half of them at half the size as in any loop, by which the pace is measured


def main() -> None:
    """Run the bars on each object and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("objects", nargs="+", type=Path, help="GLB files with one textured mesh")
    parser.add_argument("--environment", type=Path, required=True, help="Radiance HDR file to light them with")
    parser.add_argument("--bar", choices=("a", "c", "d"), default="a")
    parser.add_argument("--views", type=int, default=24)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, help="refinement steps")
    parser.add_argument("--grid-steps", type=int, default=GridSettings.steps)
    parser.add_argument("--seconds", type=float, nargs="+", default=[10.0, 30.0, 60.0], help="bar d")
    parser.add_argument("--images", type=Path, help="folder for pictures: truth, start, result")
    parser.add_argument("--device", default="cpu", help="of the loop and of what photographs the objects")
    arguments = parser.parse_args()
    warm_up()
    bar = {"a": from_scratch, "c": lost_cameras, "d": against_time}[arguments.bar]
    for file in arguments.objects:
        asset, texture = load_object(file)
        cameras = hammersley(arguments.views, radius=2.2, fov=32.0, size=arguments.size)
        views = photograph(asset, texture, arguments.environment, cameras, arguments.device)
        print(f"{file.stem:40s} {bar(file.stem, asset, views, arguments)}", flush=True)


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
    return (
        f"held out {_held_out(result.after)}; before the mesh stage {_held_out(result.before)}; {wall:.0f} s wall "
        f"(grid {grid_wall:.0f}), {processor:.0f} s CPU"
    )


def against_time(name: str, truth: Asset, views: Views, arguments: argparse.Namespace) -> str:
    """Bar d. Rates fall towards the end of a loop, so each time is a loop of its own, as long as the pace allows."""
    begun = time.time()
    training = [i for i in range(len(views)) if i % 8 != 3]
    for progress in fit_grid(views.subset(training), GridSettings(steps=arguments.grid_steps)):
        surface = progress.surface
    start = asset_from_views(surface, views.subset(training))
    print(f"{name}: start of {len(surface.faces)} faces after {time.time() - begun:.0f} s", flush=True)

    def loop(steps: int) -> tuple[float, RefineResult]:
        """Seconds from the end of the first step to that of the last but one, which is judged before it is told; so
        opening and judging are not counted. And the result."""
        settings = LoopSettings(steps=steps, resolution=arguments.size, evaluate_every=steps, device=arguments.device)
        *ends, result = ((time.time(), item) for item in refine(views, start, settings))
        return ends[-2][0] - ends[0][0], result[1]

    begun = time.time()
    loop(4)  # compiles what is compiled on first use
    pace = (_PACED - 2) / loop(_PACED)[0]
    print(f"{name}: {pace:.1f} iterations/s to begin with, known after {time.time() - begun:.0f} s", flush=True)
    parts = []
    for seconds in arguments.seconds:
        steps = max(4, round(pace * seconds))
        took, result = loop(steps)
        pace = (steps - 2) / took
        parts.append(f"{steps} iterations in {took:.1f} s ({pace:.1f}/s): {_held_out(result.after)}")
        print(f"{name}: {parts[-1]}", flush=True)
    before = f"before: {_held_out(result.before)}"
    return "\n    ".join([f"{arguments.size} px on {arguments.device}, held out", before, *parts])


def lost_cameras(name: str, truth: Asset, views: Views, arguments: argparse.Namespace) -> str:
    """Bar c: turn each camera by 3 degrees about a random axis through it, move it by 3 percent of its distance, make
    its focal length 3 percent longer or shorter."""
    wrong = perturbed(views.cameras, 3.0, 0.03, 0.03)
    wall, processor = time.time(), time.process_time()
    steps = arguments.steps or 24 * len(views)
    options = FitOptions(geometry=False, cameras=True)
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


def _held_out(scores: Sequence[ViewScore]) -> str:
    held = [score for score in scores if score.held_out]
    psnr, of_object, iou = (_mean(getattr(s, field) for s in held) for field in ("psnr", "object_psnr", "iou"))
    return f"{psnr:.2f} dB (object only {of_object:.2f}), IoU {iou:.3f}"


def _mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
