"""VGGT: cameras in the canonical object frame and a point map, from 2 to 8 views.

    python -m training.vggt --data objects.safetensors --out runs --minutes 10 --compile
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.data.scenes import Rendering, Views, degrade, random_views, render
from training.loop import Run, parser
from trellis.models import VGGT

ITERATION_DECAY = 0.6  # VGGT (Wang et al. 2025) weighs later refinements of the camera more
CONFIDENCE_WEIGHT = 0.1
COARSE = 0.55  # share of the run at half the image size, where a step teaches as much about cameras for a quarter


def quaternion_to_matrix(q: Tensor) -> Tensor:
    """Quaternions x, y, z, w of any length [..., 4] to rotations [..., 3, 3]."""
    x, y, z, w = (q / q.norm(dim=-1, keepdim=True).clamp(min=1e-6)).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w),
        2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w),
        2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y),
    ]
    return torch.stack(rows, -1).reshape(*q.shape[:-1], 3, 3)


def camera_losses(encodings: list[Tensor], views: Views) -> dict[str, Tensor]:
    """Rotation (chordal), translation (relative to distance) and field-of-view errors over the head's iterations."""
    extrinsics = views.extrinsics
    distance = extrinsics[:, :3, 3].norm(dim=1, keepdim=True)
    totals = {"rotation": 0.0, "translation": 0.0, "fov": 0.0}
    for index, encoding in enumerate(encodings):
        weight = ITERATION_DECAY ** (len(encodings) - 1 - index)
        flat = encoding.float().reshape(-1, 9)
        chord = (quaternion_to_matrix(flat[:, 3:7]) - extrinsics[:, :3, :3]).square().sum((1, 2))
        totals["rotation"] += weight * (chord + 1e-4).sqrt().mean()
        totals["translation"] += weight * ((flat[:, :3] - extrinsics[:, :3, 3]) / distance).abs().sum(1).mean()
        totals["fov"] += weight * (flat[:, 7:] - views.fov[:, None]).abs().mean()
    return totals


def point_losses(points: Tensor, confidence: Tensor, rendering: Rendering, rows: Tensor) -> dict[str, Tensor]:
    """Confidence-weighted distance to the true canonical point on object pixels of views `rows`."""
    mask = rendering.alpha[rows, 0] > 0
    error = (points - rendering.points[rows].permute(0, 2, 3, 1)).norm(dim=-1)[mask]
    confidence = confidence[mask]
    return {"point": (confidence * error - CONFIDENCE_WEIGHT * confidence.log()).mean()}


class PatchPoints(nn.Module):
    """Linear read-outs of canonical points, 2 x 2 per patch, from chosen aggregator levels; used in training only.

    The cameras hang on what the patches know of their place on the object; this tells them early and directly.
    """

    CELLS = 2

    def __init__(self, channels: int, patch: int, levels: list[int]):
        super().__init__()
        self.patch, self.levels = patch, sorted(set(levels))
        self.read = nn.ModuleList(nn.Linear(channels, 3 * self.CELLS**2) for _ in self.levels)

    def forward(self, tokens: list[Tensor | None], start: int, rendering: Rendering) -> Tensor:
        """Mean absolute error over covered cells, averaged over levels."""
        cell = self.patch // self.CELLS

        def cells(x: Tensor) -> Tensor:
            return F.pixel_unshuffle(F.avg_pool2d(x, cell), self.CELLS).flatten(2).transpose(1, 2)

        weight = cells(rendering.alpha).repeat(1, 1, 3)
        target = cells(rendering.points * rendering.alpha) / weight.clamp(min=1e-3)
        total = 0.0
        for level, read in zip(self.levels, self.read, strict=True):
            prediction = read(tokens[level][:, :, start:]).flatten(0, 1).float()
            total = total + (weight * (prediction - target).abs()).sum() / weight.sum()
        return total / len(self.levels)


def rotation_error_degrees(encoding: Tensor, views: Views) -> Tensor:
    """Median angle of the relative rotation between the first and the other views."""
    predicted = quaternion_to_matrix(encoding.float()[..., 3:7])
    true = views.extrinsics[:, :3, :3].reshape(predicted.shape)
    relative = (predicted[:, 1:] @ predicted[:, :1].mT) @ (true[:, 1:] @ true[:, :1].mT).mT
    trace = relative.diagonal(dim1=-2, dim2=-1).sum(-1)
    return torch.rad2deg(torch.arccos(((trace - 1) / 2).clamp(-1, 1))).median()


def main(argv: list[str] | None = None) -> None:
    args = parser(__doc__, minutes=10, learning_rate=6e-4).parse_args(argv)
    run = Run("vggt", args)
    settings = run.sizes.networks["vggt"]
    model = VGGT(**settings)
    patches = PatchPoints(2 * settings["embed_dim"], settings["patch_size"], settings["intermediate_layers"][-2:])
    choices = [4, 2, 4, 8]
    for step in run.train({"vggt": model, "patches": patches}):
        coarse = run.progress() < COARSE
        size = run.sizes.image_size // 2 if coarse else run.sizes.image_size
        per_scene = choices[step % len(choices)]
        scenes = max(1, run.batch(1024 if coarse else 512) // per_scene)
        with torch.no_grad():
            instances = run.library.random_instances(scenes, run.generator)
            views = random_views(instances, per_scene, size, run.generator)
            rendering = render(run.library, instances, views, run.generator)
            images = degrade(rendering.images, run.generator)
        images = images.reshape(scenes, per_scene, *images.shape[1:])
        with run.autocast():
            tokens, start = model.aggregator(images)
            subset = max(1, scenes // 8)  # the dense head is the dearest part of a step
            part = [None if t is None else t[:subset] for t in tokens]
            patch_error = patches(tokens, start, rendering)
            points, confidence = model.point_head(part, images[:subset], start, frames_chunk_size=None)
        encodings = model.camera_head([None if t is None else t.float() for t in tokens])
        losses = camera_losses(encodings, views) | {"patch": 3 * patch_error}
        rows = torch.arange(subset * per_scene, device=run.device)
        losses |= point_losses(points.float().flatten(0, 1), confidence.float().flatten(0, 1), rendering, rows)
        run.update(losses)
        if step % 200 == 0:
            error = rotation_error_degrees(encodings[-1].detach(), views)
            print(f"[vggt] {per_scene} views: relative rotation {error:.1f} degrees", flush=True)


if __name__ == "__main__":
    main()
