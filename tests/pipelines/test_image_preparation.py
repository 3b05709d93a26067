"""Cropping, squaring and encoding against the recorded images, and the choice of a segmenter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden_io import assert_close, load_golden
from PIL import Image

from trellis.errors import InputError
from trellis.models import DinoVisionTransformer
from trellis.pipelines.background import rembg_available, segmenter
from trellis.pipelines.grabcut import grabcut_mask
from trellis.pipelines.image_preparation import encode_image, normalise, preprocess_image, views_to_tensor


@pytest.mark.parametrize("case", ["a", "b", "c", "d"])
def test_preprocess_image_matches_recorded_pixels(case):
    golden = load_golden("preprocess_image")
    image = Image.fromarray(golden.inputs[case].numpy())
    mask = golden.inputs["c_mask"].numpy() * 255
    result = np.array(preprocess_image(image, golden.config[case]["resolution"], segment=lambda _: mask))
    np.testing.assert_array_equal(result, golden.outputs[case].numpy())


def test_encode_image_matches_recorded_tokens():
    golden, dino = load_golden("encode_image"), load_golden("dinov2_vit_reg")
    images = [Image.fromarray(golden.inputs[name].numpy()) for name in ("im0", "im1")]
    views = views_to_tensor(images, golden.config["default_image_resolution"])
    assert_close(views, golden.outputs["rgb"])
    assert_close(normalise(views), golden.outputs["normed"])
    encoder = DinoVisionTransformer(**dino.config).eval()
    encoder.load_state_dict(dino.weights)
    assert_close(encode_image(views, encoder), golden.outputs["cond"])


def test_views_of_any_mode_become_rgb():
    views = views_to_tensor([Image.new("L", (20, 30), 255), Image.new("LA", (14, 14), (128, 0))], 14)
    assert views.shape == (2, 3, 14, 14) and views.dtype == torch.float32
    assert views[0].min() == 1


def test_an_object_of_one_pixel_is_refused():
    image = Image.new("RGBA", (64, 64))
    image.putpixel((30, 30), (255, 0, 0, 255))
    with pytest.raises(InputError, match="closer view"):
        preprocess_image(image, 56)


def test_rembg_is_only_used_when_its_weights_are_here(monkeypatch, tmp_path):
    monkeypatch.setenv("U2NET_HOME", str(tmp_path))
    assert not rembg_available()
    assert segmenter("auto") is grabcut_mask
    with pytest.raises(InputError, match="rembg"):
        segmenter("rembg")
    with pytest.raises(InputError, match="sam"):
        segmenter("sam")
