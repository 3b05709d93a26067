from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import trimesh

from trellis.errors import InputError
from trellis.renderers.cameras import turntable
from trellis.representations.gaussian import SH_DC, Gaussian
from trellis.utils.render_utils import render_multiview, render_snapshot, render_video


def red_box() -> SimpleNamespace:
    box = trimesh.creation.box(extents=(0.5, 0.5, 0.5))
    attributes = torch.tensor([[1.0, 0, 0, 0, 0, 0]]).repeat(len(box.vertices), 1)
    return SimpleNamespace(
        vertices=torch.from_numpy(np.array(box.vertices)).float(),
        faces=torch.from_numpy(np.array(box.faces)),
        vertex_attrs=attributes,
    )


def green_cloud() -> Gaussian:
    gaussian = Gaussian([-0.5, -0.5, -0.5, 1, 1, 1])
    gaussian.from_xyz((torch.rand(400, 3, generator=torch.Generator().manual_seed(0)) - 0.5) * 0.5)
    gaussian.from_features(((torch.tensor([[0.0, 1.0, 0.0]]) - 0.5) / SH_DC).repeat(400, 1)[:, None])
    gaussian.from_scaling(torch.full((400, 3), 0.04))
    gaussian.from_rotation(torch.tensor([[1.0, 0, 0, 0]]).repeat(400, 1))
    gaussian.from_opacity(torch.full((400, 1), 0.9))
    return gaussian


def test_mesh_gives_normals_facing_the_camera_blue():
    # The first turntable camera stands on +y and a little above, so the box shows its +y side, nearly frontal.
    frames = render_video(red_box(), resolution=64, num_frames=4)
    assert set(frames) == {"color", "normal"} and len(frames["normal"]) == 4
    normal, color = frames["normal"][0], frames["color"][0]
    assert normal.dtype == np.uint8 and normal.shape == (64, 64, 3)
    camera = turntable(4, size=64)
    expected = (1 - camera.rotations[0] @ torch.tensor([0.0, 1.0, 0.0])) / 2 * 255
    assert np.abs(normal[36, 32] - expected.numpy()).max() <= 1 and normal[36, 32, 2] > 240
    assert (normal[0, 0] == 128).all()
    assert color[36, 32].tolist() == [255, 0, 0] and color[0, 0].tolist() == [0, 0, 0]


def test_a_pipeline_result_shows_splats_and_mesh_normals():
    seen = []
    result = {"gaussian": [green_cloud()], "mesh": [red_box()]}
    frames = render_video(
        result, resolution=48, num_frames=3, bg_color=(1, 1, 1), callback=lambda *report: seen.append(report)
    )
    middle, corner = frames["color"][1][24, 24], frames["color"][1][0, 0]
    assert middle[1] > 250 and middle[0] < 30 and corner.tolist() == [255, 255, 255]
    assert len(frames["normal"]) == 3 and frames["normal"][1].std() > 5
    assert seen == [("render", k, 6) for k in range(1, 7)]


def test_splats_and_mesh_agree_on_where_things_are():
    cloud, box = green_cloud(), red_box()
    place = torch.tensor([0.2, 0.1, -0.15])
    cloud.from_xyz(cloud.get_xyz * 0.3 + place)
    box.vertices = box.vertices * 0.4 + place
    splats, cameras = render_multiview(cloud, resolution=96, nviews=6)
    mesh, _ = render_multiview(box, resolution=96, nviews=6)
    assert len(cameras) == 6
    for a, b in zip(splats["color"], mesh["color"], strict=True):
        centers = [np.argwhere(image.max(axis=2) > 100).mean(axis=0) for image in (a, b)]
        assert np.abs(centers[0] - centers[1]).max() < 2


def test_snapshot_is_four_views():
    assert len(render_snapshot(red_box(), resolution=32)["normal"]) == 4


def test_what_cannot_be_rendered_is_refused():
    empty = SimpleNamespace(vertices=torch.zeros(0, 3), faces=torch.zeros(0, 3).long(), vertex_attrs=None)
    with pytest.raises(InputError, match="not str"):
        render_video("asset.glb")
    with pytest.raises(InputError, match="neither Gaussians nor a mesh"):
        render_video({"gaussian": []})
    with pytest.raises(InputError, match="empty"):
        render_video(empty)
