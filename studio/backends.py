"""What does each heavy part of the work in the studio: chosen once, when the networks are loaded, for all jobs after.

`trellis.backends` holds the table. Networks run on the device that was asked for; what draws runs on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from trellis import backends
from trellis.errors import InputError

if TYPE_CHECKING:
    import torch

_ON_CPU = ("gaussian_splatting", "mesh_rasterisation")


def parse(choices: Iterable[str]) -> dict[str, str]:
    """Names by need, from texts like "attention=flash-attn". Raises InputError if one is no such text."""
    names: dict[str, str] = {}
    for text in choices:
        need, equals, name = (part.strip() for part in text.partition("="))
        if not (need and equals and name):
            raise InputError(f"A backend is chosen as NEED=NAME, for instance attention=sdpa, but {text!r:.80} came.")
        if names.setdefault(need, name) != name:
            raise InputError(f"Two backends were chosen for {need}: {names[need]} and {name}.")
    return names


def choose(device: torch.device, names: Mapping[str, str]) -> None:
    """Decide what does the work from now on; needs that are not named are left to "auto".

    Raises InputError for an unknown need or name, or one that does not work here, with the reason.
    """
    for place in {device.type, "cpu"}:
        here = {need: name for need, name in names.items() if _place(need, device) == place}
        backends.choose(device if place == device.type else place, **here)


def chosen(device: torch.device) -> dict[str, backends.Candidate]:
    """By need, what the networks on a device and the renderers use."""
    return {need: backends.choice(need, device if _place(need, device) == device.type else "cpu")
            for need in backends.NEEDS}  # fmt: skip


def _place(need: str, device: torch.device) -> str:
    return "cpu" if need in _ON_CPU else device.type
