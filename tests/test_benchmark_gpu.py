"""The benchmark for GPUs, on a CPU at tiny sizes: it has to run there when a machine with a GPU is rented."""

from __future__ import annotations

import json

import pytest
from tiny_checkpoint import ENCODERS, IMAGE_RESOLUTION, MODELS

from benchmarks import full_size, gpu
from trellis.models import MODEL_CLASSES
from trellis.pipelines.checkpoints import build_model

SIZES = {**MODELS, **ENCODERS}
SMALL = ["--device", "cpu", "--tiny", "--views", "2", "--voxels", "60", "--repeats", "1", "--image-resolution",
         str(IMAGE_RESOLUTION), "--view-counts", "1", "2", "--voxel-counts", "30", "60",
         "--memory-views", "2"]  # fmt: skip


def test_ours_and_the_plain_path_agree(tmp_path, capsys):
    file = tmp_path / "figures.json"
    sections = ["stages", "views", "voxels", "memory", "disk"]
    results = gpu.main([*SMALL, "--only", *sections, "--folder", str(tmp_path), "--json", str(file)], SIZES)
    assert "failed" not in results, capsys.readouterr().err
    assert json.loads(file.read_text()) == results
    stages = {row["stage"].split(",")[0]: row for row in results["stages"]}
    assert list(stages) == ["VGGT aggregator", "structure", "latent", "Gaussian decode", "mesh network", "FlexiCubes"]
    assert all(row["difference"] < 1e-4 for row in stages.values())
    assert results["disk"]["complete"] and results["disk"]["bytes"] > 0
    assert {row["views"] for row in results["views"]} == {1, 2}
    assert {row["stage"] for row in results["views"]} == {"VGGT aggregator", "latent, 2 steps"}
    assert len(results["memory"]) == 3


def test_chosen_stages_are_taken_apart(capsys):
    sections = ["stages", "ablation", "profile"]
    results = gpu.main([*SMALL, "--only", *sections, "--stages", "structure", "gaussians"], SIZES)
    printed = capsys.readouterr().out
    assert "failed" not in results
    assert [row["stage"] for row in results["stages"]] == ["structure, 2 steps", "Gaussian decode"]
    changes = {(row["stage"], row["change"]) for row in results["ablation"]}
    assert ("structure, 2 steps", "conditions apart") in changes and ("Gaussian decode", "as it is") in changes
    for stage in results["profile"]:
        assert 0 < len(stage["kernels"]) <= 15 and all(row["ms"] >= 0 for row in stage["kernels"])
    assert "one guided step of structure" in printed and "aten::" in printed


def test_candidates_are_compared(capsys):
    results = gpu.main([*SMALL, "--only", "backends"], SIZES)
    assert "failed" not in results, capsys.readouterr().err
    assert {row["candidate"] for row in results["backends"]} == {"sdpa", "torch", "numba"}


def test_a_section_that_fails_does_not_stop_the_next(monkeypatch, capsys):
    def broken(self):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(gpu.Run, "stages", broken)
    results = gpu.main([*SMALL, "--only", "stages", "backends"], SIZES)
    assert results["failed"] == {"stages": "RuntimeError: out of luck"} and results["backends"]
    assert "out of luck" in capsys.readouterr().err


def test_sections_beyond_the_time_are_left_out(capsys):
    assert gpu.main([*SMALL, "--only", "stages", "--minutes", "-1"], SIZES) == {}
    assert "left out" in capsys.readouterr().out


@pytest.mark.parametrize("section", ["views", "memory"])
def test_a_section_ends_in_time(section, monkeypatch, capsys):
    """The clock runs out inside the section, after the first of its cases."""
    run_in_time, asked = gpu.Run.in_time, []

    def in_time(self, work):
        asked.append(work)
        if len(asked) == 3:  # the section itself, its first case, its second
            self.deadline = 0.0
        return run_in_time(self, work)

    monkeypatch.setattr(gpu.Run, "in_time", in_time)
    results = gpu.main([*SMALL, "--only", section], SIZES)
    assert results[section] and asked[2] + ": left out" in capsys.readouterr().out


@pytest.mark.parametrize("key", full_size.published_sizes())
def test_published_sizes_can_be_built(key):
    name, args = full_size.published_sizes()[key]
    assert name in MODEL_CLASSES
    assert sum(p.numel() for p in build_model(name, args, key, empty=True).parameters()) > 10_000_000


def test_the_ball_is_a_shell():
    coords = full_size.shell(500, 16)
    assert coords.shape == (500, 4) and len(coords.unique(dim=0)) == 500
    middle = (coords[:, 1:] - 7.5).abs().amax(1)
    assert (middle > 2).all() and not coords[:, 0].any()
