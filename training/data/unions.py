"""Unions: two objects side by side or one on top of the other, as one new object.

Two thousand objects are few enough to be remembered. Pairs of them cannot be: what stands where has to be read off the
views.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from training.data.packed import PackedMesh, encode_texture

TEXTURE_SIDE = 256  # of each half
OVERLAP = 0.04  # of the first object's size: parts that touch rather than hover


def join(first: PackedMesh, second: PackedMesh, rng: np.random.Generator, name: str) -> PackedMesh:
    """Both meshes in one, each about an upright axis at random, the second 0.4 to 1 times as large as the first.

    The result is centred and its longest side is 1. Both must be shaded alike (`smooth`).
    """
    assert first.smooth == second.smooth
    a = _turned(first.vertices, rng)
    b = _turned(second.vertices, rng) * rng.uniform(0.4, 1.0)
    low, high = a.min(0), a.max(0)
    if rng.random() < 0.5:  # on top, somewhere above the first
        centre = (low[:2] + high[:2]) / 2 + (high[:2] - low[:2]) * rng.uniform(-0.25, 0.25, 2)
        b = b + [*(centre - (b.min(0) + b.max(0))[:2] / 2), high[2] - OVERLAP - b[:, 2].min()]
    else:  # beside it, on the same ground
        b = b + [high[0] - OVERLAP - b[:, 0].min(), rng.uniform(-0.25, 0.25), low[2] - b[:, 2].min()]
    vertices = np.concatenate([a, b])
    low, high = vertices.min(0), vertices.max(0)
    texture, uvs = _stacked(first, second)
    return PackedMesh(
        name=name,
        vertices=(vertices - (low + high) / 2) / (high - low).max(),
        uvs=uvs,
        faces=np.concatenate([first.faces, second.faces.astype(np.int64) + len(a)]),
        texture=texture,
        smooth=first.smooth,
    )


def random_unions(meshes: list[PackedMesh], count: int, rng: np.random.Generator) -> list[PackedMesh]:
    """`count` unions of random pairs of `meshes`; faces and corners stay countable in 16 bits."""
    unions: list[PackedMesh] = []
    while len(unions) < count:
        first, second = (meshes[k] for k in rng.integers(len(meshes), size=2))
        if first.smooth == second.smooth and len(first.vertices) + len(second.vertices) < 2**16:
            unions.append(join(first, second, rng, f"union-{len(unions)}"))
    return unions


def _turned(vertices: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    angle = rng.uniform(0, 2 * np.pi)
    c, s = np.cos(angle), np.sin(angle)
    return vertices.astype(np.float64) @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])


def _stacked(first: PackedMesh, second: PackedMesh) -> tuple[bytes, np.ndarray]:
    """Both textures in one image, the first above the second, and the texture coordinates in it."""
    images = [Image.open(io.BytesIO(mesh.texture)).convert("RGB") for mesh in (first, second)]
    for image in images:
        # Without blending: many textures are palettes, whose cells must not run into each other.
        image.thumbnail((TEXTURE_SIDE, TEXTURE_SIDE), Image.Resampling.NEAREST)
    width, height = max(i.width for i in images), sum(i.height for i in images)
    canvas = Image.new("RGB", (width, height))
    canvas.paste(images[0], (0, 0))
    canvas.paste(images[1], (0, images[0].height))
    uvs = []
    for mesh, image, below in ((first, images[0], images[1].height), (second, images[1], 0)):
        u = mesh.uvs[:, 0] * image.width / width
        v = (mesh.uvs[:, 1] * image.height + below) / height  # v points up
        uvs.append(np.stack([u, v], 1))
    return encode_texture(canvas, side=max(canvas.size)), np.concatenate(uvs)
