"""House rules that a file can break by itself: who imports whom, what an import costs, no traces of one machine."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Modules of no room, which import nothing of this repository and may be imported anywhere.
LEAVES = {"trellis.backends", "trellis.errors", "trellis.files"}
# Room -> the rooms and modules of this repository that its files may import, beside their own and LEAVES.
MAY_IMPORT = {
    "trellis.modules": set(),
    "trellis.representations": set(),
    "trellis.models": {"trellis.modules", "trellis.representations"},
    "trellis.renderers": {"trellis.representations"},
    "trellis.export": {"trellis.representations", "trellis.renderers"},
    "trellis.utils": {"trellis.representations", "trellis.renderers", "trellis.export"},
    "trellis.pipelines": {"trellis.modules", "trellis.models", "trellis.representations", "trellis.renderers"},
    "nvdiffrec": {
        "trellis.representations", "trellis.renderers", "trellis.export", "trellis.pipelines.image_files"
    },
    "studio": {"trellis", "nvdiffrec", "studio.pages.launch"},  # the command line opens the page
    "studio.pages": {"studio", "trellis", "nvdiffrec"},
    "training": {"trellis"},
    **{leaf: set() for leaf in LEAVES},
}  # fmt: skip
ROOMS = sorted({name.split(".")[0] for name in MAY_IMPORT})
EXTERNAL = {"gradio": {"studio.pages"}, "numba": {"trellis.renderers"}, "torchvision": set(), "einops": set()}


def sources() -> list[Path]:
    return sorted(file for room in ROOMS for file in (ROOT / room).rglob("*.py"))


def module_of(file: Path) -> str:
    parts = list(file.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(file: Path) -> Iterator[str]:
    """Absolute names of the modules that a file imports anywhere, inside functions too."""
    package = module_of(file) if file.name == "__init__.py" else module_of(file).rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            # `from trellis import models` imports a module of that name, `from trellis.errors import X` does not.
            yield from (f"{base}.{alias.name}" if _is_module(f"{base}.{alias.name}") else base for alias in node.names)


def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def room_of(module: str) -> str:
    """The most exact room of MAY_IMPORT that holds a module; the module's top package if none does."""
    parts = module.split(".")
    names = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((name for name in names if name in MAY_IMPORT), parts[0])


def is_within(module: str, room: str) -> bool:
    return module == room or module.startswith(f"{room}.")


@pytest.mark.parametrize("package", ROOMS)
def test_imports_point_one_way(package):
    wrong = []
    for file in (ROOT / package).rglob("*.py"):
        room = room_of(module_of(file))
        for name in imports_of(file):
            if name.split(".")[0] not in ROOMS or room == "trellis" or room_of(name) == room:
                continue
            if not any(is_within(name, allowed) for allowed in MAY_IMPORT[room] | LEAVES):
                wrong.append(f"{file.relative_to(ROOT)} imports {name}")
    assert wrong == []


@pytest.mark.parametrize("library", EXTERNAL)
def test_libraries_stay_in_their_rooms(library):
    users = {room_of(module_of(file)) for file in sources() if library in {n.split(".")[0] for n in imports_of(file)}}
    assert users <= EXTERNAL[library]


def test_rooms_are_known():
    """A new room states here what it may import."""
    rooms = {room_of(module_of(file)) for file in sources()} - {"trellis"}
    assert rooms <= set(MAY_IMPORT)


@pytest.mark.parametrize("module", ["trellis", "trellis.models", "trellis.pipelines", "studio"])
def test_an_import_loads_no_network_and_opens_no_connection(module):
    """Neither kind of network: torch stays out, and any connection attempt fails the import."""
    code = f"""
import socket, sys
def refuse(*args, **kwargs): raise SystemExit("a connection was opened")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import {module}
sys.exit(", ".join(sorted({{"torch", "numba", "gradio", "huggingface_hub", "scipy"}} & set(sys.modules))) or 0)
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_no_file_names_a_place_on_one_machine():
    """Folders where people's or build machines' files live; names of devices and of system folders are fine."""
    place = re.compile(rb"(?<![\w.$}/-])/(?:home|Users|root|work|mnt|workspace|scratch)/[\w.-]+")
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout, so there is no list of tracked files")
    found = []
    for name in filter(None, listed.decode().split("\0")):
        file = ROOT / name
        data = file.read_bytes() if file.is_file() else b""
        if b"\0" not in data[:8192]:
            found += [f"{name}: {match.decode()}" for match in place.findall(data)]
    assert found == []
