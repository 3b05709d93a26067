"""DINOv2 against recorded outputs, its published state dict, and its input checks."""

import pytest
import torch
from golden_io import assert_close, assert_matches_manifest, load_golden, load_manifest

from trellis.errors import InputError
from trellis.models.dinov2 import DinoVisionTransformer


@pytest.fixture(scope="module")
def golden():
    return load_golden("dinov2_vit_reg")


@pytest.fixture(scope="module")
def model(golden):
    model = DinoVisionTransformer(**golden.config)
    model.load_state_dict(golden.weights, strict=True)
    return model.eval()


@pytest.mark.parametrize("case", ["a", "b"], ids=["native size", "resampled positions"])
def test_reproduces_recorded_features(golden, model, case):
    with torch.no_grad():
        features = model.forward_features(golden.inputs[f"x_{case}"])
    for name, value in features.items():
        assert_close(value, golden.outputs[f"{name}_{case}"])
    cond = torch.nn.functional.layer_norm(features["x_prenorm"], features["x_prenorm"].shape[-1:])
    assert_close(cond, golden.outputs[f"cond_{case}"])


@pytest.mark.parametrize(("case", "grid"), [("a", (5, 5)), ("b", (6, 4))])
def test_position_table(golden, model, case, grid):
    assert_close(model.position_table(*grid).detach(), golden.outputs[f"pos_{case}"])


def test_full_size_state_dict_is_the_published_one():
    manifest = load_manifest("image_cond_model_dinov2_vitl14_reg")
    with torch.device("meta"):
        models = [DinoVisionTransformer(**manifest["args"]), DinoVisionTransformer()]
    for model in models:
        assert_matches_manifest(model, manifest["state_dict"])
        assert list(model.state_dict()) == [key for key, _, _ in manifest["state_dict"]]


@pytest.mark.parametrize("shape", [(1, 3, 70, 69), (3, 70, 70), (1, 4, 70, 70)])
def test_rejects_images_it_cannot_cut_into_patches(model, shape):
    with pytest.raises(InputError, match="multiples of 14"):
        model(torch.zeros(shape))


def test_rejects_variants_that_are_not_built():
    with pytest.raises(InputError, match="swiglu"):
        DinoVisionTransformer(ffn_layer="swiglu", embed_dim=8, depth=1, num_heads=1, img_size=28)
