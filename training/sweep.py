"""Which sizes of the networks are worth their bytes and their time on a CPU: short runs from random weights.

    python -m training.sweep --cost
    python -m training.sweep --data objects.safetensors --out sweep --minutes 5 --cards 4

Every candidate of a script has about as many weights as the shipped sizes, sees draws of its own for as many minutes on
a GPU of its own, and starts from nothing; whatever else it needs is the shipped checkpoint's. The table names weights,
the seconds that the stage takes on the CPU of the machine, and what the script showed at the end, on training objects.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import torch
from torch import nn

from training.assemble import take_apart
from training.settings import sizes
from trellis.models import (
    VGGT,
    ModulatedMultiViewCond,
    ModulatedSLATMultiViewCond,
    SLatFlowModel,
    SparseStructureFlowModel,
)
from trellis.modules.sparse import SparseTensor

Changes = dict[str, dict]

# Script: title of a candidate: what it changes in `settings.MINI`.
CANDIDATES: dict[str, dict[str, Changes]] = {
    "structure_flow": {
        "8 blocks of 384 (shipped)": {},
        "4 blocks of 512": {"ss_flow": {"num_blocks": 4, "model_channels": 512, "num_heads": 8}},
        "11 blocks of 320": {"ss_flow": {"num_blocks": 11, "model_channels": 320, "num_heads": 5}},
        "8 blocks of 384 once more": {},  # how far apart two seeds are
        "128 condition tokens": {"ss_cond": {"num_init_tokens": 128}},
        "512 condition tokens": {"ss_cond": {"num_init_tokens": 512}},
        "condition of 128 channels": {
            "ss_cond": {"channels": 128, "num_heads": 2}, "ss_flow": {"cond_channels": 128},
        },
        "condition of 320 channels, 6 blocks": {
            "ss_cond": {"channels": 320, "num_heads": 5}, "ss_flow": {"cond_channels": 320, "num_blocks": 6},
        },
    },
    "vggt": {
        "6 pairs of 256 (shipped)": {},
        "3 pairs of 320": {
            "vggt": {"depth": 3, "embed_dim": 320, "num_heads": 5, "intermediate_layers": [0, 1, 2, 2]},
            "ss_cond": {"ctx_channels": 2 * 320 + 128, "levels": [0, 1, 2, 2]},
        },
        "12 pairs of 192": {
            "vggt": {"depth": 12, "embed_dim": 192, "num_heads": 3, "intermediate_layers": [3, 6, 9, 11]},
            "ss_cond": {"ctx_channels": 2 * 192 + 128, "levels": [3, 6, 9, 11]},
        },
        "4 pairs of 256, camera head of 3 blocks": {
            "vggt": {
                "depth": 4, "intermediate_layers": [0, 1, 2, 3],
                "camera_head": {"trunk_depth": 3, "num_heads": 8, "mlp_ratio": 2, "init_values": 1.0},
            },
            "ss_cond": {"levels": [0, 1, 2, 3]},
        },
    },
    "latent_flow": {
        "10 blocks of 320 (shipped)": {},
        "7 blocks of 384": {"slat_flow": {"num_blocks": 7, "model_channels": 384, "num_heads": 6}},
        "16 blocks of 256": {"slat_flow": {"num_blocks": 16, "model_channels": 256, "num_heads": 4}},
        "12 blocks of 320, narrower inside": {"slat_flow": {"num_blocks": 12, "mlp_ratio": 3}},
    },
}  # fmt: skip
VIEWS = 4
VOXELS = 2300  # of a usual surface at 32^3
STEPS = 2  # of either sampler, by default
REPEATS = 15


def stage(script: str, changes: Changes, tiny: bool = False) -> tuple[list[nn.Module], Callable[[], object]]:
    """The networks that a script trains for the product, with random weights, and what the product does with them for
    `VIEWS` views."""
    chosen = sizes(tiny, changes)
    networks = chosen.networks
    vggt = VGGT(**networks["vggt"]).eval()
    images = torch.rand(1, VIEWS, 3, chosen.image_size, chosen.image_size)
    tokens, start = vggt.aggregator(images, keep=set(vggt.intermediate_layers))
    if script == "vggt":
        return [vggt], lambda: vggt.camera_head([vggt.aggregator(images)[0][-1][:, :, :1]])
    patches = tokens[-1].shape[2] - start
    image_cond = torch.rand(1, VIEWS, 5 + patches, networks["dinov2"]["embed_dim"])  # a class token and four registers
    if script == "structure_flow":
        cond = ModulatedMultiViewCond(**networks["ss_cond"]).eval()
        flow = SparseStructureFlowModel(**networks["ss_flow"]).eval()
        state = torch.randn(1, flow.in_channels, *[flow.resolution] * 3)

        def sample_structure() -> None:
            context = cond(tokens, image_cond[:, :, 5:])
            for _ in range(STEPS):
                flow(state, torch.tensor([500.0]), context)

        return [cond, flow], sample_structure
    cond = ModulatedSLATMultiViewCond(**networks["slat_cond"]).eval()
    flow = SLatFlowModel(**networks["slat_flow"]).eval()
    cells = torch.randperm(flow.resolution**3)[:VOXELS].sort().values
    places = torch.stack(torch.unravel_index(cells, [flow.resolution] * 3), 1)
    coords = torch.cat([torch.zeros(len(places), 1), places], 1).int()
    voxels = SparseTensor(feats=torch.randn(len(coords), flow.in_channels), coords=coords)

    def sample_latent() -> None:
        context = cond(tokens, image_cond)
        for _ in range(STEPS):
            flow(voxels, torch.tensor([500.0]), context)

    return [cond, flow], sample_latent


def cost(script: str, changes: Changes, tiny: bool = False) -> tuple[float, float]:
    """Millions of weights, and the median of the seconds that a stage takes on this CPU."""
    with torch.no_grad():
        networks, run = stage(script, changes, tiny)
        run()
        seconds = []
        for _ in range(REPEATS):
            started = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - started)
    return sum(p.numel() for network in networks for p in network.parameters()) / 1e6, statistics.median(seconds)


def train(
    script: str, changes: Changes, seed: int, folder: Path, options: argparse.Namespace, card: int
) -> dict[str, float]:
    """Run a script with a candidate's sizes on one card; what it showed at the end, and its steps."""
    take_apart(options.init, folder)
    command = [
        sys.executable, "-m", f"training.{script}", "--data", str(options.data), "--out", str(folder),
        "--minutes", str(options.minutes), "--seed", str(seed), "--sizes", json.dumps(changes), *options.also,
    ]  # fmt: skip
    (folder / script).mkdir(exist_ok=True)
    with (folder / f"{script}.log").open("w") as log:
        subprocess.run(
            command, check=True, stdout=log, stderr=log, env=os.environ | {"CUDA_VISIBLE_DEVICES": str(card)}
        )
    report = json.loads((folder / script / "run.json").read_text())
    return {"steps": report["step"], **report["shown"]}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scripts", nargs="+", choices=list(CANDIDATES), default=list(CANDIDATES))
    parser.add_argument("--cost", action="store_true", help="only the weights and the seconds")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--init", type=Path, nargs="+", default=[Path("assets/mini"), Path("training/encoders")])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--cards", type=int, default=1, help="GPUs of this machine")
    parser.add_argument("--also", nargs=argparse.REMAINDER, default=[], help="options for the scripts")
    options = parser.parse_args(argv)
    if not options.cost and not (options.data and options.out):
        parser.error("--data and --out say what to train on and where, or --cost that nothing is to be trained.")

    tiny = "--tiny" in options.also
    trained: dict[tuple[str, str], dict[str, float]] = {}
    if not options.cost:
        free: SimpleQueue[int] = SimpleQueue()
        for card in range(options.cards):
            free.put(card)

        def one(script: str, seed: int, title: str, changes: Changes) -> None:
            card = free.get()
            try:
                folder = options.out / script / "".join(c if c.isalnum() else "-" for c in title)
                folder.mkdir(parents=True, exist_ok=True)
                trained[script, title] = train(script, changes, seed, folder, options, card)
            except (OSError, subprocess.CalledProcessError) as error:
                print(f"{script}, {title}: {error}", flush=True)
            finally:
                free.put(card)

        with ThreadPoolExecutor(options.cards) as pool:
            for script in options.scripts:
                for seed, (title, changes) in enumerate(CANDIDATES[script].items()):
                    pool.submit(one, script, seed, title, changes)
    for script in options.scripts:
        print(f"\n{script}")
        for title, changes in CANDIDATES[script].items():
            weights, seconds = cost(script, changes, tiny)
            shown = " ".join(f"{name} {value:.4g}" for name, value in trained.get((script, title), {}).items())
            print(f"  {title:40s} {weights:6.2f} M  {seconds:6.3f} s  {shown}", flush=True)


if __name__ == "__main__":
    main()
