"""A network evaluated many times, recorded as CUDA graphs and replayed: one launch instead of hundreds.

A step of a large transformer is some five hundred kernels, which a fast GPU finishes before the host has launched
them. A recording holds for one shape, and reads the condition and the weights where they lay when it was made. It is
therefore kept with the condition of its first use, into which those of later samplings are copied, and only as long as
all weights stay where they are. For the published structure flow that holds 0.4 GB of keys and values and the memory of
one step; recording anew for each object would, by estimate, take the time of four of its thirty steps.

A recording runs the same kernels as a plain call, and is compared with one before it is used. If it differs or cannot
be made, kernels are launched one by one from then on.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from trellis import backends

from . import launch_stream
from .attention import BatchedContext, CondCache, ConstantContext, ProjectedContext
from .launch_stream import Velocity

logger = logging.getLogger(__name__)

TOLERANCE = 5e-3  # root mean square of a difference over that of the values; half precision rounds to 5e-4

_lock = threading.Lock()  # held while recordings are in use: they share buffers
_kept: WeakKeyDictionary[nn.Module, _Recordings] = WeakKeyDictionary()
_failed = False


@contextmanager
def repeated(network: nn.Module, conditions: Sequence[CondCache]) -> Iterator[tuple[Velocity, Sequence[CondCache]]]:
    """See `launch_stream.repeated`. A second thread that comes meanwhile launches its kernels one by one."""
    if _failed or not _lock.acquire(blocking=False):
        with launch_stream.repeated(network, conditions) as prepared:
            yield prepared
        return
    try:
        recordings, state = _kept.get(network), _state(network)
        if recordings is None or not recordings.fit(state, conditions):
            _kept.pop(network, None)
            recordings = _kept[network] = _Recordings(state, conditions)
        else:
            recordings.load(conditions)
        conditions = recordings.conditions  # those that came are not needed any more
        yield partial(recordings.call, network), conditions
    finally:
        _lock.release()


def forget() -> None:
    """Drop all recordings, and the memory that they hold."""
    with _lock:
        _kept.clear()


def self_test(device: Any) -> None:
    """Record and replay one operation."""
    x = torch.ones(8, device=device)
    graph = _Graph(lambda: x + 1, x.device)
    x.fill_(2)
    graph.replay()
    if graph.output.tolist() != [3.0] * 8:
        raise RuntimeError("a replayed CUDA graph gives another result")


class _Graph:
    """The kernels of some work, recorded on a device without being run; every replay writes `output`.

    pool: of another graph, to share its memory. What a replay leaves there is lost with the next one.
    """

    def __init__(self, work: Callable[[], Tensor], device: torch.device, pool: Any = None) -> None:
        self.device, self.graph, self.begun = device, torch.cuda.CUDAGraph(), torch.cuda.Event()
        with torch.cuda.device(device), torch.no_grad():
            stream, own = torch.cuda.current_stream(), _stream(device)
            try:
                # Other threads, which may render or load meanwhile, are free to allocate.
                with torch.cuda.graph(self.graph, pool=pool, stream=own, capture_error_mode="thread_local"):
                    self.output = work()
            finally:
                torch.cuda.set_stream(stream)  # a recording that fails leaves its own behind
        self.pool = self.graph.pool()

    def replay(self) -> None:
        # Waiting for the step before the last: a host that queued all steps at once would hear no one cancel.
        self.begun.synchronize()
        self.begun.record(torch.cuda.current_stream(self.device))
        self.graph.replay()


@lru_cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """That on which everything is recorded; each has a workspace of its own."""
    return torch.cuda.Stream(device)


class _Recordings:
    """What was recorded of one network: by condition and shape, the static inputs and the graph."""

    def __init__(self, state: tuple, conditions: Sequence[CondCache]) -> None:
        self.state, self.conditions = state, conditions
        self.forms: dict[tuple, tuple[Tensor, Tensor, _Graph]] = {}

    def fit(self, state: tuple, conditions: Sequence[CondCache]) -> bool:
        """Whether these conditions can be loaded, and what was recorded still lies where it did."""
        return self.state == state and _layout(self.conditions) == _layout(conditions)

    def load(self, conditions: Sequence[CondCache]) -> None:
        """Copy conditions into the recorded ones. Some tensors belong to several of these, and are copied once."""
        pairs = zip(_tensors(self.conditions), _tensors(conditions), strict=True)
        for kept, new in {id(kept): (kept, new) for kept, new in pairs}.values():
            kept.copy_(new)

    def call(self, network: nn.Module, x: Tensor, t: Tensor, condition: CondCache) -> Tensor:
        if _failed:
            return network(x, t, condition)
        key = id(condition), x.shape, x.dtype
        if key not in self.forms:
            return self._first(network, x, t, condition, key)
        static_x, static_t, graph = self.forms[key]
        static_x.copy_(x)
        static_t.copy_(t)
        graph.replay()
        return graph.output.clone()

    def _first(self, network: nn.Module, x: Tensor, t: Tensor, condition: CondCache, key: tuple) -> Tensor:
        """Run as it is, so that everything is compiled and planned and every table filled, then record."""
        global _failed
        expected = network(x, t, condition)
        try:
            x, t = x.clone(), t.clone()
            pool = next((graph.pool for _, _, graph in self.forms.values()), None)
            graph = _Graph(partial(network, x, t, condition), x.device, pool)
            graph.output.fill_(torch.nan)
            graph.replay()
            apart = float((graph.output - expected).norm() / expected.norm().clamp_min(1e-30))
            if not apart <= TOLERANCE:
                raise RuntimeError(f"what was replayed is {apart:.1e} off")
            self.forms[key] = x, t, graph
        except Exception as error:  # of whichever library a kernel came from
            _failed = True
            self.forms.clear()
            logger.warning("Kernels are launched one by one, as they could not be recorded: %s", error)
        return expected


def _state(network: nn.Module) -> tuple:
    """Where the weights are, and what would run: a recording holds under an equal one."""
    tensors = tuple((t.data_ptr(), t.dtype) for t in chain(network.parameters(), network.buffers()))
    device = next(network.parameters()).device
    return device, tensors, tuple(candidate.name for candidate in backends.used(device).values())


def _layout(conditions: Sequence[CondCache]) -> tuple:
    """Equal for conditions whose tensors can be copied into one another."""
    sizes = tuple((condition.batch, tuple(map(len, condition.layers))) for condition in conditions)
    return sizes, tuple((t.shape, t.dtype) for t in _tensors(conditions))


def _tensors(conditions: Sequence[CondCache]) -> list[Tensor]:
    """All tensors of some conditions, in a fixed order."""
    return [
        tensor
        for condition in conditions
        for layer in condition.layers
        for context in layer
        for part in (context.parts if isinstance(context, BatchedContext) else (context,))
        for tensor in _tensors_of(part)
    ]


def _tensors_of(context: ProjectedContext | ConstantContext) -> tuple[Tensor, ...]:
    return (context.output,) if isinstance(context, ConstantContext) else (context.key, context.value)
