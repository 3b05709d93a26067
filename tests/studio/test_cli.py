from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_checkpoint import tiny_views
from typer.testing import CliRunner

from studio.cli import app
from studio.settings import leaves

ROOT = Path(__file__).resolve().parents[2]
FAST = ["--texture-size", "512", "--video-frames", "8", "--video-size", "64"]


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, view in enumerate(tiny_views(2)):
        view.save(folder / f"{number}.png")
    return folder


def run(*args: object):
    return CliRunner().invoke(app, ["reconstruct", *(str(arg) for arg in args)])


def test_a_folder_of_photos_becomes_an_asset(photos, checkpoint, tmp_path):
    outcome = run(photos, "-o", tmp_path / "out", "--checkpoint", checkpoint, "--seed", 4, *FAST)
    assert outcome.exit_code == 0, outcome.output
    assert "Finished in" in outcome.stdout and "mesh.glb" in outcome.stdout
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["seed"] == 4 and record["settings"]["structure"]["steps"] == 3  # the checkpoint's recommendation
    assert [view["name"] for view in record["views"]] == ["0.png", "1.png"]


def test_json_lines(photos, checkpoint, tmp_path):
    files = sorted(photos.iterdir())
    outcome = run(*files, "-o", tmp_path / "out", "--checkpoint", checkpoint, "--json", "--structure-cfg-interval",
                  0.5, 0.9, *FAST)  # fmt: skip
    assert outcome.exit_code == 0, outcome.output
    lines = [json.loads(line) for line in outcome.stdout.splitlines()]
    assert {line["event"] for line in lines} == {"message", "progress", "result"}
    assert Path(lines[-1]["mesh"]).is_file() and lines[-1]["event"] == "result"
    record = json.loads(Path(lines[-1]["run"]).read_text())
    assert record["settings"]["structure"]["cfg_interval"] == [0.5, 0.9]


def test_bad_photos_end_with_2_and_a_sentence(tmp_path, checkpoint):
    (tmp_path / "text.png").write_text("hello")
    outcome = run(tmp_path / "text.png", "-o", tmp_path / "out", "--checkpoint", checkpoint)
    assert outcome.exit_code == 2
    assert "'text.png' is not an image that can be read" in outcome.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("--structure-steps", "99", "Structure steps must be a whole number from 1 to 50, but 99 came."),
        ("--mode", "both", "Mode must be one of multidiffusion, stochastic"),
        ("--texture-size", "100", "Texture size must be"),
    ],
)
def test_bad_settings_end_with_2_before_anything_is_loaded(photos, tmp_path, option, value, sentence):
    outcome = run(photos, "-o", tmp_path / "out", "--checkpoint", "no/such", option, value)
    assert outcome.exit_code == 2
    assert sentence in outcome.stderr


def test_errors_as_json(tmp_path):
    outcome = run(tmp_path / "nothing", tmp_path, "-o", tmp_path / "out", "--json")
    assert outcome.exit_code == 2
    assert json.loads(outcome.stdout)["exit_code"] == 2


def test_a_hub_name_without_network_ends_with_2_and_names_the_embedded_networks(photos, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    outcome = run(photos, "-o", tmp_path / "out", "--checkpoint", "nobody/nothing-of-this-name")
    assert outcome.exit_code == 2
    assert "'nobody/nothing-of-this-name'" in outcome.stderr and "mini checkpoint" in outcome.stderr


def test_missing_embedded_networks_are_said_to_be_missing(photos, tmp_path, monkeypatch):
    monkeypatch.delenv("RECONSTUDIO_CHECKPOINT", raising=False)
    monkeypatch.setattr("studio.engine.MINI", tmp_path / "assets" / "mini")
    outcome = run(photos, "-o", tmp_path / "out")
    assert outcome.exit_code == 2
    assert "assets/mini, are missing" in outcome.stderr and "--checkpoint" in outcome.stderr


def test_an_absent_device_is_named(photos, tmp_path, checkpoint):
    outcome = run(photos, "-o", tmp_path / "out", "--checkpoint", checkpoint, "--device", "cuda:99")
    assert outcome.exit_code == 2
    assert "'cuda:99' is not available" in outcome.stderr


def test_every_setting_is_an_option():
    options = CliRunner().invoke(app, ["reconstruct", "--help"], env={"COLUMNS": "200"}).output
    for setting in leaves():
        assert re.search(rf"--{setting.key.replace('_', '-')}\b", options)


def test_ctrl_c_cancels(photos, checkpoint, tmp_path):
    command = [sys.executable, "-m", "studio", "reconstruct", str(photos), "-o", str(tmp_path / "out"),
               "--checkpoint", str(checkpoint), "--device", "cpu", "--json"]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}
    )
    deadline = time.monotonic() + 120
    for line in process.stdout:
        if json.loads(line)["event"] == "progress" or time.monotonic() > deadline:
            break
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert json.loads(rest.splitlines()[-1]) == {
        "event": "error", "message": "Cancelled; nothing was written.", "exit_code": 130
    }  # fmt: skip
    assert not (tmp_path / "out").exists()
