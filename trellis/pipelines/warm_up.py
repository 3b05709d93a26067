"""Let everything that compiles at its first use compile at the start of a program, on the smallest object there is."""

from __future__ import annotations

import torch
from PIL import Image

from trellis import backends
from trellis.pipelines.trellis_vggt_to_3d import TrellisVGGTTo3DPipeline

_SIDE = 2  # voxels a side of that object; it fills one cell of the coarse grid


@torch.no_grad()
def warm_up(pipeline: TrellisVGGTTo3DPipeline) -> dict[str, backends.Candidate]:
    """Choose the backends for the pipeline's device, unless that was done, and run every network once.

    Kernels are compiled for the widths and types of these networks, steps recorded if they are to be, and a GPU's
    libraries plan for the lengths that repeat. Lengths that depend on the number of views are met with one view.

    Returns:
        What does the work, by need.
    """
    device = pipeline.device
    if len(backends.used(device)) < len(backends.NEEDS):
        backends.choose(device)
    size = (pipeline.image_resolution,) * 2
    conditions = pipeline.get_cond([Image.new("RGBA", size, (128, 128, 128, 255))])

    # Two steps, of which the guidance touches one.
    params = {"steps": 2, "rescale_t": 1.0, "cfg_interval": (0.9, 1.0), "cfg_strength": 2.0}
    latent = pipeline.sample_structure_latent(conditions.structure, 0, params)
    pipeline.models["sparse_structure_decoder"](latent)

    axis = torch.arange(_SIDE, dtype=torch.int32)
    coords = torch.cartesian_prod(axis.new_zeros(1), axis, axis, axis)
    slat = pipeline.sample_slat(conditions.latent, coords, 0, params)
    pipeline.decode_slat(slat, pipeline.formats)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return backends.used(device)
