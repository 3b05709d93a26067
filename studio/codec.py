"""Stage outputs as bytes and back: plain data, arrays, and the few classes that stages hand to each other.

Nothing in here can run code on reading, unlike pickle: a file in a cache folder may have been written by anybody. The
layout is a SHA-256 over the rest, then a safetensors block with all arrays and, as its metadata, the tree around them.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load, save

from nvdiffrec.asset import Asset
from nvdiffrec.material import Material
from nvdiffrec.optimise import RefineResult, ViewScore
from nvdiffrec.registration import Registration, ViewPlacement
from nvdiffrec.shading import TexturedGeometry
from nvdiffrec.similarity import Similarity
from nvdiffrec.views import Views
from studio.stages import PreparedView, Surfaces
from trellis.export.gltf import TexturedMesh
from trellis.export.surface import Surface
from trellis.modules.sparse import SparseTensor
from trellis.pipelines.conditioning import Conditions
from trellis.renderers.cameras import Cameras
from trellis.representations.gaussian import Gaussian
from trellis.representations.mesh import MeshExtractResult

_DIGEST = hashlib.sha256().digest_size
_SPLATS = ("_xyz", "_features_dc", "_scaling", "_rotation", "_opacity")


class DamagedError(ValueError):
    """The bytes are not those of an encoded value."""


def _fields(*names: str) -> Callable[[Any], dict[str, Any]]:
    return lambda value: {name: getattr(value, name) for name in names}


def _parts(value: Any) -> dict[str, Any]:
    """Of a dataclass."""
    return {field.name: getattr(value, field.name) for field in fields(value)}


def _gaussian(init: dict[str, Any], **tensors: torch.Tensor) -> Gaussian:
    gaussian = Gaussian(**init)
    for name, tensor in tensors.items():
        setattr(gaussian, name, tensor)
    return gaussian


# By class: how to take it apart into named parts, and how to build it from them.
_CLASSES: dict[type, tuple[Callable[[Any], dict[str, Any]], Callable[..., Any]]] = {
    Cameras: (_fields("extrinsics", "intrinsics", "image_size"), Cameras),
    Conditions: (_fields("structure", "latent", "cameras"), Conditions),
    SparseTensor: (_fields("feats", "coords"), SparseTensor),
    MeshExtractResult: (_fields("vertices", "faces", "vertex_attrs", "res"), MeshExtractResult),
    Gaussian: (
        lambda gaussian: {"init": gaussian.init_params, **{name: getattr(gaussian, name) for name in _SPLATS}},
        _gaussian,
    ),
    Surface: (_fields("vertices", "faces", "colors"), Surface),
    TexturedMesh: (_fields("vertices", "faces", "uvs", "normals", "texture"), TexturedMesh),
    PreparedView: (_fields("name", "image", "cut_out_by", "notes", "crop", "sharp"), PreparedView),
    **{
        kind: (_parts, kind)
        for kind in (Asset, Material, RefineResult, Registration, Similarity, Surfaces, TexturedGeometry, ViewPlacement,
                     Views, ViewScore)
    },
}  # fmt: skip
_BY_NAME = {kind.__name__: build for kind, (_, build) in _CLASSES.items()}


def encode(value: Any) -> bytes:
    """The bytes of a value made of the classes above, tensors, arrays, images, bytes, containers and plain data.

    Tensors come back on the CPU. Raises TypeError for anything else.
    """
    arrays: dict[str, torch.Tensor] = {}
    tree = _to_tree(value, arrays)
    body = save(arrays, metadata={"tree": json.dumps(tree)})
    return hashlib.sha256(body).digest() + body


def decode(data: bytes) -> Any:
    """The value of `encode`d bytes. Raises DamagedError if a single bit of them has changed."""
    body = memoryview(data)[_DIGEST:]
    if hashlib.sha256(body).digest() != data[:_DIGEST]:
        raise DamagedError("The checksum does not match.")
    body = bytes(body)
    header = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])
    return _from_tree(json.loads(header["__metadata__"]["tree"]), load(body))


def _to_tree(value: Any, arrays: dict[str, torch.Tensor]) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, list):
        return [_to_tree(item, arrays) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [_to_tree(item, arrays) for item in value]}
    if isinstance(value, dict):
        return {"dict": {key: _to_tree(item, arrays) for key, item in value.items()}}
    if isinstance(value, torch.Tensor):
        return {"tensor": _store(value, arrays)}
    if isinstance(value, np.ndarray):
        return {"array": _store(torch.from_numpy(np.ascontiguousarray(value)), arrays)}
    if isinstance(value, bytes):
        raw = torch.frombuffer(bytearray(value or b"\0"), dtype=torch.uint8)  # a tensor must have something in it
        return {"bytes": _store(raw, arrays), "n": len(value)}
    if isinstance(value, Image.Image):
        return {"image": _to_tree(_png(value), arrays)}
    if type(value) in _CLASSES:
        take_apart, _ = _CLASSES[type(value)]
        return {"class": type(value).__name__, "parts": _to_tree(take_apart(value), arrays)}
    raise TypeError(f"A {type(value).__name__} cannot be kept in the stage cache.")


def _store(tensor: torch.Tensor, arrays: dict[str, torch.Tensor]) -> str:
    key = str(len(arrays))
    arrays[key] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return key


def _from_tree(tree: Any, arrays: dict[str, torch.Tensor]) -> Any:
    if isinstance(tree, list):
        return [_from_tree(item, arrays) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if "tuple" in tree:
        return tuple(_from_tree(item, arrays) for item in tree["tuple"])
    if "dict" in tree:
        return {key: _from_tree(item, arrays) for key, item in tree["dict"].items()}
    if "tensor" in tree:
        return arrays[tree["tensor"]]
    if "array" in tree:
        return arrays[tree["array"]].numpy()
    if "bytes" in tree:
        return arrays[tree["bytes"]].numpy().tobytes()[: tree["n"]]
    if "image" in tree:
        image = Image.open(io.BytesIO(_from_tree(tree["image"], arrays)), formats=["PNG"])
        image.load()
        return image
    return _BY_NAME[tree["class"]](**_from_tree(tree["parts"], arrays))


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=1)
    return stream.getvalue()
