"""The reference, compiled by torch: one kernel forward and one backward in place of a dozen. For training.

Compiling takes some seconds at the first call, and at the first of another shape.
"""

from __future__ import annotations

import torch

from . import norms_torch

rms_norm_heads = torch.compile(norms_torch.rms_norm_heads)
norm_and_rotate = torch.compile(norms_torch.norm_and_rotate)
group_norm = norms_torch.group_norm
