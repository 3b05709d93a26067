"""The Khronos validator on exported files. `make gltf-validator` installs it into the git-ignored node_modules."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from shapes import mesh_of, patch_cube, sphere

from trellis.export import ExportOptions, export_mesh
from trellis.export.clean import CleanOptions
from trellis.export.photographs import Photographs
from trellis.renderers.cameras import orbit

ROOT = Path(__file__).parents[2]
QUICK = ExportOptions(num_views=8, view_resolution=128, clean=CleanOptions(num_views=8, resolution=128))


@pytest.fixture(scope="module")
def validate():
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed, and the Khronos glTF validator runs on it")
    root = Path(os.environ.get("GLTF_VALIDATOR_ROOT", ROOT))
    if not (root / "node_modules" / "gltf-validator").is_dir():
        pytest.skip(
            f"the npm package gltf-validator is not in {root / 'node_modules'}: "
            "run `make gltf-validator`"
        )

    def run(*files: Path) -> list[dict]:
        script = Path(__file__).with_name("validate_gltf.js")
        command = [node, str(script), *map(str, files)]
        environment = {**os.environ, "VALIDATOR_ROOT": str(root)}
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


def test_exported_files_pass_without_error_or_warning(validate, tmp_path):
    ball = sphere(0.4, 3)
    closed = replace(QUICK, target_faces=400, clean=replace(QUICK.clean, watertight=True))
    photographs = Photographs([torch.rand(3, 64, 64)], orbit(torch.zeros(1), torch.zeros(1), 2.0, 40.0, 64))
    assets = {
        "cube": export_mesh(patch_cube(6), None, 0.5, 64, QUICK),
        "ball": export_mesh(mesh_of(ball.vertices, ball.faces), None, 0.0, 128, QUICK),
        "closed": export_mesh(mesh_of(ball.vertices, ball.faces[40:]), None, 0.0, 64, closed, None, photographs),
        "triangle": export_mesh(mesh_of(np.eye(3) * 0.4, [[0, 1, 2]]), None, 0.0, 64, QUICK),
    }
    files = []
    for name, asset in assets.items():
        for image_format, longest_side in (("png", None), ("webp", 0.12)):
            files.append(tmp_path / f"{name}_{image_format}.glb")
            asset.export(files[-1], longest_side, image_format)
    for file, issues in zip(files, validate(*files), strict=True):
        assert (issues["numErrors"], issues["numWarnings"]) == (0, 0), f"{file.name}: {issues['messages']}"


def test_the_validator_does_see_faults(validate, tmp_path):
    asset = export_mesh(patch_cube(2), None, 0.0, 64, QUICK)
    path = tmp_path / "asset.glb"
    asset.export(path)
    path.write_bytes(path.read_bytes().replace(b'"count":', b'"byteOffset":2,"count":'[:8], 1))
    (issues,) = validate(path)
    assert issues["numErrors"] > 0
