"""Settings on a page: the controls that show them, and how a browser keeps them."""

from __future__ import annotations

import json

import gradio as gr
import pytest

from studio.pages.controls import SettingControls
from studio.pages.kept_settings import KeptSettings
from studio.refine_settings import RefineSettings
from studio.settings import leaves, make_settings
from trellis.errors import InputError


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


def kept_settings(values: dict) -> tuple[KeptSettings, list]:
    """Those of a page with these defaults, and what its controls show."""
    defaults = make_settings(values)
    with gr.Blocks():
        controls = SettingControls(defaults)
        controls.add(*[setting.key for setting in leaves()])
        kept = KeptSettings("settings", controls, defaults, gr.Radio(["draft", "standard"]))
    return kept, controls.values_of(defaults)


def test_a_browser_gives_back_the_settings_of_the_page_that_gave_them():
    given = {"structure_steps": 7, "seed": 5}
    kept, values = kept_settings(given)
    assert kept.read(json.dumps([kept.mark, "draft", *values])) == ("draft", make_settings(given))
    other, values = kept_settings({"structure_steps": 8, "seed": 5})
    assert kept.read(json.dumps([other.mark, "draft", *values])) is None


def test_settings_without_presets_come_back_too():
    defaults = RefineSettings(steps=70)
    with gr.Blocks():
        controls = SettingControls(defaults, "refine")
        controls.add(*[setting.key for setting in leaves(RefineSettings)])
        kept = KeptSettings("refine-settings", controls, defaults)
    values = controls.values_of(defaults)
    assert kept.read(json.dumps([kept.mark, *values])) == (None, defaults)
    assert kept.read(json.dumps([kept.mark, "draft", *values])) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda kept, values: "",
        lambda kept, values: "[" * 9000,
        lambda kept, values: json.dumps({"mark": kept.mark}),
        lambda kept, values: json.dumps([kept.mark]),
        lambda kept, values: json.dumps([kept.mark, ["draft"], *values]),
        lambda kept, values: json.dumps([kept.mark, "sketch", *values]),
        lambda kept, values: json.dumps([kept.mark, "draft", *values[1:]]),
        lambda kept, values: json.dumps([kept.mark, "draft", *values, 1]),
        lambda kept, values: json.dumps([kept.mark, "draft", 1e99, *values[1:]]),
        lambda kept, values: json.dumps([kept.mark, "draft", {"a": []}, *values[1:]]),
        lambda kept, values: json.dumps([kept.mark, "draft", *[[]] * len(values)]),
        lambda kept, values: json.dumps([kept.mark, "draft", "x" * 20_000, *values[1:]]),
    ],
)
def test_whatever_else_a_browser_gives_back_is_nothing(change):
    kept, values = kept_settings({})
    assert kept.read(change(kept, values)) is None


def test_a_switch_that_may_be_left_open_shows_that():
    with gr.Blocks():
        controls = SettingControls(RefineSettings())
        controls.add("correct_cameras", "steps")
    switch, steps = controls.components
    assert [label for label, _ in switch.choices] == ["Automatic", "Yes", "No"] and switch.value == "Automatic"
    for word, meant in (("Automatic", None), ("Yes", True), ("No", False)):
        settings = controls.settings([word, steps.value])
        assert settings.correct_cameras is meant and controls.values_of(settings) == [word, steps.value]


def test_sliders_take_their_range_from_the_settings():
    with gr.Blocks():
        controls = SettingControls(make_settings({}))
        controls.add("simplify", "texture_size")
    simplify, texture = controls.components
    assert (simplify.minimum, simplify.maximum, simplify.step) == (0.90, 0.98, 0.01)
    assert (texture.minimum, texture.maximum, texture.step) == (512, 2048, 256)
    assert "(pixels)" in texture.label and "base colour texture" in texture.info
