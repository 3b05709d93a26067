"""What is wrong with a package that does not work, and the one thing to do about it.

Packages with compiled parts fail in few ways, which their error messages hide well. `diagnose` is a function of the
message and of the facts about the machine, so that each fault can be tested without having it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata

# How a package is called by pip where that is not its import name; the first installed one is meant.
DISTRIBUTIONS = {
    "flash_attn": ("flash-attn",),
    "spconv": ("spconv-cu120", "spconv-cu121", "spconv-cu124", "spconv-cu126", "spconv-cu118", "spconv"),
    "diff_gaussian_rasterization": ("diff-gaussian-rasterization",),
}
# Where what pip's index does not hold comes from.
SOURCES = {
    "nvdiffrast": "git+https://github.com/NVlabs/nvdiffrast",
    "diff_gaussian_rasterization": "the folder submodules/diff-gaussian-rasterization of a mip-splatting checkout",
}
# torch and the CUDA version it was built with -> the xformers whose kernels load there. None load with CUDA 13 (seen on
# an H100: 0.0.35 beside torch 2.11 for CUDA 13.0 finds no operator).
XFORMERS = {("2.4.0", "12"): "0.0.27.post2", ("2.10", "12"): "0.0.35", ("2.11", "12"): "0.0.35"}


@dataclass(frozen=True)
class Facts:
    """What matters to packages with compiled parts.

    torch, cuda: torch's version and the CUDA version it was built with; None without. numpy: its version. nvcc: where
    the CUDA compiler is, None if it is not on the path. packages: installed version by distribution.
    """

    torch: str | None = None
    cuda: str | None = None
    numpy: str | None = None
    nvcc: str | None = None
    packages: dict[str, str] = field(default_factory=dict)

    def distribution(self, package: str) -> str:
        """The name under which pip knows an imported package here."""
        names = DISTRIBUTIONS.get(package, (package,))
        return next((name for name in names if name in self.packages), names[0])


def gather_facts() -> Facts:
    """The facts about this machine; what cannot be found out is None."""
    names = {name for names in DISTRIBUTIONS.values() for name in names}
    names |= {"xformers", "gsplat", "nvdiffrast", "triton"}
    packages = {name: found for name in names if (found := version(name)) is not None}
    cuda = None
    try:
        import torch

        cuda = torch.version.cuda
    except Exception:  # the doctor's line on torch says why
        cuda = None
    return Facts(version("torch"), cuda, version("numpy"), shutil.which("nvcc"), packages)


def version(distribution: str) -> str | None:
    """Its installed version, None if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def installation(package: str) -> str:
    """How to install a package that is absent."""
    if package in SOURCES:
        return f"install it from {SOURCES[package]}"
    name = "spconv-cu126" if package == "spconv" else DISTRIBUTIONS.get(package, (package,))[0]
    return f"pip install {name}"


def diagnose(package: str | None, error: str, facts: Facts) -> str:
    """One sentence: the most likely fault behind an error, and its fix."""
    for rule in _RULES:
        sentence = rule(package or "", error, facts)
        if sentence:
            return sentence
    return f"reinstall it: pip install --force-reinstall --no-deps {facts.distribution(package or 'torch')}"


def _cuda_library(package: str, error: str, facts: Facts) -> str | None:
    """A library of another CUDA major version is asked for."""
    match = re.search(r"lib(?:cudart|cublas|cusparse|nvrtc|cudnn|cufft|curand)\S*?\.so\.(\d+)", error)
    if match is None:
        return None
    return (
        f"it was built for CUDA {match[1]}, and torch {facts.torch} here uses CUDA {facts.cuda or 'none'}: install the "
        f"{facts.distribution(package)} built for CUDA {(facts.cuda or 'of your torch').split('.')[0]}"
    )


def _compiler_mismatch(package: str, error: str, facts: Facts) -> str | None:
    """A package that compiles itself meets an nvcc of another CUDA than torch's."""
    if "mismatches the version that was used to compile" not in error:
        return None
    return f"the CUDA compiler on this machine is not that of torch: put the nvcc of CUDA {facts.cuda} first on PATH"


def _no_compiler(package: str, error: str, facts: Facts) -> str | None:
    """A package wants to compile itself and cannot."""
    if re.search(r"CUDA_HOME|nvcc", error):
        where = f"{facts.nvcc} does not work" if facts.nvcc else "there is no nvcc"
        return (
            f"it has to be compiled, and {where}: install the CUDA {facts.cuda} toolkit, or a wheel of "
            f"{facts.distribution(package)} that was compiled for torch {facts.torch}"
        )
    if re.search(r"[Nn]inja", error):
        return "it has to be compiled with ninja: pip install ninja"
    if re.search(r"Failed to find C compiler|Python\.h", error):
        return "its kernels are started through a small C program: install gcc and the headers of Python (python3-dev)"
    return None


def _numpy(package: str, error: str, facts: Facts) -> str | None:
    """A package compiled for numpy 1, or using what numpy 2 has removed."""
    old = r"numpy\.core\.multiarray|_ARRAY_API|compiled using NumPy 1|np\.(?:bool|int|float|object)\b|numpy.dtype size"
    if (facts.numpy or "0").split(".")[0] < "2" or not re.search(old, error):
        return None
    return f"{facts.distribution(package)} needs numpy 1, and {facts.numpy} is installed: pip install 'numpy<2'"


def _xformers(package: str, error: str, facts: Facts) -> str | None:
    """xformers imports under any torch and then finds none of its kernels."""
    if package != "xformers" or not re.search(r"No operator found|can't load C\+\+|undefined symbol|xFormers", error):
        return None
    found = facts.packages.get("xformers", "?")
    for (torch, cuda), matching in XFORMERS.items():
        if (facts.torch or "").startswith(torch) and (facts.cuda or "").startswith(cuda) and matching != found:
            return (
                f"xformers {found} was built for another torch than {facts.torch}: "
                f"pip install --no-deps xformers=={matching}"
            )
    return (
        f"no published xformers has kernels for torch {facts.torch} with CUDA {facts.cuda}, and torch's own attention "
        "serves as well: pip uninstall xformers"
    )


def _binary_interface(package: str, error: str, facts: Facts) -> str | None:
    """Compiled against another torch: a C++ name is missing."""
    if "undefined symbol" not in error and "symbol not found" not in error:
        return None
    name = facts.distribution(package)
    return (
        f"it was compiled for another torch than {facts.torch} (its C++ interface differs): install the {name} wheel "
        f"for that version, or pip install --force-reinstall --no-build-isolation --no-cache-dir {name}"
    )


def _no_kernel(package: str, error: str, facts: Facts) -> str | None:
    """Built without code for this generation of cards."""
    if "no kernel image" not in error:
        return None
    return f"it holds no code for this card: install a newer {facts.distribution(package)}, or compile it here"


def _dependency(package: str, error: str, facts: Facts) -> str | None:
    """It imports something that is not there."""
    match = re.search(r"No module named '([\w.]+)'", error)
    return f"it needs another package: pip install {match[1].split('.')[0]}" if match else None


def _memory(package: str, error: str, facts: Facts) -> str | None:
    """Not the package's fault."""
    return "the card's memory is full: end other programs on it" if "out of memory" in error.lower() else None


_RULES: tuple[Callable[[str, str, Facts], str | None], ...] = (
    _xformers, _cuda_library, _compiler_mismatch, _numpy, _binary_interface, _no_kernel, _no_compiler, _memory,
    _dependency,
)  # fmt: skip


def spconv_algorithm() -> str | None:
    """What is wrong with SPCONV_ALGO; None if nothing."""
    chosen = os.environ.get("SPCONV_ALGO", "native")
    if chosen == "native":
        return None
    return (
        f"SPCONV_ALGO is {chosen!r}, which tunes itself for seconds whenever an object has another size; unset it, and "
        "the studio sets native"
    )


def nvidia_smi() -> tuple[str, str] | None:
    """Name of the first card and the driver's version, as the driver tells them; None without a driver."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
        name, driver = answer.splitlines()[0].rsplit(", ", 1)
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        return None
    return name, driver
