"""Files that other tools read: requirement lists, the Space's front matter, the CI entry, and what imports what."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def requirements(name: str) -> list[str]:
    lines = (ROOT / name).read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def named(lines: list[str]) -> dict[str, str]:
    """Distribution -> what its line asks for: "==2.4.0", ">=4.4", "@ address"."""
    found = {}
    for line in lines:
        name, rest = re.fullmatch(r"([A-Za-z0-9_-]+) *(.*)", line).groups()
        found[name.lower().replace("_", "-")] = rest
    return found


# List -> its Python, and the pinned versions of which the package index has a wheel for that Python, Linux and x86-64
# (looked up one by one with `pip install --dry-run --only-binary=:all: --python-version ...`; for requirements.txt also
# the whole list, which resolves).
PINNED = {
    "requirements.txt": (
        "3.10",
        {"torch": "2.4.0", "torchvision": "0.19.0", "xformers": "0.0.27.post2", "spconv-cu120": "2.3.6"},
    ),
    "requirements-cuda13.txt": (
        "3.12",
        {"torch": "2.11.0", "torchvision": "0.26.0", "spconv-cu126": "2.3.8", "gsplat": "1.5.3"},
    ),
    "requirements-cpu.txt": ("3.11", {"torch": "2.13.0"}),
}
# torch -> the torchvision of the same release, and the newest xformers whose kernels load with it and its CUDA, if any.
RELEASES = {"2.4.0": {"torchvision": "0.19.0", "xformers": "0.0.27.post2"}, "2.11.0": {"torchvision": "0.26.0"}}


@pytest.mark.parametrize("file", PINNED)
def test_pins_are_those_that_were_looked_up(file):
    asked = named(requirements(file))
    assert {name: text[2:] for name, text in asked.items() if text.startswith("==")} == PINNED[file][1]
    assert requirements(file)[0].startswith("torch==")
    assert not any(line.startswith("-") for line in requirements(file))  # no index addresses, no nested files
    torch = asked["torch"][2:]
    if torch in RELEASES:
        assert {name: asked[name][2:] for name in ("torchvision", "xformers") if name in asked} == RELEASES[torch]


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-cuda13.txt"])
def test_every_list_holds_what_the_studio_needs(file):
    """At the bounds of the CPU list; a list may only be stricter."""
    needed, given = named(requirements("requirements-cpu.txt")), named(requirements(file))
    for name, bound in needed.items():
        if name == "torch" or (name == "gradio" and file == "requirements.txt"):
            continue  # pinned by itself; for a Space, gradio comes with sdk_version
        assert given[name].startswith(bound), name


def test_the_space_stack_is_for_one_python_and_numpy_1():
    asked = named(requirements("requirements.txt"))
    assert asked["numpy"].endswith(",<2") and "gradio" not in asked
    matter = (ROOT / "README.md").read_text().split("---\n")[1]
    assert f'python_version: "{PINNED["requirements.txt"][0]}"' in matter
    addresses = {name: text for name, text in asked.items() if text.startswith("@")}
    assert set(addresses) == {"flash-attn", "nvdiffrast", "diff-gaussian-rasterization"}
    assert "torch2.4" in addresses["flash-attn"] and "2.7.0.post2" in addresses["flash-attn"]
    assert addresses["nvdiffrast"].endswith("@v0.3.3")
    for text in addresses.values():
        assert text.endswith("-cp310-cp310-linux_x86_64.whl") or text.startswith("@ git+https://github.com/")


def test_front_matter():
    matter = (ROOT / "README.md").read_text().split("---\n")[1]
    values = dict(line.split(": ", 1) for line in matter.splitlines())
    assert values["sdk"] == "gradio" and values["sdk_version"].startswith("6.")
    assert (ROOT / values["app_file"]).is_file()
    assert values["license"] == "apache-2.0" and "Apache License" in (ROOT / "LICENSE").read_text()


def test_the_ci_entry_runs_make_test():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    assert "make test" in script.read_text()


def test_only_the_pages_import_gradio():
    for file in [*(ROOT / "studio").rglob("*.py"), *(ROOT / "trellis").rglob("*.py")]:
        if (ROOT / "studio" / "pages") not in file.parents:
            assert not {"gradio"} & _imports(file), file
    for file in (ROOT / "trellis").rglob("*.py"):
        assert not {"studio", "training"} & _imports(file), file


def _imports(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


def test_the_settings_table_of_the_readme_is_right():
    from studio.settings import ReconstructSettings, leaves

    readme = (ROOT / "README.md").read_text()
    for setting in leaves():
        if setting.path[0] == "latent":
            continue
        row = re.search(rf"^\| `{setting.key}` \| (.*?) \| (.*?) \|", readme, re.MULTILINE)
        assert row, setting.key
        default = setting.of(ReconstructSettings())
        if isinstance(default, (int, float)) and not isinstance(default, bool):
            assert float(row[2]) == default
            assert row[1].startswith(f"{setting.low:g}" if setting.key != "simplify" else "0.90")


@pytest.mark.parametrize("module", ["studio.settings", "studio.inputs", "studio.cli"])
def test_light_modules_stay_light(module):
    """`--help` and a refused file must not wait for torch."""
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'gradio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("module", ["studio.cli", "training", "trellis"])
def test_the_environment_is_set_before_torch(module):
    code = (
        "import os, sys; [os.environ.pop(k, None) for k in ('OMP_WAIT_POLICY', 'NUMBA_THREADING_LAYER')];"
        f"import {module}; sys.exit(os.environ['OMP_WAIT_POLICY'] != 'PASSIVE' or 'torch' in sys.modules"
        " or os.environ['NUMBA_THREADING_LAYER'] != 'omp')"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("app", ["app.py", "app_refine.py"])
def test_an_option_that_an_app_does_not_have_is_refused(app):
    run = subprocess.run([sys.executable, app, "--port", "1"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 2 and "unrecognized arguments: --port" in run.stderr
