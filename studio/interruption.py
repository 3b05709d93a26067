"""Stopping within a step: networks that ask between their blocks whether to go on.

A sampler's step runs a whole network, which takes many seconds for a large object on a CPU; a block takes a fraction of
one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def asking_between_blocks(networks: Iterable[nn.Module], check: Callable[[], None]) -> Iterator[None]:
    """Within it, the networks call `check` before each of their blocks; what it raises ends their call."""
    lists = [part for network in networks for part in network.modules() if isinstance(part, nn.ModuleList)]
    handles = [block.register_forward_pre_hook(lambda *_: check()) for blocks in lists for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
