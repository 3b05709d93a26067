"""Gaussians as rows of numbers in the glTF frame, and the two files made of them: PLY and SPZ."""

from __future__ import annotations

import math
from os import PathLike

import numpy as np
import torch

from trellis.errors import InputError
from trellis.export.frame import from_gltf_frame, to_gltf_frame
from trellis.export.spz import pack_spz, unpack_spz
from trellis.files import replacing
from trellis.representations.gaussian import Gaussian
from trellis.representations.gaussian_ply import write_splat_table

_HALF_ANGLE = math.sqrt(0.5)  # cosine and sine of half the quarter turn


def splat_table(gaussian: Gaussian, scale: float = 1.0) -> np.ndarray:
    """Rows [N, 17] float32 in the column order of the splat PLY; glTF frame, `scale` metres per object unit.

    Raises:
        InputError: a Gaussian has a value that is not finite.
    """
    with torch.no_grad():
        parts = (gaussian.get_xyz, gaussian.get_features[:, 0], gaussian.get_opacity, gaussian.get_scaling)
        centers, features, opacities, scales = (part.detach().cpu().double().numpy() for part in parts)
        quats = gaussian.get_rotation.detach().cpu().double().numpy()
    opacities = opacities.clip(1e-12, 1 - 2**-24)  # readers want finite logits
    table = np.concatenate(
        [
            to_gltf_frame(centers) * scale,
            np.zeros_like(centers),
            features,
            np.log(opacities / (1 - opacities)),
            np.log(scales * scale),
            _turned(quats, -_HALF_ANGLE),
        ],
        axis=1,
    ).astype(np.float32)
    if not np.isfinite(table).all():
        row = int(np.flatnonzero(~np.isfinite(table).all(axis=1))[0])
        raise InputError(f"Gaussian {row} has a value that is not finite, so no splat file was written.")
    return table


def gaussian_of(table: np.ndarray, scale: float = 1.0) -> Gaussian:
    """The Gaussians, in the object frame, of rows as `splat_table` gives them."""
    table = np.asarray(table, dtype=np.float64)
    fields = (
        from_gltf_frame(table[:, :3]) / scale,
        table[:, None, 6:9],
        np.exp(table[:, 10:13]) / scale,
        _turned(table[:, 13:], _HALF_ANGLE),
        1 / (1 + np.exp(-table[:, 9:10])),
    )
    centers, features, scales, quats, opacities = (torch.from_numpy(np.ascontiguousarray(f)).float() for f in fields)
    gaussian = Gaussian([-0.5, -0.5, -0.5, 1, 1, 1], scaling_activation="exp")
    gaussian.from_xyz(centers)
    gaussian.from_features(features)
    gaussian.from_scaling(scales)
    gaussian.from_rotation(quats)
    gaussian.from_opacity(opacities)
    return gaussian


def save_ply(path: str | PathLike[str], gaussian: Gaussian, scale: float = 1.0) -> None:
    """Write the splat PLY that lies on the GLB exported with the same scale; read it with `Gaussian.load_ply`."""
    write_splat_table(path, splat_table(gaussian, scale))


def save_spz(path: str | PathLike[str], gaussian: Gaussian, scale: float = 1.0) -> None:
    """Write the compact SPZ that lies on the GLB exported with the same scale: about a tenth of the PLY."""
    content = pack_spz(splat_table(gaussian, scale))
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def load_spz(path: str | PathLike[str], scale: float = 1.0) -> Gaussian:
    """The Gaussians of an SPZ file, in the object frame.

    Raises:
        InputError: see `spz.unpack_spz`; or the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise InputError(f"The splat file {path} cannot be read: {error.strerror or error}.") from error
    return gaussian_of(unpack_spz(content), scale)


def _turned(quats: np.ndarray, sine: float) -> np.ndarray:
    """Quaternions [N, 4] (w first) after a quarter turn about x: the product (c, s, 0, 0) * q."""
    c, s = _HALF_ANGLE, sine
    w, x, y, z = quats.T
    return np.stack([c * w - s * x, c * x + s * w, c * y - s * z, c * z + s * y], axis=1)
