"""What the runs of a comparison cost, and which of them is the best bargain."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from studio.settings import ReconstructSettings, settings_from_json

GOOD_ENOUGH = 0.5  # dB below the best at which a difference is hard to see

# What each stage builds on, and the settings that it reads itself.
_STAGES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "prepare": ((), ()),
    "cameras": (("prepare",), ()),
    "structure": (("cameras",), ("structure", "structure_candidates", "seed_of_structure")),
    "latent": (("structure",), ("latent", "mode", "seed_of_latent")),
    "decode": (("latent",), ()),
    "paint": (("decode",), ("texture_source",)),
    "mesh": (("decode",), ("simplify", "watertight")),
    "bake": (("mesh",), ("texture_size", "texture_source")),
    "video": (("paint",), ("video_frames", "video_size")),
    "report": (("bake", "video"), ()),
    "write": (("report",), ()),
}


def full_seconds(
    records: Sequence[Mapping[str, Any]],
    expected: Callable[[ReconstructSettings, int], Mapping[str, float] | None] = lambda settings, views: None,
) -> list[float | None]:
    """What each run takes from scratch, in seconds, from the records (run.json) of runs that share finished stages.

    A stage that came from the cache counts with the time that it took in the run that made it, or else with what
    `expected(settings, views)` says that this machine takes. None for a run with a stage that neither knows. The runs
    must be of the same photographs on the same machine.
    """
    known: dict[tuple[str, Any], float] = {}
    for record in records:
        for stage, spent in record["seconds"].items():
            if stage in _STAGES:
                known[stage, _reads(stage, record)] = spent
    totals: list[float | None] = []
    for record in records:
        usual = expected(settings_from_json(record["settings"]), len(record["views"])) or {}
        spent = [
            record["seconds"].get(stage, known.get((stage, _reads(stage, record)), usual.get(stage)))
            for stage in _STAGES
        ]
        totals.append(None if None in spent else round(sum(spent), 3))
    return totals


def best_bargain(scores: Sequence[float | None], costs: Sequence[float | None]) -> int | None:
    """The index of the cheapest run whose score (PSNR in dB) lies within 0.5 of the best; None if nothing is scored.

    A run without a score or without a cost cannot be chosen. Of equally cheap ones, the better is.
    """
    best = max((score for score in scores if score is not None), default=None)
    if best is None:
        return None
    good = [
        (cost, -score, index)
        for index, (score, cost) in enumerate(zip(scores, costs, strict=True))
        if score is not None and cost is not None and score >= best - GOOD_ENOUGH
    ]
    return min(good)[2] if good else None


def _reads(stage: str, record: Mapping[str, Any]) -> str:
    """Everything among the settings that a stage's time and output depend on."""
    settings = settings_from_json(record["settings"])
    return repr([(name, getattr(settings, name)) for name in sorted(_settings_of(stage))])


def _settings_of(stage: str) -> set[str]:
    inputs, own = _STAGES[stage]
    return set(own).union(*map(_settings_of, inputs))
