"""Cropping, squaring and encoding against the recorded images; background removal on drawn scenes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden_io import assert_close, load_golden
from PIL import Image, ImageDraw

from trellis.errors import InputError
from trellis.models import DinoVisionTransformer
from trellis.pipelines.background import grabcut_mask, rembg_available, segmenter
from trellis.pipelines.image_preparation import (
    cut_out,
    encode_image,
    normalise,
    preprocess_image,
    views_to_tensor,
)


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


def scene(background, size=(160, 120), noise=4):
    """A red ellipse with a dark stripe before a background; returns the picture and the true mask."""
    picture = Image.fromarray(background(*size))
    draw, mask = ImageDraw.Draw(picture), Image.new("L", size)
    box = (50, 30, 115, 95)
    draw.ellipse(box, fill=(190, 40, 30))
    draw.rectangle((60, 58, 105, 66), fill=(60, 20, 90))
    ImageDraw.Draw(mask).ellipse(box, fill=255)
    grain = np.random.default_rng(0).normal(0, noise, (*size[::-1], 3))
    pixels = np.clip(np.array(picture) + grain, 0, 255).astype(np.uint8)
    return Image.fromarray(pixels), np.array(mask) > 0


def uneven_wall(width, height):
    light = np.linspace(150, 240, width)[None, :, None] * np.linspace(1, 0.8, height)[:, None, None]
    return np.broadcast_to(light, (height, width, 3)).astype(np.uint8).copy()


def table_before_wall(width, height):
    picture = np.full((height, width, 3), (200, 205, 210), np.uint8)
    picture[height * 2 // 3 :] = (120, 90, 50)
    return picture


@pytest.mark.parametrize("background", [uneven_wall, table_before_wall])
def test_grabcut_finds_the_object(background):
    picture, expected = scene(background)
    mask = grabcut_mask(picture) > 0
    overlap = (mask & expected).sum() / (mask | expected).sum()
    assert overlap > 0.9
    assert np.array_equal(mask, grabcut_mask(picture) > 0), "the same picture gives the same mask"


def test_cut_out_shrinks_large_photographs_and_marks_the_object():
    picture, expected = scene(uneven_wall)
    large = picture.resize((1600, 1200), Image.Resampling.BICUBIC)
    result = cut_out(large, segmenter("grabcut"))
    assert result.mode == "RGBA" and result.size == (1024, 768)
    alpha = np.array(result)[..., 3]
    assert set(np.unique(alpha)) == {0, 255}
    assert abs((alpha > 0).mean() - expected.mean()) < 0.02


@pytest.mark.parametrize("colour", [(255, 255, 255), (30, 90, 40)])
def test_an_image_of_nothing_but_background_is_refused(colour):
    grain = np.random.default_rng(1).normal(0, 3, (80, 80, 3))
    pixels = np.clip(np.array(colour) + grain, 0, 255).astype(np.uint8)
    with pytest.raises(InputError, match="No object stands out"):
        preprocess_image(Image.fromarray(pixels), 56, segmenter("grabcut"))


def test_rembg_is_only_used_when_its_weights_are_here(monkeypatch, tmp_path):
    monkeypatch.setenv("U2NET_HOME", str(tmp_path))
    assert not rembg_available()
    assert segmenter("auto") is grabcut_mask
    with pytest.raises(InputError, match="rembg"):
        segmenter("rembg")
    with pytest.raises(InputError, match="sam"):
        segmenter("sam")
