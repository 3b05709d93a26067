"""Mesh rasterisers other than the reference, against it: what is seen, attributes, silhouettes, and their gradients."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from kernel_devices import KERNEL_DEVICES, needs_triton, on_gpu

from trellis.renderers import mesh_numba, mesh_torch
from trellis.renderers.cameras import orbit
from trellis.renderers.mesh_raster import project
from trellis.renderers.mesh_visibility import NEAR, Raster

SIZE = 48


def bumpy_ball(rings: int = 8, device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """Screen positions [V, 3] of a ball with bumps, in two overlapping copies, and faces [F, 3]."""
    latitude, longitude = torch.meshgrid(
        torch.linspace(0.1, 3.04, rings), torch.arange(2 * rings) * (torch.pi / rings), indexing="ij"
    )
    radius = 0.3 + 0.05 * torch.sin(5 * longitude) * torch.sin(3 * latitude)
    ball = torch.stack([latitude.sin() * longitude.cos(), latitude.sin() * longitude.sin(), latitude.cos()], dim=-1)
    ball = (ball * radius[..., None]).reshape(-1, 3)
    row, column = (i.flatten() for i in torch.meshgrid(torch.arange(rings - 1), torch.arange(2 * rings), indexing="ij"))
    corner = [r % rings * 2 * rings + c % (2 * rings) for r, c in
              ((row, column), (row + 1, column), (row + 1, column + 1), (row, column + 1))]  # fmt: skip
    quads = torch.stack(corner, dim=1)
    faces = torch.cat([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
    vertices = torch.cat([ball, 0.7 * ball + torch.tensor([0.2, 0.1, 0.15])])
    camera = orbit(torch.tensor([0.4]), torch.tensor([0.3]), size=SIZE)
    screen = project(vertices, camera.extrinsics[0], camera.intrinsics[0])
    return screen.to(device), torch.cat([faces, faces + len(ball)]).to(device)


def reference_raster(screen: torch.Tensor, faces: torch.Tensor) -> Raster:
    images = mesh_numba.find_visible(screen.cpu(), faces.cpu(), SIZE, SIZE, NEAR)
    return Raster(*(image.to(screen.device) for image in images), near=NEAR)


def assert_same_raster(images: tuple[torch.Tensor, ...], expected: Raster) -> None:
    assert torch.equal(images[0], expected.face_ids)
    torch.testing.assert_close(images[1], expected.barycentrics, atol=1e-6, rtol=0)
    torch.testing.assert_close(images[2], expected.depth, atol=1e-6, rtol=1e-6)


def test_barycentrics_and_depth_in_torch():
    screen, faces = bumpy_ball()
    expected = reference_raster(screen, faces)
    assert expected.mask.sum() > 300
    assert_same_raster(mesh_torch.raster_images(screen, faces, expected.face_ids), expected)


@pytest.mark.parametrize("function", ["interpolate", "antialias"])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, on_gpu])])
def test_torch_agrees_with_numba_in_value_and_gradient(function, device):
    screen, faces = bumpy_ball(device=device)
    screen[5, 2] = NEAR / 2  # the faces around one vertex are dropped, which opens a boundary
    raster = reference_raster(screen, faces)
    generator = torch.Generator().manual_seed(0)
    if function == "interpolate":
        values = torch.rand(len(screen), 4, generator=generator).to(device)
        extra = (faces,)
    else:
        values = torch.rand(SIZE, SIZE, 3, generator=generator).to(device)
        extra = (0.2,)
    probe = torch.randn(SIZE, SIZE, values.shape[-1], generator=generator)
    results = []
    for module, place in ((mesh_torch, device), (mesh_numba, "cpu")):
        inputs = [values.to(place).clone().requires_grad_(), screen.to(place).clone().requires_grad_()]
        here = Raster(*(i.to(place) for i in (raster.face_ids, raster.barycentrics, raster.depth)), near=NEAR)
        tail = (faces.to(place), here, *(e.to(place) if isinstance(e, torch.Tensor) else e for e in extra))
        image = getattr(module, function)(*inputs, *tail)
        results.append([image.cpu(), *(g.cpu() for g in torch.autograd.grad((image.cpu() * probe).sum(), inputs))])
    for actual, expected in zip(*results, strict=True):
        assert expected.abs().max() > 0.1
        torch.testing.assert_close(actual, expected, atol=2e-4, rtol=1e-4)


@needs_triton
@pytest.mark.parametrize("device", KERNEL_DEVICES)
def test_triton_sees_what_numba_sees(device):
    from trellis.renderers import mesh_triton

    screen, faces = bumpy_ball(rings=4, device=device)
    screen[3, 2] = NEAR / 2
    faces = torch.cat([faces, faces[:5], faces[:1, [0, 0, 1]]])  # of equal faces the first is seen, a line never
    assert_same_raster(mesh_triton.find_visible(screen, faces, SIZE, SIZE, NEAR), reference_raster(screen, faces))


@needs_triton
@pytest.mark.parametrize("device", KERNEL_DEVICES)
def test_triton_draws_faces_that_reach_beyond_any_integer(device):
    from trellis.renderers import mesh_triton

    screen, faces = bumpy_ball(rings=4, device=device)
    screen[7] += screen.new_tensor([1e11, -1e11, 0])
    drawn = mesh_triton.find_visible(screen, faces, SIZE, SIZE, NEAR)[0]
    expected = reference_raster(screen, faces).face_ids
    far = (faces == 7).any(1)  # the edges of these are uncertain by rounding, wherever one is seen or hides another

    def uncertain(ids: torch.Tensor) -> torch.Tensor:
        return (ids >= 0) & far[ids.long().clamp(min=0)]

    apart = drawn != expected
    assert not (apart & ~uncertain(drawn) & ~uncertain(expected)).any()
    assert apart.float().mean() < 0.01


@needs_triton
@pytest.mark.parametrize("device", KERNEL_DEVICES)
def test_triton_draws_an_empty_mesh(device):
    from trellis.renderers import mesh_triton

    screen, faces = torch.zeros(0, 3, device=device), torch.zeros(0, 3, dtype=torch.int64, device=device)
    face_ids, barycentrics, depth = mesh_triton.find_visible(screen, faces, 4, 5, NEAR)
    assert face_ids.shape == (4, 5) and (face_ids == -1).all() and not barycentrics.any() and not depth.any()


@pytest.mark.gpu
@on_gpu
def test_the_chosen_backend_renders_on_the_gpu():
    from trellis import backends
    from trellis.renderers.mesh_raster import render_mesh

    generator = torch.Generator().manual_seed(0)
    vertices = torch.rand(60, 3, generator=generator) - 0.5
    faces = torch.randint(0, 60, (40, 3), generator=generator)
    camera = orbit(torch.tensor([0.4]), torch.tensor([0.3]), size=64)
    expected = render_mesh(vertices, faces, vertices, camera, normals=True)
    actual = render_mesh(vertices.cuda(), faces.cuda(), vertices.cuda(), camera.to("cuda"), normals=True)
    print("mesh rasterisation:", backends.name_of("mesh_rasterisation", "cuda"))
    for name, image in expected.items():
        different = ((actual[name].cpu() - image).abs() > 1e-3).float().mean()
        assert different < 2e-3, name  # a pixel centre on an edge may fall to either side after another projection


@pytest.fixture
def fake_nvdiffrast(monkeypatch):
    """The part of nvdiffrast's interface that is relied on, carried out by the reference."""

    class RasterizeCudaContext:
        def __init__(self, device=None):
            self.device = device

    def rasterize(context, pos, tri, resolution):
        assert isinstance(context, RasterizeCudaContext)
        assert pos.dtype == torch.float32 and pos.shape[0] == 1 and pos.shape[2] == 4 and pos.is_contiguous()
        assert tri.dtype == torch.int32 and tri.is_contiguous()
        height, width = resolution
        assert height % 8 == 0 and width % 8 == 0
        x, y, z, w = pos[0].unbind(1)
        assert ((z >= -w) & (z <= w))[tri.long()].all()  # nothing is cut
        screen = torch.stack([(x / w + 1) * width / 2, (y / w + 1) * height / 2, w], dim=1)
        ids, barycentrics, _ = mesh_numba.find_visible(screen, tri, height, width, 1e-6)
        unused = torch.zeros_like(barycentrics[..., :1])
        image = torch.cat([barycentrics[..., :2], unused, ids[..., None] + 1.0], dim=-1)
        return image[None], torch.zeros(1, height, width, 0)

    module = SimpleNamespace(RasterizeCudaContext=RasterizeCudaContext, rasterize=rasterize)
    package = ModuleType("nvdiffrast")
    package.torch = module
    monkeypatch.setitem(sys.modules, "nvdiffrast", package)
    monkeypatch.setitem(sys.modules, "nvdiffrast.torch", module)
    yield
    sys.modules.pop("trellis.renderers.mesh_nvdiffrast", None)


def test_nvdiffrast_adapter_keeps_the_contract(fake_nvdiffrast):
    adapter = importlib.import_module("trellis.renderers.mesh_nvdiffrast")
    screen, faces = bumpy_ball()
    screen[5, 2] = NEAR / 2
    expected = Raster(*mesh_numba.find_visible(screen, faces, SIZE - 3, SIZE, NEAR), near=NEAR)
    images = adapter.find_visible(screen, faces, SIZE - 3, SIZE, NEAR)  # not a multiple of eight
    assert (images[0] != expected.face_ids).float().mean() < 2e-3  # clip space is float32
    adapter.self_test("cpu")
    nothing = adapter.find_visible(torch.full_like(screen, 1e-4), faces, 8, 8, NEAR)[0]
    assert (nothing == -1).all()
