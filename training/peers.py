"""One run on several GPUs: a process on each, and weights that are averaged every few steps.

    python -m torch.distributed.run --standalone --nproc-per-node 4 -m training.vggt --data objects.safetensors ...

Between two meetings every process takes steps of its own on batches of its own (local SGD, Stich 2019,
arXiv:1805.09767). Steps stay as they are on one GPU, recorded ones too, and what the batches disagree about cancels.
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist

# Before there is a group, which its functions would take for their defaults. Such a group never ends, and a thread of
# it that lets go of a tensor while the interpreter ends aborts the process.
import torch.distributed.nn.functional  # noqa: F401
from torch import Tensor, nn

EVERY = 8  # steps from one meeting to the next


class Peers:
    """The processes of this run, of which this one has number `rank`; alone if it was not started as one of several."""

    def __init__(self, device: torch.device):
        self.rank = int(os.environ.get("RANK", 0))
        self.count = int(os.environ.get("WORLD_SIZE", 1))
        self.device = device
        self._agreed: float | None = None
        if self.count > 1:
            if device.type == "cuda":
                self.device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
                torch.cuda.set_device(self.device)
            dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")

    def agreed(self, progress: float, step: int) -> float:
        """The first process's progress as of the latest meeting, for all to stop after the same step."""
        if self.count == 1:
            return progress
        if self._agreed is None or step % EVERY == 0:
            value = torch.tensor(progress, dtype=torch.float64)
            dist.broadcast(value, 0)
            self._agreed = float(value)
        return self._agreed

    @torch.no_grad()
    def meet(self, networks: nn.Module, step: int) -> None:
        """After every `EVERY` steps, put the mean of all processes' weights in the place of each one's."""
        if self.count == 1 or step % EVERY:
            return
        weights: list[Tensor] = [p.data for p in networks.parameters() if p.requires_grad]
        flat = torch.cat([w.flatten() for w in weights])
        dist.all_reduce(flat)
        flat /= self.count
        parts = flat.split([w.numel() for w in weights])
        torch._foreach_copy_(weights, [part.view_as(w) for part, w in zip(parts, weights, strict=True)])

    def leave(self) -> None:
        """End the group; the processes need not end together."""
        if self.count > 1:
            dist.destroy_process_group()
