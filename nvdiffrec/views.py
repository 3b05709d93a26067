"""The photographs to agree with: image, silhouette and camera of every view."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from trellis.errors import InputError
from trellis.files import replacing
from trellis.renderers.camera_formats import to_colmap_text, to_transforms
from trellis.renderers.cameras import Cameras

_EMPTY_MASK = 1e-4  # part of the image; less than this is no object
_FULL_MASK = 0.995  # a silhouette that fills the image says nothing


@dataclass(frozen=True, eq=False)
class Views:
    """N photographs, each of its own size. Validated once, at construction.

    Attributes:
        cameras: N cameras for the images' sizes, in the object frame.
        images: N tensors [3, H, W] float32 in [0, 1], sRGB, not multiplied by the mask.
        masks: N tensors [1, H, W] float32 in [0, 1], coverage by the object.
        names: N names for messages and tables.
        predicted: some cameras are a network's estimates, not measurements, and so want correcting.
        registered: the cameras are stated to stand around the asset, so that nobody need look for its frame.

    Raises:
        InputError: counts, shapes or values that do not fit; the sentence names the view.
    """

    cameras: Cameras
    images: tuple[Tensor, ...]
    masks: tuple[Tensor, ...]
    names: tuple[str, ...]
    predicted: bool = False
    registered: bool = False

    def __post_init__(self) -> None:
        for field in ("images", "masks", "names"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        counts = {len(self.cameras), len(self.images), len(self.masks), len(self.names)}
        if len(counts) != 1:
            raise InputError(
                f"Every view needs a camera, an image, a mask and a name, but there are {len(self.cameras)}, "
                f"{len(self.images)}, {len(self.masks)} and {len(self.names)}."
            )
        for index, name in enumerate(self.names):
            self._check_view(index, name)

    def _check_view(self, index: int, name: str) -> None:
        image, mask, size = self.images[index], self.masks[index], self.cameras.height_width(index)
        if image.shape != (3, *size) or mask.shape != (1, *size):
            raise InputError(
                f"View '{name}' needs an image [3, {size[0]}, {size[1]}] and a mask [1, {size[0]}, {size[1]}] to fit "
                f"its camera, but came with {list(image.shape)} and {list(mask.shape)}."
            )
        for what, values in (("image", image), ("mask", mask)):
            if not values.is_floating_point():
                raise InputError(f"The {what} of view '{name}' must be floating point, but came as {values.dtype}.")
            low, high = (float(bound) for bound in values.aminmax())
            if not (low >= 0 and high <= 1):
                raise InputError(f"The {what} of view '{name}' must lie in [0, 1], not {low:.3g} to {high:.3g}.")
        coverage = float(mask.mean())
        if coverage < _EMPTY_MASK:
            raise InputError(f"The mask of view '{name}' is empty: nothing in it counts as the object.")
        if coverage > _FULL_MASK:
            raise InputError(
                f"The mask of view '{name}' covers the whole image, so it has no silhouette; "
                "supply images with transparency, or masks that leave the background out."
            )

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Sequence[int]) -> Views:
        """The views of the given indices, in that order; at least one."""
        indices = list(indices)
        if not indices:
            raise InputError("At least one view is needed, but none is left.")
        picked = ([values[i] for i in indices] for values in (self.images, self.masks, self.names))
        return Views(self.cameras[indices], *picked, self.predicted, self.registered)

    def to(self, device: torch.device | str) -> Views:
        """A copy on another device."""
        moved = (tuple(value.to(device) for value in values) for values in (self.images, self.masks))
        return Views(self.cameras.to(device), *moved, self.names, self.predicted, self.registered)

    def with_cameras(self, cameras: Cameras) -> Views:
        """The same photographs with other cameras of the same image sizes."""
        return replace(self, cameras=cameras)

    def scaled(self, longest_side: int) -> Views:
        """Every view shrunk so that its longer side is at most `longest_side` pixels; smaller ones stay.

        Averaged by area in linear light, colours weighted by coverage, so that a background never bleeds in.
        """
        if longest_side < 1:
            raise InputError(f"Images need at least one pixel a side, but {longest_side} was asked for.")
        cameras, images, masks = [], [], []
        for index in range(len(self)):
            height, width = self.cameras.height_width(index)
            factor = min(1.0, longest_side / max(height, width))
            size = max(1, round(height * factor)), max(1, round(width * factor))
            image, mask = self.images[index], self.masks[index]
            if size != (height, width):
                image, mask = _shrink(image, mask, size)
            cameras.append(self.cameras[index].scaled(*size))
            images.append(image)
            masks.append(mask)
        return Views(Cameras.cat(cameras), images, masks, self.names, self.predicted, self.registered)

    def linear(self, index: int) -> Tensor:
        """Linear light, multiplied by the mask, and the mask: [H, W, 4] float32, the target of a renderer."""
        mask = self.masks[index]
        return torch.cat([srgb_to_linear(self.images[index]) * mask, mask]).permute(1, 2, 0).contiguous()

    def save(self, folder: str | PathLike[str], colmap: bool = False) -> None:
        """Write `images/NNN.png` (with alpha) and `transforms.json` in the glTF frame, as `load_views` reads them.

        Args:
            colmap: also write COLMAP's `cameras.txt` and `images.txt`.
        """
        folder = Path(folder)
        files = [f"images/{index:03d}.png" for index in range(len(self))]
        for index, file in enumerate(files):
            rgba = torch.cat([self.images[index], self.masks[index]]).permute(1, 2, 0)
            pixels = (rgba.detach().cpu().numpy() * 255 + 0.5).astype(np.uint8)
            with replacing(folder / file) as temporary:
                Image.fromarray(pixels, "RGBA").save(temporary)
        texts = {"transforms.json": json.dumps(to_transforms(self.cameras, files), indent=1)}
        if colmap:
            texts["cameras.txt"], texts["images.txt"] = to_colmap_text(self.cameras, [Path(f).name for f in files])
        for name, text in texts.items():
            with replacing(folder / name) as temporary:
                temporary.write_text(text, encoding="utf-8")


def srgb_to_linear(values: Tensor) -> Tensor:
    """sRGB to linear light (IEC 61966-2-1), values in [0, 1]."""
    return torch.where(values <= 0.04045, values / 12.92, ((values.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(values: Tensor) -> Tensor:
    """Linear light to sRGB (IEC 61966-2-1); values above 1 go on along the same curve, negative ones become 0."""
    values = values.clamp(min=0)
    curve = 1.055 * values.clamp(min=0.0031308) ** (1 / 2.4) - 0.055
    return torch.where(values <= 0.0031308, values * 12.92, curve)


def _shrink(image: Tensor, mask: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    stack = torch.cat([srgb_to_linear(image) * mask, mask])[None]
    stack = interpolate(stack, size, mode="area")[0]
    coverage = stack[3:].clamp(0, 1)
    # Only thinly covered pixels lose anything to the lower bound, and their colour counts for next to nothing.
    return linear_to_srgb(stack[:3] / coverage.clamp(min=1e-4)).clamp(0, 1), coverage
