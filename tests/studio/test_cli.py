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
from studio.events import JobError
from studio.settings import leaves
from studio.talk import JsonTalk

ROOT = Path(__file__).resolve().parents[2]
FAST = ["--texture-size", "512", "--video-frames", "8", "--video-size", "64"]


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, view in enumerate(tiny_views(2)):
        view.save(folder / f"{number}.png")
    return folder


class SharedService:
    """What a command gets instead of a worker process of its own: the tests' one, which outlives the command."""

    def __init__(self, service) -> None:
        self._service = service

    def __getattr__(self, name: str):
        return getattr(self._service, name)

    def start(self, stop):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *exception: object) -> None:
        pass


@pytest.fixture
def shared_worker(service, monkeypatch):
    monkeypatch.setattr("studio.cli_options.Service", lambda *_, **__: SharedService(service))


def invoke(*args: object):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def run(*args: object):
    return invoke("reconstruct", *args)


def test_a_folder_of_photos_becomes_an_asset(photos, checkpoint, shared_worker, tmp_path):
    outcome = run(photos, "-o", tmp_path / "out", "--checkpoint", checkpoint, "--seed", 5, *FAST)
    assert outcome.exit_code == 0, outcome.output
    assert "Finished in" in outcome.stdout and "mesh.glb" in outcome.stdout
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["seed"] == 5 and record["settings"]["structure"]["steps"] == 3  # the checkpoint's recommendation
    assert [view["name"] for view in record["views"]] == ["0.png", "1.png"]


def test_json_lines(photos, checkpoint, shared_worker, tmp_path):
    files = sorted(photos.iterdir())
    outcome = run(*files, "-o", tmp_path / "out", "--checkpoint", checkpoint, "--json", "--structure-cfg-interval",
                  0.5, 0.9, *FAST)  # fmt: skip
    assert outcome.exit_code == 0, outcome.output
    lines = [json.loads(line) for line in outcome.stdout.splitlines()]
    assert {line["event"] for line in lines} - {"queued", "message"} == {"progress", "result"}
    assert Path(lines[-1]["mesh"]).is_file() and lines[-1]["event"] == "result"
    record = json.loads(Path(lines[-1]["run"]).read_text())
    assert record["settings"]["structure"]["cfg_interval"] == [0.5, 0.9]


def test_bad_photos_end_with_2_and_a_sentence_each_before_anything_is_loaded(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").touch()
    outcome = run(tmp_path / "text.png", tmp_path / "empty.png", "-o", tmp_path / "out", "--checkpoint", "no/such")
    assert outcome.exit_code == 2
    assert "'text.png' is not an image that can be read" in outcome.stderr and "'empty.png'" in outcome.stderr
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


def test_a_place_where_no_results_can_lie_is_refused_before_anything_is_loaded(photos, tmp_path):
    (tmp_path / "file").write_text("mine")
    for out, sentence in (
        (tmp_path / "file", "is a file, but the results need a folder"),
        (tmp_path / "file" / "below" / "it", "is a file, but the results need a folder"),
        (photos, "holds the photos"),
    ):
        outcome = run(photos, "-o", out, "--checkpoint", "no/such")
        assert outcome.exit_code == 2 and sentence in outcome.stderr and outcome.stderr.count("\n") == 1
    outcome = invoke("batch", photos.parent, "-o", photos.parent, "--checkpoint", "no/such")
    assert outcome.exit_code == 2 and "holds the photos" in outcome.stderr
    outcome = invoke("weights", "fetch", "--to", tmp_path / "file")
    assert outcome.exit_code == 2 and "cannot be a folder for them" in outcome.stderr
    assert (tmp_path / "file").read_text() == "mine"


def test_errors_as_json(tmp_path):
    outcome = run(tmp_path / "nothing", tmp_path, "-o", tmp_path / "out", "--json")
    assert outcome.exit_code == 2
    assert json.loads(outcome.stdout)["exit_code"] == 2


@pytest.mark.parametrize(
    "args",
    [
        ("reconstruct", "absent", "-o", "out"),
        ("export", "absent", "-o", "out"),
        ("replay", "absent", "-o", "out"),
        ("refine", "absent", "-o", "out"),
        ("batch", "absent", "-o", "out"),
        ("compare", "absent", "-o", "out", "--vary", "seed=1,2"),
    ],
)
def test_every_command_refuses_what_is_not_there_in_one_sentence(args, tmp_path, monkeypatch):
    """Before any networks are loaded: those that are named here do not exist, and nobody gets to that."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RECONSTUDIO_CHECKPOINT", "nowhere")
    outcome = invoke(*args, "--json")
    error = json.loads(outcome.stdout.splitlines()[-1])
    assert outcome.exit_code == error["exit_code"] == 2 and error["event"] == "error"
    assert "absent" in error["message"] and error["message"].endswith(".") and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (JobError("There is too little memory.", "memory"), 4),
        (JobError("The worker was killed.", "worker"), 5),
        (JobError("It broke.", "bug", "details"), 1),
        (ZeroDivisionError("a bug"), 1),
        (KeyboardInterrupt(), 130),
    ],
    ids=repr,
)
def test_every_ending_has_its_exit_status(photos, shared_worker, tmp_path, monkeypatch, error, code):
    def failing(*_):
        raise error

    monkeypatch.setattr("studio.cli_options.run", failing)
    for as_json in ((), ("--json",)):
        outcome = run(photos, "-o", tmp_path / "out", *as_json)
        assert outcome.exit_code == code
        told = json.loads(outcome.stdout.splitlines()[-1])["message"] if as_json else outcome.stderr
        assert (str(error) or "Cancelled") in told
    assert ("ZeroDivisionError: a bug" in outcome.stderr) == isinstance(error, ZeroDivisionError)  # for the log


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
        "event": "error",
        "message": "Cancelled; the same command goes on from the stages that were finished.",
        "exit_code": 130,
    }
    assert not (tmp_path / "out").exists()


def test_a_replay_is_bit_equal_and_says_so(photos, shared_worker, tmp_path):
    assert run(photos, "-o", tmp_path / "out", "--seed", 5, *FAST).exit_code == 0
    outcome = invoke("replay", tmp_path / "out", "-o", tmp_path / "again", "--json")
    assert outcome.exit_code == 0, outcome.output
    assert json.loads(outcome.stdout.splitlines()[-1])["same"] is True
    assert json.loads((tmp_path / "again" / "run.json").read_text())["cached"] == []  # it was really made again
    for name in ("mesh.glb", "gaussian.ply"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()

    record = json.loads((tmp_path / "out" / "run.json").read_text())
    record["files"]["mesh.glb"] = "0" * 64
    (tmp_path / "out" / "run.json").write_text(json.dumps(record))
    outcome = invoke("replay", tmp_path / "out" / "run.json", "-o", tmp_path / "third")
    assert outcome.exit_code == 3 and "mesh.glb differs." in outcome.stdout

    (tmp_path / "out" / "views" / "000.png").write_bytes(b"something else")
    outcome = invoke("replay", tmp_path / "out", "-o", tmp_path / "fourth")
    assert outcome.exit_code == 2 and "has been changed since" in outcome.stderr
    record["views"][0]["file"] = "../../secret.png"
    (tmp_path / "out" / "run.json").write_text(json.dumps(record))
    assert "is missing beside its run.json" in invoke("replay", tmp_path / "out", "-o", tmp_path / "fifth").stderr


def test_a_replay_with_other_networks_is_refused(photos, shared_worker, tmp_path):
    assert run(photos, "-o", tmp_path / "out", "--seed", 5, *FAST).exit_code == 0
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    next(iter(record["weights"].values()))["sha256"] = "0" * 64
    (tmp_path / "out" / "run.json").write_text(json.dumps(record))
    outcome = invoke("replay", tmp_path / "out", "-o", tmp_path / "again")
    assert outcome.exit_code == 2 and "used other networks" in outcome.stderr


@pytest.mark.parametrize("text", ["", "[]", "{", '{"settings": 3}'])
def test_a_file_that_is_no_record_of_a_run(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    outcome = invoke("replay", tmp_path, "-o", tmp_path / "again")
    assert outcome.exit_code == 2 and "not a record of a run" in outcome.stderr


def test_export_writes_a_finished_run_again_in_other_formats(photos, shared_worker, tmp_path):
    assert run(photos, "-o", tmp_path / "out", "--seed", 5, *FAST).exit_code == 0
    args = ("export", tmp_path / "out", "-o", tmp_path / "large", "--texture-size", 768, "--format", "stl", "--json")
    assert invoke(*args).exit_code == 0
    outcome = invoke(*args)
    assert "bake" in json.loads(outcome.stdout.splitlines()[-1])["cached"]
    assert (tmp_path / "large" / "exports" / "asset.stl").is_file()
    assert json.loads((tmp_path / "large" / "run.json").read_text())["settings"]["texture_size"] == 768


def test_cameras_are_edited_in_the_studios_own_file_and_handed_back(photos, shared_worker, tmp_path):
    out = tmp_path / "out"
    assert run(photos, "-o", out, *FAST).exit_code == 0
    before = json.loads((out / "transforms.json").read_text())
    edited = json.loads((out / "transforms.json").read_text())
    for row in range(3):
        edited["frames"][1]["transform_matrix"][row][3] *= 1.2  # farther away
    (tmp_path / "edited.json").write_text(json.dumps(edited))
    outcome = invoke("export", out, "-o", out, "--cameras", tmp_path / "edited.json", "--json")
    assert outcome.exit_code == 0, outcome.output
    assert {"structure", "latent", "decode"} <= set(json.loads(outcome.stdout.splitlines()[-1])["cached"])
    assert run(photos, "-o", tmp_path / "anew", "--cameras", tmp_path / "edited.json", *FAST).exit_code == 0
    for folder in (out, tmp_path / "anew"):
        record = json.loads((folder / "transforms.json").read_text())
        for frame, wanted in zip(record["frames"], edited["frames"], strict=True):
            assert frame["transform_matrix"][2] == pytest.approx(wanted["transform_matrix"][2], abs=1e-5)
    assert record["frames"][1] != before["frames"][1]
    assert invoke("replay", tmp_path / "anew", "-o", tmp_path / "replayed").exit_code == 0


def test_a_batch_of_five_interrupted_after_two_goes_on_with_three_and_survives_a_bad_object(
    shared_worker, tmp_path, monkeypatch
):
    for number in range(5):
        folder = tmp_path / "objects" / f"object{number}"
        folder.mkdir(parents=True)
        tiny_views(number + 1)[-1].save(folder / "view.png")
    done, real = [], JsonTalk.done

    def interrupt_after_two(talk, result) -> None:
        real(talk, result)
        done.append(result.folder.name)
        if len(done) == 2:
            signal.raise_signal(signal.SIGINT)

    args = ("batch", tmp_path / "objects", "-o", tmp_path / "out", "--json", *FAST)
    monkeypatch.setattr(JsonTalk, "done", interrupt_after_two)
    assert invoke(*args).exit_code == 130
    assert done == ["object0", "object1"] == sorted(folder.name for folder in (tmp_path / "out").iterdir())
    (tmp_path / "objects" / "wrong").mkdir()
    (tmp_path / "objects" / "wrong" / "view.png").write_text("broken")
    outcome = invoke(*args)
    summary = json.loads(outcome.stdout.splitlines()[-1])
    assert outcome.exit_code == 3
    assert summary["skipped"] == ["object0", "object1"] and summary["made"] == ["object2", "object3", "object4"]
    assert "not an image" in summary["failed"]["wrong"] and done == [f"object{number}" for number in range(5)]
    assert (tmp_path / "out" / "batch.csv").read_text().count("\n") == 6


def test_a_comparison_is_one_page_and_one_table(photos, shared_worker, tmp_path):
    outcome = invoke("compare", photos, "-o", tmp_path / "out", "--vary", "latent_steps=1,2", "--vary",
                     "structure-cfg-strength=2", *FAST)  # fmt: skip
    assert outcome.exit_code == 0, outcome.output
    page = (tmp_path / "out" / "compare.html").read_text()
    assert page.count("data:image/png;base64,") == 4 and "http" not in page
    lines = (tmp_path / "out" / "compare.csv").read_text().splitlines()
    assert len(lines) == 3 and lines[0].startswith("name,latent_steps,structure_cfg_strength,psnr,ssim,iou")
    for bad, sentence in (("latent_steps", "looks like"), ("latent_steps=99", "from 1 to 50"), ("no=1", "no setting")):
        outcome = invoke("compare", photos, "-o", tmp_path / "out", "--vary", bad)
        assert outcome.exit_code == 2 and sentence in outcome.stderr


def test_presets_take_more_steps_and_a_larger_texture_from_one_to_the_next():
    from studio.presets import PRESETS, apply_preset
    from studio.settings import ReconstructSettings, make_settings
    from trellis.errors import InputError

    for few, many in ((6, 10), (12, 30), (50, 50), (1, 1)):  # whatever a checkpoint recommends
        defaults = make_settings({"structure_steps": many, "latent_steps": few})
        draft, standard, best = (apply_preset(name, defaults) for name in PRESETS)
        assert standard == defaults and draft.texture_size < standard.texture_size < best.texture_size
        for sampler in ("structure", "latent"):
            steps = [getattr(settings, sampler).steps for settings in (draft, standard, best)]
            assert steps == sorted(steps) and (len(set(steps)) == 3 or many in (1, 50))
    choosing = make_settings({"structure_steps": 2, "structure_candidates": 5})
    assert [apply_preset(name, choosing).structure_candidates for name in PRESETS] == [2, 5, 8]
    assert {apply_preset(name, choosing).structure.steps for name in PRESETS} == {2}
    with pytest.raises(InputError, match="draft, standard, best"):
        apply_preset("fast", ReconstructSettings())


def test_the_doctor_examines_everything(checkpoint):
    outcome = invoke("doctor", "--checkpoint", checkpoint, "--json")
    findings = {line["name"]: line for line in map(json.loads, outcome.stdout.splitlines())}
    assert outcome.exit_code == 0, outcome.output
    assert set(findings) >= {"python", "packages", "torch", "gpu", "memory", "attention: sdpa", "kernels", "checkpoint",
                             "published weights", "speed", "video", "background removal", "stage cache"}  # fmt: skip
