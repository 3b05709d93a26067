"""Median times of mesh extraction on this machine: `python -m benchmarks.flexicubes [--repeats N]`."""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch loads OpenMP

import torch  # noqa: E402

from trellis.representations.flexicubes import cubes_to_mesh, flexicubes  # noqa: E402
from trellis.representations.flexicubes.tables import CORNERS  # noqa: E402


def sphere(res: int, radius: float = 0.35) -> torch.Tensor:
    """Signed distance at the corners of a res^3 grid over [-0.5, 0.5]^3, float [res + 1, res + 1, res + 1]."""
    squared = (torch.arange(res + 1) / res - 0.5) ** 2
    return (squared[:, None, None] + squared[:, None] + squared).sqrt() - radius


def shell(res: int, width: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Voxels with a corner within `width` voxels of the sphere: coords [N, 3], decoder-like feats [N, 101]."""
    sdf = sphere(res)
    # The lattice itself bounds the memory here, so that the last column shows the extraction.
    near = torch.zeros((res,) * 3, dtype=torch.bool)
    for x, y, z in CORNERS.tolist():
        near |= sdf[x : x + res, y : y + res, z : z + res].abs() < width / res
    coords = near.nonzero()
    feats = 0.3 * torch.randn(len(coords), 101, generator=torch.Generator().manual_seed(0))
    feats[:, :8] = sdf[(coords[:, None] + torch.from_numpy(CORNERS)).unbind(-1)]
    return coords.int(), feats


def median_ms(call: Callable[[], object], repeats: int) -> float:
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def peak_mb() -> float:
    """Largest resident memory of this process so far (Linux reports KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7, help="timed calls per row, after one untimed")
    repeats = parser.parse_args().repeats
    print(f"{'what':<42}{'res':>5}{'cubes':>10}{'faces':>9}{'ms':>9}{'peak MB':>9}")

    def row(what: str, res: int, cubes: int, call: Callable[[], torch.Tensor]) -> None:
        faces, ms = len(call()), median_ms(call, repeats)
        print(f"{what:<42}{res:>5}{cubes:>10}{faces:>9}{ms:>9.1f}{peak_mb():>9.0f}", flush=True)

    for res, width in ((128, 2.0), (256, 1.6)):
        coords, feats = shell(res, width)

        @torch.no_grad()
        def extract(coords=coords, feats=feats, res=res) -> torch.Tensor:
            return cubes_to_mesh(coords, feats, res).faces

        row("decoder voxels, forward", res, len(coords), extract)
    for res in (64, 128):
        sdf = sphere(res).requires_grad_()

        @torch.no_grad()
        def forward(sdf=sdf) -> torch.Tensor:
            return flexicubes(sdf).faces

        def forward_backward(sdf=sdf, training=False) -> torch.Tensor:
            surface = flexicubes(sdf, training=training)
            surface.vertices.square().mean().backward()
            return surface.faces

        row("full lattice, forward", res, res**3, forward)
        row("full lattice, forward and backward", res, res**3, forward_backward)


if __name__ == "__main__":
    main()
