"""The candidates for the sparse convolution against the reference, in value and gradient."""

from __future__ import annotations

import importlib

import pytest
from kernel_cases import assert_same_gradients, kernel_of, voxels
from kernel_devices import KERNEL_DEVICES, needs_triton, on_gpu

from trellis.modules.sparse import conv_torch
from trellis.modules.sparse.spatial import coarsen, subdivided

# spconv's build for the CPU is racy, so it is compared on a GPU only.
CANDIDATES = [
    pytest.param("conv_triton", *device.values, marks=[needs_triton, *device.marks], id=f"triton-{device.values[0]}")
    for device in KERNEL_DEVICES
] + [pytest.param("conv_spconv", "cuda", marks=[pytest.mark.gpu, on_gpu], id="spconv-cuda")]
pytestmark = pytest.mark.parametrize(("name", "device"), CANDIDATES)


def candidate(name: str):
    if name == "conv_spconv":
        pytest.importorskip("spconv")
    return importlib.import_module(f"trellis.modules.sparse.{name}")


@pytest.mark.parametrize(("width_in", "width_out"), [(20, 24), (3, 70)])
def test_convolution(name, device, width_in, width_out):
    x = voxels([90, 41], width_in, device)
    inputs = [x.feats.requires_grad_(), kernel_of(width_out, width_in, device).requires_grad_()]
    outs = (module.convolve(*inputs, x.sites) for module in (candidate(name), conv_torch))
    assert_same_gradients(*outs, inputs)


@pytest.mark.parametrize("refine", ["subdivided", "coarsened"])
def test_convolution_of_copies(name, device, refine):
    x = voxels([40, 25], 20, device)
    if refine == "subdivided":
        coarse, (fine, cells) = x.sites, subdivided(x.sites)
        feats = x.feats
    else:
        fine, (coarse, cells) = x.sites, coarsen(x.sites)
        feats = x.feats[: len(coarse)].clone()
    inputs = [feats.requires_grad_(), kernel_of(24, 20, device).requires_grad_()]
    outs = (module.convolve_copied(*inputs, coarse, fine, cells) for module in (candidate(name), conv_torch))
    assert_same_gradients(*outs, inputs)
