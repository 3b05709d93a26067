"""Gaussian sets: activations and PLY against the recorded reference, frames, and files nobody should trust."""

import numpy as np
import pytest
import torch
from golden_io import GOLDEN, assert_close, load_golden

from trellis.errors import InputError
from trellis.representations import gaussian_ply
from trellis.representations.gaussian import Gaussian, quaternion_to_matrix

FIELDS = ("_xyz", "_features_dc", "_scaling", "_rotation", "_opacity")
TO_GLTF = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])


@pytest.fixture()
def golden():
    return load_golden("gaussian_ply")


def empty(golden) -> Gaussian:
    config = {key: value for key, value in golden.config.items() if key != "ply_properties"}
    return Gaussian(**config)


@pytest.fixture()
def gaussian(golden) -> Gaussian:
    filled = empty(golden)
    for name in FIELDS:
        setattr(filled, name, golden.inputs[name])
    return filled


def matrix_of(covariance: torch.Tensor) -> torch.Tensor:
    return covariance[:, [0, 1, 2, 1, 3, 4, 2, 4, 5]].reshape(-1, 3, 3)


def test_activations_match_the_reference(golden, gaussian):
    for name in ("get_xyz", "get_features", "get_color", "get_scaling", "get_rotation", "get_opacity"):
        assert_close(getattr(gaussian, name), golden.outputs[name])
    assert_close(gaussian.get_covariance(), golden.outputs["get_covariance"], atol=1e-9)
    assert_close(gaussian.scale_bias, golden.outputs["scale_bias"])
    assert_close(gaussian.opacity_bias, golden.outputs["opacity_bias"])


def test_saved_file_is_the_reference_file(gaussian, tmp_path):
    gaussian.save_ply(tmp_path / "splats.ply")
    files = (tmp_path / "splats.ply").read_bytes(), (GOLDEN / "gaussian_small.ply").read_bytes()
    (header, values), (wanted_header, wanted) = (file.split(b"end_header\n", 1) for file in files)
    assert header == wanted_header and len(values) == len(wanted)
    # A sigmoid and its inverse each differ in their last bit from one kind of processor to another.
    bits = 2 * np.finfo(np.float32).eps
    np.testing.assert_allclose(np.frombuffer(values, "<f4"), np.frombuffer(wanted, "<f4"), rtol=bits, atol=bits)
    assert [entry.name for entry in tmp_path.iterdir()] == ["splats.ply"]


def test_property_order_is_the_recorded_one(golden):
    assert list(gaussian_ply.PROPERTIES) == golden.config["ply_properties"]


def test_loading_the_reference_file(golden):
    loaded = empty(golden)
    loaded.load_ply(GOLDEN / "gaussian_small.ply")
    for name in FIELDS:
        assert_close(getattr(loaded, name), golden.outputs[f"loaded{name}"])


@pytest.mark.parametrize("frame", ["object", "gltf"])
@pytest.mark.parametrize("activation", ["softplus", "exp"])
def test_round_trip(gaussian, tmp_path, frame, activation):
    source = Gaussian(**{**gaussian.init_params, "scaling_activation": activation})
    for name in FIELDS:
        setattr(source, name, getattr(gaussian, name))
    source.save_ply(tmp_path / "splats.ply", frame=frame)
    loaded = Gaussian(**source.init_params)
    loaded.load_ply(tmp_path / "splats.ply", frame=frame)
    for name in FIELDS:
        assert_close(getattr(loaded, name), getattr(source, name), atol=2e-4)
    assert_close(loaded.get_covariance(), source.get_covariance(), atol=1e-9)


def test_gltf_frame_turns_centres_and_covariances_alike(gaussian, tmp_path):
    gaussian.save_ply(tmp_path / "splats.ply", frame="gltf")
    turned = Gaussian(**gaussian.init_params)
    turned.load_ply(tmp_path / "splats.ply")
    assert_close(turned.get_xyz, gaussian.get_xyz @ TO_GLTF.T)
    expected = TO_GLTF @ matrix_of(gaussian.get_covariance()) @ TO_GLTF.T
    assert_close(matrix_of(turned.get_covariance()), expected, atol=1e-8)


def test_quaternion_matrix_is_a_rotation_and_turns_the_right_way():
    quats = torch.nn.functional.normalize(torch.randn(7, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    matrices = quaternion_to_matrix(quats)
    assert_close(matrices @ matrices.transpose(1, 2), torch.eye(3).expand(7, 3, 3))
    quarter_about_z = quaternion_to_matrix(torch.tensor([0.5**0.5, 0, 0, 0.5**0.5]))
    assert_close(quarter_about_z @ torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 1, 0]))


def test_setters_invert_getters(gaussian):
    copy = Gaussian(**gaussian.init_params)
    copy.from_xyz(gaussian.get_xyz)
    copy.from_features(gaussian.get_features)
    copy.from_scaling(gaussian.get_scaling)
    copy.from_rotation(gaussian.get_rotation)
    copy.from_opacity(gaussian.get_opacity)
    for name in ("get_xyz", "get_color", "get_scaling", "get_rotation", "get_opacity"):
        assert_close(getattr(copy, name), getattr(gaussian, name))


def test_saturated_opacity_and_tiny_scale_stay_finite_in_the_file(gaussian, tmp_path):
    gaussian._opacity = torch.full_like(gaussian._opacity, 200.0)
    gaussian._opacity[0] = -200.0
    gaussian._scaling = torch.full_like(gaussian._scaling, -300.0)
    gaussian.save_ply(tmp_path / "splats.ply")
    loaded = Gaussian(**gaussian.init_params)
    loaded.load_ply(tmp_path / "splats.ply")
    assert all(torch.isfinite(getattr(loaded, name)).all() for name in FIELDS)
    assert_close(loaded.get_scaling, gaussian.get_scaling)


def test_empty_set_round_trips(gaussian, tmp_path):
    Gaussian(**gaussian.init_params).save_ply(tmp_path / "empty.ply", frame="gltf")
    gaussian.load_ply(tmp_path / "empty.ply", frame="gltf")
    assert len(gaussian) == 0


def test_properties_may_come_in_another_order_and_without_normals(golden, tmp_path):
    names = [name for name in reversed(gaussian_ply.PROPERTIES) if name not in gaussian_ply.OPTIONAL]
    table = golden.outputs["table"].numpy()
    columns = table[:, [gaussian_ply.PROPERTIES.index(name) for name in names]]
    write(tmp_path / "other.ply", names, columns)
    loaded = empty(golden)
    loaded.load_ply(tmp_path / "other.ply")
    assert_close(loaded._rotation, golden.outputs["loaded_rotation"])


def write(path, names, rows, count=None, form="binary_little_endian", kind="float"):
    lines = ["ply", f"format {form} 1.0", f"element vertex {len(rows) if count is None else count}"]
    lines += [f"property {kind} {name}" for name in names] + ["end_header\n"]
    path.write_bytes("\n".join(lines).encode() + np.asarray(rows, dtype="<f4").tobytes())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"count": 10**9}, "whole number up to"),
        ({"count": "9" * 5000}, "whole number up to"),
        ({"count": "-3"}, "whole number up to"),
        ({"count": 3}, "cut short"),
        ({"form": "ascii"}, "binary little-endian"),
        ({"form": "binary_big_endian"}, "binary little-endian"),
        ({"kind": "double"}, "float properties only"),
        ({"kind": "list uchar int"}, "float properties only"),
        ({"names": gaussian_ply.PROPERTIES[:-1]}, "lacks the properties rot_3"),
        ({"names": (*gaussian_ply.PROPERTIES, "x")}, "twice"),
        ({"names": (*gaussian_ply.PROPERTIES, "f_rest_0")}, "view-dependent"),
        ({"rows": np.full((2, 17), np.nan)}, "not finite"),
        ({"rows": np.zeros((2, 17))}, "quaternion 0"),
    ],
)
def test_bad_files_are_refused_with_a_sentence(gaussian, tmp_path, change, sentence):
    arguments = {"names": gaussian_ply.PROPERTIES, "rows": np.ones((2, 17)), **change}
    write(tmp_path / "bad.ply", **arguments)
    with pytest.raises(InputError, match=sentence):
        gaussian.load_ply(tmp_path / "bad.ply")


@pytest.mark.parametrize("content", [b"", b"ply\n", b"solid cube", b"ply\n" + b"comment x\n" * 5000, b"\x80\x04" * 99])
def test_files_that_are_no_ply_are_refused(gaussian, tmp_path, content):
    (tmp_path / "bad.ply").write_bytes(content)
    with pytest.raises(InputError, match="not a PLY file"):
        gaussian.load_ply(tmp_path / "bad.ply")


def test_missing_file_and_wrong_arguments_are_sentences(gaussian, tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        gaussian.load_ply(tmp_path / "absent.ply")
    with pytest.raises(InputError, match="frame"):
        gaussian.save_ply(tmp_path / "splats.ply", frame="blender")
    with pytest.raises(InputError, match="degree 3"):
        Gaussian(aabb=[0, 0, 0, 1, 1, 1], sh_degree=3)
    with pytest.raises(InputError, match="activation"):
        Gaussian(aabb=[0, 0, 0, 1, 1, 1], scaling_activation="relu")
    with pytest.raises(InputError, match="6 numbers"):
        Gaussian(aabb=[0, 0, 0])


def test_a_failed_write_leaves_the_old_file(gaussian, tmp_path, monkeypatch):
    path = tmp_path / "splats.ply"
    gaussian.save_ply(path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(gaussian_ply.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        gaussian.save_ply(path, frame="gltf")
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["splats.ply"]


def test_gradients_reach_every_field(gaussian):
    for name in FIELDS:
        setattr(gaussian, name, getattr(gaussian, name).clone().requires_grad_())
    moved = gaussian.to("cpu")
    total = moved.get_covariance().sum() + moved.get_xyz.sum() + moved.get_color.sum() + moved.get_opacity.sum()
    total.backward()
    assert all(getattr(gaussian, name).grad is not None for name in FIELDS)
