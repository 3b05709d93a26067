"""Reading prepared views: VGGT and DINOv2 tokens, the conditions of both flows, and the cameras."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trellis.models.vggt import VGGT
from trellis.modules.precision import autocast_dtype
from trellis.pipelines.camera_readings import combined, first_views
from trellis.pipelines.image_preparation import encode_image
from trellis.renderers.camera_formats import from_pose_encoding
from trellis.renderers.cameras import Cameras


@dataclass(frozen=True, eq=False)
class Conditions:
    """All that the later stages know of the views.

    structure: [1, L, C], the condition of the structure flow, from all views together.
    latent: per view [1, T, C], the conditions of the latent flow.
    cameras: one per view, for the prepared images, in the frame that the pipeline's `camera_frame` names.
    """

    structure: Tensor
    latent: list[Tensor]
    cameras: Cameras


def read_views(
    views: Tensor,
    vggt: VGGT,
    image_encoder: nn.Module,
    structure_cond: nn.Module,
    latent_cond: nn.Module,
    report: Callable[[int], None] = lambda step: None,
    at_once: int | None = None,
    readings: int = 1,
) -> Conditions:
    """Conditions of views [n, 3, H, W] in [0, 1]. `report` counts `steps_of_reading`.

    at_once: how many views the image encoder reads together; None for all.
    readings: of the cameras; see `read_together`.
    """
    levels = {*structure_cond.levels, *latent_cond.levels}
    tokens, cameras = read_together(views, vggt, levels, readings, report)
    parts = [encode_image(part, image_encoder) for part in views.split(at_once or len(views))]
    image_tokens = torch.cat(parts)[None]  # [1, n, T, C]
    special = 1 + image_encoder.num_register_tokens
    structure = structure_cond(tokens, image_tokens[:, :, special:])
    latent = latent_cond(tokens, image_tokens)
    report(steps_of_reading(len(views), readings))
    return Conditions(structure, latent, cameras)


def steps_of_reading(views: int, readings: int) -> int:
    """Steps of `read_views`: each time that VGGT runs, the cameras, the conditions."""
    return len(first_views(views, readings)) + 2


def read_together(
    views: Tensor,
    vggt: VGGT,
    levels: Collection[int] = (),
    readings: int = 1,
    report: Callable[[int], None] = lambda step: None,
) -> tuple[list[Tensor | None], Cameras]:
    """VGGT's tokens of views [n, 3, H, W] as `aggregate` gives them, and one camera per view.

    readings: in how many orders of the views, at most, VGGT reads the cameras. The tokens are those of the order given,
    whose frame is that of the cameras; see `trellis.pipelines.camera_readings`.
    """
    size = views.shape[-2:]
    further: list[Cameras] = []
    # The order given comes last, for its tokens are kept: no two readings are in memory together.
    for first in first_views(len(views), readings)[1:]:
        order = [first, *(index for index in range(len(views)) if index != first)]
        back = [order.index(index) for index in range(len(views))]
        further.append(read_cameras(aggregate(views[order], vggt), vggt, size)[back])
        report(len(further))
    tokens = aggregate(views, vggt, levels)
    report(len(further) + 1)
    cameras = combined([read_cameras(tokens, vggt, size), *further])
    report(len(further) + 2)
    return tokens, cameras


def aggregate(views: Tensor, vggt: VGGT, levels: Collection[int] = ()) -> list[Tensor | None]:
    """VGGT's tokens [1, n, P, 2C] of views [n, 3, H, W], at the given levels and at the last, for the camera head.

    On a GPU the aggregator runs in half precision (bfloat16 where there is hardware for it), as it was trained.
    """
    on_gpu = views.device.type == "cuda"
    with torch.autocast(views.device.type, autocast_dtype(views.device), enabled=on_gpu):
        tokens, _ = vggt.aggregator(views[None], keep={*levels, vggt.aggregator.depth - 1})
    return [None if level is None else level.float() for level in tokens]


def read_cameras(tokens: list[Tensor | None], vggt: VGGT, image_size: tuple[int, int]) -> Cameras:
    """One camera per view, for images of `image_size` (height, width)."""
    encoding = vggt.camera_head(tokens)[-1][0].float()  # [n, 9]
    # The fields of view come out of a ReLU; zero would be an infinite focal length.
    encoding = torch.cat([encoding[:, :7], encoding[:, 7:].clamp(0.05, 3.0)], dim=1)
    return from_pose_encoding(encoding, *image_size)
