"""Reads the recorded fixtures of `tests/golden` (format: its README)."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

GOLDEN = Path(__file__).parent / "golden"
MANIFESTS = Path(__file__).parent / "manifests"
TOLERANCE = {"atol": 2e-5, "rtol": 1e-4}


@dataclass(frozen=True)
class Golden:
    """One fixture: constructor or call arguments, named inputs and outputs, and the weights of the module."""

    config: dict
    inputs: dict[str, torch.Tensor]
    outputs: dict[str, torch.Tensor]
    weights: dict[str, torch.Tensor]


def hash_tensor(key: str, scale: float, offset: float, shape: list[int]) -> torch.Tensor:
    """The generated weight of the README: a 32-bit integer hash of the flat index and the key's CRC."""
    n = np.arange(int(np.prod(shape)), dtype=np.uint64)
    mask = np.uint64(0xFFFFFFFF)
    h = (n * np.uint64(0x9E3779B1) + np.uint64(zlib.crc32(key.encode()))) & mask
    h ^= h >> np.uint64(16)
    h = (h * np.uint64(0x85EBCA6B)) & mask
    h ^= h >> np.uint64(13)
    h = (h * np.uint64(0xC2B2AE35)) & mask
    h ^= h >> np.uint64(16)
    value = (h >> np.uint64(8)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1)
    return torch.from_numpy(value * np.float32(scale) + np.float32(offset)).reshape(shape)


def load_golden(name: str) -> Golden:
    """Load `tests/golden/<name>.safetensors`."""
    groups: dict[str, dict[str, torch.Tensor]] = {"in": {}, "out": {}, "w": {}}
    with safe_open(GOLDEN / f"{name}.safetensors", framework="pt") as file:
        metadata = file.metadata()
        for key in file.keys():
            group, _, rest = key.partition("/")
            groups[group][rest] = file.get_tensor(key)
    weights = dict(groups["w"])
    for key, (scale, offset, shape) in json.loads(metadata.get("hash_weights", "{}")).items():
        weights[key] = hash_tensor(key, scale, offset, shape)
    return Golden(json.loads(metadata["config"]), groups["in"], groups["out"], weights)


def load_manifest(name: str) -> dict:
    """Load `tests/manifests/<name>.json`: class, arguments and the ordered state-dict rows of a full-size network."""
    return json.loads((MANIFESTS / f"{name}.json").read_text())


def assert_matches_manifest(module: torch.nn.Module, rows: list) -> None:
    """Compare a module's state dict with manifest rows `[key, shape, dtype]`: names, shapes and dtypes."""
    expected = {key: (tuple(shape), dtype) for key, shape, dtype in rows}
    actual = {key: (tuple(v.shape), str(v.dtype).removeprefix("torch.")) for key, v in module.state_dict().items()}
    assert actual == expected


def assert_close(actual: torch.Tensor, expected: torch.Tensor, **overrides) -> None:
    """`torch.testing.assert_close` at the fixture tolerance."""
    torch.testing.assert_close(actual, expected, **{**TOLERANCE, **overrides})
