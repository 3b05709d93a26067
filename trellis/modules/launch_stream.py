"""A network evaluated many times, its kernels launched one by one each time: the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from .attention import CondCache

Velocity = Callable[[Tensor, Tensor, Any], Tensor]


@contextmanager
def repeated(network: nn.Module, conditions: Sequence[CondCache]) -> Iterator[tuple[Velocity, Sequence[CondCache]]]:
    """Prepare for many calls of a velocity network under a few conditions, all within the context.

    Args:
        network: `network(x [B, ...], t [B], condition)` returns a velocity shaped like x.
        conditions: every condition of these calls, cached for the network.

    Yields:
        What to call in place of the network, and the conditions to call it with, in their order.
    """
    yield network, conditions
