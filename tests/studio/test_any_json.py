"""Properties of settings and jobs under random input: whatever JSON comes in, a valid job or one sentence comes out."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from studio.job import job_from_json
from studio.settings import ReconstructSettings, leaves, make_settings, settings_from_json
from trellis.errors import InputError

EXTREMES = [
    None, True, False, 0, -1, 1, 2**31 - 1, 2**31, 2**63, -(2**63), 10**400, 1e308, -0.0, 5e-324, 0.95, float("nan"),
    float("inf"), "", "\0", "x", "12", "1e3", "yes", "\ud800", "ä" * 3, "multidiffusion", [], {}, [[]], [0.2, 0.8],
    [0.8, 0.2], {"steps": 3},
]  # fmt: skip
NAMES = [*ReconstructSettings.model_fields, *ReconstructSettings.model_fields["structure"].annotation.model_fields,
         "", "_", "model_dump", "__class__", "views", "out"]  # fmt: skip


def anything(chance: random.Random, depth: int = 3) -> Any:
    """A random JSON value, rich in what breaks things."""
    kind = chance.randrange(5 if depth else 3)
    if kind == 3:
        return [anything(chance, depth - 1) for _ in range(chance.randrange(4))]
    if kind == 4:
        return {chance.choice(NAMES): anything(chance, depth - 1) for _ in range(chance.randrange(5))}
    return chance.choice(EXTREMES) if kind else chance.uniform(-10, 3000)


def plausible(chance: random.Random) -> dict[str, Any]:
    """A settings object whose values mostly lie within their ranges."""
    tree: dict[str, Any] = {}
    for setting in leaves():
        if chance.random() < 0.6:
            continue
        if setting.choices:
            value: Any = chance.choice(setting.choices)
        elif setting.type is bool:
            value = chance.random() < 0.5
        elif setting.is_interval:
            value = sorted(chance.random() for _ in range(2))
        elif setting.type is int:
            value = chance.randrange(int(setting.low), int(setting.high) + 1, int(setting.step))
        else:
            value = chance.uniform(setting.low, setting.high)
        if chance.random() < 0.03:
            value = anything(chance)
        node = tree
        for name in setting.path[:-1]:
            node = node.setdefault(name, {})
        node[setting.path[-1]] = value
    return tree


def is_sentence(error: InputError) -> bool:
    text = str(error)
    text.encode()  # can be printed
    return len(text) > 10 and text[0].isupper() and text.endswith((".", ".'")) and "Traceback" not in text


def assert_valid(settings: ReconstructSettings) -> None:
    for setting in leaves():
        value = setting.of(settings)
        for number in value if setting.is_interval else [value]:
            if number is not None and setting.low is not None and not isinstance(number, bool | str):
                assert setting.low <= number <= setting.high
    assert settings_from_json(json.loads(settings.model_dump_json())) == settings  # survives being written and read


@pytest.mark.parametrize("seed", range(8))
def test_any_settings_are_valid_or_a_sentence(seed):
    chance = random.Random(seed)
    accepted = 0
    for round_ in range(300):
        value = anything(chance) if round_ % 3 else plausible(chance)
        try:
            settings = settings_from_json(value)
        except InputError as error:
            assert is_sentence(error), str(error)
        else:
            accepted += 1
            assert_valid(settings)
    assert 30 < accepted < 300  # both happen


@pytest.mark.parametrize("seed", range(4))
def test_any_flat_values_are_settings_or_a_sentence(seed):
    chance = random.Random(seed)
    keys = [setting.key for setting in leaves()]
    for _ in range(300):
        values = {chance.choice([*keys, "nonsense"]): anything(chance, 1) for _ in range(chance.randrange(3))}
        try:
            assert_valid(make_settings(values))
        except InputError as error:
            assert is_sentence(error), str(error)


@pytest.mark.parametrize("seed", range(8))
def test_any_json_is_a_job_or_a_sentence(seed):
    chance = random.Random(seed)
    for round_ in range(300):
        body: Any = {"views": ["a.png", "b.png"], "out": "out", "settings": plausible(chance), "formats": []}
        if round_ % 4:
            body[chance.choice([*body, "surplus"])] = anything(chance)
        elif chance.random() < 0.3:
            body = anything(chance)
        try:
            job = job_from_json(body)
        except InputError as error:
            assert is_sentence(error), str(error)
        else:
            assert 1 <= len(job.views) <= 32
            assert_valid(job.settings)
