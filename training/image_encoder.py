"""The image encoder (DINOv2 architecture), taught to say what each patch looks like without the light.

    python -m training.image_encoder --data objects.safetensors --out runs --minutes 1

Its layer-normed tokens predict, per patch, 7 x 7 base colours, 7 x 7 coverage and the mean normal.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from training.data.scenes import degrade, random_views, render
from training.graphs import Batch
from training.loop import Run, parser
from trellis.models import DinoVisionTransformer
from trellis.modules.tables import imagenet_statistics

CELL = 7


def image_tokens(model: nn.Module, images: Tensor) -> Tensor:
    """Tokens as the pipeline uses them: before the final norm, then a norm without parameters. [N, 1 + 4 + P, D]."""
    mean, std = imagenet_statistics(images.device)
    tokens = model.forward_features((images - mean) / std)["x_prenorm"]
    return F.layer_norm(tokens.float(), tokens.shape[-1:])


def patch_targets(rendering, patch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Base colours [N, P, 3*49], coverage [N, P, 49] and mean normals [N, P, 3] of every patch, row-major."""
    scale = patch // CELL

    def cells(x: Tensor) -> Tensor:
        return F.pixel_unshuffle(F.avg_pool2d(x, scale), CELL).flatten(2).transpose(1, 2)

    normals = F.avg_pool2d(rendering.normals, patch).flatten(2).transpose(1, 2)
    return cells(rendering.albedo), cells(rendering.alpha), normals


def main(argv: list[str] | None = None) -> None:
    args = parser(__doc__, minutes=1, learning_rate=1e-3).parse_args(argv)
    run = Run("image_encoder", args)
    model = DinoVisionTransformer(**run.sizes.networks["dinov2"])
    width = run.sizes.networks["dinov2"]["embed_dim"]
    head = nn.Linear(width, CELL * CELL * 4 + 3)
    n = CELL * CELL

    def draw(step: int) -> Batch:
        instances = run.library.random_instances(run.batch(256), run.generator)
        views = random_views(instances, 2, run.sizes.image_size, run.generator)
        rendering = render(run.library, instances, views, run.generator)
        images = degrade(rendering.images, run.generator)
        targets = patch_targets(rendering, run.sizes.networks["dinov2"]["patch_size"])
        return {"images": images, **dict(zip(("colour", "coverage", "normal"), targets, strict=True))}

    def losses(batch: Batch) -> dict[str, Tensor]:
        with run.autocast():
            prediction = head(image_tokens(model, batch["images"])[:, 5:])
        colours, coverage, normal = prediction.float().split([3 * n, n, 3], -1)
        covered = batch["coverage"].repeat(1, 1, 3)
        return {
            "colour": 4 * ((colours - batch["colour"]) * (covered > 0)).abs().mean() / covered.mean(),
            "coverage": (coverage - batch["coverage"]).abs().mean(),
            "normal": (normal - batch["normal"]).abs().mean(),
        }

    run.train({"dinov2": model, "head": head}, draw, losses)


if __name__ == "__main__":
    main()
