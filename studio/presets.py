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
    """values: flat settings by key, over the defaults of the checkpoint. effort: how many times its steps; for the
    shape its tries, if the checkpoint chooses from several: such a one gains by choosing, not by more steps."""

    name: str
    help: str
    values: Mapping[str, Any]
    effort: float = 1.0


PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            "draft",
            "A first look: half the steps and tries, a small texture, a short turntable.",
            {"texture_size": 512, "video_frames": 30, "video_size": 256},
            effort=0.5,
        ),
        Preset("standard", "What the checkpoint recommends.", {}),
        Preset(
            "best",
            "Twice the steps and tries, a large texture and more triangles.",
            {"texture_size": 2048, "simplify": 0.90},
            effort=2,
        ),
    )
}


_SAMPLING = ("structure_candidates", "structure_steps", "latent_steps")


def preset_keys() -> tuple[str, ...]:
    """The settings that presets decide; whatever else has been chosen, they leave as it is."""
    return (*_SAMPLING, *dict.fromkeys(key for preset in PRESETS.values() for key in preset.values))


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
    shape = "structure_candidates" if defaults.structure_candidates > 1 else "structure_steps"
    known = {setting.key: setting for setting in leaves()}
    recommended = {key: int(known[key].of(defaults)) for key in (shape, "latent_steps")}
    scaled = {
        key: min(max(round(preset.effort * count), 1), int(known[key].high)) for key, count in recommended.items()
    }
    return make_settings({**scaled, **preset.values}, defaults)
