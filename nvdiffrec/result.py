"""Writing a refined asset: PBR mesh, fitted environment, cameras and the table of scores."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nvdiffrec.asset import Asset
from nvdiffrec.hdr import write_hdr
from nvdiffrec.material import Material
from nvdiffrec.optimise import RefineResult
from nvdiffrec.views import Views, linear_to_srgb, srgb_to_linear
from trellis.export.frame import to_gltf_frame
from trellis.export.gltf import opaque_material, write_glb
from trellis.files import replacing
from trellis.renderers.camera_formats import to_transforms


def write_result(folder: str | PathLike[str], result: RefineResult, views: Views) -> list[str]:
    """Write `mesh.glb`, `transforms.json`, `scores.json` and, if a light was fitted, `environment.hdr`.

    Mesh and cameras are in the glTF frame; the environment's up is the frame's y, as viewers expect.

    Args:
        views: the photographs that were refined against; `transforms.json` names them `images/NNN.png`, as their
            `save` does.

    Returns:
        The names of the files.
    """
    folder = Path(folder)
    write_glb(folder / "mesh.glb", pbr_mesh(result.asset))
    names = [f"images/{index:03d}.png" for index in range(len(views))]
    record = {
        "helped": result.helped,
        "message": result.message,
        "cancelled": result.cancelled,
        "views": [
            {"name": before.name, "held_out": before.held_out, "before": _numbers(before), "after": _numbers(after)}
            for before, after in zip(result.before, result.after, strict=True)
        ],
    }
    texts = {"transforms.json": to_transforms(result.cameras, names), "scores.json": record}
    for name, content in texts.items():
        with replacing(folder / name) as temporary:
            temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    files = ["mesh.glb", *texts]
    if result.asset.environment is not None:
        write_hdr(folder / "environment.hdr", result.asset.environment.permute(1, 2, 0).numpy())
        files.append("environment.hdr")
    return files


def quantised(asset: Asset) -> Asset:
    """The asset as its file will hold it: textures of 8 bits a channel, base colour in sRGB."""
    material = asset.material

    def rounded(values: Tensor) -> Tensor:
        return (values.clamp(0, 1) * 255).round() / 255

    color = srgb_to_linear(rounded(linear_to_srgb(material.base_color.detach())))
    normal = None
    if material.normal is not None:
        normal = 2 * rounded((torch.nn.functional.normalize(material.normal.detach(), dim=0) + 1) / 2) - 1
    return replace(asset, material=Material(color, rounded(material.orm.detach()), normal))


def pbr_mesh(asset: Asset):
    """A `trimesh.Trimesh` in the glTF frame with base colour, roughness and metallic textures, and a normal map if any.

    An asset without a light of its own has its shading in the base colour, and comes rough and not metallic.
    """
    import trimesh

    atlas, material = asset.atlas, asset.material
    roughness, metallic = material.orm.detach()
    maps = {"baseColorTexture": _picture(linear_to_srgb(material.base_color.detach()))}
    if material.normal is not None:
        unit = torch.nn.functional.normalize(material.normal.detach(), dim=0)
        maps["normalTexture"] = _picture((unit + 1) / 2)
    # glTF keeps roughness in green and metallic in blue; red is occlusion, which is not used.
    maps["metallicRoughnessTexture"] = _picture(torch.stack([torch.ones_like(roughness), roughness, metallic]))
    surface = opaque_material(metallic=1.0, **maps)
    return trimesh.Trimesh(
        vertices=to_gltf_frame(atlas.vertices),
        faces=atlas.faces,
        vertex_normals=to_gltf_frame(atlas.normals),
        visual=trimesh.visual.TextureVisuals(uv=atlas.uvs, material=surface),
        process=False,
    )


def _picture(channels: Tensor) -> Image.Image:
    pixels = channels.clamp(0, 1).permute(1, 2, 0).numpy()
    return Image.fromarray((pixels * 255 + 0.5).astype(np.uint8))


def _numbers(score) -> dict[str, float]:
    return {key: round(value, 4) for key, value in asdict(score).items() if isinstance(value, float)}
