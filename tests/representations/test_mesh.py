from __future__ import annotations

import pytest
import torch
from golden_io import assert_close

from trellis.representations.mesh import MeshExtractResult

# A tetrahedron with a right-angled corner at the origin, wound outward.
VERTICES = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
FACES = torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], dtype=torch.int32)


def test_normals_point_outward():
    mesh = MeshExtractResult(VERTICES, FACES)
    diagonal = torch.full((3,), 3**-0.5)
    assert_close(mesh.face_normal, torch.stack([*(-torch.eye(3)[[2, 1, 0]]), diagonal]))
    assert_close(mesh.vertex_normal[0], -diagonal)
    # At the x corner: faces -y and -z with area 1/2 each and the slanted one with area-weighted normal (1, 1, 1) / 2.
    assert_close(mesh.vertex_normal[1], torch.tensor([1.0, 0.0, 0.0]))


def test_degenerate_face_and_unused_vertex_have_zero_normals():
    mesh = MeshExtractResult(VERTICES, torch.tensor([[0, 1, 1]]))
    assert mesh.face_normal.tolist() == [[0, 0, 0]]
    assert not mesh.vertex_normal.any()


def test_normals_are_differentiable():
    vertices = VERTICES.double().requires_grad_()
    mesh = lambda v: MeshExtractResult(v, FACES)  # noqa: E731
    assert torch.autograd.gradcheck(lambda v: (mesh(v).face_normal, mesh(v).vertex_normal), vertices)


def test_bounds_and_success():
    mesh = MeshExtractResult(VERTICES, FACES, torch.rand(4, 6), res=8)
    assert mesh.success and mesh.faces.dtype == torch.int64
    assert mesh.bounds.tolist() == [[0, 0, 0], [1, 1, 1]]
    moved = mesh.to("cpu")
    assert moved.res == 8 and torch.equal(moved.vertex_attrs, mesh.vertex_attrs)


def test_empty_mesh_is_no_success():
    mesh = MeshExtractResult(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.long))
    assert not mesh.success
    assert mesh.face_normal.shape == (0, 3) and mesh.vertex_normal.shape == (0, 3)
    with pytest.raises(ValueError, match="no bounds"):
        _ = mesh.bounds


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_no_success(bad):
    vertices, attributes = VERTICES.clone(), torch.rand(4, 6)
    vertices[2, 1] = bad
    assert not MeshExtractResult(vertices, FACES).success
    attributes[0, 0] = bad
    assert not MeshExtractResult(VERTICES, FACES, attributes).success


@pytest.mark.parametrize(
    ("vertices", "faces", "attributes", "message"),
    [
        (VERTICES[:, :2], FACES, None, r"vertices must have shape \[n, 3\], got \(4, 2\)"),
        (VERTICES, FACES.float(), None, "faces must be integers"),
        (VERTICES, FACES, torch.rand(3, 6), "3 rows for 4 vertices"),
    ],
)
def test_parts_that_do_not_fit_are_named(vertices, faces, attributes, message):
    with pytest.raises(ValueError, match=message):
        MeshExtractResult(vertices, faces, attributes)
