"""Views: every format reads back what was written, and bad input is named in a sentence."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from nvdiffrec.view_files import load_views
from nvdiffrec.views import Views, linear_to_srgb, srgb_to_linear
from trellis.errors import InputError
from trellis.renderers.camera_formats import to_transforms
from trellis.renderers.cameras import Cameras, orbit


def make_views(sizes=((40, 40), (40, 48))) -> Views:
    cameras, images, masks = [], [], []
    for index, (height, width) in enumerate(sizes):
        cameras.append(orbit(torch.tensor([0.7 * index]), torch.tensor([0.2]), size=(height, width)))
        images.append(torch.full((3, height, width), 0.2 + 0.1 * index))
        mask = torch.zeros(1, height, width)
        mask[:, 10:30, 12:28] = 1
        masks.append(mask)
    return Views(Cameras.cat(cameras), images, masks, [f"photo {i}" for i in range(len(sizes))])


def assert_same_views(first: Views, second: Views) -> None:
    torch.testing.assert_close(first.cameras.extrinsics, second.cameras.extrinsics, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(first.cameras.intrinsics, second.cameras.intrinsics, atol=1e-3, rtol=1e-5)
    for a, b in zip(first.images + first.masks, second.images + second.masks, strict=True):
        torch.testing.assert_close(a, b, atol=0.5 / 255 + 1e-6, rtol=0)


def test_views_of_different_sizes_survive_a_save_and_load(tmp_path):
    views = make_views()
    views.save(tmp_path, colmap=True)
    assert_same_views(views, load_views(tmp_path))
    (tmp_path / "transforms.json").unlink()
    assert_same_views(views, load_views(tmp_path))


def test_cameras_that_a_network_estimated_are_known_as_such(tmp_path):
    make_views().save(tmp_path)
    file = tmp_path / "transforms.json"
    record = json.loads(file.read_text())
    marks = [({}, False), ({"frame": "gltf"}, True), ({"frame": "gltf", "predicted_by": None}, False),
             ({"predicted_by": "VGGT, corrected"}, True)]  # fmt: skip
    for mark, predicted in marks:
        file.write_text(json.dumps({**record, **mark}))
        views = load_views(tmp_path)
        assert views.predicted == predicted
        assert views.scaled(20).predicted == views.subset([0]).predicted == predicted


def test_nerf_synthetic_has_one_angle_no_sizes_no_suffixes_and_z_up(tmp_path):
    views = make_views(((40, 40), (40, 40)))
    views.save(tmp_path)
    record = to_transforms(views.cameras, ["./images/000", "./images/001"], frame="object")
    angle = 2 * math.atan(20 / float(views.cameras.intrinsics[0, 0, 0]))
    frames = [{key: frame[key] for key in ("file_path", "transform_matrix")} for frame in record["frames"]]
    (tmp_path / "transforms.json").write_text(json.dumps({"camera_angle_x": angle, "frames": frames}))
    assert_same_views(views, load_views(tmp_path / "transforms.json"))


def test_masks_may_lie_in_a_folder(tmp_path):
    views = make_views()
    views.save(tmp_path)
    (tmp_path / "masks").mkdir()
    for file in sorted((tmp_path / "images").iterdir()):
        picture = Image.open(file)
        picture.getchannel("A").save(tmp_path / "masks" / file.name)
        picture.convert("RGB").save(file)
    assert_same_views(views, load_views(tmp_path))


def test_a_smaller_copy_of_an_image_fits_its_camera(tmp_path):
    views = make_views(((80, 80), (80, 80)))
    views.save(tmp_path)
    for file in (tmp_path / "images").iterdir():
        Image.open(file).resize((40, 40)).save(file)
    loaded = load_views(tmp_path)
    assert loaded.cameras.height_width(0) == (40, 40)
    torch.testing.assert_close(loaded.cameras.intrinsics[0, 0, 0], views.cameras.intrinsics[0, 0, 0] / 2)


def test_shrinking_keeps_colour_and_covered_area():
    views = make_views()
    small = views.scaled(24)
    assert small.cameras.height_width(1) == (20, 24)
    inside = small.masks[1][0] > 0.99
    torch.testing.assert_close(small.images[1][:, inside], torch.full((3, int(inside.sum())), 0.3), atol=1e-4, rtol=0)
    assert abs(float(small.masks[1].mean() - views.masks[1].mean())) < 1e-6


def test_srgb_and_linear_are_inverse():
    values = torch.linspace(0, 1, 256)
    torch.testing.assert_close(linear_to_srgb(srgb_to_linear(values)), values, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda record: record["frames"][1].pop("transform_matrix"), "no transform_matrix"),
        (lambda record: record["frames"][1]["transform_matrix"][0].__setitem__(3, math.nan), "001.png.*finite"),
        (lambda record: record["frames"][1]["transform_matrix"][0].__setitem__(0, 2.0), "rigid"),
        (lambda record: record["frames"][1].update(file_path="images/none"), "no such image"),
        (lambda record: record["frames"][1].update(file_path="../secret.png"), "outside"),
        (lambda record: record["frames"][1].update(k1=0.2), "distortion"),
        (lambda record: record["frames"][1].update(w=400), "cropping"),
        (lambda record: record.update(frames=[]), "lists no frames"),
    ],
)
def test_a_broken_camera_file_is_explained(tmp_path, change, says):
    Image.new("RGBA", (40, 40)).save(tmp_path / "secret.png")
    folder = tmp_path / "views"
    make_views().save(folder)
    record = json.loads((folder / "transforms.json").read_text())
    change(record)
    (folder / "transforms.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=says):
        load_views(folder)


def test_images_without_mask_or_alpha_are_named(tmp_path):
    make_views().save(tmp_path)
    Image.fromarray(np.full((40, 48, 3), 99, np.uint8)).save(tmp_path / "images" / "001.png")
    with pytest.raises(InputError, match="001.png.*neither transparency nor a mask"):
        load_views(tmp_path)


def test_masks_that_say_nothing_are_refused():
    views = make_views()
    for fill, says in ((0.0, "empty"), (1.0, "whole image"), (math.nan, r"\[0, 1\]")):
        with pytest.raises(InputError, match=f"photo 1.*{says}|{says}"):
            Views(views.cameras, views.images, (views.masks[0], torch.full((1, 40, 48), fill)), views.names)


def test_a_folder_without_cameras_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no cameras"):
        load_views(tmp_path)
    with pytest.raises(InputError, match="neither a folder"):
        load_views(tmp_path / "missing")
