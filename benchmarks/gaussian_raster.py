"""Times the Gaussian rasteriser on a surface-like cloud: `python benchmarks/gaussian_raster.py [--size 512]`.

Prints one table of medians in milliseconds. On a busy machine the processor column is the one to trust: it is the
process's own time over all threads, so on idle cores the wall time tends to that divided by their number.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

# Before torch starts its OpenMP pool, for which this sets the wait policy.
import trellis  # noqa: E402, F401, I001

import torch  # noqa: E402

from trellis.renderers.cameras import orbit  # noqa: E402
from trellis.renderers.gaussian_raster import render_gaussians, warm_up  # noqa: E402


def surface_cloud(count: int) -> dict[str, torch.Tensor]:
    """Splats on a bumpy sphere that fills about half the view, each covering roughly a hundred pixels at 50k, 512 px.

    The total area stays the same for other counts.
    """
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=1)
    radii = 0.4 * (1 + 0.1 * torch.sin(7 * directions[:, :1]) * torch.cos(5 * directions[:, 1:2]))
    size = 0.0045 * math.sqrt(50_000 / count)
    return {
        "means": directions * radii,
        "quats": torch.randn(count, 4, generator=generator),
        "scales": size * torch.exp(0.4 * torch.randn(count, 3, generator=generator)),
        "opacities": 0.3 + 0.65 * torch.rand(count, generator=generator),
        "colors": torch.rand(count, 3, generator=generator),
    }


def timed(work: Callable, samples: int, prepare: Callable | None = None) -> tuple[float, float]:
    """Median wall and processor milliseconds of `work()`, or of `work(prepare())` with the preparation not counted."""
    wall, processor = [], []
    for _ in range(samples + 1):
        prepared = () if prepare is None else (prepare(),)
        start, start_processor = time.perf_counter(), time.process_time()
        work(*prepared)
        wall.append(time.perf_counter() - start)
        processor.append(time.process_time() - start_processor)
    return statistics.median(wall[1:]) * 1e3, statistics.median(processor[1:]) * 1e3  # the first one warms up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="image side in pixels")
    parser.add_argument("--counts", type=int, nargs="+", default=[50_000, 200_000], help="numbers of Gaussians")
    parser.add_argument("--samples", type=int, default=7, help="timed repetitions of each figure")
    arguments = parser.parse_args()
    start = time.perf_counter()
    warm_up()
    print(f"kernels ready in {time.perf_counter() - start:.2f} s, {torch.get_num_threads()} threads\n")
    camera = orbit(torch.tensor([0.3]), torch.tensor([0.3]), size=arguments.size)
    print(f"{'gaussians':>10} {'pixels':>8} {'pass':>10} {'wall ms':>9} {'cpu ms':>9}")
    for count in arguments.counts:
        cloud = surface_cloud(count)
        leaves = {name: value.clone().requires_grad_() for name, value in cloud.items()}
        view = {
            "extrinsics": camera.extrinsics[0],
            "intrinsics": camera.intrinsics[0],
            "height": arguments.size,
            "width": arguments.size,
        }
        weights = torch.randn(3, arguments.size, arguments.size)
        figures = {
            "forward": timed(partial(render_gaussians, **cloud, **view), arguments.samples),
            "backward": timed(
                lambda image, weights=weights: image.color.backward(weights),
                arguments.samples,
                prepare=partial(render_gaussians, **leaves, **view),
            ),
        }
        for name, (wall, processor) in figures.items():
            print(f"{count:>10} {arguments.size:>8} {name:>10} {wall:>9.1f} {processor:>9.1f}")


if __name__ == "__main__":
    main()
