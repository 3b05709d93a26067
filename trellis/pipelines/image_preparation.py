"""From photographs to what the encoders read: object cut out, centred, squared, and as tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from trellis.errors import InputError
from trellis.modules.tables import imagenet_statistics
from trellis.pipelines.background import Segmenter, segmenter
from trellis.pipelines.image_files import MAX_VIEWS, OPAQUE, check_views, open_image

__all__ = [
    "MAX_VIEWS", "check_views", "cut_out", "encode_image", "open_image", "preprocess_image", "sharp_view",
    "views_to_tensor",
]  # fmt: skip

SHARP_SIDE = 768  # pixels of a view for painting; a texture of 1024 texels holds about as much of one photograph

_SEGMENT_SIDE = 1024  # pixels; longer photographs are shrunk before the background is removed
_MARGIN = 1.1  # side of the crop over the longer side of the object's box


def has_usable_alpha(image: Image.Image) -> bool:
    """Whether the image brings its own mask: an alpha channel that is not opaque everywhere."""
    return image.mode == "RGBA" and image.getextrema()[3][0] < 255


def cut_out(image: Image.Image, segment: Segmenter | None = None) -> Image.Image:
    """The image as RGBA with alpha telling the object from its background.

    A usable alpha is kept as it is. Otherwise the image is shrunk to at most 1024 pixels a side and `segment` (default:
    the best method on this machine) marks the object; alpha is then 0 or 255. Raises InputError if no object is seen.
    """
    if has_usable_alpha(image):
        return image
    image = image.convert("RGB")
    scale = _SEGMENT_SIDE / max(image.size)
    if scale < 1:
        size = tuple(max(1, int(side * scale)) for side in image.size)
        image = image.resize(size, Image.Resampling.LANCZOS)
    mask = np.asarray((segment or segmenter())(image))
    alpha = Image.fromarray(mask.astype(np.uint8)).resize(image.size)
    alpha = alpha.point([255 if value > 128 else 0 for value in range(256)])
    image.putalpha(alpha)
    return image


def preprocess_image(image: Image.Image, resolution: int = 518, segment: Segmenter | None = None) -> Image.Image:
    """Cut out, crop around the object with a tenth of margin, centre on a square, and resize.

    Returns RGBA, resolution x resolution, with colour zeroed outside the object (alpha up to 0.8) and alpha kept. An
    image in which nothing is opaque comes back as RGB, uncropped and at its own size.

    Raises InputError if there is no object to see or if it is too small to crop to.
    """
    image = cut_out(image, segment)
    crop = square_crop(image)
    if crop is None:
        return image.convert("RGB")
    if crop.right - crop.left < 2 or crop.bottom - crop.top < 2:
        raise InputError("The object covers less than 2 x 2 pixels of the image; use a closer view of it.")
    square = Image.new("RGBA", (crop.side, crop.side))
    square.paste(image.crop(crop[:4]), crop.margins)

    # Straight (not premultiplied) colour, bilinear without antialiasing, truncation: what the encoders were trained on.
    pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1)[None].float() / 255  # [1, 4, side, side]
    pixels = F.interpolate(pixels, size=(resolution, resolution), mode="bilinear", align_corners=False)[0]
    colour, alpha = pixels[:3], pixels[3:]
    pixels = torch.cat([colour * (alpha > 0.8), alpha])
    return Image.fromarray((pixels * 255).byte().permute(1, 2, 0).contiguous().numpy())


def sharp_view(photograph: Image.Image, cut: Image.Image, resolution: int) -> Image.Image | None:
    """What `preprocess_image` shows of a photograph with more of its pixels: for painting, the networks read theirs.

    Args:
        photograph: as it came, RGB or RGBA.
        cut: what `cut_out` made of it, perhaps smaller; its alpha decides on frame and outline.
        resolution: of the networks.

    Returns RGBA, square, at most SHARP_SIDE pixels a side and no more than the photograph has there, with colour zeroed
    outside the object as in the networks' view. None if that view has as many pixels, or if nothing is opaque.
    """
    crop = square_crop(cut)
    side = 0 if crop is None else min(round(crop.side * photograph.width / cut.width), SHARP_SIDE)
    if side <= resolution:
        return None
    view = _window(photograph, cut.size, crop, side)
    if photograph is not cut:
        view.putalpha(_window(cut.getchannel("A"), cut.size, crop, side))
    pixels = np.array(view)
    pixels[pixels[..., 3] <= OPAQUE, :3] = 0
    return Image.fromarray(pixels)


def _window(image: Image.Image, size: tuple[int, int], crop: Crop, side: int) -> Image.Image:
    """The square of a crop at `side` pixels; the crop was found in a copy of the image of `size` (width, height).

    What lies outside the image is black and transparent.
    """
    (across, down), (x, y) = crop.margins, (image.width / size[0], image.height / size[1])
    left, top = (crop.left - across) * x, (crop.top - down) * y
    right, bottom = left + crop.side * x, top + crop.side * y
    x0, y0 = math.floor(left), math.floor(top)
    part = image.crop((x0, y0, math.ceil(right), math.ceil(bottom)))
    return part.resize((side, side), Image.Resampling.LANCZOS, box=(left - x0, top - y0, right - x0, bottom - y0))


class Crop(NamedTuple):
    """What a view shows of its photograph, in pixels: this box, in the middle of a square as long as its longer side.

    The box is clipped to the photograph."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def side(self) -> int:
        return max(self.right - self.left, self.bottom - self.top)

    @property
    def margins(self) -> tuple[int, int]:
        """Of the box within the square: left and top."""
        return (self.side - self.right + self.left) // 2, (self.side - self.bottom + self.top) // 2


def square_crop(image: Image.Image) -> Crop | None:
    """Where `preprocess_image` finds the object of an RGBA image: around its opaque pixels, with margin; None if there
    are none."""
    opaque = np.asarray(image.getchannel("A")) > OPAQUE
    rows, columns = np.flatnonzero(opaque.any(axis=1)), np.flatnonzero(opaque.any(axis=0))
    if len(rows) == 0:
        return None
    left, right, top, bottom = (int(v) for v in (columns.min(), columns.max(), rows.min(), rows.max()))
    half = int(max(right - left, bottom - top) * _MARGIN) // 2
    x, y = (left + right) / 2, (top + bottom) / 2
    height, width = opaque.shape
    return Crop(max(int(x - half), 0), max(int(y - half), 0), min(int(x + half), width), min(int(y + half), height))


def views_to_tensor(images: Sequence[Image.Image], resolution: int) -> torch.Tensor:
    """Views as float32 [n, 3, resolution, resolution] in [0, 1], alpha dropped without compositing.

    Images of another size are resized first, with their alpha: Pillow weighs colours by alpha there, so that hidden
    colours do not bleed over the outline.
    """
    views = []
    for image in images:
        if image.mode not in ("RGB", "RGBA"):
            image = image.convert("RGBA" if image.has_transparency_data else "RGB")
        if image.size != (resolution, resolution):
            image = image.resize((resolution, resolution), Image.Resampling.LANCZOS)
        pixels = np.array(image.convert("RGB")).astype(np.float32) / 255
        views.append(torch.from_numpy(pixels).permute(2, 0, 1))
    return torch.stack(views)


def normalise(views: torch.Tensor) -> torch.Tensor:
    """Subtract ImageNet's mean colour and divide by its deviation; views [n, 3, H, W] in [0, 1]."""
    mean, std = imagenet_statistics(views.device)
    return (views - mean) / std


@torch.no_grad()
def encode_image(views: torch.Tensor, encoder: torch.nn.Module) -> torch.Tensor:
    """DINOv2 tokens of views [n, 3, H, W] in [0, 1]: [n, 1 + registers + patches, C].

    These are the tokens before the encoder's own final norm, layer-normed without parameters.
    """
    tokens = encoder.forward_features(normalise(views))["x_prenorm"]
    return F.layer_norm(tokens, tokens.shape[-1:])
