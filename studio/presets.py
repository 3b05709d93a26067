"""Named choices of settings: how fast, and how good."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from studio.history import History
from studio.settings import ReconstructSettings, SamplerSettings, leaves, make_settings
from trellis.errors import InputError


@dataclass(frozen=True)
class Preset:
    """values: flat settings by key, over the defaults of the checkpoint. steps: how many times its sampler steps."""

    name: str
    help: str
    values: Mapping[str, Any]
    steps: float = 1.0


PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            "draft",
            "A first look: one try at the shape, half the steps, a small texture, a short turntable.",
            {"structure_candidates": 1, "texture_size": 512, "video_frames": 30, "video_size": 256},
            steps=0.5,
        ),
        Preset("standard", "What the checkpoint recommends.", {}),
        Preset(
            "best",
            "Twice the steps, a large texture and more triangles.",
            {"texture_size": 2048, "simplify": 0.90},
            steps=2,
        ),
    )
}


def preset_keys() -> tuple[str, ...]:
    """The settings that presets decide; whatever else has been chosen, they leave as it is."""
    return ("structure_steps", "latent_steps", *dict.fromkeys(key for p in PRESETS.values() for key in p.values))


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
    if name not in PRESETS:
        raise InputError(f"There is no preset {name!r}; choose one of {', '.join(PRESETS)}.")
    preset = PRESETS[name]
    most = next(int(setting.high) for setting in leaves(SamplerSettings) if setting.key == "steps")
    steps = {
        f"{sampler}_steps": min(max(round(preset.steps * getattr(defaults, sampler).steps), 1), most)
        for sampler in ("structure", "latent")
    }
    return make_settings({**steps, **preset.values}, defaults)
