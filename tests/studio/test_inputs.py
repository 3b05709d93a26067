from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_checkpoint import tiny_views

from studio.inputs import BadViewsError, as_views, check_views
from studio.stages import prepare
from trellis.errors import InputError


def photo(size: int = 64) -> Image.Image:
    return tiny_views(1, size, transparent=False)[0]


def text(path: Path) -> None:
    path.write_text("this is not a picture")


def one_pixel(path: Path) -> None:
    Image.new("RGB", (1, 1)).save(path)


def eighty_one_megapixels(path: Path) -> None:
    """A header that promises 9000 x 9001 pixels, on a file of a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 9000, 9001, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


def truncated_jpeg(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (256, 256, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:8000])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def fully_transparent(path: Path) -> None:
    Image.new("RGBA", (64, 64), (200, 10, 10, 0)).save(path)


BAD = {
    "text.png": (text, "not an image that can be read"),
    "dot.png": (one_pixel, "has only 1 x 1 pixels"),
    "huge.png": (eighty_one_megapixels, "9000 x 9001"),
    "cut.jpg": (truncated_jpeg, "damaged or incomplete"),
    "empty.png": (empty, "is empty"),
    "glass.png": (fully_transparent, "transparent everywhere"),
    "missing.png": (lambda path: None, "is not a file"),
}


def animated_gif(path: Path) -> None:
    frames = [image.convert("P") for image in tiny_views(3, 64, transparent=False)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def cmyk_jpeg(path: Path) -> None:
    photo().convert("CMYK").save(path)


def sixteen_bit_png(path: Path) -> None:
    Image.fromarray(np.asarray(photo().convert("L")).astype(np.uint16) * 257).save(path)


def exif_rotated_jpeg(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to see it upright
    photo(96).crop((0, 0, 96, 64)).save(path, exif=exif)


def transparent_png(path: Path) -> None:
    tiny_views(1, 64)[0].save(path)


GOOD = {
    "film.gif": (animated_gif, (64, 64)),
    "print.jpg": (cmyk_jpeg, (64, 64)),
    "deep.png": (sixteen_bit_png, (64, 64)),
    "turned.jpg": (exif_rotated_jpeg, (64, 96)),
    "cut-out.png": (transparent_png, (64, 64)),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_costs_one_sentence_with_its_name(name, tmp_path):
    write, why = BAD[name]
    write(tmp_path / name)
    good, sentences = check_views(as_views([tmp_path / name]))
    assert good == []
    assert len(sentences) == 1
    assert sentences[0].startswith(f"'{name}'") and why in sentences[0] and sentences[0].endswith(".")


@pytest.mark.parametrize("name", GOOD)
def test_unusual_files_that_are_fine(name, tmp_path, engine):
    write, size = GOOD[name]
    write(tmp_path / name)
    views = as_views([tmp_path / name])
    image = views[0].open()
    assert image.mode in ("RGB", "RGBA") and image.size == size
    prepared = prepare(views, engine.pipeline, lambda *_: None)
    assert prepared[0].image.mode == "RGBA"
    assert prepared[0].image.size == (engine.pipeline.image_resolution,) * 2
    assert prepared[0].cut_out_by == ("alpha" if image.mode == "RGBA" else "grabcut")


def test_no_view():
    for nothing in ([], None, ()):
        with pytest.raises(InputError, match="no views yet: add 1 to 32 photos"):
            as_views(nothing)


def test_one_view_is_enough(tmp_path):
    transparent_png(tmp_path / "only.png")
    assert [view.name for view in as_views(tmp_path / "only.png")] == ["only.png"]


def test_thirty_two_views_and_no_more():
    image = photo()
    assert len(as_views([image] * 32)) == 32
    with pytest.raises(InputError, match="33 views came, but at most 32"):
        as_views([image] * 33)


def test_a_folder_gives_its_images_in_the_order_of_their_numbers(tmp_path):
    for number in (10, 2, 1):
        photo().save(tmp_path / f"view{number}.png")
    (tmp_path / "notes.txt").write_text("not a view")
    (tmp_path / ".hidden.png").write_text("not a view either")
    assert [view.name for view in as_views([tmp_path])] == ["view1.png", "view2.png", "view10.png"]


def test_folders_that_cannot_be_used(tmp_path):
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError, match="'bare' holds no images"):
        as_views([tmp_path / "bare"])
    with pytest.raises(InputError, match="'bare' is a folder; give either"):
        as_views([tmp_path / "bare", tmp_path / "x.png"])


def test_all_bad_views_are_told_at_once(tmp_path, engine):
    text(tmp_path / "text.png")
    fully_transparent(tmp_path / "glass.png")
    Image.new("RGB", (64, 64), (90, 90, 90)).save(tmp_path / "wall.png")  # all background
    transparent_png(tmp_path / "good.png")
    views = as_views([tmp_path / name for name in ("text.png", "good.png", "glass.png", "wall.png")])
    with pytest.raises(BadViewsError) as caught:
        prepare(views, engine.pipeline, lambda *_: None)
    assert [sentence.split("'")[1] for sentence in caught.value.sentences] == ["text.png", "glass.png", "wall.png"]
    assert "No object stands out" in caught.value.sentences[2]
