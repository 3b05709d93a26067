"""Environment light: file round trip, exact means, directions, and gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nvdiffrec.hdr import read_hdr, write_hdr
from nvdiffrec.light import environment_from_hdr, filter_light, solid_angles, texel_directions
from nvdiffrec.shading import reflectance
from trellis.errors import InputError


def test_an_hdr_file_keeps_every_pixel_to_one_part_in_256(tmp_path):
    pixels = np.random.default_rng(0).uniform(0, 1, (9, 18, 3)) ** 4 * 1000
    write_hdr(tmp_path / "sky.hdr", pixels)
    error = np.abs(read_hdr(tmp_path / "sky.hdr") - pixels) / pixels.max(axis=2, keepdims=True)
    assert error.max() < 1 / 256


def test_run_length_coded_scanlines_are_read(tmp_path):
    row = bytes([2, 2, 0, 8]) + bytes([128 + 8, 200]) + bytes([8, *range(8)]) + bytes([128 + 8, 0, 128 + 8, 129])
    header = b"#?RADIANCE\n# made by hand\nFORMAT=32-bit_rle_rgbe\n\n-Y 2 +X 8\n"
    (tmp_path / "a.hdr").write_bytes(header + row * 2)
    pixels = read_hdr(tmp_path / "a.hdr")
    assert pixels.shape == (2, 8, 3)
    np.testing.assert_allclose(pixels[1, :, 1], (np.arange(8) + 0.5) / 128)
    (tmp_path / "a.hdr").write_bytes(header + row)
    with pytest.raises(InputError, match="damaged"):
        read_hdr(tmp_path / "a.hdr")


def test_what_is_not_an_hdr_file_is_refused(tmp_path):
    (tmp_path / "a.hdr").write_bytes(b"\x89PNG")
    with pytest.raises(InputError, match="not a Radiance"):
        read_hdr(tmp_path / "a.hdr")


def test_texels_tile_the_sphere():
    assert float(solid_angles(16, 32).sum()) == pytest.approx(4 * np.pi, rel=1e-5)
    mean = (texel_directions(16, 32) * solid_angles(16, 32)[:, None]).sum(0)
    torch.testing.assert_close(mean, torch.zeros(3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("height", [16, 32])
def test_a_uniform_sky_looks_the_same_from_everywhere(height):
    light = filter_light(torch.full((3, height, 2 * height), 0.7))
    directions = torch.nn.functional.normalize(torch.randn(50, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    torch.testing.assert_close(light.irradiance(directions), torch.full((50, 3), 0.7))
    roughness = torch.linspace(0, 1, 50)
    torch.testing.assert_close(light.reflection(directions, roughness), torch.full((50, 3), 0.7))


def test_a_lamp_is_seen_where_it_stands_and_a_cosine_lights_by_its_law():
    environment = torch.zeros(3, 16, 32)
    directions, place = texel_directions(16, 32), 5 * 32 + 9
    environment.view(3, -1)[:, place] = 1.0
    light = filter_light(environment)
    mirror = light.reflection(directions, torch.zeros(len(directions))).mean(dim=1)
    assert int(mirror.argmax()) == place
    expected = (directions @ directions[place]).clamp(min=0) * solid_angles(16, 32)[place] / np.pi
    torch.testing.assert_close(light.irradiance(directions)[:, 0], expected, atol=2e-4, rtol=2e-2)


def test_the_map_is_oriented_like_a_photograph_from_inside():
    pixels = np.zeros((16, 32, 3))
    pixels[:8, 16:, 0] = 1  # red: upper right half
    light = filter_light(environment_from_hdr(pixels))
    ahead_right_up = torch.nn.functional.normalize(torch.tensor([[-1.0, -1.0, 1.0], [1.0, -1.0, 1.0]]), dim=1)
    seen = light.reflection(ahead_right_up, torch.zeros(2))[:, 0]
    assert seen[0] > 0.9 and seen[1] < 0.1


def test_gradients_of_lookups_equal_finite_differences():
    generator = torch.Generator().manual_seed(1)
    environment = torch.rand(3, 16, 32, generator=generator, dtype=torch.float64).requires_grad_()
    directions = torch.randn(6, 3, generator=generator, dtype=torch.float64).requires_grad_()
    roughness = torch.tensor([0.1, 0.2, 0.4, 0.6, 0.8, 0.9], dtype=torch.float64, requires_grad=True)

    def value(environment, directions, roughness):
        unit = torch.nn.functional.normalize(directions, dim=1)
        light = filter_light(environment)
        return light.irradiance(unit).sum() + light.reflection(unit, roughness).square().sum()

    torch.autograd.gradcheck(lambda d, r: value(environment.detach(), d, r), (directions, roughness), eps=1e-6)
    torch.autograd.gradcheck(
        lambda s: value(environment.detach() * s, directions.detach(), roughness.detach()),
        (torch.ones(3, 1, 1, dtype=torch.float64, requires_grad=True),),
    )


def test_the_reflectance_table_conserves_energy():
    facing, roughness = torch.rand(200, 2, generator=torch.Generator().manual_seed(2)).unbind(1)
    scale, bias = reflectance(facing, roughness).unbind(1)
    assert float((scale + bias).max()) < 1.01 and float(scale.min()) > 0 and float(bias.min()) >= 0
    smooth = reflectance(torch.tensor([0.99]), torch.tensor([0.05]))[0]
    assert float(smooth[0]) > 0.95 and float(smooth[1]) < 0.01


def test_a_picture_of_the_wrong_shape_is_refused():
    with pytest.raises(InputError, match=r"\[3, H, 2H\]"):
        filter_light(torch.zeros(3, 16, 16))
