"""Picture files that people do hand in: those that cannot be used, and unusual ones that can."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from tiny_checkpoint import tiny_views


def photo(size: int = 64) -> Image.Image:
    return tiny_views(1, size, transparent=False)[0]


def text(path: Path) -> None:
    path.write_text("this is not a picture")


def web_page(path: Path) -> None:
    path.write_text("<html><script>alert(1)</script></html>")


def one_pixel(path: Path) -> None:
    Image.new("RGB", (1, 1)).save(path)


def png_of(width: int, height: int) -> Callable[[Path], None]:
    """A header that promises a size, on a file of a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    def write(path: Path) -> None:
        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))

    return write


def truncated_jpeg(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (256, 256, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:8000])


def truncated_png(path: Path) -> None:
    photo().save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def fully_transparent(path: Path) -> None:
    Image.new("RGBA", (64, 64), (200, 10, 10, 0)).save(path)


# Name -> how it is written, and a part of the sentence that it gets.
BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "text.png": (text, "not an image that can be read"),
    "page.jpg": (web_page, "not an image that can be read"),
    "dot.png": (one_pixel, "has only 1 x 1 pixels"),
    "huge.png": (png_of(9000, 9001), "9000 x 9001"),
    "bomb.png": (png_of(60_000, 60_000), "far too many"),
    "zero.png": (png_of(0, 0), "not an image that can be read"),
    "cut.jpg": (truncated_jpeg, "damaged or incomplete"),
    "half.png": (truncated_png, "damaged or incomplete"),
    "empty.png": (empty, "is empty"),
    "glass.png": (fully_transparent, "transparent everywhere"),
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


# Name -> how it is written, and the (width, height) that it is seen with.
GOOD: dict[str, tuple[Callable[[Path], None], tuple[int, int]]] = {
    "film.gif": (animated_gif, (64, 64)),
    "print.jpg": (cmyk_jpeg, (64, 64)),
    "deep.png": (sixteen_bit_png, (64, 64)),
    "turned.jpg": (exif_rotated_jpeg, (64, 96)),
    "cut-out.png": (transparent_png, (64, 64)),
}
