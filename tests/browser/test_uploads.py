"""Files from strangers, through the page."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from browser_steps import WAIT, add_photos, close_page, open_page, wait_for_photos
from PIL import Image
from tiny_checkpoint import tiny_views


def test_bad_files_get_a_sentence_each_and_odd_names_are_fine(browser, server, tmp_path):
    page = open_page(browser, server)
    bad = _bad_files(tmp_path)
    page.set_input_files("#photos input[type=file]", [str(file) for file in bad])
    page.wait_for_function(
        f"document.querySelectorAll('#photo-alerts li').length === {len(bad)}", timeout=WAIT
    )
    for file, sentence in zip(bad, page.locator("#photo-alerts li").all_inner_texts(), strict=True):
        assert file.name in sentence and "Traceback" not in sentence
    assert page.locator("#strip li").count() == 0

    good = tiny_views(1, size=96)[0]
    data = _png(good, tmp_path)
    names = ["../../x.png", "n" * 296 + ".png", "\U0001f600\U0001f40c.png", "same.png", "same.png", "<b>bold</b>.png"]
    page.set_input_files(
        "#photos input[type=file]", [{"name": name, "mimeType": "image/png", "buffer": data} for name in names]
    )
    wait_for_photos(page, len(names))
    shown = page.evaluate("[...document.querySelectorAll('#strip img')].map(image => image.title)")
    assert all("/" not in name and "\\" not in name for name in shown)
    assert page.locator("#strip b b").count() == 0  # nobody's name becomes markup
    page.click("#strip [data-act=clear]")
    wait_for_photos(page, 0)

    many = [{"name": f"{number}.png", "mimeType": "image/png", "buffer": data} for number in range(40)]
    page.set_input_files("#photos input[type=file]", many)
    wait_for_photos(page, 32)
    assert "At most 32" in page.inner_text("#photo-alerts")
    close_page(page)


def test_a_picture_of_an_upright_phone_stands_upright(browser, server, tmp_path):
    page = open_page(browser, server)
    lying = tiny_views(1, size=96, transparent=False)[0].resize((96, 64))
    exif = Image.Exif()
    exif[0x0112] = 6  # the phone was held upright
    lying.save(tmp_path / "IMG_0001.JPG", exif=exif)
    add_photos(page, [str(tmp_path / "IMG_0001.JPG")])
    page.wait_for_function("document.querySelector('#strip img').naturalWidth > 0", timeout=WAIT)
    width, height = page.evaluate("(i => [i.naturalWidth, i.naturalHeight])(document.querySelector('#strip img'))")
    assert height > width
    close_page(page)


def _bad_files(folder: Path) -> list[Path]:
    """What "Views in, textured GLB out" names, each under a name that says what it is."""
    contents = {
        "empty.png": b"",
        "text.png": b"no picture",
        "cut.png": (data := _png(tiny_views(1, size=64)[0], folder))[: len(data) // 2],
        "bomb.png": _png_header(60_000, 60_000),
        "zero.png": _png_header(0, 0),
        "page.jpg": b"<html><script>alert(1)</script></html>",
        "broken.mp4": b"\x00\x00\x00\x18ftypmp42 and nothing more",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    Image.new("RGB", (8, 8), (200, 30, 30)).save(folder / "tiny.png")
    return [folder / name for name in (*contents, "tiny.png")]


def _png(image: Image.Image, folder: Path) -> bytes:
    image.save(folder / "encoded.png")
    return (folder / "encoded.png").read_bytes()


def _png_header(width: int, height: int) -> bytes:
    """A PNG that announces a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body
