"""Background removal without weights, on drawn scenes of which the true mask is known."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from trellis.errors import InputError
from trellis.pipelines.background import segmenter
from trellis.pipelines.grabcut import _without_lines_from_the_frame, grabcut_mask
from trellis.pipelines.image_preparation import cut_out, preprocess_image

SIZE = (160, 120)
BOX = (50, 30, 115, 95)


def uneven_wall(width, height):
    light = np.linspace(150, 240, width)[None, :, None] * np.linspace(1, 0.8, height)[:, None, None]
    return np.broadcast_to(light, (height, width, 3)).astype(np.uint8)


def table_before_wall(width, height):
    picture = np.full((height, width, 3), (200, 205, 210), np.uint8)
    picture[height * 2 // 3 :] = (120, 90, 50)
    return picture


def soft_shadow(width, height):
    shade = Image.new("L", (width, height), 255)
    ImageDraw.Draw(shade).ellipse((40, 75, 150, 110), fill=140)
    shade = np.asarray(shade.filter(ImageFilter.GaussianBlur(10)))[..., None] / 255
    return (np.array((215, 210, 200)) * shade).astype(np.uint8)


def clutter(width, height):
    picture = Image.fromarray(table_before_wall(width, height))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 0, 30, 25), fill=(20, 160, 60))
    draw.rectangle((130, 0, 160, 40), fill=(30, 60, 190))
    return np.array(picture)


def scene(background, box=BOX, noise=4):
    """A red ellipse with a dark stripe before a background; returns the picture and the true mask."""
    picture = Image.fromarray(background(*SIZE))
    draw, mask = ImageDraw.Draw(picture), Image.new("L", SIZE)
    left, top, right, bottom = box
    draw.ellipse(box, fill=(190, 40, 30))
    draw.rectangle((left + 10, top + 28, right - 10, top + 36), fill=(60, 20, 90))
    ImageDraw.Draw(mask).ellipse(box, fill=255)
    return grainy(np.array(picture), noise), np.array(mask) > 0


def grainy(pixels, noise=4):
    grain = np.random.default_rng(0).normal(0, noise, pixels.shape)
    return Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8))


def overlap(mask, expected):
    return (mask & expected).sum() / (mask | expected).sum()


@pytest.mark.parametrize("background", [uneven_wall, table_before_wall, soft_shadow, clutter])
def test_the_object_is_found(background):
    picture, expected = scene(background)
    mask = grabcut_mask(picture) > 0
    assert overlap(mask, expected) > 0.93
    assert np.array_equal(mask, grabcut_mask(picture) > 0), "the same picture gives the same mask"


def test_an_object_may_run_out_of_the_picture():
    picture, expected = scene(uneven_wall, box=(60, 80, 104, 140))
    assert overlap(grabcut_mask(picture) > 0, expected) > 0.9


def test_a_line_from_the_frame_does_not_widen_the_object():
    mask = np.zeros((40, 60), bool)
    mask[10:30, 20:40] = True
    line, antenna = mask.copy(), mask.copy()
    line[20] = True
    antenna[20, 35:55] = True
    np.testing.assert_array_equal(_without_lines_from_the_frame(line), mask)
    np.testing.assert_array_equal(_without_lines_from_the_frame(antenna), antenna)


def test_a_handle_keeps_its_hole():
    picture = Image.fromarray(uneven_wall(*SIZE))
    ImageDraw.Draw(picture).ellipse(BOX, outline=(30, 60, 150), width=14)
    mask = grabcut_mask(grainy(np.array(picture)))
    assert mask[62, 55] == 255 and mask[62, 82] == 0


def test_cut_out_shrinks_large_photographs_and_marks_the_object():
    picture, expected = scene(uneven_wall)
    large = picture.resize((1600, 1200), Image.Resampling.BICUBIC)
    result = cut_out(large, segmenter("grabcut"))
    assert result.mode == "RGBA" and result.size == (1024, 768)
    alpha = np.array(result)[..., 3]
    assert set(np.unique(alpha)) == {0, 255}
    assert abs((alpha > 0).mean() - expected.mean()) < 0.02


@pytest.mark.parametrize("colour", [(255, 255, 255), (30, 90, 40), (0, 0, 0)])
@pytest.mark.parametrize("noise", [0, 3])
@pytest.mark.parametrize("size", [(80, 80), (500, 33)])
def test_an_image_of_nothing_but_background_is_refused(colour, noise, size):
    pixels = np.broadcast_to(np.array(colour), (*size, 3))
    with pytest.raises(InputError, match="No object stands out"):
        preprocess_image(grainy(pixels, noise), 56, segmenter("grabcut"))


@pytest.mark.parametrize("background", [uneven_wall, table_before_wall])
def test_a_background_without_an_object_is_refused(background):
    with pytest.raises(InputError, match="No object stands out"):
        grabcut_mask(grainy(background(*SIZE)))


def test_what_the_cut_gives_up_is_refused(monkeypatch):
    """GrabCut itself may end with no pixel on the object."""

    def all_background(image, labels, *_):
        labels[:] = 0

    monkeypatch.setattr("cv2.grabCut", all_background)
    with pytest.raises(InputError, match="No object stands out"):
        grabcut_mask(scene(uneven_wall)[0])


def test_an_object_that_fills_the_picture_is_no_crash():
    halves = np.zeros((64, 64, 3), np.uint8)
    halves[:, 32:] = 255
    try:
        assert grabcut_mask(Image.fromarray(halves)).any()
    except InputError as error:
        assert "No object stands out" in str(error)
