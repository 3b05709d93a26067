"""Structure encoder and decoder against their recorded passes and manifests."""

import pytest
import torch
from golden_io import assert_close, assert_matches_manifest, load_golden, load_manifest

from trellis.models import SparseStructureDecoder, SparseStructureEncoder
from trellis.models.sparse_structure_vae import occupied_coords


def load(cls, golden):
    model = cls(**golden.config)
    model.load_state_dict(golden.weights, strict=True)
    return model.eval().requires_grad_(False)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return SparseStructureEncoder(in_channels=1, latent_channels=4, num_res_blocks=1, channels=[8, 16])


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    return SparseStructureDecoder(out_channels=1, latent_channels=4, num_res_blocks=1, channels=[16, 8])


def test_encoder_matches():
    golden = load_golden("ss_encoder")
    model = load(SparseStructureEncoder, golden)
    z, mean, logvar = model(golden.inputs["occ"], return_raw=True)
    assert_close(z, golden.outputs["z"])
    assert_close(mean, golden.outputs["mean"])
    assert_close(logvar, golden.outputs["logvar"])


def test_decoder_matches_block_by_block_and_voxel_by_voxel():
    golden = load_golden("ss_decoder")
    model = load(SparseStructureDecoder, golden)
    seen = {}
    for k in (1, 2, 5):
        model.blocks[k].register_forward_hook(lambda _m, _i, out, k=k: seen.__setitem__(f"block_{k}", out))
    logits = model(golden.inputs["latent"])
    assert len(seen) == 3
    for name, value in {**seen, "logits": logits}.items():
        assert_close(value, golden.outputs[name])
    coords = occupied_coords(logits)
    assert coords.dtype == torch.int32
    assert torch.equal(coords, golden.outputs["coords"])


@pytest.mark.parametrize(
    ("cls", "name"),
    [(SparseStructureEncoder, "sparse_structure_encoder"), (SparseStructureDecoder, "sparse_structure_decoder")],
)
def test_state_dict_matches_the_published_one(cls, name):
    manifest = load_manifest(name)
    with torch.device("meta"):
        model = cls(**manifest["args"])
    assert_matches_manifest(model, manifest["state_dict"])


def test_posterior_samples_spread_by_the_predicted_variance(encoder):
    x = (torch.rand(1, 1, 8, 8, 8) > 0.5).float()
    torch.manual_seed(3)
    z, mean, logvar = encoder(x, sample_posterior=True, return_raw=True)
    torch.manual_seed(3)
    assert_close(z, mean + (logvar / 2).exp() * torch.randn_like(mean))
    assert_close(encoder(x), mean)


def test_a_training_step_reaches_every_parameter(encoder, decoder):
    for module in (*encoder.modules(), *decoder.modules()):
        if hasattr(module, "conv2"):  # starts at zero, which hides conv1 from the first gradient
            torch.nn.init.normal_(module.conv2.weight, std=0.1)
    x = (torch.rand(2, 1, 8, 8, 8) > 0.5).float()
    logits = decoder(encoder(x, sample_posterior=True))
    assert logits.shape == x.shape
    torch.nn.functional.binary_cross_entropy_with_logits(logits, x).backward()
    for model in (encoder, decoder):
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_bfloat16_autocast_stays_close(encoder, decoder):
    x = (torch.rand(1, 1, 8, 8, 8) > 0.5).float()
    reference = decoder(encoder(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = decoder(encoder(x))
    assert out.dtype == torch.float32
    assert (out - reference).abs().max() < 0.05 * reference.abs().max()


@pytest.mark.parametrize("name", ["ss_encoder", "ss_decoder"])
def test_float16_torso_stays_close(name):
    golden = load_golden(name)
    cls, given, wanted = {
        "ss_encoder": (SparseStructureEncoder, "occ", "z"),
        "ss_decoder": (SparseStructureDecoder, "latent", "logits"),
    }[name]
    model = load(cls, golden)
    model.convert_to_fp16()
    out = model(golden.inputs[given])
    assert out.dtype == torch.float32
    assert_close(out, golden.outputs[wanted], atol=2e-2)
    model.convert_to_fp32()
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_wrong_inputs_are_named(encoder, decoder):
    with pytest.raises(ValueError, match="divisible by 2"):
        encoder(torch.zeros(1, 1, 7, 8, 8))
    with pytest.raises(ValueError, match=r"occupancy grid must be \[B, 1"):
        encoder(torch.zeros(1, 2, 8, 8, 8))
    with pytest.raises(ValueError, match=r"latent must be \[B, 4"):
        decoder(torch.zeros(4, 4, 4, 4))
    with pytest.raises(ValueError, match="norm_type"):
        SparseStructureDecoder(1, 4, 1, [8], norm_type="batch")
