"""The splatting kernels against the dense reference, in value and gradient, and at the edges of their domain."""

import math
import threading

import numpy as np
import pytest
import torch
from gaussian_reference import splat
from golden_io import load_golden

from trellis.errors import InputError
from trellis.renderers import gaussian_numba
from trellis.renderers.cameras import Cameras, orbit
from trellis.renderers.gaussian_raster import GaussianImage, render, render_gaussians, warm_up
from trellis.renderers.gaussian_raster_kernels import depth_order, fast_exp_negative
from trellis.representations.gaussian import Gaussian

HEIGHT, WIDTH = 40, 53  # no multiple of a tile
TENSORS = ("means", "quats", "scales", "opacities", "colors", "extrinsics", "intrinsics", "background")


def scene(count: int, seed: int = 0, size: float = 0.08) -> dict[str, torch.Tensor]:
    """A cloud seen from close by, so that some centres lie outside the image and a few behind the camera."""
    generator = torch.Generator().manual_seed(seed)
    camera = orbit(torch.tensor([0.3]), torch.tensor([0.3]), radius=1.2, fov=50.0, size=(HEIGHT, WIDTH))
    return {
        "means": torch.randn(count, 3, generator=generator) * 0.35,
        "quats": torch.randn(count, 4, generator=generator),
        "scales": size * torch.exp(0.5 * torch.randn(count, 3, generator=generator)),
        "opacities": torch.rand(count, generator=generator),
        "colors": torch.rand(count, 3, generator=generator),
        "extrinsics": camera.extrinsics[0],
        "intrinsics": camera.intrinsics[0],
        "background": torch.tensor([0.2, 0.5, 0.9]),
    }


def frontal(count: int = 1, depth: float = 2.0, **changes) -> dict[str, torch.Tensor]:
    """`count` equal round Gaussians straight ahead of a camera at the origin."""
    arguments = {
        "means": torch.tensor([[0.0, 0.0, depth]]).repeat(count, 1),
        "quats": torch.tensor([[1.0, 0.0, 0.0, 0.0]]).repeat(count, 1),
        "scales": torch.full((count, 3), 0.05),
        "opacities": torch.full((count,), 0.6),
        "colors": torch.ones(count, 3),
        "extrinsics": torch.eye(4),
        "intrinsics": torch.tensor([[60.0, 0, 16.5], [0, 60.0, 16.5], [0, 0, 1]]),
        "background": torch.zeros(3),
    }
    return {**arguments, **changes}


def draw(arguments: dict, height: int = HEIGHT, width: int = WIDTH, **more) -> GaussianImage:
    return render_gaussians(**arguments, height=height, width=width, **more)


def weighted_sum(images, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return sum((torch.randn(image.shape, generator=generator).to(image) * image).sum() for image in images)


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return -10 * math.log10(float((a - b).square().mean()) + 1e-20)


@pytest.mark.parametrize("count", [1, 17, 120])
def test_images_equal_the_reference(count):
    arguments = scene(count)
    exact = splat(**{name: value.double() for name, value in arguments.items()}, height=HEIGHT, width=WIDTH)
    for ours, theirs in zip(draw(arguments), exact, strict=True):
        assert psnr(ours, theirs) > 100
        torch.testing.assert_close(ours, theirs.float(), atol=5e-6, rtol=1e-5)


def test_a_deep_opaque_stack_equals_the_reference_and_closes():
    # Hundreds of splats over every pixel: early termination, the alpha cap and the tile's own early stop all act.
    arguments = scene(400, seed=3, size=0.3)
    arguments["opacities"] = arguments["opacities"].sqrt()
    exact = splat(**{name: value.double() for name, value in arguments.items()}, height=HEIGHT, width=WIDTH)
    images = draw(arguments)
    assert float(images.alpha.min()) > 0.99
    for ours, theirs in zip(images, exact, strict=True):
        assert psnr(ours, theirs) > 60


@pytest.mark.parametrize(("count", "size", "kernel_size"), [(60, 0.08, 0.1), (30, 0.25, 0.3), (40, 0.01, 0.0)])
def test_gradients_equal_the_reference(count, size, kernel_size):
    ours = {name: value.clone().requires_grad_() for name, value in scene(count, 2, size).items()}
    theirs = {name: value.double().requires_grad_() for name, value in scene(count, 2, size).items()}
    weighted_sum(draw(ours, kernel_size=kernel_size)).backward()
    weighted_sum(splat(**theirs, height=HEIGHT, width=WIDTH, kernel_size=kernel_size)).backward()
    for name in TENSORS:
        expected = theirs[name].grad.float()
        scale = float(expected.abs().max())
        assert scale > 1e-3, name
        torch.testing.assert_close(ours[name].grad, expected, atol=2e-5 * scale, rtol=1e-3, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize("name", TENSORS)
def test_gradients_equal_finite_differences(name):
    # Overlapping soft Gaussians well inside the image. A smooth weight keeps the small jumps at alpha = 1/255 small.
    generator = torch.Generator().manual_seed(5)
    count = 4
    arguments = frontal(
        count,
        means=torch.tensor([[0.0, 0, 2.0], [0.05, 0.04, 2.2], [-0.06, 0.02, 2.4], [0.02, -0.07, 2.6]]),
        quats=torch.randn(count, 4, generator=generator),
        scales=torch.rand(count, 3, generator=generator) * 0.04 + 0.03,
        opacities=torch.tensor([0.5, 0.6, 0.7, 0.8]),
        colors=torch.rand(count, 3, generator=generator),
        background=torch.tensor([0.1, 0.6, 0.3]),
    )
    ramp = torch.linspace(0, 1, 33)

    def loss(changed: torch.Tensor) -> torch.Tensor:
        images = draw({**arguments, name: changed}, 33, 33)
        return ((images.color * ramp + images.depth * ramp[:, None]) * torch.tensor([1.0, 0.5, 2])[:, None, None]).sum()

    point = arguments[name].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(point), point)
    direction = torch.randn(point.shape, generator=generator)
    if name == "intrinsics":
        direction *= torch.tensor([[1.0, 0, 1], [0, 1, 1], [0, 0, 0]])
    if name == "extrinsics":
        direction[3] = 0
    step = 0.2 if name == "intrinsics" else 2e-3
    with torch.no_grad():
        numeric = (loss(point + step * direction) - loss(point - step * direction)) / (2 * step)
    analytic = (gradient * direction).sum()
    assert abs(float(analytic)) > 1e-2
    assert float(numeric) == pytest.approx(float(analytic), rel=0.03)


def test_a_held_slope_far_outside_the_view_has_the_right_gradient():
    # The centre lies beyond the margin, the splat is large enough to reach in.
    change = {"means": torch.tensor([[2.0, 1.9, 2.0]]), "scales": torch.tensor([[0.9, 0.8, 0.5]])}
    ours = {name: value.clone().requires_grad_() for name, value in frontal(**change).items()}
    theirs = {name: value.double().requires_grad_() for name, value in frontal(**change).items()}
    weighted_sum(draw(ours, 33, 33)).backward()
    weighted_sum(splat(**theirs, height=33, width=33)).backward()
    for name in TENSORS:
        torch.testing.assert_close(ours[name].grad, theirs[name].grad.float(), atol=1e-3, rtol=1e-3)


def test_pixel_centres_sit_at_half_integers():
    # Principal point 16.5 is the centre of pixel 16; one of 8.5, 20.5 that of column 8, row 20.
    alpha = draw(frontal(scales=torch.full((1, 3), 0.01)), 33, 33).alpha[0]
    assert int(alpha.argmax()) == 16 * 33 + 16
    torch.testing.assert_close(alpha, alpha.flip(0), atol=1e-6, rtol=0)
    torch.testing.assert_close(alpha, alpha.T, atol=1e-6, rtol=0)
    shifted = frontal(intrinsics=torch.tensor([[60.0, 0, 8.5], [0, 60.0, 20.5], [0, 0, 1]]))
    assert int(draw(shifted, 33, 33).alpha.argmax()) == 20 * 33 + 8


def test_nearer_splats_cover_farther_ones():
    stack = frontal(2, scales=torch.full((2, 3), 0.3), opacities=torch.full((2,), 0.9))
    stack["means"] = torch.tensor([[0.0, 0, 3.0], [0.0, 0, 2.0]])
    stack["colors"] = torch.tensor([[1.0, 0, 0], [0, 1.0, 0]])
    image = draw(stack, 33, 33)
    red, green, _ = image.color[:, 16, 16].tolist()
    assert green == pytest.approx(0.9, abs=3e-3) and red == pytest.approx(0.09, abs=3e-3)
    assert float(image.depth[0, 16, 16]) == pytest.approx(0.9 * 2 + 0.09 * 3, abs=5e-3)


@pytest.mark.parametrize(
    "arguments",
    [
        frontal(0),
        frontal(5, depth=-2.0),
        frontal(5, depth=0.2),
        frontal(5, opacities=torch.zeros(5)),
        frontal(5, scales=torch.zeros(5, 3)),
        frontal(1, means=torch.tensor([[1e30, 1e30, 2.0]])),
    ],
    ids=["empty", "behind", "at the near limit", "transparent", "flat", "far outside"],
)
def test_nothing_to_draw_leaves_the_background_and_zero_gradients(arguments):
    arguments = {name: value.clone().requires_grad_() for name, value in arguments.items()}
    arguments["background"] = torch.tensor([0.1, 0.2, 0.3], requires_grad=True)
    image = draw(arguments)
    assert torch.equal(image.color, arguments["background"].detach()[:, None, None].expand(3, HEIGHT, WIDTH))
    assert not image.alpha.any() and not image.depth.any()
    weighted_sum(image).backward()
    assert not any(arguments[name].grad.any() for name in TENSORS if name != "background")
    assert arguments["background"].grad.abs().min() > 0


@pytest.mark.parametrize("size", [10.0, 1e4, 1e12])
def test_a_huge_gaussian_fills_the_image_and_stays_finite(size):
    arguments = frontal(2, scales=torch.full((2, 3), size))
    arguments = {name: value.clone().requires_grad_() for name, value in arguments.items()}
    image = draw(arguments)
    torch.testing.assert_close(image.alpha.detach(), torch.full((1, HEIGHT, WIDTH), 1 - 0.4**2), atol=6e-3, rtol=0)
    weighted_sum(image).backward()
    assert all(torch.isfinite(arguments[name].grad).all() for name in TENSORS)


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused(name, bad):
    arguments = frontal(3)
    arguments[name] = arguments[name].clone()
    arguments[name].view(-1)[-1 if name != "extrinsics" else 3] = bad
    with pytest.raises(InputError, match=rf"{name}\[.*must be finite"):
        draw(arguments)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"means": torch.zeros(3, 2)}, "means must have the shape"),
        ({"opacities": torch.zeros(3, 1)}, r"opacities must have the shape \[3\], not \[3, 1\]"),
        ({"extrinsics": torch.eye(3)}, "extrinsics must have the shape"),
        ({"opacities": torch.full((3,), 1.5)}, "range from 1.5"),
        ({"scales": torch.full((3, 3), -1.0)}, "must not be negative"),
        ({"quats": torch.zeros(3, 4)}, r"quats\[0\] is zero"),
        ({"intrinsics": torch.tensor([[-60.0, 0, 16], [0, 60, 16], [0, 0, 1]])}, "focal lengths"),
        ({"intrinsics": torch.tensor([[60.0, 2, 16], [0, 60, 16], [0, 0, 1]])}, "Skew"),
    ],
)
def test_unusable_arguments_are_refused_with_a_sentence(change, sentence):
    with pytest.raises(InputError, match=sentence):
        draw(frontal(3, **change))


@pytest.mark.parametrize("size", [(0, 8), (8, -1), (8, 10**6)])
def test_unusable_sizes_are_refused(size):
    with pytest.raises(InputError, match="cannot be drawn"):
        draw(frontal(), *size)
    with pytest.raises(InputError, match="kernel size"):
        draw(frontal(), kernel_size=math.nan)


def test_a_scene_that_would_exhaust_memory_is_refused(monkeypatch):
    monkeypatch.setattr(gaussian_numba, "MAX_PAIRS", 100)
    with pytest.raises(InputError, match="check their scales"):
        draw(frontal(50, scales=torch.full((50, 3), 10.0)))


def test_concurrent_calls_are_identical_to_the_bit():
    def run() -> list[torch.Tensor]:
        arguments = {name: value.clone().requires_grad_() for name, value in scene(80).items()}
        images = draw(arguments)
        weighted_sum(images).backward()
        return [image.detach() for image in images] + [arguments[name].grad for name in TENSORS]

    results: list[list[torch.Tensor]] = []
    threads = [threading.Thread(target=lambda: results.extend(run() for _ in range(3))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = run()
    assert len(results) == 9
    for result in results:
        assert all(torch.equal(a, b) for a, b in zip(result, expected, strict=True))


def test_other_dtypes_keep_their_gradient_dtype():
    arguments = {name: value.double().requires_grad_() for name, value in scene(5).items()}
    image = draw(arguments)
    assert image.color.dtype == torch.float32
    weighted_sum(image).backward()
    assert all(arguments[name].grad.dtype == torch.float64 for name in TENSORS)


def test_no_gradient_is_kept_when_none_is_wanted():
    image = draw(scene(5))
    assert not any(part.requires_grad for part in image)


def golden_set() -> Gaussian:
    golden = load_golden("gaussian_ply")
    gaussian = Gaussian(**{key: value for key, value in golden.config.items() if key != "ply_properties"})
    for name, value in golden.inputs.items():
        setattr(gaussian, name, value.clone().requires_grad_())
    return gaussian


def test_a_gaussian_set_is_drawn_as_its_properties_say():
    gaussian = golden_set()
    cameras = Cameras.cat([orbit(torch.tensor([angle]), torch.zeros(1), size=(24, 32)) for angle in (0.0, 1.0)])
    image = render(gaussian, cameras, 1, background=torch.ones(3))
    direct = render_gaussians(
        gaussian.get_xyz,
        gaussian.get_rotation,
        gaussian.get_scaling,
        gaussian.get_opacity[:, 0],
        gaussian.raw_color.clamp_min(0),
        cameras.extrinsics[1],
        cameras.intrinsics[1],
        24,
        32,
        torch.ones(3),
    )
    assert image.color.shape == (3, 24, 32)
    assert all(torch.equal(a, b) for a, b in zip(image, direct, strict=True))
    image.color.sum().backward()
    assert all(getattr(gaussian, name).grad.any() for name in ("_xyz", "_features_dc", "_scaling", "_opacity"))


def test_supersampling_keeps_the_size_and_nearly_the_image():
    gaussian = golden_set()
    gaussian._scaling = gaussian._scaling.detach() + 4  # large enough to be sampled well without it
    camera = orbit(torch.zeros(1), torch.zeros(1), size=48)
    plain, fine = render(gaussian, camera), render(gaussian, camera, supersample=3)
    assert fine.color.shape == (3, 48, 48) and fine.alpha.shape == fine.depth.shape == (1, 48, 48)
    assert psnr(plain.color.detach(), fine.color.detach()) > 30
    with pytest.raises(InputError, match="at least 1"):
        render(gaussian, camera, supersample=0)


def test_fast_exponential_is_accurate():
    values = np.linspace(0, 5.6, 2001, dtype=np.float32)
    ours = np.array([fast_exp_negative(value) for value in values])
    np.testing.assert_allclose(ours, np.exp(-values.astype(np.float64)), rtol=3e-6)


def test_depth_order_is_stable_and_leaves_out_what_is_not_drawn():
    depths = np.array([3, 1, 2, 1, 5, 0.5], dtype=np.float32)
    bounds = np.array([[0, 1, 0, 1]] * 6, dtype=np.int32)
    bounds[5, 1] = -1
    assert depth_order(depths, bounds).tolist() == [1, 3, 2, 0, 4]
    many = np.random.default_rng(0).uniform(1, 3, 5000).astype(np.float32)
    order = depth_order(many, np.array([[0, 1, 0, 1]] * 5000, dtype=np.int32))
    assert np.all(np.diff(many[order]) > -1e-6)


def test_warm_up_runs():
    warm_up()
