"""Named choices of settings: how fast, and how good."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from studio.history import History
from studio.settings import ReconstructSettings, leaves, make_settings
from trellis.errors import InputError


@dataclass(frozen=True)
class Preset:
    """A named choice.

    Attributes:
        cheaper: each of the values applies only where it makes an asset cheaper than the checkpoint's own default
            (True), or dearer and better (False), so that a draft is one with any checkpoint.
        values: flat settings by key.
    """

    name: str
    help: str
    cheaper: bool
    values: Mapping[str, Any]


PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            "draft",
            "A first look: few steps, a small texture, a short turntable.",
            True,
            {"structure_steps": 12, "latent_steps": 6, "texture_size": 512, "video_frames": 30, "video_size": 256},
        ),
        Preset("standard", "The recommended settings.", True, {}),
        Preset(
            "best",
            "More steps, a large texture and more triangles.",
            False,
            {"structure_steps": 50, "latent_steps": 25, "texture_size": 2048, "simplify": 0.90},
        ),
    )
}
_MORE_IS_CHEAPER = ("simplify",)


def measured_times(
    history: History, engine: str, defaults: ReconstructSettings, views: int
) -> dict[str, float | None]:
    """Seconds that each preset will probably take on this machine, None where nothing has been measured yet."""
    times: dict[str, float | None] = {}
    for name in PRESETS:
        stages = history.expected(engine, apply_preset(name, defaults), views)
        times[name] = None if stages is None else sum(stages.values())
    return times


def apply_preset(name: str, defaults: ReconstructSettings) -> ReconstructSettings:
    """`defaults` with a preset laid over them. Raises InputError for a name that is none."""
    preset = PRESETS.get(name)
    if preset is None:
        raise InputError(f"There is no preset {name!r}; choose one of {', '.join(PRESETS)}.")
    settings = {setting.key: setting for setting in leaves(type(defaults))}
    chosen = {}
    for key, value in preset.values.items():
        pick = min if preset.cheaper != (key in _MORE_IS_CHEAPER) else max
        chosen[key] = pick(value, settings[key].of(defaults))
    return make_settings(chosen, defaults)
