from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh

from trellis.errors import InputError
from trellis.export.photographs import Photographs
from trellis.renderers.cameras import orbit
from trellis.representations.mesh import MeshExtractResult
from trellis.utils.postprocessing_utils import to_glb


@pytest.fixture(scope="module")
def bowl() -> MeshExtractResult:
    """A grey ball whose top is cut off: a hole too large to be closed without being asked."""
    ball = trimesh.creation.icosphere(subdivisions=4, radius=0.4)
    faces = ball.faces[ball.triangles_center[:, 2] < 0.2]
    vertices = torch.from_numpy(ball.vertices).float()
    return MeshExtractResult(vertices, torch.from_numpy(faces.copy()), torch.full((len(vertices), 6), 0.5))


def test_options_reach_the_export(bowl, tmp_path):
    file = tmp_path / "bowl.glb"
    seen = []
    mesh = to_glb(
        None, bowl, texture_size=64, target_faces=1200, watertight=True, longest_side=0.1, file=file,
        image_format="webp", callback=lambda *step: seen.append(step),
    )  # fmt: skip
    assert trimesh.Trimesh(mesh.vertices, mesh.faces).is_watertight
    assert abs(len(mesh.faces) - 1200) < 100 and mesh.extents.max() == pytest.approx(0.1, rel=1e-5)
    assert b"EXT_texture_webp" in file.read_bytes() and seen[0] == ("clean", 0, 1)
    (written,) = trimesh.load_scene(file).geometry.values()
    assert np.allclose(written.vertices, mesh.vertices, atol=1e-6) and np.array_equal(written.faces, mesh.faces)
    assert not trimesh.Trimesh(*(lambda m: (m.vertices, m.faces))(to_glb(None, bowl, texture_size=64))).is_watertight


def test_photographs_paint_what_they_see(bowl):
    cameras = orbit(torch.zeros(1), torch.zeros(1), 2.0, 40.0, 96)
    red = torch.zeros(3, 96, 96)
    red[0] = 1
    mesh = to_glb(None, bowl, texture_size=64, photographs=Photographs([red], cameras))
    texture = np.asarray(mesh.visual.material.baseColorTexture.convert("RGB")).reshape(-1, 3)
    assert (texture == [255, 0, 0]).all(axis=1).any() and (np.abs(texture.astype(int) - 128) <= 2).all(axis=1).any()


def test_a_failure_leaves_the_earlier_file(bowl, tmp_path):
    file = tmp_path / "bowl.glb"
    file.write_bytes(b"before")
    for options in ({"longest_side": -1.0}, {"image_format": "tiff"}, {"texture_size": 3}):
        with pytest.raises(InputError):
            to_glb(None, bowl, file=file, **{"texture_size": 64, **options})
    assert file.read_bytes() == b"before"
