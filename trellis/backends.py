"""Which implementation does each heavy part of the work: one table, one choice per kind of device.

Every need has a readable reference and may have faster implementations. A program chooses at its start, all
automatically or some by name:

    backends.choose("cuda", attention="flash-attn")

and whatever then needs attention on that kind of device calls `backends.of("attention", tensor.device)`. Without a
choice the first call makes the automatic one. An implementation whose package is absent or broken is passed over, and
`states` says why; only one that was asked for by name is an error.

An implementation is a module with the functions that its need names. It may define `self_test(device)`, which runs its
kernels once on the smallest input and raises if they do not work there; what compiles at first use compiles then.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

from trellis.errors import InputError


@dataclass(frozen=True)
class Candidate:
    """One way to meet a need.

    name: what a person calls it.
    module: the module that implements it, imported only when it is considered.
    devices: kinds of device it runs on.
    licence: SPDX identifier of what it stands on.
    package: what has to be installed, as it is imported; None if that is this package alone.
    computes_on: the kind of device it moves all tensors to; None if it works where they are.
    """

    name: str
    module: str
    devices: tuple[str, ...]
    licence: str
    package: str | None = None
    computes_on: str | None = None


# Need -> candidates, the preferred one first; the reference, which runs everywhere, is last. Candidates after the
# reference of their device are used only by name.
NEEDS: dict[str, tuple[Candidate, ...]] = {
    "attention": (
        # Launched one by one, sdpa takes the host less: 857 ms for the structure on an H100, cudnn 1,071 ms. Recorded,
        # both take some 660 ms, but cudnn also plans anew for every number of views.
        Candidate("sdpa", "trellis.modules.attention_sdpa", ("cpu", "cuda"), "BSD-3-Clause"),
        Candidate("cudnn", "trellis.modules.attention_cudnn", ("cuda",), "BSD-3-Clause"),
        Candidate("flash-attn", "trellis.modules.attention_flash", ("cuda",), "BSD-3-Clause", "flash_attn"),
        Candidate("xformers", "trellis.modules.attention_xformers", ("cuda",), "BSD-3-Clause", "xformers"),
    ),
    "sparse_convolution": (
        Candidate("triton", "trellis.modules.sparse.conv_triton", ("cuda",), "Apache-2.0", "triton"),
        Candidate("torch", "trellis.modules.sparse.conv_torch", ("cpu", "cuda"), "BSD-3-Clause"),
        Candidate("spconv", "trellis.modules.sparse.conv_spconv", ("cuda",), "Apache-2.0", "spconv"),
    ),
    "norms": (
        Candidate("triton", "trellis.modules.norms_triton", ("cuda",), "Apache-2.0", "triton"),
        Candidate("torch", "trellis.modules.norms_torch", ("cpu", "cuda"), "BSD-3-Clause"),
    ),
    "feed_forward": (
        # On an H100: structure 658 ms with cublaslt and 678 with torch, the Gaussians' decoder 16.3 and 17.3.
        Candidate("cublaslt", "trellis.modules.gelu_cublaslt", ("cuda",), "BSD-3-Clause"),
        Candidate("torch", "trellis.modules.gelu_torch", ("cpu", "cuda"), "BSD-3-Clause"),
    ),
    # How the steps of the structure's flow reach a GPU: 683 ms recorded, 771 ms launched one by one.
    "launching": (
        Candidate("cuda-graph", "trellis.modules.launch_graph", ("cuda",), "BSD-3-Clause"),
        Candidate("stream", "trellis.modules.launch_stream", ("cpu", "cuda"), "BSD-3-Clause"),
    ),
    "gaussian_splatting": (
        Candidate("gsplat", "trellis.renderers.gaussian_gsplat", ("cuda",), "Apache-2.0", "gsplat"),
        Candidate("numba", "trellis.renderers.gaussian_numba", ("cpu", "cuda"), "Apache-2.0", computes_on="cpu"),
        Candidate(
            "diff-gaussian-rasterization",
            "trellis.renderers.gaussian_diff",
            ("cuda",),
            "LicenseRef-Gaussian-Splatting-noncommercial",
            "diff_gaussian_rasterization",
        ),
    ),
    "mesh_rasterisation": (
        Candidate("triton", "trellis.renderers.mesh_triton", ("cuda",), "Apache-2.0", "triton"),
        Candidate("numba", "trellis.renderers.mesh_numba", ("cpu", "cuda"), "Apache-2.0", computes_on="cpu"),
        Candidate(
            "nvdiffrast",
            "trellis.renderers.mesh_nvdiffrast",
            ("cuda",),
            "LicenseRef-NVIDIA-noncommercial",
            "nvdiffrast",
        ),
    ),
}

AUTO = "auto"


@dataclass(frozen=True)
class State:
    """Whether a candidate can be used here: "ready", "absent" (its package is not installed) or "broken"; why not."""

    need: str
    candidate: Candidate
    state: Literal["ready", "absent", "broken"]
    reason: str = ""


_lock = threading.RLock()
_chosen: dict[tuple[str, str], tuple[Candidate, ModuleType]] = {}


def choose(device: Any = "cpu", **names: str) -> dict[str, Candidate]:
    """Decide, for one kind of device, what does the work from now on; every need that is not named is left to `auto`.

    Args:
        device: "cpu", "cuda", "cuda:1" or a torch device.
        names: need -> name of a candidate, or "auto".

    Returns:
        The choice, by need.

    Raises:
        InputError: an unknown need or name, or a named candidate that does not work here, with the reason.
    """
    unknown = sorted(set(names) - set(NEEDS))
    if unknown:
        raise InputError(f"There is no need called {unknown[0]!r}; the needs are {', '.join(NEEDS)}.")
    kind = _kind(device)
    found = {need: _find(need, names.get(need, AUTO), device) for need in NEEDS}
    with _lock:
        _chosen.update({(need, kind): pair for need, pair in found.items()})
    return {need: candidate for need, (candidate, _) in found.items()}


def use(need: str, name: str, device: Any) -> None:
    """Decide one need, by the name of a candidate; the others stay as they are.

    Raises:
        InputError: a candidate that does not exist or does not work here, with the reason.
    """
    found = _find(need, name, device)
    with _lock:
        _chosen[need, _kind(device)] = found


def of(need: str, device: Any) -> ModuleType:
    """The implementation that meets a need on a device."""
    return _lookup(need, device)[1]


def choice(need: str, device: Any) -> Candidate:
    """The candidate that meets a need on a device."""
    return _lookup(need, device)[0]


def name_of(need: str, device: Any) -> str:
    """Its name."""
    return choice(need, device).name


def place(need: str, device: Any) -> Any:
    """Where to keep the tensors of long work with a need: `device`, or the one that what meets it there computes on."""
    return choice(need, device).computes_on or device


def used(device: Any) -> dict[str, Candidate]:
    """By need, what does the work on a device, as far as it has been decided."""
    kind = _kind(device)
    return {need: _chosen[need, kind][0] for need in NEEDS if (need, kind) in _chosen}


def candidates(need: str, device: Any) -> list[Candidate]:
    """Those that could meet a need on a device, in the order in which `auto` tries them."""
    return [candidate for candidate in NEEDS[need] if _kind(device) in candidate.devices]


def states(device: Any) -> Iterator[State]:
    """Try every candidate for a device: imports its package and runs its self-test."""
    for need in NEEDS:
        for candidate in candidates(need, device):
            yield examine(need, candidate, device)


def examine(need: str, candidate: Candidate, device: Any) -> State:
    """Whether one candidate works on a device. Never raises: whatever goes wrong is the reason."""
    try:
        _load(candidate, device)
    except ModuleNotFoundError as error:
        if candidate.package is not None and error.name == candidate.package:
            return State(need, candidate, "absent", f"{candidate.package} is not installed")
        return State(need, candidate, "broken", _sentence(error))
    except Exception as error:  # a third party's import or kernel may fail in any way
        return State(need, candidate, "broken", _sentence(error))
    return State(need, candidate, "ready")


def _lookup(need: str, device: Any) -> tuple[Candidate, ModuleType]:
    key = need, _kind(device)
    found = _chosen.get(key)
    if found is None:
        with _lock:
            found = _chosen[key] = _chosen.get(key) or _find(need, AUTO, device)
    return found


def _find(need: str, name: str, device: Any) -> tuple[Candidate, ModuleType]:
    possible = candidates(need, device)
    if name != AUTO:
        named = [candidate for candidate in possible if candidate.name == name]
        if not named:
            choices = ", ".join([AUTO, *(candidate.name for candidate in possible)])
            raise InputError(f"The {_spoken(need)} {name!r} does not exist on {_kind(device)}; choose from {choices}.")
        state = examine(need, named[0], device)
        if state.state != "ready":
            raise InputError(f"The {_spoken(need)} {name!r} cannot be used here: {state.reason}.")
        return named[0], _load(named[0], device)
    for candidate in possible:
        if examine(need, candidate, device).state == "ready":
            return candidate, _load(candidate, device)
    raise InputError(f"Nothing on this machine can do the {_spoken(need)}; `python -m studio doctor` says why.")


def _load(candidate: Candidate, device: Any) -> ModuleType:
    if candidate.package is not None:
        importlib.import_module(candidate.package)
    module = importlib.import_module(candidate.module)
    self_test = getattr(module, "self_test", None)
    if self_test is not None:
        self_test(device)
    return module


def _kind(device: Any) -> str:
    """ "cuda", or "cpu" for everything else: what is plain torch or moves its tensors runs on any device."""
    return "cuda" if str(getattr(device, "type", device)).split(":")[0] == "cuda" else "cpu"


def _spoken(need: str) -> str:
    return need.replace("_", " ")


def _sentence(error: Exception) -> str:
    """The first line of an error, which may have been written for a log."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}".rstrip(": .")[:300]
