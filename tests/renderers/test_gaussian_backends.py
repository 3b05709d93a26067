"""Gaussian rasterisers beside the reference: adapters against the interface they rely on; on a GPU the packages."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType

import pytest
import torch
from kernel_devices import on_gpu

from trellis.errors import InputError
from trellis.renderers import gaussian_numba
from trellis.renderers.cameras import orbit

SIZE = 32
ADAPTERS = {"gsplat": "gaussian_gsplat", "diff_gaussian_rasterization": "gaussian_diff"}


def scene(device: str = "cpu") -> dict:
    generator = torch.Generator().manual_seed(2)
    camera = orbit(torch.tensor([0.4]), torch.tensor([0.3]), size=SIZE)
    intrinsics = camera.intrinsics[0].clone()
    intrinsics[:2, 2] += torch.tensor([2.0, -1.0])  # an optical axis off the centre
    tensors = {
        "means": torch.rand(40, 3, generator=generator) - 0.5,
        "quats": torch.randn(40, 4, generator=generator),
        "scales": 0.02 + 0.06 * torch.rand(40, 3, generator=generator),
        "opacities": 0.9 * torch.rand(40, generator=generator),
        "colors": torch.rand(40, 3, generator=generator),
        "extrinsics": camera.extrinsics[0, :3],
        "intrinsics": intrinsics,
        "background": torch.tensor([0.1, 0.2, 0.3]),
    }
    return {**{k: v.to(device) for k, v in tensors.items()}, "height": SIZE, "width": SIZE - 5, "kernel_size": 0.1}


def fake_gsplat() -> ModuleType:
    def rasterization(
        means, quats, scales, opacities, colors, viewmats, Ks, width, height,
        *, near_plane, eps2d, render_mode, rasterize_mode, packed,
    ):  # fmt: skip
        assert viewmats.shape == (1, 4, 4) and Ks.shape == (1, 3, 3)
        assert (near_plane, render_mode, rasterize_mode) == (0.2, "RGB+D", "antialiased")
        black = torch.zeros(3)
        gaussians = means, quats, scales, opacities, colors
        color, alpha, depth = gaussian_numba.splat(*gaussians, viewmats[0, :3], Ks[0], black, height, width, eps2d)
        return torch.cat([color, depth]).permute(1, 2, 0)[None], alpha.permute(1, 2, 0)[None], {}

    module = ModuleType("gsplat")
    module.rasterization = rasterization
    return module


def fake_diff_gaussian_rasterization() -> ModuleType:
    class GaussianRasterizationSettings:
        def __init__(
            self, *, image_height, image_width, tanfovx, tanfovy, kernel_size, subpixel_offset, bg, scale_modifier,
            viewmatrix, projmatrix, sh_degree, campos, prefiltered, debug,
        ):  # fmt: skip
            assert subpixel_offset.shape == (image_height, image_width, 2) and scale_modifier == 1
            assert not (sh_degree or prefiltered or debug)
            view, whole = viewmatrix.T, projmatrix.T
            torch.testing.assert_close(view[:3, :3] @ campos + view[:3, 3], torch.zeros(3), atol=1e-5, rtol=0)
            projection = whole @ torch.linalg.inv(view)
            fx, fy = image_width / (2 * tanfovx), image_height / (2 * tanfovy)
            torch.testing.assert_close(projection[0, 0].item(), 2 * fx / image_width, atol=1e-4, rtol=0)
            # The package places a centre at ((ndc + 1) * size - 1) / 2 with integer pixel centres.
            cx, cy = (projection[0, 2] + 1) * image_width / 2, (projection[1, 2] + 1) * image_height / 2
            self.camera = view[:3].contiguous(), torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
            self.rest = bg, image_height, image_width, kernel_size

    class GaussianRasterizer:
        def __init__(self, settings):
            self.settings = settings

        def __call__(self, *, means3D, means2D, shs, colors_precomp, opacities, scales, rotations, cov3D_precomp):
            assert means2D.shape == means3D.shape and shs is None and cov3D_precomp is None
            torch.testing.assert_close(rotations.norm(dim=1), torch.ones(len(rotations)))
            gaussians = means3D, rotations, scales, opacities[:, 0], colors_precomp
            image, _, _ = gaussian_numba.splat(*gaussians, *self.settings.camera, *self.settings.rest)
            return image, None

    module = ModuleType("diff_gaussian_rasterization")
    module.GaussianRasterizationSettings = GaussianRasterizationSettings
    module.GaussianRasterizer = GaussianRasterizer
    return module


@pytest.fixture(params=[fake_gsplat, fake_diff_gaussian_rasterization])
def adapter(request, monkeypatch):
    fake = request.param()
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    name = f"trellis.renderers.{ADAPTERS[fake.__name__]}"
    monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module(name)
    sys.modules.pop(name, None)


def test_adapters_keep_the_contract(adapter):
    inputs = scene()
    for actual, expected in zip(adapter.splat(**inputs), gaussian_numba.splat(**inputs), strict=True):
        torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-4)


def test_a_gradient_that_the_package_lacks_is_refused(adapter):
    inputs = scene()
    inputs["extrinsics"].requires_grad_()
    if adapter.__name__.endswith("diff"):
        with pytest.raises(InputError, match="no gradient for cameras"):
            adapter.splat(**inputs)
    else:
        assert adapter.splat(**inputs)[0].requires_grad


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("package", ADAPTERS)
def test_packages_agree_with_numba_in_value_and_gradient(package):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    module = importlib.import_module(f"trellis.renderers.{ADAPTERS[package]}")
    results = []
    for place, splat in (("cuda", module.splat), ("cpu", gaussian_numba.splat)):
        inputs = scene(place)
        wanted = [inputs[k].requires_grad_() for k in ("means", "quats", "scales", "opacities", "colors")]
        images = splat(**inputs)
        loss = sum((image * torch.linspace(0, 1, image.shape[-1], device=place)).sum() for image in images)
        results.append([x.cpu() for x in (*images, *torch.autograd.grad(loss, wanted))])
    for actual, expected in zip(*results, strict=True):
        assert (actual - expected).norm() < 1e-3 * expected.norm()
