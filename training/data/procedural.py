"""Procedural solids: lathes, superquadrics, prisms, tori, springs and stacks of them, with painted textures.

They fill the gaps between scanned and modelled objects: symmetric things, thick and thin parts, unusual proportions.
"""

from __future__ import annotations

import colorsys

import numpy as np
from PIL import Image, ImageFilter

TEXTURE = 64


def _grid_faces(rows: int, columns: int) -> np.ndarray:
    """Two triangles per cell of a (rows+1) x (columns+1) vertex grid, row-major, counter-clockwise from outside."""
    r, c = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    a = (r * (columns + 1) + c).ravel()
    b, d, e = a + 1, a + columns + 1, a + columns + 2
    return np.concatenate([np.stack([a, b, e], 1), np.stack([a, e, d], 1)])


def _surface(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows, columns = x.shape[0] - 1, x.shape[1] - 1
    v, u = np.meshgrid(np.linspace(0, 1, rows + 1), np.linspace(0, 1, columns + 1), indexing="ij")
    vertices = np.stack([x, y, z], -1).reshape(-1, 3)
    return vertices, np.stack([u, v], -1).reshape(-1, 2), _grid_faces(rows, columns)


def _lathe(rng: np.random.Generator):
    """A random profile turned around z; few columns give prisms and pyramids."""
    knots = rng.integers(3, 8)
    radius = rng.uniform(0.12, 1.0, knots)
    height = np.sort(rng.uniform(-1, 1, knots)) * rng.uniform(0.4, 1.6)
    if rng.random() < 0.5:  # smooth profile
        t = np.linspace(0, 1, 20)
        radius = np.maximum(np.interp(t, np.linspace(0, 1, knots), radius), 0.05)
        radius = np.convolve(np.pad(radius, 2, mode="edge"), np.ones(5) / 5, "valid")
        height = np.interp(t, np.linspace(0, 1, knots), height)
    radius = np.concatenate([[0.0], radius, [0.0]])
    height = np.concatenate([height[:1], height, height[-1:]])
    columns = int(rng.choice([3, 4, 5, 6, 8, 24, 32]))
    angle = np.linspace(0, 2 * np.pi, columns + 1)
    return _surface(radius[:, None] * np.cos(angle), radius[:, None] * np.sin(angle), height[:, None] + 0 * angle)


def _superquadric(rng: np.random.Generator):
    """Barr 1981: signed powers of the sphere's sines and cosines."""
    e1, e2 = rng.uniform(0.15, 1.8, 2)

    def power(value: np.ndarray, exponent: float) -> np.ndarray:
        return np.sign(value) * np.abs(value) ** exponent

    v = np.linspace(-np.pi / 2, np.pi / 2, 17)[:, None]
    u = np.linspace(-np.pi, np.pi, 33)[None]
    cos_v = power(np.cos(v), e1)
    return _surface(cos_v * power(np.cos(u), e2), cos_v * power(np.sin(u), e2), power(np.sin(v), e1) + 0 * u)


def _tube(rng: np.random.Generator):
    """A torus, an arc of one, or a spring."""
    turns = rng.choice([1.0, 1.0, rng.uniform(0.4, 0.9), rng.uniform(1.5, 4.0)])
    pitch = 0.0 if turns <= 1 else rng.uniform(0.35, 0.8)
    thickness = rng.uniform(0.12, 0.45) if turns <= 1 else rng.uniform(0.08, 0.16)
    t = np.linspace(0, 2 * np.pi * turns, int(28 * max(turns, 1)))[:, None]
    s = np.linspace(0, 2 * np.pi, 13)[None]
    ring = 1.0 + thickness * np.cos(s)
    x, y = ring * np.cos(t), ring * np.sin(t)
    z = thickness * np.sin(s) + pitch * t / (2 * np.pi)
    return _surface(x[::-1], y[::-1], z[::-1])


def _box(rng: np.random.Generator):
    """Six separate faces, each with its own corner of the texture, optionally tapered."""
    taper = rng.uniform(0.5, 1.0) if rng.random() < 0.4 else 1.0
    vertices, uvs, faces = [], [], []
    for axis in range(3):
        for sign in (-1.0, 1.0):
            a, b = (axis + 1) % 3, (axis + 2) % 3
            for p, q in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
                corner = np.zeros(3)
                corner[axis], corner[a], corner[b] = sign, p * sign, q
                vertices.append(corner)
                uvs.append(((p * 0.48 + 0.5 + axis) / 3, (q * 0.48 + 0.5 + (sign > 0)) / 2))
            base = len(vertices) - 4
            faces += [[base, base + 1, base + 2], [base, base + 2, base + 3]]
    vertices = np.array(vertices)
    vertices[vertices[:, 2] > 0, :2] *= taper
    return vertices, np.array(uvs), np.array(faces)


def _texture(rng: np.random.Generator) -> Image.Image:
    """Flat colour, stripes, checks, dots or blotches in two or three colours."""
    hue = rng.random()
    colours = []
    for _ in range(3):
        hue = (hue + rng.choice([0.0, 0.08, 0.33, 0.5])) % 1.0
        saturation, value = rng.beta(2, 1.6), 0.12 + 0.85 * rng.beta(2.2, 1.2)
        colours.append(np.array(colorsys.hsv_to_rgb(hue, saturation, value)))
    y, x = np.mgrid[0:TEXTURE, 0:TEXTURE] / TEXTURE
    kind = rng.choice(["flat", "stripes", "checks", "dots", "blotches", "bands"])
    frequency = rng.integers(2, 9)
    if kind == "flat":
        mask = np.zeros_like(x)
    elif kind == "stripes":
        mask = (np.sin(2 * np.pi * frequency * (x + y * rng.choice([0, 1, 2]))) > rng.uniform(-0.5, 0.5)) * 1.0
    elif kind == "checks":
        mask = (np.floor(x * frequency) + np.floor(y * frequency)) % 2
    elif kind == "dots":
        mask = (((x * frequency) % 1 - 0.5) ** 2 + ((y * frequency) % 1 - 0.5) ** 2 < 0.08) * 1.0
    elif kind == "bands":
        mask = (y > rng.uniform(0.2, 0.8)) * 1.0
    else:
        noise = Image.fromarray((rng.random((12, 12)) * 255).astype(np.uint8)).resize((TEXTURE, TEXTURE))
        mask = (np.asarray(noise.filter(ImageFilter.GaussianBlur(2))) > 128) * 1.0
    image = colours[0] * (1 - mask[..., None]) + colours[1] * mask[..., None]
    if rng.random() < 0.4:
        band = (np.abs(y - rng.random()) < 0.08)[..., None]
        image = np.where(band, colours[2], image)
    return Image.fromarray((image * 255).astype(np.uint8))


def random_solid(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, Image.Image, bool]:
    """One to four random parts stacked or joined, centred, longest side 1.

    Returns vertices [V, 3], uvs [V, 2], faces [F, 3], the texture, and whether its normals should be smooth.
    """
    makers = [_lathe, _superquadric, _tube, _box]
    parts = int(rng.choice([1, 1, 2, 2, 3, 4]))
    vertices, uvs, faces, count, top = [], [], [], 0, 0.0
    stacked = rng.random() < 0.5
    for _ in range(parts):
        v, uv, f = makers[rng.integers(len(makers))](rng)
        v = v * rng.uniform(0.35, 1.0, 3)
        if rng.random() < 0.3:
            v = v[:, [1, 2, 0]]
        if stacked:
            v = v + [0, 0, top - v[:, 2].min() - 0.02]
            top = v[:, 2].max()
        else:
            v = v + rng.uniform(-0.6, 0.6, 3)
        # Each part takes its own window of the texture, so that parts differ in colour.
        window = rng.uniform(0.3, 1.0)
        uvs.append(uv * window + rng.uniform(0, 1 - window, 2))
        vertices.append(v)
        faces.append(f + count)
        count += len(v)
    points = np.concatenate(vertices)
    low, high = points.min(0), points.max(0)
    points = (points - (low + high) / 2) / (high - low).max()
    return points, np.concatenate(uvs), np.concatenate(faces), _texture(rng), bool(rng.random() < 0.5)
