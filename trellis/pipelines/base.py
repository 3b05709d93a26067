"""The networks of a pipeline: ready for inference, and kept where and at what precision they run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import nn

from trellis.modules.precision import autocast_dtype, store_for_autocast

Own = TypeVar("Own", bound="Pipeline")  # typing.Self, which Python 3.10 has not


class Pipeline:
    """Holds networks, which are evaluated and never trained.

    Args:
        models: by name; those of the checkpoint's folder.
        vggt: reads all views together.
        image_cond_model: DINOv2. The pipeline is where this is.
    """

    def __init__(self, models: Mapping[str, nn.Module], vggt: nn.Module, image_cond_model: nn.Module) -> None:
        self.models = dict(models)
        self.vggt = vggt
        self.image_cond_model = image_cond_model
        self._stored_dtypes = {name: getattr(model, "dtype", None) for name, model in self._networks().items()}
        for model in self._networks().values():
            model.eval().requires_grad_(False)

    def _networks(self) -> dict[str, nn.Module]:
        return {**self.models, "vggt": self.vggt, "image_cond_model": self.image_cond_model}

    @property
    def device(self) -> torch.device:
        return self.image_cond_model.cls_token.device

    def to(self: Own, device: torch.device | str) -> Own:
        """Move all networks.

        The half-precision torsos of a checkpoint become float32 on the CPU, which is slow at half precision or lacks
        it, and half precision again on a GPU. There the matrices of VGGT's aggregator, which runs under autocast, are
        kept in half precision as well.
        """
        device = torch.device(device)
        for name, model in self._networks().items():
            stored = self._stored_dtypes[name]
            wanted = torch.float32 if device.type == "cpu" else stored
            model.to(device)
            if stored in (torch.float16, torch.bfloat16) and hasattr(model, "convert_to"):
                model.convert_to(wanted)
        store_for_autocast(self.vggt.aggregator, autocast_dtype(device) if device.type == "cuda" else torch.float32)
        return self

    def cuda(self: Own) -> Own:
        return self.to("cuda")

    def cpu(self: Own) -> Own:
        return self.to("cpu")
