"""The Dockerfile, by the rules of hadolint that apply to it, and against the files that it installs from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
KNOWN = {"FROM", "SHELL", "ENV", "RUN", "WORKDIR", "COPY", "USER", "VOLUME", "EXPOSE", "HEALTHCHECK", "CMD"}


def stages() -> dict[str, list[tuple[str, str]]]:
    """Instructions of each stage, continuation lines joined."""
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    found: dict[str, list[tuple[str, str]]] = {}
    for line in filter(None, (line.strip() for line in text.splitlines())):
        if line.startswith("#"):
            continue
        word, _, rest = line.partition(" ")
        assert word in KNOWN, line
        if word == "FROM":
            image, _, name = rest.partition(" AS ")
            found[name] = []
        list(found.values())[-1].append((word, re.sub(r" +", " ", rest)))
    return found


def arguments(stage: str, word: str) -> list[str]:
    return [rest for instruction, rest in stages()[stage] if instruction == word]


both = pytest.mark.parametrize("stage", ["cuda", "cpu"])


def test_there_are_two_images():
    images = {stage: arguments(stage, "FROM")[0] for stage in stages()}
    assert images == {
        "cuda": "nvidia/cuda:12.1.1-cudnn8-devel-ubuntu22.04 AS cuda",
        "cpu": "python:3.11-slim-bookworm AS cpu",
    }


@both
def test_images_are_tagged_and_names_end_a_stage(stage):
    assert re.fullmatch(r"[a-z0-9./-]+:(?!latest)[\w.-]+ AS \w+", arguments(stage, "FROM")[0])  # DL3006, DL3007


@both
def test_shell_commands(stage):
    for command in arguments(stage, "RUN"):
        assert "sudo" not in command and not re.search(r"\bcd /", command)  # DL3004, DL3003
        if "apt-get install" in command:
            assert "apt-get update" in command and "--no-install-recommends" in command  # DL3009, DL3015
            assert "apt-get install -y" in command and "rm -rf /var/lib/apt/lists/*" in command  # DL3014, DL3009
    assert arguments(stage, "SHELL") == ['["/bin/bash", "-o", "pipefail", "-c"]']  # DL4006
    assert "PIP_NO_CACHE_DIR=1" in arguments(stage, "ENV")[0]  # DL3042


@both
def test_it_runs_as_a_user_with_a_check_and_a_volume(stage):
    instructions = [word for word, _ in stages()[stage]]
    assert arguments(stage, "USER") == ["studio"]  # DL3002
    assert instructions.index("USER") < instructions.index("CMD")
    assert len(arguments(stage, "CMD")) == len(arguments(stage, "HEALTHCHECK")) == 1  # DL4003, DL3057
    assert arguments(stage, "CMD")[0].startswith("[")  # DL3025
    assert all(path.startswith("/") for path in arguments(stage, "WORKDIR"))  # DL3000
    assert arguments(stage, "VOLUME") == ["/weights"] and arguments(stage, "EXPOSE") == ["7860"]
    made = next(command for command in arguments(stage, "RUN") if "mkdir /weights" in command)
    assert "chown studio /weights" in made


@both
def test_torch_comes_first_from_the_list_of_its_image(stage):
    file = {"cuda": "requirements.txt", "cpu": "requirements-cpu.txt"}[stage]
    assert arguments(stage, "COPY") == [f"{file} ./", "--chown=studio . ."]
    installs = [command for command in arguments(stage, "RUN") if "pip install" in command]
    pattern = re.search(r"grep -E '([^']+)' " + re.escape(file), installs[0])[1]
    first = [line for line in (ROOT / file).read_text().splitlines() if re.match(pattern, line)]
    assert first and first[0].startswith("torch==")
    assert f"-r {file}" in installs[1]


def test_the_python_of_the_cuda_image_is_that_of_its_list():
    """Ubuntu 22.04 has Python 3.10, which the pins of requirements.txt are for."""
    assert "ubuntu22.04" in arguments("cuda", "FROM")[0]
    assert 'python_version: "3.10"' in (ROOT / "README.md").read_text()


def test_what_is_copied_is_there_and_what_is_ignored_is_not_needed():
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert ".git" in ignored and ".venv" in ignored
    for name in ("app.py", "studio", "trellis", "assets", "nvdiffrec", "requirements.txt"):
        assert (ROOT / name).exists() and name not in ignored
