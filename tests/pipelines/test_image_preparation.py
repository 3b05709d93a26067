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
from trellis.pipelines.image_preparation import (
    SHARP_SIDE,
    cut_out,
    encode_image,
    normalise,
    preprocess_image,
    sharp_view,
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


def photograph(size: tuple[int, int], box: tuple[int, int, int, int], stripe: int, mode: str = "RGBA") -> Image.Image:
    """A red box with dark stripes, `stripe` pixels wide: cut out (RGBA), or before a white wall (RGB)."""
    across = np.arange(size[0]) // stripe % 2
    pixels = np.full((size[1], size[0], 4), 255, dtype=np.uint8)
    left, top, right, bottom = box
    inside = np.zeros(size[::-1], dtype=bool)
    inside[top:bottom, left:right] = True
    pixels[inside] = np.where(across[:, None], [230, 40, 40, 255], [60, 10, 10, 255])[np.nonzero(inside)[1]]
    pixels[~inside, 3] = 0
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("box", [(60, 200, 500, 600), (0, 100, 500, 640), (400, 0, 640, 480)])
def test_a_sharp_view_frames_what_the_networks_see(box):
    """Also where the frame reaches beyond the photograph's border."""
    image = photograph((640, 640), box, 40)
    small, sharp = preprocess_image(image, 112), sharp_view(image, image, 112)
    assert sharp.mode == "RGBA" and sharp.width == sharp.height > 400
    again = np.asarray(sharp.resize(small.size, Image.Resampling.BILINEAR), dtype=np.int16)
    apart = np.abs(again - np.asarray(small, dtype=np.int16))
    assert np.median(apart) == 0 and apart[..., 3].mean() < 3 and apart[..., :3].mean() < 6
    shifted = np.abs(np.roll(again, 2, axis=1) - np.asarray(small, dtype=np.int16))
    assert shifted[..., :3].mean() > 3 * apart[..., :3].mean()
    clear = np.asarray(sharp)[np.asarray(sharp)[..., 3] <= 204]
    assert len(clear) and not clear[:, :3].any()


def test_a_sharp_view_has_the_photographs_own_pixels_and_no_more():
    image = photograph((640, 640), (120, 120, 520, 520), 2)
    sharp = sharp_view(image, image, 112)
    assert sharp.size == (438, 438)  # 400 and a tenth around it
    row = np.asarray(sharp)[219, 60:380, 0].astype(int)
    assert row.max() - row.min() > 150  # stripes of two pixels
    assert sharp_view(image, image, 438) is None and sharp_view(image, image, 437).size == (438, 438)
    large = photograph((2000, 2000), (100, 100, 1900, 1900), 8)
    assert sharp_view(large, large, 112).size == (SHARP_SIDE, SHARP_SIDE)
    nothing = Image.new("RGBA", (640, 640))
    assert sharp_view(nothing, nothing, 112) is None


def test_a_large_photograph_is_cut_out_small_and_painted_from_large():
    """The object takes a sixth of 3000 pixels: a sixth of the 1024 that the background is removed at would not do."""
    image = photograph((3000, 2400), (1000, 900, 1500, 1400), 5, "RGB")
    box = (np.array([1000, 900, 1500, 1400]) * 1024 / 3000).astype(int)
    cut = cut_out(image, lambda shrunk: np.asarray(photograph(shrunk.size, tuple(box), 5).getchannel("A")))
    assert cut.size == (1024, 819)
    small, sharp = preprocess_image(cut, 112), sharp_view(image, cut, 112)
    assert 530 < sharp.width < 560
    row = np.asarray(sharp)[sharp.height // 2, 100:-100].astype(int)
    assert row[:, 0].max() - row[:, 0].min() > 150 and row[:, 3].min() == 255
    alphas = [np.asarray(view.resize((112, 112)).getchannel("A"), dtype=int) for view in (small, sharp)]
    assert np.abs(alphas[0] - alphas[1]).mean() < 4


def test_rembg_is_only_used_when_its_weights_are_here(monkeypatch, tmp_path):
    monkeypatch.setenv("U2NET_HOME", str(tmp_path))
    assert not rembg_available()
    assert segmenter("auto") is grabcut_mask
    with pytest.raises(InputError, match="rembg"):
        segmenter("rembg")
    with pytest.raises(InputError, match="sam"):
        segmenter("sam")
