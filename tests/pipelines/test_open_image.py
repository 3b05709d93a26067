"""Files that strangers upload: what is fixed silently, and what is refused with a sentence."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from trellis.errors import InputError
from trellis.pipelines.image_preparation import check_views, open_image


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def halves(left, right, mode="RGB", size=(64, 48)) -> Image.Image:
    image = Image.new(mode, size, left)
    image.paste(right, (size[0] // 2, 0, *size))
    return image


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises width x height pixels and holds none."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body)) + b"\0\0\1\0IDAT"


JPEG = encoded(halves("red", "blue", size=(256, 256)), "JPEG")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"just a text file\n", "not an image"),
        (b"", "empty"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n", "not an image"),
        (encoded(Image.new("RGB", (1, 1)), "PNG"), "1 x 1 pixels"),
        (encoded(Image.new("RGB", (500, 8)), "PNG"), "500 x 8 pixels"),
        (JPEG[: len(JPEG) // 2], "damaged or incomplete"),
        (JPEG[:30], "not an image"),
        (png_header(64, 64), "damaged or incomplete"),
        (png_header(10_000, 9_000), "10000 x 9000 pixels"),
        (png_header(100_000, 100_000), "megapixels"),
        (encoded(Image.new("RGBA", (64, 64), (9, 9, 9, 0)), "PNG"), "transparent everywhere"),
        (encoded(Image.fromarray(np.zeros((64, 64), np.float32)), "TIFF"), "floating-point"),
    ],
    ids=(
        "text empty eps one-pixel strip truncated-jpeg headless-jpeg bodiless-png 90-megapixels bomb transparent "
        "float-tiff"
    ).split(),
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # ours comes before it matters
def test_refused_with_one_sentence(tmp_path, data, sentence):
    path = tmp_path / "view.png"
    path.write_bytes(data)
    for source in (path, str(path), data, io.BytesIO(data)):
        with pytest.raises(InputError, match=sentence) as caught:
            open_image(source)
        message = str(caught.value)
        assert message.endswith(".") and "\n" not in message
        assert str(tmp_path) not in message, "the server's folders are nobody's business"


@pytest.mark.parametrize("path", ["missing.png", ".", "nul\0name.png"])
def test_paths_that_are_no_files(tmp_path, path):
    with pytest.raises(InputError):
        open_image(f"{tmp_path}/{path}")


def test_something_else_is_refused():
    with pytest.raises(InputError, match="int"):
        open_image(3)


def test_the_size_is_checked_before_decoding(monkeypatch):
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    with pytest.raises(InputError, match="megapixels"):
        open_image(png_header(9_000, 9_000))


def test_cmyk_and_grey_become_rgb():
    image = open_image(encoded(halves((0, 255, 255, 0), (255, 255, 0, 0), "CMYK"), "JPEG"))
    assert image.mode == "RGB"
    red, blue = np.array(image)[20, 5], np.array(image)[20, 60]
    assert red[0] > 200 > 60 > red[2] and blue[2] > 200 > 60 > blue[0]
    assert open_image(encoded(Image.new("L", (64, 64), 90), "PNG")).getpixel((1, 1)) == (90, 90, 90)
    assert open_image(encoded(Image.new("1", (64, 64), 1), "PNG")).getpixel((1, 1)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_keep_their_gradation(kind):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(40, 0)
    values = np.array(open_image(encoded(Image.fromarray(ramp), kind)))[0, :, 0]
    np.testing.assert_array_equal(values, ramp[0] >> 8)


def test_palette_with_transparency_becomes_alpha():
    image = halves(0, 1, "P")
    image.putpalette([255, 0, 0, 0, 0, 255])
    opened = open_image(encoded(image, "PNG", transparency=0))
    assert opened.mode == "RGBA"
    assert opened.getpixel((5, 5))[3] == 0 and opened.getpixel((60, 5)) == (0, 0, 255, 255)


def test_colour_key_and_grey_alpha_become_alpha():
    keyed = open_image(encoded(halves((255, 0, 0), (0, 0, 255)), "PNG", transparency=(255, 0, 0)))
    assert keyed.mode == "RGBA" and keyed.getpixel((5, 5))[3] == 0 and keyed.getpixel((60, 5))[3] == 255
    grey = open_image(encoded(halves((80, 0), (80, 255), "LA"), "PNG"))
    assert grey.mode == "RGBA" and grey.getpixel((60, 5)) == (80, 80, 80, 255)


def test_exif_rotation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: rotate by 90 degrees clockwise to show
    image = open_image(encoded(halves("red", "blue"), "JPEG", exif=exif))
    assert image.size == (48, 64)
    top, bottom = np.array(image)[5, 20], np.array(image)[58, 20]
    assert top[0] > 200 and bottom[2] > 200


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_broken_exif_block_is_ignored():
    image = open_image(encoded(halves("red", "blue"), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01"))
    assert image.size == (64, 48)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animation_gives_its_first_frame(kind):
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "lime", "blue")]
    image = open_image(encoded(frames[0], kind, save_all=True, append_images=frames[1:]))
    assert image.size == (64, 64) and image.getpixel((30, 30))[0] > 200


def test_the_number_and_kind_of_views_are_checked():
    view = Image.new("RGB", (64, 64))
    assert check_views([view] * 32) == [view] * 32
    assert check_views(view) == [view]
    for bad, sentence in [([], "0 came"), ([view] * 33, "33 came"), ("view.png", "str"), ([view, "b.png"], "View 2"),
                          ([view.resize((1, 1))], "1 x 1"), (None, "NoneType")]:  # fmt: skip
        with pytest.raises(InputError, match=sentence):
            check_views(bad)
