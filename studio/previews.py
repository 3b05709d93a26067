"""Small pictures of unfinished work: JPEG bytes, at most 256 pixels a side."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from trellis.renderers.cameras import orbit
from trellis.renderers.mesh_raster import project

SIDE = 256
_GROUND = (238, 237, 234)


def jpeg(image: Image.Image) -> bytes:
    """The picture over a light ground, no larger than SIDE."""
    image = image.copy()
    image.thumbnail((SIDE, SIDE))
    if image.mode == "RGBA":
        ground = Image.new("RGB", image.size, _GROUND)
        ground.paste(image, mask=image.getchannel("A"))
        image = ground
    stream = io.BytesIO()
    image.convert("RGB").save(stream, "JPEG", quality=80)
    return stream.getvalue()


def mask(image: Image.Image) -> bytes:
    """The alpha of a square RGBA view as a grey PNG."""
    alpha = image.getchannel("A").resize((SIDE, SIDE), Image.Resampling.BOX)
    stream = io.BytesIO()
    alpha.save(stream, "PNG")
    return stream.getvalue()


def contact_sheet(images: Sequence[Image.Image]) -> bytes:
    """All views on one sheet."""
    columns = int(np.ceil(np.sqrt(len(images))))
    rows = -(-len(images) // columns)
    cell = SIDE // columns
    sheet = Image.new("RGBA", (columns * cell, rows * cell))
    for number, image in enumerate(images):
        sheet.paste(image.resize((cell, cell)), ((number % columns) * cell, (number // columns) * cell))
    return jpeg(sheet)


def voxels(coords: torch.Tensor, resolution: int) -> bytes:
    """Occupied voxels [N, 4] (batch, x, y, z) of a grid as dots, the nearer the darker, seen from the front above."""
    points = (coords[:, 1:].cpu().float() + 0.5) / resolution - 0.5
    camera = orbit(torch.tensor([0.5]), torch.tensor([0.35]), 2.0, 40.0, SIDE)
    screen = project(points, camera.extrinsics[0], camera.intrinsics[0]).numpy()
    screen = screen[np.argsort(-screen[:, 2])]  # far ones first
    canvas = np.full((SIDE, SIDE, 3), _GROUND, dtype=np.uint8)
    size = max(1, SIDE // (2 * resolution))
    near, far = screen[-1, 2], screen[0, 2]
    shade = 60 + 140 * (screen[:, 2] - near) / max(far - near, 1e-6)
    for dx in range(-size, size + 1):
        for dy in range(-size, size + 1):
            x = np.clip(screen[:, 0].astype(int) + dx, 0, SIDE - 1)
            y = np.clip(screen[:, 1].astype(int) + dy, 0, SIDE - 1)
            canvas[y, x] = shade[:, None] * np.array([0.35, 0.85, 0.8])
    return jpeg(Image.fromarray(canvas))


def array(image: np.ndarray) -> bytes:
    """An image [H, W, 3] uint8."""
    return jpeg(Image.fromarray(image))
