"""Named choices of settings: how fast, and how good."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from studio.history import History
from studio.settings import ReconstructSettings, make_settings
from trellis.errors import InputError


@dataclass(frozen=True)
class Preset:
    """values: flat settings by key, over the defaults of the checkpoint."""

    name: str
    help: str
    values: Mapping[str, Any]


PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            "draft",
            "A first look: fewer steps, a small texture, a short turntable.",
            {"structure_steps": 12, "latent_steps": 8, "texture_size": 512, "video_frames": 30, "video_size": 256},
        ),
        Preset("standard", "What the checkpoint recommends.", {}),
        Preset(
            "best",
            "More steps, a large texture and more triangles.",
            {"structure_steps": 50, "latent_steps": 25, "texture_size": 2048, "simplify": 0.90},
        ),
    )
}


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
    return make_settings(PRESETS[name].values, defaults)
