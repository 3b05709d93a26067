"""VGGT: cameras in the canonical object frame and a point map, from 1 to 12 views.

    python -m training.vggt --data objects.safetensors --out runs --minutes 12

The structure's conditioner, flow and decoder are trained along with it, on a part of the scenes, so that the tokens
also learn to say what the flow asks of them; `training.structure_flow --init RUNS` then goes on with VGGT as it is.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.conditions import image_encoder
from training.data.scenes import TRAINING_AZIMUTHS, Rendering, cut_out, degrade, random_views, render
from training.graphs import Batch
from training.image_encoder import image_tokens
from training.loop import Run, parser
from training.structure_flow import StructureTask
from trellis.models import VGGT

ITERATION_DECAY = 0.6  # VGGT (Wang et al. 2025) weighs later refinements of the camera more
CONFIDENCE_WEIGHT = 0.1
VIEWS = (4, 8, 4, 2, 12, 4, 8, 1)  # of a scene, in turn; few different numbers, so that recorded steps are reused
IMAGES = 288  # views of a step, whatever the number of views of a scene
DENSE_SHARE = 32  # one view in so many goes through the dense head, the dearest part of a step
LATER_EVERY = len(VIEWS)  # steps from one that also trains the structure's later steps to the next
STRUCTURE_SCENES = 36  # of a step, for the structure flow: as many as there are of 8 views; 24 of 12
VIEW_WEIGHT = 4
PATCH_WEIGHT = 6  # of all losses the one whose gradient has most direction and least noise


def quaternion_to_matrix(q: Tensor) -> Tensor:
    """Quaternions x, y, z, w of any length [..., 4] to rotations [..., 3, 3]."""
    x, y, z, w = (q / q.norm(dim=-1, keepdim=True).clamp(min=1e-6)).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w),
        2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w),
        2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y),
    ]
    return torch.stack(rows, -1).reshape(*q.shape[:-1], 3, 3)


def in_view(points: Tensor, rotation: Tensor, translation: Tensor, fov: Tensor) -> Tensor:
    """Where a camera (world to camera; fov in radians) sees points [N, K, 3]: from -1 to 1 across its picture."""
    camera = points @ rotation.mT + translation[:, None]
    depth = camera[..., 2:].clamp(min=0.1)
    return camera[..., :2] / depth / (0.5 * fov[:, None, None].clamp(0.05, 3.0)).tan()


def camera_losses(
    encodings: list[Tensor], extrinsics: Tensor, fov: Tensor, log_scale: Tensor, hull: Tensor
) -> dict[str, Tensor]:
    """Errors of the pose encodings [B, S, 9] of the head's iterations, N = B S.

    rotation: the negative logarithm of a Laplace likelihood of the chordal distance; log_scale [N] is the logarithm of
    its scale in each view. translation: relative to the distance. view: how far the outermost points of each object,
    hull [N, K, 3], are from where they are in the picture. How far away a camera is and how narrow its field of view
    can hardly be told apart; judged each by itself they are guessed so that the object comes out too large.
    """
    distance = extrinsics[:, :3, 3].norm(dim=1, keepdim=True)
    true_places = in_view(hull, extrinsics[:, :3, :3], extrinsics[:, :3, 3], fov)
    totals = {"rotation": 0.0, "translation": 0.0, "fov": 0.0, "view": 0.0}
    for index, encoding in enumerate(encodings):
        weight = ITERATION_DECAY ** (len(encodings) - 1 - index)
        flat = encoding.float().reshape(-1, 9)
        rotation = quaternion_to_matrix(flat[:, 3:7])
        chord = (rotation - extrinsics[:, :3, :3]).square().sum((1, 2))
        error = (chord + 1e-4).sqrt()
        totals["rotation"] += weight * (error * (-log_scale).exp() + log_scale).mean()
        totals["translation"] += weight * ((flat[:, :3] - extrinsics[:, :3, 3]) / distance).abs().sum(1).mean()
        totals["fov"] += weight * (flat[:, 7:] - fov[:, None]).abs().mean()
        # The rotation has its own loss, which knows where it cannot be seen.
        places = in_view(hull, rotation.detach(), flat[:, :3], flat[:, 7:].mean(1))
        totals["view"] += weight * VIEW_WEIGHT * (places - true_places).abs().clamp(max=2).mean()
    return totals


def point_loss(points: Tensor, confidence: Tensor, true: Tensor, alpha: Tensor) -> Tensor:
    """Confidence-weighted distance [N, H, W, 3] to the canonical points [N, 3, H, W] where alpha [N, 1, H, W] is 1."""
    error = (points - true.permute(0, 2, 3, 1)).norm(dim=-1)
    weighted = confidence * error - CONFIDENCE_WEIGHT * confidence.log()
    return (weighted * alpha[:, 0]).sum() / alpha.sum().clamp(min=1)


class PatchPoints(nn.Module):
    """Linear read-outs of canonical points, 2 x 2 per patch, from chosen aggregator levels; used in training only.

    The cameras hang on what the patches know of their place on the object; this tells them early and directly.
    """

    CELLS = 2

    def __init__(self, channels: int, patch: int, levels: list[int]):
        super().__init__()
        self.patch, self.levels = patch, sorted(set(levels))
        self.read = nn.ModuleList(nn.Linear(channels, 3 * self.CELLS**2) for _ in self.levels)

    def targets(self, rendering: Rendering) -> tuple[Tensor, Tensor]:
        """Mean points of the cells of every patch, and how much of each cell is covered: two [N, P, 12]."""
        cell = self.patch // self.CELLS

        def cells(x: Tensor) -> Tensor:
            return F.pixel_unshuffle(F.avg_pool2d(x, cell), self.CELLS).flatten(2).transpose(1, 2)

        weight = cells(rendering.alpha).repeat(1, 1, 3)
        return cells(rendering.points * rendering.alpha) / weight.clamp(min=1e-3), weight

    def forward(self, tokens: list[Tensor | None], start: int, target: Tensor, weight: Tensor) -> Tensor:
        """Mean absolute error over covered cells, averaged over levels."""
        total = 0.0
        for level, read in zip(self.levels, self.read, strict=True):
            prediction = read(tokens[level][:, :, start:]).flatten(0, 1).float()
            total = total + (weight * (prediction - target).abs()).sum() / weight.sum()
        return total / len(self.levels)


class RotationScale(nn.Module):
    """Reads the scale of the rotation error off the camera tokens; used in training only.

    Which way a symmetrical object is turned cannot be seen. Such views would fill every step with gradients of no
    direction; with their scale known they count for less (Kendall and Gal 2017, arXiv:1703.04977).
    """

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.read = nn.Linear(channels, 1)
        nn.init.zeros_(self.read.weight)
        nn.init.zeros_(self.read.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Camera tokens [B, S, C] to the logarithm of the scale, [B * S]."""
        return self.read(self.norm(tokens.float())).flatten().clamp(-4, 1)


def rotation_error(encoding: Tensor, extrinsics: Tensor) -> Tensor:
    """Median angle, in degrees, of the rotation between the first and the other views (of single views: their own)."""
    predicted = quaternion_to_matrix(encoding.float()[..., 3:7])
    true = extrinsics[:, :3, :3].reshape(predicted.shape)
    if predicted.shape[1] > 1:
        predicted, true = (x[:, 1:] @ x[:, :1].mT for x in (predicted, true))
    trace = (predicted @ true.mT).diagonal(dim1=-2, dim2=-1).sum(-1)
    return torch.rad2deg(torch.arccos(((trace - 1) / 2).clamp(-1, 1))).median()


def main(argv: list[str] | None = None) -> None:
    args = parser(__doc__, minutes=12, learning_rate=6e-4).parse_args(argv)
    run = Run("vggt", args)
    settings = run.sizes.networks["vggt"]
    model = VGGT(**settings)
    channels = 2 * settings["embed_dim"]
    patches = PatchPoints(channels, settings["patch_size"], settings["intermediate_layers"][-2:])
    scale = RotationScale(channels)
    task = StructureTask(run)
    encoder = image_encoder(run)

    def draw(step: int) -> Batch:
        per_scene = VIEWS[step % len(VIEWS)]
        scenes = max(1, run.batch(IMAGES) // per_scene)
        dense, flows = max(1, scenes // DENSE_SHARE), min(scenes, run.batch(STRUCTURE_SCENES))
        instances = run.library.random_instances(scenes, run.generator)
        views = random_views(instances, per_scene, run.sizes.image_size, run.generator, **TRAINING_AZIMUTHS)
        rendering = render(run.library, instances, views, run.generator)
        images = degrade(cut_out(rendering, run.generator), run.generator)
        cell_points, cell_weight = patches.targets(rendering)
        with run.autocast():
            image_cond = image_tokens(encoder, images[: flows * per_scene])[:, 5:]
        return {
            "images": images.unflatten(0, (scenes, per_scene)),
            "extrinsics": views.extrinsics,
            "fov": views.fov,
            "hull": instances.hull[views.view_owner],
            "cell_points": cell_points,
            "cell_weight": cell_weight,
            "points": rendering.points[: dense * per_scene],
            "alpha": rendering.alpha[: dense * per_scene],
            "image_cond": image_cond.unflatten(0, (flows, per_scene)),
            **task.draw(instances.first(flows), later=step % LATER_EVERY == 0),
        }

    def losses(batch: Batch) -> dict[str, Tensor]:
        images, image_cond = batch["images"], batch["image_cond"]
        dense, flows = max(1, len(images) // DENSE_SHARE), len(image_cond)
        with run.autocast():
            tokens, start = model.aggregator(images)
            patch_error = patches(tokens, start, batch["cell_points"], batch["cell_weight"])
            points, confidence = model.point_head(
                [t[:dense] for t in tokens], images[:dense], start, frames_chunk_size=None
            )
        camera_tokens = tokens[-1][:, :, :1].float()
        encodings = model.camera_head([camera_tokens])
        structure = task.losses([t[:flows] for t in tokens], image_cond, batch)
        run.watch("degrees", rotation_error(encodings[-1].detach(), batch["extrinsics"]))
        cameras = batch["extrinsics"], batch["fov"], scale(camera_tokens[:, :, 0]), batch["hull"]
        return {
            **camera_losses(encodings, *cameras),
            "patch": PATCH_WEIGHT * patch_error,
            "point": point_loss(
                points.float().flatten(0, 1), confidence.float().flatten(0, 1), batch["points"], batch["alpha"]
            ),
            **structure,
        }

    run.train({"vggt": model, "patches": patches, "scale": scale, **task.networks}, draw, losses)


if __name__ == "__main__":
    main()
