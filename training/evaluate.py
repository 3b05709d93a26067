"""Measure a checkpoint on objects it never saw, and show what it makes.

    python -m training.evaluate --split validation --views 1 2 4 8 --out evaluation

For each object, photographs without cameras go through the whole pipeline, and the result is compared with the object:
cameras, voxels of the structure, the surface of the GLB that the studio would write (cells of 64^3, 32^3 and 16^3 grids
that it touches; after similarity alignment those of 64^3 again, Chamfer and F-score) and renders from 8 unseen cameras
on black, of the splats and of the GLB: against the object's colours without light, and, where photographs gave the
colours ("lit"), under the light of the photographs. Prints medians; writes for each number of views `table-<n>.csv` and
`contact-<n>.jpg`: the views, then the GLB, the truth and our normals from three of the unseen cameras.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from training.data.objects import Instances, ObjectLibrary
from training.data.scenes import Rendering, Views, crop_to_object, degrade, random_views, render
from training.metrics import (
    align_similarity,
    chamfer_and_f_score,
    grid_f1,
    grid_iou,
    occupancy_grid,
    relative_rotation_errors,
    rotation_angle_degrees,
)
from trellis.export.photographs import Photographs
from trellis.export.pipeline import export_mesh
from trellis.export.splat_colors import painted_splats
from trellis.export.splat_places import laid_on_surface
from trellis.export.unlit import render_textured
from trellis.pipelines import TrellisVGGTTo3DPipeline
from trellis.renderers import gaussian_raster, mesh_raster
from trellis.renderers.cameras import Cameras
from trellis.utils.image_metrics import iou, psnr, ssim

SPLITS = Path(__file__).parent / "splits"
UNSEEN = 8
TILE = 160


def surface_points(vertices: Tensor, faces: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` area-weighted random points [P, 3] of a mesh."""
    corners = vertices[faces]
    area = torch.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0], dim=1).norm(dim=1)
    cumulative = area.double().cumsum(0)
    face = torch.searchsorted(cumulative, torch.rand(count, generator=generator).double() * cumulative[-1])
    u = torch.rand(count, 2, generator=generator)
    root = u[:, :1].sqrt()
    weights = torch.cat([1 - root, root * (1 - u[:, 1:]), root * u[:, 1:]], 1)
    return (corners[face.clamp(max=len(faces) - 1)] * weights[..., None]).sum(1)


def to_cameras(views: Views) -> Cameras:
    """The scene's views as the package's cameras."""
    return Cameras(views.extrinsics, views.intrinsics, torch.full((len(views.extrinsics), 2), views.size))


def unseen_views(instances: Instances, size: int) -> Views:
    """`UNSEEN` cameras around one object between the trained elevations, cropped to it."""
    k = torch.arange(UNSEEN)
    azimuth, elevation = (k + 0.5) / UNSEEN * 2 * math.pi, torch.where(k % 2 == 0, 0.15, 0.6)
    eye = 2.2 * torch.stack(
        [azimuth.sin() * elevation.cos(), azimuth.cos() * elevation.cos(), elevation.sin()], 1
    )
    return crop_to_object(instances, eye, torch.zeros(UNSEEN), torch.zeros(UNSEEN, dtype=torch.long), size, None)


def photographs(rendering: Rendering, generator: torch.Generator) -> list[Image.Image]:
    """RGBA images as a user would upload them, antialiased by halving."""
    rgba = torch.cat([degrade(rendering.images, generator), rendering.alpha], 1)
    pixels = (rgba.permute(0, 2, 3, 1).numpy() * 255).round().astype(np.uint8)
    return [Image.fromarray(p).resize((p.shape[1] // 2, p.shape[0] // 2), Image.Resampling.BOX) for p in pixels]


def evaluate_object(
    pipeline: TrellisVGGTTo3DPipeline, library: ObjectLibrary, index: int, views: int, seed: int
) -> tuple[dict[str, float], np.ndarray]:
    """All measures of one object, and its row of the contact sheet (uint8 image)."""
    generator = torch.Generator().manual_seed(seed + index)
    turn = torch.rand(1, generator=generator) * 2 * math.pi
    c, s = turn.cos().item(), turn.sin().item()
    instances = library.instances(torch.tensor([index]), torch.tensor([[[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]]]))
    scene = random_views(instances, views, 2 * pipeline.image_resolution, generator)
    light = generator.get_state()
    images = photographs(render(library, instances, scene, generator), generator)

    clock = time.perf_counter
    started = clock()
    outputs, coords, _ = pipeline.run(image=images, seed=seed, formats=["gaussian", "mesh"])
    sampled = clock()
    gaussian, mesh = outputs["gaussian"][0], outputs["mesh"][0]
    prepared = [pipeline.preprocess_image(image) for image in images]
    cameras = pipeline.estimate_cameras(prepared)
    placed = pipeline.camera_frame == "object"
    painters = Photographs.of(prepared, cameras) if placed else None
    exporting = clock()
    asset = export_mesh(mesh, gaussian, photographs=painters)
    seconds = {"seconds": sampled - started, "seconds of export": clock() - exporting}
    true_rotation = scene.extrinsics[:, :3, :3]

    truth = surface_points(instances.vertices, instances.triangles, 120_000, generator)
    surface = torch.from_numpy(asset.vertices), torch.from_numpy(asset.faces).long()
    ours = surface_points(*surface, 120_000, generator)
    row = {**seconds, "voxels": len(coords)}
    row["absolute rotation"] = rotation_angle_degrees(cameras.rotations, true_rotation).median().item()
    if views > 1:
        row["relative rotation"] = relative_rotation_errors(cameras.rotations, true_rotation).median().item()
    side = pipeline.models["slat_flow_model"].resolution
    voxels = (coords[:, 1:] + 0.5) / side - 0.5
    for resolution in (side, side // 2):
        grids = (occupancy_grid(points, resolution) for points in (voxels, truth))
        row[f"structure IoU {resolution}"] = grid_iou(*grids)
    for resolution in (64, 32, 16):
        row[f"IoU {resolution}"] = grid_iou(occupancy_grid(ours, resolution), occupancy_grid(truth, resolution))
    row["F1 within a voxel"] = grid_f1(occupancy_grid(ours, 64), occupancy_grid(truth, 64))
    aligned = align_similarity(ours.numpy(), truth.numpy())
    row["aligned IoU 64"] = grid_iou(occupancy_grid(torch.from_numpy(aligned), 64), occupancy_grid(truth, 64))
    row["Chamfer"], row["F-score 0.05"] = chamfer_and_f_score(aligned, truth.numpy())

    unseen = unseen_views(instances, 224)
    generator.set_state(light)  # the same light falls on the unseen views
    reference = render(library, instances, unseen, generator)
    painted = gaussian if painters is None else painted_splats(laid_on_surface(gaussian, mesh), mesh, painters)
    seen_from, tiles = to_cameras(unseen), []
    scores: dict[str, list[float]] = defaultdict(list)
    for k in range(UNSEEN):
        truth_unlit, truth_lit = _pixels(reference.albedo[k]), _pixels(reference.images[k])
        inside = reference.alpha[k, 0].numpy() > 0.5
        splats = gaussian_raster.render(gaussian, seen_from, k)
        glb, glb_mask = render_textured(asset, asset.texture, seen_from, k)
        pictures = {"": (_pixels(splats.color), splats.alpha[0].detach().numpy()), " of GLB": (glb, glb_mask)}
        for of, (picture, mask) in pictures.items():
            scores[f"unseen PSNR{of}"].append(psnr(picture, truth_unlit))
            scores[f"unseen SSIM{of}"].append(ssim(picture, truth_unlit))
            scores[f"unseen IoU{of}"].append(iou(mask > 0.5, inside))
        painted_picture = _pixels(gaussian_raster.render(painted, seen_from, k).color)
        for of, picture in (("painted splats", painted_picture), ("GLB", glb)):
            scores[f"lit PSNR of {of}"].append(psnr(picture, truth_lit))
            scores[f"lit SSIM of {of}"].append(ssim(picture, truth_lit))
        if k in (0, 3, 5):
            normals = mesh_raster.render_mesh(*surface, None, seen_from, k, antialiased=False, normals=True)["normals"]
            tiles += [_tile(glb), _tile(truth_unlit), _tile(normals.clamp(0, 1).numpy())]
    row |= {name: float(np.median(values)) for name, values in scores.items()}
    inputs = [np.asarray(image.convert("RGB").resize((TILE, TILE))) for image in images[:4]]
    return row, np.concatenate(inputs + tiles, 1)


def _pixels(image: Tensor) -> np.ndarray:
    """[3, H, W] of any range as [H, W, 3] in [0, 1]."""
    return image.detach().clamp(0, 1).permute(1, 2, 0).numpy()


def _tile(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray((pixels * 255).astype(np.uint8)).resize((TILE, TILE)))


def evaluate(
    pipeline: TrellisVGGTTo3DPipeline, library: ObjectLibrary, views: int, seed: int, out: Path
) -> dict[str, float]:
    """Medians of all measures over the objects of a library; writes the table and the contact sheet as it goes."""
    rows, sheet = [], []
    for index, name in enumerate(library.names):
        row, strip = evaluate_object(pipeline, library, index, views, seed)
        rows.append({"object": name, **row})
        sheet.append(strip)
        print(name, " ".join(f"{k} {v:.3g}" for k, v in row.items()), flush=True)
        with (out / f"table-{views}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
        Image.fromarray(np.concatenate(sheet)).save(out / f"contact-{views}.jpg", quality=88)
    return {key: float(np.median([row[key] for row in rows])) for key in rows[0] if key != "object"}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    objects = parser.add_mutually_exclusive_group()
    objects.add_argument("--split", choices=("validation", "examples"), default="validation")
    objects.add_argument("--data", type=Path, help="a file of training.data.pack instead")
    parser.add_argument("--checkpoint", default="assets/mini")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--views", type=int, nargs="+", default=[4])
    parser.add_argument("--limit", type=int, help="only the first so many objects")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    pipeline = TrellisVGGTTo3DPipeline.from_pretrained(args.checkpoint)
    library = ObjectLibrary(args.data or SPLITS / f"{args.split}.safetensors", limit=args.limit)
    args.out.mkdir(parents=True, exist_ok=True)
    medians = {views: evaluate(pipeline, library, views, args.seed, args.out) for views in args.views}
    print(f"\n{len(library)} objects, medians\n{'views':28s}" + "".join(f"{views:9d}" for views in medians))
    for key in dict.fromkeys(key for column in medians.values() for key in column):
        cells = (f"{column[key]:9.3f}" if key in column else f"{'-':>9s}" for column in medians.values())
        print(f"  {key:26s}" + "".join(cells))


if __name__ == "__main__":
    main()
