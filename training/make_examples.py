"""Render the example views of the page from packed objects that no network was trained on.

    python -m training.make_examples --data examples.safetensors --out assets/examples kc-spot=cow@180 NAME=FOLDER@YAW

Writes `OUT/<folder>/<k>.png`: RGBA views at 512 px as a person walking around the object would take them, the first
from YAW degrees. Pack the objects with `--texture-side 512`.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from training.data.objects import ObjectLibrary
from training.data.scenes import crop_to_object, render

VIEWS = 6
SIZE = 512
SUPERSAMPLE = 3


def example_views(library: ObjectLibrary, name: str, yaw: float, seed: int = 0) -> list[Image.Image]:
    """`VIEWS` antialiased RGBA images of one object at changing height, the first from `yaw` degrees."""
    generator = torch.Generator().manual_seed(seed)
    instances = library.instances(torch.tensor([library.names.index(name)]), torch.eye(3)[None])
    k = torch.arange(VIEWS)
    azimuth = math.radians(yaw) + k / VIEWS * 2 * math.pi + 0.15 * torch.rand(VIEWS, generator=generator)
    elevation = 0.2 + 0.25 * (k % 2) + 0.1 * torch.rand(VIEWS, generator=generator)
    eye = 2.4 * torch.stack(
        [azimuth.sin() * elevation.cos(), azimuth.cos() * elevation.cos(), elevation.sin()], 1
    )
    owner = torch.zeros(VIEWS, dtype=torch.long)
    views = crop_to_object(instances, eye, torch.zeros(VIEWS), owner, SIZE * SUPERSAMPLE, None)
    rendering = render(library, instances, views, generator)
    rgba = torch.cat([rendering.images, rendering.alpha], 1).permute(0, 2, 3, 1)
    pixels = (rgba.numpy() * 255).round().astype(np.uint8)
    # Pillow weighs colours by alpha when it shrinks RGBA, so that the black outside does not darken the edge.
    return [Image.fromarray(p).resize((SIZE, SIZE), Image.Resampling.BOX) for p in pixels]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("names", nargs="+", metavar="NAME=FOLDER@YAW")
    args = parser.parse_args(argv)
    library = ObjectLibrary(args.data)
    for entry in args.names:
        name, _, rest = entry.partition("=")
        slug, _, yaw = rest.partition("@")
        folder = args.out / (slug or name)
        folder.mkdir(parents=True, exist_ok=True)
        for index, image in enumerate(example_views(library, name, float(yaw or 0))):
            image.save(folder / f"{index}.png", optimize=True)


if __name__ == "__main__":
    main()
