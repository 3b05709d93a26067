"""What the page does that needs no browser."""

from __future__ import annotations

import gradio as gr
import pytest
from tiny_checkpoint import tiny_views

from studio.pages import fragments
from studio.pages.controls import SettingControls
from studio.pages.reconstruct import find_examples
from studio.pages.sessions import Sessions
from studio.reconstruct import Progress
from studio.settings import leaves, make_settings
from studio.stages import STAGES
from trellis.errors import InputError


def test_examples_are_folders_of_pictures(tmp_path):
    assert find_examples(tmp_path / "absent") == []
    for name in ("red-chair", "toy_car", "a", "b", "c"):
        (tmp_path / name).mkdir()
    for name in ("red-chair", "toy_car"):
        for number, view in enumerate(tiny_views(2)):
            view.save(tmp_path / name / f"{number}.png")
    found = find_examples(tmp_path)
    assert [title for title, _ in found] == ["Red chair", "Toy car"]
    assert [len(files) for _, files in found] == [2, 2]


def test_controls_show_the_defaults_and_read_back_what_they_show():
    defaults = make_settings({"structure_steps": 7, "latent_cfg_interval": (0.2, 0.8), "mode": "stochastic"})
    keys = [setting.key for setting in leaves()]
    with gr.Blocks():
        controls = SettingControls(defaults)
        controls.add(*keys)
    values = [control.value for control in controls.components]
    assert controls.settings(values) == defaults
    values[keys.index("seed")] = 2**31
    with pytest.raises(InputError, match="Seed must be a whole number from 0 to 2147483647, but 2147483648 came."):
        controls.settings(values)
    values[keys.index("seed")] = None  # the field was emptied
    assert controls.settings(values) == defaults


def test_sliders_take_their_range_from_the_settings():
    with gr.Blocks():
        controls = SettingControls(make_settings({}))
        controls.add("simplify", "texture_size")
    simplify, texture = controls.components
    assert (simplify.minimum, simplify.maximum, simplify.step) == (0.90, 0.98, 0.01)
    assert (texture.minimum, texture.maximum, texture.step) == (512, 2048, 256)
    assert "(pixels)" in texture.label and "base colour texture" in texture.info


def test_a_session_keeps_the_last_result_only_until_the_next_but_one():
    sessions = Sessions()
    session = sessions.get("page")
    for _ in range(3):
        session.new_run().mkdir()
    assert [folder.name for folder in sorted(session.folder.iterdir())] == ["run-002", "run-003"]
    sessions.close("page")
    assert not session.folder.exists() and session.cancel.is_set()


def test_a_job_is_stopped_by_the_switch_it_was_given():
    sessions = Sessions()
    sessions.arm("page")
    first = sessions.get("page").cancel
    sessions.arm("page")
    sessions.get("page").cancel.set()
    assert not first.is_set()


def test_progress_names_the_stage_the_step_and_the_time():
    html = fragments.running(Progress("structure", 3, 30, "Working out the rough shape", 75.4))
    assert "Working out the rough shape" in html and "3 of 30" in html and "1:15" in html
    assert html.count('class="past"') == [stage.name for stage in STAGES].index("structure")
    assert html.count('aria-current="step"') == 1


def test_messages_cannot_smuggle_in_html():
    assert "<script>" not in fragments.stopped("That did not work", ["'<script>.png' is empty."])
