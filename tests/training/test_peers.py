"""Several processes of one run: what they agree on, and what one of them alone writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from packed_data import encoded, write_pack
from safetensors.torch import load_file
from torch_versions import needs_torch

from training import structure_vae
from training.data.packed import PackedMesh
from training.data.procedural import random_solid

# With torch 2.4 one of two processes sometimes waits for ever in the end of their group, as seen with py-spy.
pytestmark = needs_torch("2.6", "a group of processes on a CPU that ends reliably")

ROOT = Path(__file__).resolve().parents[2]
MEETING = """
import os, sys
import torch
from torch import nn
from training.peers import EVERY, Peers

peers = Peers(torch.device("cpu"))
net = nn.Linear(2, 3)
net.bias.requires_grad_(False)
torch.manual_seed(peers.rank)
nn.init.normal_(net.weight)
own = net.weight.detach().clone()
peers.meet(net, EVERY - 1)
assert torch.equal(net.weight, own)
peers.meet(net, EVERY)
mean = sum(torch.randn(3, 2, generator=torch.Generator().manual_seed(k)) for k in range(2)) / 2
torch.testing.assert_close(net.weight.detach(), mean)
assert peers.agreed(0.25 + peers.rank, EVERY) == 0.25
assert peers.agreed(0.75, EVERY + 1) == 0.25
assert peers.agreed(0.5 + peers.rank, 2 * EVERY) == 0.5
net(torch.ones(1, 2)).sum().backward()
torch.optim.AdamW([net.weight], fused=True).step()  # which has torch import a good deal more
peers.leave()
if sys.platform == "linux":
    threads = [open(f"/proc/self/task/{task}/comm").read() for task in os.listdir("/proc/self/task")]
    assert not any("gloo" in name for name in threads), threads
"""


def launch(*command: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    launcher = sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"
    done = subprocess.run([*launcher, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


def test_weights_meet_in_the_middle_and_all_follow_the_first_ones_clock(tmp_path):
    (tmp_path / "meeting.py").write_text(MEETING)
    launch(str(tmp_path / "meeting.py"))


def test_two_processes_train_one_network(tmp_path):
    solids = [random_solid(np.random.default_rng(seed)) for seed in range(2)]
    meshes = [PackedMesh(f"solid-{k}", v, uv, f, encoded(t), s) for k, (v, uv, f, t, s) in enumerate(solids)]
    data = write_pack(tmp_path / "objects.safetensors", meshes)
    options = "--data", str(data), "--tiny", "--device", "cpu", "--steps", "16"
    launch("-m", "training.structure_vae", "--out", str(tmp_path / "two"), *options)
    assert json.loads((tmp_path / "two/structure_vae/run.json").read_text())["step"] == 16
    structure_vae.main([*options, "--out", str(tmp_path / "one")])
    one, two = (load_file(tmp_path / name / "structure_vae/resume.safetensors") for name in ("one", "two"))
    assert all(torch.isfinite(value).all() for value in two.values())
    # The second process saw other objects, and its weights have come in after every eighth step.
    assert any(not torch.equal(one[key], two[key]) for key in one)
