"""Median times of the mesh rasteriser on this machine: `python -m benchmarks.mesh_raster [--repeats N]`."""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch loads OpenMP

import torch  # noqa: E402

from trellis.renderers.cameras import Cameras, orbit  # noqa: E402
from trellis.renderers.mesh_raster import (  # noqa: E402
    antialias,
    interpolate,
    project,
    rasterize,
    render_mesh,
    warm_up,
)


def bumpy_sphere(num_faces: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A closed bumpy sphere on a longitude-latitude grid: vertices [V, 3], faces [about num_faces, 3]."""
    rings = max(3, round(math.sqrt(num_faces / 4)))
    segments = 2 * rings
    latitude = torch.linspace(0, math.pi, rings + 1)[:, None]
    longitude = torch.arange(segments) * (2 * math.pi / segments)
    x, y, z = latitude.sin() * longitude.cos(), latitude.sin() * longitude.sin(), latitude.cos().expand(-1, segments)
    vertices = torch.stack([x, y, z], dim=-1).reshape(-1, 3)
    bumps = 1 + 0.12 * torch.sin(9 * vertices[:, 0]) * torch.cos(11 * vertices[:, 1] + 1)
    first = torch.arange(rings)[:, None] * segments + torch.arange(segments)
    right = torch.arange(rings)[:, None] * segments + (torch.arange(segments) + 1) % segments
    quads = torch.stack([first, first + segments, right + segments, right], dim=-1).reshape(-1, 4)
    return 0.43 * bumps[:, None] * vertices, torch.cat([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])


def median_ms(call: Callable[[], object], repeats: int) -> float:
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def optimisation_step(vertices: torch.Tensor, faces: torch.Tensor, channels: int, camera: Cameras) -> None:
    """Forward, L1 to a constant and backward to vertices and attributes; `channels` = 0 renders the mask alone."""
    points = vertices.clone().requires_grad_()
    attributes = torch.rand(len(vertices), channels).requires_grad_() if channels else None
    images = render_mesh(points, faces, attributes, camera)
    loss = (images["mask"] - 0.5).abs().mean()
    if attributes is not None:
        loss = loss + (images["attributes"] - 0.5).abs().mean()
    loss.backward()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15, help="timed calls per row, after one untimed")
    repeats = parser.parse_args().repeats
    warm_up()
    angle = torch.tensor([0.4])
    print(f"{'what':<44}{'faces':>9}{'px':>7}{'ms':>9}")

    def row(what: str, faces: torch.Tensor, size: int, call: Callable[[], object]) -> None:
        print(f"{what:<44}{len(faces):>9}{size:>7}{median_ms(call, repeats):>9.1f}", flush=True)

    for num_faces, size in ((20_000, 512), (20_000, 1024), (200_000, 512), (200_000, 1024)):
        vertices, faces = bumpy_sphere(num_faces)
        camera = orbit(angle, angle, size=size)
        screen = project(vertices, camera.extrinsics[0], camera.intrinsics[0])
        row("rasterize", faces, size, lambda s=screen, f=faces, n=size: rasterize(s, f, n, n))
    for size in (256, 512):
        vertices, faces = bumpy_sphere(10_000)
        camera = orbit(angle, angle, size=size)
        screen = project(vertices, camera.extrinsics[0], camera.intrinsics[0])
        raster = rasterize(screen, faces, size, size)
        image = interpolate(torch.rand(len(vertices), 5), screen, faces, raster)
        row("rasterize", faces, size, lambda s=screen, f=faces, n=size: rasterize(s, f, n, n))
        row("antialias, 5 channels", faces, size, lambda i=image, s=screen, f=faces, r=raster: antialias(i, s, f, r))
        for channels, what in ((0, "mask, forward and backward"), (5, "mask + 5 attributes, forward and backward")):
            step = (vertices, faces, channels, camera)
            row(what, faces, size, lambda step=step: optimisation_step(*step))


if __name__ == "__main__":
    main()
