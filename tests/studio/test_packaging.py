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


def test_the_space_installs_what_the_studio_needs():
    cpu, space = requirements("requirements-cpu.txt"), requirements("requirements.txt")
    assert space == [line for line in cpu if not line.startswith("gradio")]
    assert cpu[0] == "torch==2.13.0"
    assert not any(line.startswith("-") for line in cpu + space)  # no index addresses, no nested files


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


def test_the_environment_is_set_before_torch():
    code = (
        "import os, sys; [os.environ.pop(k, None) for k in ('OMP_WAIT_POLICY', 'NUMBA_THREADING_LAYER')];"
        "import studio.cli; sys.exit(os.environ['OMP_WAIT_POLICY'] != 'PASSIVE' or 'torch' in sys.modules"
        " or os.environ['NUMBA_THREADING_LAYER'] != 'omp')"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
