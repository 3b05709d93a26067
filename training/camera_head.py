"""The camera head of VGGT alone, on tokens of a trained trunk: minutes on a CPU.

    python -m training.camera_head --data objects.safetensors --init assets/mini --out runs --minutes 10

The trunk reads `--scenes` groups of random views once; the head then trains on what it said of them. OUT must be
another folder than that of the trunk's own run.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from training.data.scenes import TRAINING_AZIMUTHS, cut_out, degrade, random_views, render
from training.graphs import Batch
from training.loop import Run, parser
from training.structure_flow import VIEWS
from training.vggt import RotationScale, camera_losses, in_view, quaternion_to_matrix, rotation_error
from trellis.models import VGGT

AT_ONCE = 8  # scenes that are rendered and read together
BATCH = 64  # scenes of a training step


def main(argv: list[str] | None = None) -> None:
    options = parser(__doc__, minutes=10, learning_rate=2e-4)
    options.add_argument("--scenes", type=int, default=6000)
    args = options.parse_args(argv)
    run = Run("vggt", args)
    model = VGGT(**run.sizes.networks["vggt"]).to(run.device)
    scale = RotationScale(2 * run.sizes.networks["vggt"]["embed_dim"])
    model.requires_grad_(False)
    model.camera_head.requires_grad_(True)
    scenes: list[Batch] = []

    def draw(step: int) -> Batch:
        if not scenes:  # by now the trunk has its weights
            scenes.extend(_read_scenes(run, model, args.scenes))
            run.started = time.monotonic()  # the minutes are for training
        group = scenes[step % len(scenes)]
        chosen = torch.randint(len(group["tokens"]), (run.batch(BATCH),), generator=run.generator, device=run.device)
        return {name: values[chosen] for name, values in group.items()}

    def losses(batch: Batch) -> dict[str, Tensor]:
        tokens = batch["tokens"].float()
        encodings = model.camera_head([tokens[:, :, None]])
        extrinsics, fov, hull = (batch[name].flatten(0, 1) for name in ("extrinsics", "fov", "hull"))
        last = encodings[-1].detach().flatten(0, 1)
        run.watch("degrees", rotation_error(encodings[-1].detach(), extrinsics))
        seen = in_view(hull, quaternion_to_matrix(last[:, 3:7]), last[:, :3], last[:, 7:].mean(1))
        true = in_view(hull, extrinsics[:, :3, :3], extrinsics[:, :3, 3], fov)
        run.watch("magnified", (seen.std(1).norm(dim=1) / true.std(1).norm(dim=1)).median())
        return camera_losses(encodings, extrinsics, fov, scale(tokens), hull)

    run.train({"vggt": model, "scale": scale}, draw, losses, graphs=False)


@torch.no_grad()
def _read_scenes(run: Run, model: VGGT, count: int) -> list[Batch]:
    """Camera tokens and true cameras of random scenes, grouped by their number of views."""
    groups: dict[int, list[Batch]] = {}
    for step in range(max(len(set(VIEWS)), count // AT_ONCE)):
        per_scene = VIEWS[step % len(VIEWS)]
        instances = run.library.random_instances(AT_ONCE, run.generator)
        views = random_views(instances, per_scene, run.sizes.image_size, run.generator, **TRAINING_AZIMUTHS)
        rendering = render(run.library, instances, views, run.generator)
        images = degrade(cut_out(rendering, run.generator), run.generator)
        shape = AT_ONCE, per_scene
        with run.autocast():
            tokens, _ = model.aggregator(images.unflatten(0, shape), keep={model.aggregator.depth - 1})
        groups.setdefault(per_scene, []).append({
            "tokens": tokens[-1][:, :, 0].half(),
            "extrinsics": views.extrinsics.unflatten(0, shape),
            "fov": views.fov.unflatten(0, shape),
            "hull": instances.hull[:, None].expand(-1, per_scene, -1, -1),
        })  # fmt: skip
        if step % 100 == 0:
            print(f"[{run.name}] read {step * AT_ONCE} of {count} scenes", flush=True)
    return [{name: torch.cat([part[name] for part in parts]) for name in parts[0]} for parts in groups.values()]


if __name__ == "__main__":
    main()
