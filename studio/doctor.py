"""What this machine has for the studio, what it lacks, and the one thing to do about each: a line each.

`python -m studio doctor`, or `python -m studio.doctor` where not even the command line's own packages are installed:
this module and its helpers need nothing but Python to explain what is missing. Exit status 3 if there is a problem.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from studio import doctor_faults as faults

PROBLEM_STATUS = 3
# import name -> pip name of everything the studio cannot do without.
_NEEDED = {
    "numpy": "numpy", "scipy": "scipy", "numba": "numba", "cv2": "opencv-python-headless", "PIL": "pillow",
    "safetensors": "safetensors", "huggingface_hub": "huggingface_hub", "trimesh": "trimesh", "xatlas": "xatlas",
    "fast_simplification": "fast-simplification", "imageio_ffmpeg": "imageio-ffmpeg", "pydantic": "pydantic",
    "typer": "typer", "rich": "rich", "psutil": "psutil",
}  # fmt: skip
# Matrix arithmetic of one generation with the published networks (4 views, 30 and 12 steps, 29,120 voxels), counted
# from their sizes, and how much of a plain product's speed the whole of it reaches.
_GENERATION_FLOP, _SHARE = 5e14, 0.5


@dataclass(frozen=True)
class Finding:
    """One line.

    state: "ok"; "optional", missing or unused and not needed; "broken", installed, not working and not needed;
        "problem", the studio will not work. fix: what to do, also at the end of `text`; empty if nothing is to be done.
    """

    name: str
    state: Literal["ok", "optional", "broken", "problem"]
    text: str
    fix: str = ""


def examine(checkpoint: str | None = None) -> Iterator[Finding]:
    """Look at everything; a check that itself fails is a finding, never an exception."""
    for name, check in (
        ("python", _python),
        ("packages", _packages),
        ("torch", _torch),
        ("gpu", _gpu),
        ("memory", _memory),
        ("backends", _backends),
        ("kernels", _kernels),
        ("checkpoint", lambda: _checkpoint(checkpoint)),
        ("published weights", _published),
        ("speed", _speed),
        ("video", _video),
        ("background removal", _background),
        ("stage cache", _cache),
    ):
        yield from _examined(name, check)


def main(arguments: list[str] | None = None) -> int:
    """Print all findings; 3 if one is a problem."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    status = 0
    for finding in examine(options.checkpoint):
        status = PROBLEM_STATUS if finding.state == "problem" else status
        print(json.dumps(vars(finding)) if options.json else f"{finding.state:9} {finding.name}: {finding.text}",
              flush=True)  # fmt: skip
    return status


def _finding(name: str, state: str, text: str, fix: str = "") -> Finding:
    return Finding(name, state, f"{text}; {fix}" if fix else text, fix)


def _examined(name: str, check: Callable[[], Finding | Iterator[Finding]]) -> Iterator[Finding]:
    try:
        found = check()
        yield from [found] if isinstance(found, Finding) else found
    except ModuleNotFoundError as error:
        yield _finding(name, "problem", f"cannot be examined without {error.name}", f"pip install {error.name}")
    except Exception as error:
        yield _finding(name, "problem", f"{type(error).__name__}: {error}")


def _python() -> Finding:
    text = f"{platform.python_version()} on {platform.platform()}"
    if (3, 10) <= sys.version_info[:2] <= (3, 12):
        return _finding("python", "ok", text)
    return _finding("python", "optional", text, "the studio is tested on Python 3.10, 3.11 and 3.12")


def _packages() -> Iterator[Finding]:
    absent, broken = [], []
    for module, name in _NEEDED.items():
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            (absent if error.name == module else broken).append((name, str(error)))
        except Exception as error:  # compiled parts fail in any way
            broken.append((name, f"{type(error).__name__}: {error}"))
    if absent:
        names = " ".join(name for name, _ in absent)
        yield _finding("packages", "problem", f"{len(absent)} packages are missing", f"pip install {names}")
    facts = faults.gather_facts() if broken else None
    for name, error in broken:
        yield _finding(name, "problem", _first_line(error), faults.diagnose(name, error, facts))
    if not absent and not broken:
        yield _finding("packages", "ok", f"all {len(_NEEDED)} can be imported")


def _torch() -> Finding:
    import torch

    text = f"{torch.__version__}, {torch.get_num_threads()} threads, CUDA {torch.version.cuda or 'not built in'}"
    return _finding("torch", "ok", text)


def _gpu() -> Finding:
    import torch

    driver = faults.nvidia_smi()
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        free = torch.cuda.mem_get_info(0)[0] / 2**30
        more = f" and {torch.cuda.device_count() - 1} more" if torch.cuda.device_count() > 1 else ""
        text = (
            f"{card.name}{more}, {card.total_memory / 2**30:.0f} GB ({free:.0f} free), compute capability "
            f"{card.major}.{card.minor}, driver {driver[1] if driver else 'unknown'}, CUDA {torch.version.cuda}"
        )
        if f"sm_{card.major}{card.minor}" in torch.cuda.get_arch_list() or card.major >= 8:
            return _finding("gpu", "ok", text)
        return _finding("gpu", "problem", text, f"this torch holds no code for it: use --device cpu, or a torch built "
                        f"for compute capability {card.major}.{card.minor}")  # fmt: skip
    if driver is None:
        return _finding("gpu", "optional", "none; everything runs on the CPU")
    name, number = driver
    if torch.version.cuda is None:
        return _finding("gpu", "problem", f"{name} is there, but this torch was built without CUDA",
                        "install torch from its CUDA index: pip install --force-reinstall torch")  # fmt: skip
    return _finding("gpu", "problem", f"{name} is there, but torch cannot use it with driver {number}",
                    f"install a driver for CUDA {torch.version.cuda}, or a torch built for an older CUDA")  # fmt: skip


def _memory() -> Finding:
    import torch

    from studio.memory import free

    available = free(torch.device("cpu")).bytes / 2**30
    return _finding("memory", "ok" if available > 2 else "problem", f"{available:.1f} GB free (2 GB are needed)")


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _backends() -> Iterator[Finding]:
    from trellis import backends

    device, facts = _device(), faults.gather_facts()
    for need in backends.NEEDS:
        states = [backends.examine(need, candidate, device) for candidate in backends.candidates(need, device)]
        chosen = next((state for state in states if state.state == "ready"), None)
        if chosen is None:
            yield _finding(need, "problem", f"nothing works: {_first_line(states[0].reason)}")
        for state in states:
            yield _backend(state, state is chosen, facts)
    algorithm = faults.spconv_algorithm()
    if algorithm:
        yield _finding("sparse_convolution: spconv", "optional", algorithm)


def _backend(state: Any, used: bool, facts: faults.Facts) -> Finding:
    candidate, name = state.candidate, f"{state.need}: {state.candidate.name}"
    if state.state == "ready":
        number = facts.packages.get(facts.distribution(candidate.package), "") if candidate.package else ""
        text = f"found{f' ({number})' if number else ''}, " + ("used" if used else "used if asked for by name")
        return _finding(name, "ok", text)
    if state.state == "absent":
        return _finding(name, "optional", "absent", faults.installation(candidate.package))
    return _finding(name, "broken", state.reason, faults.diagnose(candidate.package, state.reason, facts))


def _kernels() -> Finding:
    from studio.engine import warm_up

    started = time.monotonic()
    warm_up()
    return _finding("kernels", "ok", f"all renderers ran after {time.monotonic() - started:.1f} s")


def _checkpoint(checkpoint: str | None) -> Finding:
    from studio.engine import chosen_checkpoint
    from trellis.errors import InputError
    from trellis.pipelines import Checkpoint

    try:
        name = chosen_checkpoint(checkpoint)
        opened = Checkpoint(name)
    except InputError as error:
        return _finding("checkpoint", "problem", str(error))
    size = sum(file.stat().st_size for file in opened.folder.rglob("*") if file.is_file()) if opened.folder else 0
    kept = f", {size / 2**20:,.0f} MB" if size else ", from the hub's cache"
    return _finding("checkpoint", "ok", f"{name}{kept}")


def _published() -> Finding:
    from studio import weights

    folders = [weights.default_folder(), *map(Path, filter(None, [os.environ.get("RECONSTUDIO_CHECKPOINT")]))]
    folder = next((folder for folder in folders if (folder / weights.LOCK).is_file()), None)
    if folder is None:
        return _finding("published weights", "optional", f"not in {folders[0]} (9 GB)",
                        "fetch them with: python -m studio weights fetch")  # fmt: skip
    record = weights.Record.read(folder)
    wrong = [name for name, entry in record.files.items()
             if not (folder / name).is_file() or (folder / name).stat().st_size != entry["bytes"]]  # fmt: skip
    size = sum(entry["bytes"] for entry in record.files.values()) / 1e9
    if wrong:
        return _finding("published weights", "broken", f"{folder}: {wrong[0]} is missing or cut short",
                        f"python -m studio weights fetch --to {folder}")  # fmt: skip
    return _finding("published weights", "ok", f"{folder}: {len(record.files)} files, {size:.2f} GB")


def _speed() -> Finding:
    """How fast matrices are multiplied, and what follows for a generation."""
    import torch

    on_gpu = _device() == "cuda"
    side, dtype = (8192, torch.bfloat16) if on_gpu else (1024, torch.float32)
    a = torch.ones(side, side, dtype=dtype, device=_device())
    a @ a
    best = 0.0
    for _ in range(3):
        if on_gpu:
            torch.cuda.synchronize()
        started = time.perf_counter()
        a @ a
        if on_gpu:
            torch.cuda.synchronize()
        best = max(best, 2 * side**3 / (time.perf_counter() - started))
    seconds = _GENERATION_FLOP / (_SHARE * best)
    text = f"{best / 1e12:.2f} TFLOP/s in {str(dtype).removeprefix('torch.')}"
    if on_gpu:
        return _finding("speed", "ok", f"{text}: the published networks sample for about {seconds:.1f} s")
    return _finding("speed", "ok", f"{text}: the embedded networks take a minute or two, the published ones "
                    f"{seconds / 60:.0f} minutes")  # fmt: skip


def _video() -> Finding:
    import imageio_ffmpeg

    return _finding("video", "ok", f"ffmpeg {imageio_ffmpeg.get_ffmpeg_version()}")


def _background() -> Finding:
    from trellis.pipelines.background import rembg_available

    if rembg_available():
        return _finding("background removal", "ok", "rembg")
    return _finding("background removal", "optional", "GrabCut; rembg or its model is not installed")


def _cache() -> Finding:
    from studio.cache import StageCache, default_folder

    folder = default_folder()
    if folder is None:
        return _finding("stage cache", "optional", "switched off")
    parent = next(place for place in (folder, *folder.parents) if place.exists())
    room = shutil.disk_usage(parent).free / 2**30
    used = StageCache(folder).size() / 2**20
    return _finding("stage cache", "ok" if room > 1 else "optional", f"{folder}: {used:.0f} MB, {room:.0f} GB free")


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")[:300]


if __name__ == "__main__":
    sys.exit(main())
