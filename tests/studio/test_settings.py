from __future__ import annotations

import pytest

from studio.settings import (
    MAX_SEED,
    ReconstructSettings,
    defaults_of_checkpoint,
    leaves,
    make_settings,
)
from trellis.errors import InputError

# key, lowest, highest, default; the specification of the page and of the command line.
TABLE = [
    ("seed", 0, 2**31 - 1, 0),
    ("structure_steps", 1, 50, 30),
    ("structure_cfg_strength", 0, 10, 7.5),
    ("structure_rescale_t", 1, 6, 5.0),
    ("structure_guidance_rescale", 0, 1, 0.7),
    ("latent_steps", 1, 50, 12),
    ("latent_cfg_strength", 0, 10, 3.0),
    ("latent_rescale_t", 1, 6, 3.0),
    ("latent_guidance_rescale", 0, 1, 0.5),
    ("simplify", 0.90, 0.98, 0.95),
    ("texture_size", 512, 2048, 1024),
]
BY_KEY = {setting.key: setting for setting in leaves()}


def value_of(settings: ReconstructSettings, key: str):
    return BY_KEY[key].of(settings)


@pytest.mark.parametrize(("key", "low", "high", "default"), TABLE)
def test_range_and_default(key, low, high, default):
    setting = BY_KEY[key]
    assert (setting.low, setting.high) == (low, high)
    assert value_of(ReconstructSettings(), key) == default
    for inside in (low, high):
        assert value_of(make_settings({key: inside}), key) == inside
    for outside in (low - 1, high + 1):
        with pytest.raises(InputError) as caught:
            make_settings({key: outside})
        words = key.replace("_", " ").capitalize()
        message = str(caught.value)
        assert message.startswith(f"{words} must be a") and message.endswith(f"but {outside!r} came.")
        assert f"{high:g}" in message or str(high) in message


def test_choices_and_switches():
    settings = ReconstructSettings()
    assert settings.mode == "multidiffusion"
    assert settings.randomise_seed is False
    assert settings.structure.cfg_interval == settings.latent.cfg_interval == (0.6, 1.0)
    assert make_settings({"mode": "stochastic"}).mode == "stochastic"
    with pytest.raises(InputError, match="Mode must be one of multidiffusion, stochastic, but 'both' came."):
        make_settings({"mode": "both"})


@pytest.mark.parametrize("interval", [(0.8, 0.2), (-0.1, 1.0), (0.5, 1.5), (0.5,), "all"])
def test_bad_intervals(interval):
    with pytest.raises(InputError, match="[Ii]nterval"):
        make_settings({"latent_cfg_interval": interval})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "many", [1]])
def test_values_that_are_no_numbers(value):
    with pytest.raises(InputError, match="Simplify must be a number from 0.9 to 0.98, but"):
        make_settings({"simplify": value})


def test_an_unknown_setting_is_named():
    with pytest.raises(InputError, match="There is no setting 'step'"):
        make_settings({"step": 3})


def test_none_keeps_the_default():
    defaults = make_settings({"structure_steps": 5})
    assert make_settings({"structure_steps": None, "seed": 7}, defaults).structure.steps == 5


def test_texture_size_comes_in_steps():
    with pytest.raises(InputError, match="in steps of 256, but 600 came"):
        make_settings({"texture_size": 600})


def test_every_setting_explains_itself():
    for setting in leaves():
        assert setting.title and setting.help.endswith(".")


def test_defaults_of_a_checkpoint(caplog):
    settings = defaults_of_checkpoint({"steps": 8, "cfg_interval": [0.0, 1.0]}, {"cfg_strength": 99, "novel": 1}, 3)
    assert settings.structure.steps == 8 and settings.structure_candidates == 3
    assert settings.structure.cfg_interval == (0.0, 1.0)
    assert settings.structure.cfg_strength == 7.5
    assert settings.latent == ReconstructSettings().latent  # neither of the two can be used ...
    assert "cfg_strength" in caplog.text and "novel" in caplog.text  # ... and the log says so
    sources = [defaults_of_checkpoint({}, {}, camera_frame=frame).texture_source for frame in ("first_view", "object")]
    assert sources == ["splats", "photographs"]


def test_a_seed_is_drawn_only_on_request():
    settings = make_settings({"seed": 5})
    assert settings.with_drawn_seed().seed == 5
    drawn = {make_settings({"seed": 5, "randomise_seed": True}).with_drawn_seed().seed for _ in range(4)}
    assert len(drawn) > 1 and all(0 <= seed <= MAX_SEED for seed in drawn)
