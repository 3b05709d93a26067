"""The candidates for each need, timed on the same work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.full_size import shell
from trellis import backends
from trellis.modules.sparse import SparseTensor
from trellis.modules.sparse.attention import window_segments
from trellis.renderers.cameras import orbit
from trellis.renderers.gaussian_raster import render_gaussians
from trellis.renderers.mesh_raster import render_mesh

Measure = Callable[[Callable[[], Any], int], tuple[float, float, Any]]


def compare_backends(device: torch.device, measure: Measure, tiny: bool = False) -> list[dict[str, Any]]:
    """Print and return milliseconds and peak GiB of every candidate that works here, forwards alone."""
    rows, times = [], 1 if tiny else 10
    before = {need: candidate.name for need, candidate in backends.choose(device).items()}
    print(f"{'need':<22}{'candidate':<28}{'work':<42}{'ms':>9}{'GiB':>8}")
    for need, works in _works(device, tiny).items():
        for candidate in backends.candidates(need, device):
            state = backends.examine(need, candidate, device)
            if state.state != "ready":
                print(f"{need:<22}{candidate.name:<28}{state.state}: {state.reason}")
                continue
            backends.choose(device, **{**before, need: candidate.name})
            for title, work in works.items():
                with torch.no_grad():
                    ms, gib, _ = measure(lambda work=work: _repeated(work, times), 3)
                ms /= times
                rows.append({"need": need, "candidate": candidate.name, "work": title, "ms": ms, "gib": gib})
                print(f"{need:<22}{candidate.name:<28}{title:<42}{ms:>9.2f}{gib:>8.2f}", flush=True)
    backends.choose(device, **before)
    return rows


def _repeated(work: Callable[[], Any], times: int) -> Any:
    """Several calls in a row, so that launching and waiting do not count where the device is slower than that."""
    for _ in range(times):
        result = work()
    return result


def _works(device: torch.device, tiny: bool) -> dict[str, dict[str, Callable[[], Any]]]:
    half = torch.float16 if device.type == "cuda" else torch.float32
    tokens, voxels, channels, side = (64, 200, 32, 32) if tiny else (4096, 29_120, 768, 512)
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    q, k, v = (draw(1, 16, tokens, 64).to(half) for _ in range(3))
    x = SparseTensor(draw(voxels, channels).to(half), shell(voxels, 64).to(device))
    segments = window_segments(x.sites, 8)
    qkv = draw(voxels, 3, 12, 64).to(half)
    weight = draw(channels // 4, 27, channels).to(half)
    norm = torch.ones(channels, device=device)
    heads, gamma = q.transpose(1, 2).contiguous(), torch.ones(16, 64, device=device)
    x_tokens, mod = draw(2, tokens, 1024 if not tiny else 32).to(half), draw(2, 1, 1024 if not tiny else 32).to(half)
    width = x_tokens.shape[-1]
    widen = draw(4 * width, width).to(half) / 32, draw(4 * width).to(half)
    camera = orbit(torch.tensor([0.4]), torch.tensor([0.3]), size=side).to(device)
    means = 0.8 * (torch.rand(20 * tokens, 3, generator=generator).to(device) - 0.5)
    count = len(means)
    gaussians = (
        means, draw(count, 4), torch.full((count, 3), 0.004, device=device), torch.full((count,), 0.5, device=device),
        torch.rand(count, 3, generator=generator).to(device), camera.extrinsics[0], camera.intrinsics[0], side, side,
    )  # fmt: skip
    vertices = 0.02 * draw(tokens, 3, 3) + 0.3 * draw(tokens, 1, 3).clamp(-1, 1)
    faces = torch.arange(3 * tokens, device=device).view(-1, 3)
    vertices = vertices.view(-1, 3)

    def of(need: str) -> Any:
        return backends.of(need, device)

    return {
        "attention": {
            f"{tokens} tokens, 16 heads of 64": lambda: of("attention").attend(q, k, v),
            f"{voxels} voxels in windows of 8^3": lambda: of("attention").attend_segments(qkv, segments),
        },
        "sparse_convolution": {
            f"{voxels} voxels, {channels} to {channels // 4}":
                lambda: of("sparse_convolution").convolve(x.feats, weight, x.sites),
        },
        "norms": {
            f"group norm, {voxels} x {channels}":
                lambda: of("norms").group_norm(x.feats, x.sites, 32, norm, norm, 1e-5, True),
            f"head norm, {tokens} x 16 x 64":
                lambda: of("norms").rms_norm_heads(heads, gamma),
            f"residual, norm, scale, 2 x {tokens} x {width}":
                lambda: of("norms").add_and_modulated_norm(x_tokens, [x_tokens], mod, mod, mod, 1e-6),
        },
        "feed_forward": {
            f"2 x {tokens} tokens, {width} to {4 * width}": lambda: of("feed_forward").linear_gelu(x_tokens, *widen),
        },
        "gaussian_splatting": {f"{count} Gaussians, {side} px": lambda: render_gaussians(*gaussians).color},
        "mesh_rasterisation": {
            f"{tokens} triangles, {side} px": lambda: render_mesh(vertices, faces, vertices, camera)["mask"],
        },
    }  # fmt: skip
