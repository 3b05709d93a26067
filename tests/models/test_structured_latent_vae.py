"""Encoder and decoders of the structured latent: recorded outputs, published state dicts, gradients."""

from __future__ import annotations

import pytest
import torch
from golden_io import assert_close, assert_matches_manifest, load_golden, load_manifest

from trellis import models
from trellis.models.structured_latent_vae import SLatEncoder, SLatGaussianDecoder, SLatMeshDecoder
from trellis.models.structured_latent_vae.decoder_gaussian import FIELDS, spread_offsets
from trellis.models.structured_latent_vae.decoder_mesh import SparseSubdivideBlock3d, lower_where_no_surface_is_near
from trellis.modules.sparse import SparseTensor

SMALL = {"resolution": 8, "model_channels": 24, "latent_channels": 4, "num_blocks": 2, "num_heads": 2, "window_size": 4}
REPRESENTATION = {
    "lr": {"_xyz": 1.0, "_features_dc": 1.0, "_opacity": 1.0, "_scaling": 1.0, "_rotation": 0.1},
    "perturb_offset": True,
    "voxel_size": 1.5,
    "num_gaussians": 3,
    "3d_filter_kernel_size": 0.0009,
    "scaling_bias": 0.004,
    "opacity_bias": 0.1,
    "scaling_activation": "softplus",
}


def build(cls, golden):
    model = cls(**golden.config).eval()
    model.load_state_dict(golden.weights, strict=True)
    return model


def sparse_input(golden) -> SparseTensor:
    return SparseTensor(golden.inputs["feats"], golden.inputs["coords"])


def record(blocks) -> list[SparseTensor]:
    outputs = []
    for block in blocks:
        block.register_forward_hook(lambda _, args, out: outputs.append(out))
    return outputs


def in_order_of(x: SparseTensor, coords: torch.Tensor) -> torch.Tensor:
    """The features of `x` on `coords`: blocks leave voxels in the order of the next one's windows."""
    rows = {tuple(cell): row for row, cell in enumerate(x.coords.tolist())}
    return x.feats[[rows[tuple(cell)] for cell in coords.tolist()]]


@torch.no_grad()
def test_encoder():
    golden = load_golden("slat_encoder")
    model = build(SLatEncoder, golden)
    z, mean, logvar = model(sparse_input(golden), sample_posterior=False, return_raw=True)
    assert_close(mean, golden.outputs["mean"])
    assert_close(logvar, golden.outputs["logvar"])
    assert_close(z.feats, golden.outputs["z"])
    first, second = (model(sparse_input(golden), generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first.feats, second.feats)
    assert not torch.equal(first.feats, mean)


@torch.no_grad()
def test_gaussian_decoder():
    golden = load_golden("slat_decoder_gs")
    model = build(SLatGaussianDecoder, golden)
    blocks = record(model.blocks)
    raw = model.decode_raw(sparse_input(golden))
    for index, block in enumerate(blocks):
        assert_close(in_order_of(block, golden.inputs["coords"]), golden.outputs[f"block_{index}"])
    assert_close(raw.feats, golden.outputs["raw"])
    for sample, gaussian in enumerate(model.to_representation(raw)):
        for name in golden.outputs:
            attribute, _, suffix = name.rpartition("_")
            if suffix == f"b{sample}":
                value = gaussian.get_covariance() if attribute == "get_covariance" else getattr(gaussian, attribute)
                assert_close(value, golden.outputs[name])


def test_offsets_start_spread_over_the_voxel():
    golden = load_golden("embeddings")
    config = golden.config
    assert_close(spread_offsets(config["num_gaussians"], config["voxel_size"]), golden.outputs["offset_perturbation"])
    golden = load_golden("slat_decoder_gs")
    fresh = SLatGaussianDecoder(**golden.config)
    assert_close(fresh.offset_perturbation, golden.weights["offset_perturbation"])


@torch.no_grad()
def test_subdivision_block():
    golden = load_golden("slat_subdivide_block")
    config = golden.config
    block = SparseSubdivideBlock3d(config["channels"], config["out_channels"], config["num_groups"])
    block.load_state_dict(golden.weights, strict=True)
    out = block(sparse_input(golden))
    assert torch.equal(out.coords, golden.outputs["coords"])
    assert_close(out.feats, golden.outputs["feats"])


@torch.no_grad()
def test_mesh_decoder():
    golden = load_golden("slat_decoder_mesh")
    model = build(SLatMeshDecoder, golden)
    blocks, finer = record(model.blocks), record(model.upsample)
    raw = model.decode_raw(sparse_input(golden))
    for index, block in enumerate(blocks):
        assert_close(in_order_of(block, golden.inputs["coords"]), golden.outputs[f"block_{index}"])
    for index, block in enumerate(finer):
        assert_close(block.feats, golden.outputs[f"sub_{index}_feats"])
    assert torch.equal(raw.coords, golden.outputs["coords"])
    assert_close(raw.feats, golden.outputs["feats"])

    (mesh,) = model.to_representation(raw)
    # Vertices may come in another order; pair the nearest (in float64: some are very close to each other).
    order = torch.cdist(golden.outputs["mesh_vertices"].double(), mesh.vertices.double()).argmin(1)
    assert len(order.unique()) == len(mesh.vertices)
    assert_close(mesh.vertices[order], golden.outputs["mesh_vertices"])
    assert_close(mesh.vertex_attrs[order], golden.outputs["mesh_attrs"])
    assert face_set(order[golden.outputs["mesh_faces"].long()]) == face_set(mesh.faces)


def face_set(faces: torch.Tensor) -> set[tuple[int, ...]]:
    """Faces with their winding, whatever vertex they start from."""
    first = faces.argmin(1, keepdim=True)
    return set(map(tuple, faces.gather(1, (first + torch.arange(3)) % 3).tolist()))


@pytest.mark.parametrize("name", ["slat_encoder", "slat_decoder_gs", "slat_decoder_mesh"])
def test_published_state_dict(name):
    manifest = load_manifest(name)
    with torch.device("meta"):
        model = getattr(models, manifest["cls"])(**manifest["args"])
    assert_matches_manifest(model, manifest["state_dict"])


def batch(channels: int) -> SparseTensor:
    coords = torch.tensor([[b, i % 8, i * 3 % 8, i // 8] for b, n in ((0, 40), (1, 13)) for i in range(n)])
    return SparseTensor(torch.randn(len(coords), channels), coords.int())


def make(name: str, **options) -> torch.nn.Module:
    if name == "encoder":
        return SLatEncoder(**SMALL, in_channels=6, **options)
    if name == "gaussian":
        return SLatGaussianDecoder(**SMALL, representation_config=REPRESENTATION, **options)
    config = {"num_upsamples": 1, "num_groups": 3, **options}
    return SLatMeshDecoder(**SMALL, representation_config={"use_color": True}, **config)


def run(name: str, model: torch.nn.Module, x: SparseTensor) -> torch.Tensor:
    if name == "encoder":
        _, mean, logvar = model(x, sample_posterior=False, return_raw=True)
        return torch.cat([mean, logvar], dim=1)
    if name == "gaussian":
        return torch.cat([field.flatten(1) for field in model.decode_fields(model.decode_raw(x)).values()], dim=1)
    return model.decode_raw(x).feats


@pytest.mark.parametrize("name", ["encoder", "gaussian", "mesh"])
def test_every_parameter_learns_also_in_bfloat16(name):
    torch.manual_seed(0)
    model, x = make(name), batch(6 if name == "encoder" else 4)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    exact = run(name, model, x)
    exact.square().mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        out = run(name, model, x).float()
    out.square().mean().backward()
    assert (out - exact).norm() < 0.05 * exact.norm()
    for parameter, expected in zip(model.parameters(), gradients, strict=True):
        assert torch.cosine_similarity(parameter.grad.flatten(), expected.flatten(), dim=0) > 0.95


def test_mesh_grid_follows_the_number_of_upsamples():
    model = make("mesh", num_upsamples=1)
    raw = model.decode_raw(batch(4))
    assert model.output_resolution == 16
    assert raw.feats.shape == (53 * 8, 101)
    assert raw.coords[:, 1:].max() < 16


def test_a_bias_of_the_distances_moves_the_surface_by_as_many_cells():
    cells = torch.cartesian_prod(*[torch.arange(16)] * 3)
    corners = cells[:, None] + torch.tensor([[k & 1, k >> 1 & 1, k >> 2 & 1] for k in range(8)])
    feats = torch.zeros(len(cells), 101)
    feats[:, :8] = (corners - 8.0).norm(dim=-1) - 5  # a ball
    raw = SparseTensor(feats, torch.cat([torch.zeros(len(cells), 1), cells], 1).int())
    for config, radius in (({}, 5 + 1 / 16), ({"sdf_bias": 0.0}, 5), ({"sdf_bias": 0.5}, 4.5)):
        model = SLatMeshDecoder(
            **SMALL, representation_config={"use_color": True, **config}, num_upsamples=1, num_groups=3
        )
        (mesh,) = model.to_representation(raw)
        assert (16 * mesh.vertices.norm(dim=1)).mean() == pytest.approx(radius, abs=0.06)


def test_fields_hold_all_raw_channels():
    model = make("gaussian")
    fields = model.decode_fields(model.decode_raw(batch(4)))
    assert set(fields) == set(FIELDS)
    assert all(len(field) == 53 * 3 for field in fields.values())


def test_unknown_attention_is_refused():
    with pytest.raises(ValueError, match="attn_mode"):
        make("encoder", attn_mode="shift_sequence")


def _cubes(voxels: torch.Tensor, cells: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The cubes [M, 3] of voxels [V, 3], and their corners [M, 8, 3], x fastest."""
    inner = torch.cartesian_prod(*[torch.arange(cells)] * 3)
    coords = (voxels[:, None] * cells + inner).flatten(0, 1)
    return coords, coords[:, None] + torch.tensor([[c & 1, c >> 1 & 1, c >> 2 & 1] for c in range(8)])


def test_distances_are_lowered_only_where_no_surface_is_near():
    """A bar of voxels: a surface at one end, a dip that stays outside in the middle, nothing at all at the other."""
    cells, voxels = 4, torch.tensor([[x, 2, 2] for x in range(12)])
    coords, corners = _cubes(voxels, cells)
    x = corners[..., 0].double()
    height = (corners[..., 2] - 10).abs() / 4  # a sheet in the middle of the bar
    sdf = height + (x / 8 - 1).clamp(0, 0.5) - 0.5 + (x - 32).clamp(min=0)
    before = sdf.clone()
    lowered = lower_where_no_surface_is_near(coords, sdf, cells, threshold=-0.25, limit=1.0)
    assert torch.equal(sdf, before)
    place = {}
    for corner, value in zip(corners.flatten(0, 1).tolist(), (before - lowered).flatten().tolist(), strict=True):
        assert place.setdefault(tuple(corner), value) == pytest.approx(value, abs=1e-12), "cubes agree on corners"
    voxel = coords[:, 0] // cells
    assert (lowered <= before).all() and (before - lowered).max() <= 1.0
    assert torch.equal(lowered[voxel < 2], before[voxel < 2]), "its own surface is near"
    assert before[voxel == 6].min() == 0 and lowered[voxel == 6].min() == pytest.approx(-0.25)
    assert lowered[voxel == 11].min() > 0, "too far outside"


def test_a_mesh_decoder_can_be_told_to_keep_what_it_is_unsure_of():
    torch.manual_seed(0)
    decoder = SLatMeshDecoder(8, 32, 4, 1, 1, num_groups=4, representation_config={"use_color": True, "sdf_bias": 0.0})
    coords = torch.tensor([[0, 3, 3, z] for z in range(2, 6)], dtype=torch.int32)
    raw = decoder.eval().decode_raw(SparseTensor(torch.randn(4, 4), coords))
    feats = raw.feats.detach().clone()
    feats[:, :8] = 0.4 + 0.1 * _cubes(coords[:, 1:].long(), 4)[1][..., 0].sub(14).abs()
    raw = raw.replace(feats)
    assert not decoder.to_representation(raw)[0].success
    decoder.rep_config |= {"sdf_margin": 0.3, "sdf_limit": 1.0}
    mesh = decoder.to_representation(raw)[0]
    assert mesh.success and mesh.vertices[:, 2].max() - mesh.vertices[:, 2].min() > 0.3
