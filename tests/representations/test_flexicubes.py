from __future__ import annotations

import numpy as np
import pytest
import torch
from golden_io import assert_close, load_golden

from trellis.representations.flexicubes import (
    build_corner_grid,
    build_topology,
    cubes_to_mesh,
    flexicubes,
    map_weights,
)
from trellis.representations.flexicubes.tables import CORNERS, EDGES, dual_tables


def edge_counts(faces: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How often each undirected and each directed edge occurs; `faces` are polygons of any one size."""
    directed = torch.stack([faces, faces.roll(-1, dims=1)], dim=-1).reshape(-1, 2)
    undirected = directed.sort(dim=1).values
    return undirected.unique(dim=0, return_counts=True)[1], directed.unique(dim=0, return_counts=True)[1]


def mesh_stats(vertices: torch.Tensor, faces: torch.Tensor) -> torch.Tensor:
    """Vertices, faces, edges, edges without exactly two faces, area, signed volume."""
    edges, _ = edge_counts(faces)
    a, b, c = vertices.double()[faces].unbind(1)
    cross = torch.linalg.cross(b - a, c - a)
    area, volume = cross.norm(dim=1).sum() / 2, (a * cross).sum() / 6
    return torch.tensor([len(vertices), len(faces), len(edges), int((edges != 2).sum()), area, volume]).double()


def from_first_corner(faces: torch.Tensor) -> set[tuple[int, int, int]]:
    """Faces as a set, each started at its smallest vertex so that only the winding counts."""
    start = faces.argmin(dim=1, keepdim=True)
    return set(map(tuple, faces.gather(1, (start + torch.arange(3)) % 3).tolist()))


def assert_same_mesh(vertices, faces, expected_vertices, expected_faces) -> torch.Tensor:
    """Vertices and wound faces agree up to their order; returns the recorded row of each vertex."""
    assert vertices.shape == expected_vertices.shape and faces.shape == expected_faces.shape
    rows = torch.cdist(vertices.double(), expected_vertices.double()).argmin(dim=1)
    assert len(rows.unique()) == len(rows)
    assert_close(vertices, expected_vertices[rows])
    assert from_first_corner(rows[faces]) == from_first_corner(expected_faces.long())
    return rows


def lattice(cells: int, dtype=torch.float32) -> torch.Tensor:
    axis = torch.arange(cells + 1, dtype=dtype) / cells - 0.5
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)


def torus_sdf(points: torch.Tensor, major: float = 0.27, minor: float = 0.12) -> torch.Tensor:
    return torch.hypot(points[..., :2].norm(dim=-1) - major, points[..., 2]) - minor


def full_features(sdf: torch.Tensor, channels: int = 53) -> tuple[torch.Tensor, torch.Tensor]:
    """Every voxel of a corner field as (coords, feats) with zeros behind the distances."""
    cells = sdf.shape[0] - 1
    coords = torch.ones((cells,) * 3).nonzero().int()
    feats = torch.zeros(len(coords), channels, dtype=sdf.dtype)
    feats[:, :8] = sdf[tuple((coords[:, None].long() + torch.from_numpy(CORNERS)).unbind(-1))]
    return coords, feats


class TestTables:
    def test_each_patch_is_a_ring_of_crossed_edges(self):
        tables = dual_tables()
        for case in range(256):
            inside = np.array([case >> k & 1 for k in range(8)])
            crossed = inside[EDGES[:, 0]] != inside[EDGES[:, 1]]
            assert ((tables.patch_of_edge[case] >= 0) == crossed).all()
            sizes = np.bincount(tables.patch_of_edge[case][crossed], minlength=0)
            assert len(sizes) == tables.patch_count[case] and (sizes >= 3).all()
        assert np.bincount(tables.patch_count).tolist() == [2, 162, 82, 8, 2]

    def test_faces_touched_twice_are_untouched_in_the_complement(self):
        tables = dual_tables()
        cases = np.flatnonzero(tables.partner.any(1))
        assert len(cases) == 36
        assert not tables.partner[255 - cases].any()
        assert {bin(case).count("1") for case in cases} == {5, 6}

    @pytest.mark.parametrize("density", [0.3, 0.5, 0.7])
    def test_any_sign_pattern_gives_a_closed_oriented_manifold_along_edges(self, density):
        inside = torch.zeros(14, 14, 14, dtype=torch.bool)
        inside[1:-1, 1:-1, 1:-1] = torch.rand(12, 12, 12, generator=torch.Generator().manual_seed(2)) < density
        undirected, directed = edge_counts(build_topology(inside).quads)
        assert (undirected == 2).all() and (directed == 1).all()


class TestRecorded:
    def test_dense_sphere(self):
        out = load_golden("flexicubes_sphere").outputs
        surface = flexicubes(out["dense_sdf"].view(17, 17, 17))
        assert_same_mesh(surface.vertices, surface.faces, out["dense_vertices"], out["dense_faces"])
        assert_close(mesh_stats(surface.vertices, surface.faces), out["dense_stats"])

    def test_sphere(self):
        golden = load_golden("flexicubes_sphere")
        out, sdf = golden.outputs, golden.inputs["sdf_corners"]
        feats = torch.cat([sdf, torch.zeros(len(sdf), 45)], dim=1)
        mesh = cubes_to_mesh(golden.inputs["coords"], feats, golden.config["res"])
        rows = assert_same_mesh(mesh.vertices, mesh.faces, out["vertices"], out["faces"])
        assert_close(mesh_stats(mesh.vertices, mesh.faces), out["stats"])
        assert mesh.success and mesh.vertex_attrs is None
        assert_close(mesh.vertex_normal, out["vertex_normal"][rows])
        centres = out["vertices"][out["faces"].long()].mean(1)
        face_rows = torch.cdist(mesh.vertices[mesh.faces].mean(1), centres).argmin(1)
        assert_close(mesh.face_normal, out["face_normal"][face_rows])

    def test_sparse_torus_with_random_weights(self):
        golden = load_golden("flexicubes_torus_sparse")
        out = golden.outputs
        mesh = cubes_to_mesh(golden.inputs["coords"], golden.inputs["feats"], golden.config["res"])
        rows = assert_same_mesh(mesh.vertices, mesh.faces, out["vertices"], out["faces"])
        assert_close(mesh.vertex_attrs, out["attrs"][rows])
        assert_close(mesh_stats(mesh.vertices, mesh.faces), out["stats"])

    def test_shared_corners(self):
        golden = load_golden("flexicubes_torus_sparse")
        feats, res = golden.inputs["feats"], golden.config["res"]
        grid = build_corner_grid(golden.inputs["coords"][:, 1:], res)
        assert torch.equal(grid.coords, golden.outputs["verts_coords"].long())
        parts = [feats[:, :8] - 1 / res, feats[:, 8:32], feats[:, 53:]]
        assert_close(torch.cat([grid.mean(part) for part in parts], dim=1), golden.outputs["verts_attrs"])

    def test_mesh_decoder_output(self):
        out = load_golden("slat_decoder_mesh").outputs
        mesh = cubes_to_mesh(out["coords"], out["feats"], 32)
        rows = assert_same_mesh(mesh.vertices, mesh.faces, out["mesh_vertices"], out["mesh_faces"])
        assert_close(mesh.vertex_attrs, out["mesh_attrs"][rows])


class TestSurface:
    @pytest.mark.parametrize("training", [False, True])
    @pytest.mark.parametrize(
        ("field", "euler", "volume"),
        [
            (lambda p: p.norm(dim=-1) - 0.35, 2, 4 / 3 * np.pi * 0.35**3),
            (torus_sdf, 0, 2 * np.pi**2 * 0.27 * 0.12**2),
        ],
    )
    def test_watertight_with_outward_faces(self, field, euler, volume, training):
        surface = flexicubes(field(lattice(40, torch.float64)), training=training)
        vertices, faces, edges, open_edges, _, signed_volume = mesh_stats(surface.vertices, surface.faces).tolist()
        assert open_edges == 0
        assert vertices - edges + faces == euler
        assert signed_volume == pytest.approx(volume, rel=0.03)
        assert (edge_counts(surface.faces)[1] == 1).all()

    def test_sparse_equals_dense(self):
        sdf = torus_sdf(lattice(14))
        generator = torch.Generator().manual_seed(0)
        coords, feats = full_features(sdf)
        feats[:, 32:] = torch.randn(feats.shape[0], 21, generator=generator)
        mesh = cubes_to_mesh(coords, feats, 14, sdf_bias=0.0)
        alpha, beta, gamma = (w.unflatten(0, (14, 14, 14)) for w in map_weights(feats[:, 32:]))
        dense = flexicubes(sdf, alpha=alpha, beta=beta, gamma=gamma)
        assert torch.equal(mesh.faces, dense.faces)
        assert_close(mesh.vertices, dense.vertices)

    def test_order_of_voxels_does_not_matter(self):
        golden = load_golden("flexicubes_torus_sparse")
        coords, feats = golden.inputs["coords"], golden.inputs["feats"]
        shuffled = torch.randperm(len(coords), generator=torch.Generator().manual_seed(0))
        one, other = cubes_to_mesh(coords, feats, 20), cubes_to_mesh(coords[shuffled], feats[shuffled], 20)
        assert torch.equal(one.vertices, other.vertices) and torch.equal(one.faces, other.faces)

    def test_object_cut_by_the_grid_stays_open_there(self):
        sdf = lattice(6)[..., 2] - 0.1
        surface = flexicubes(sdf)
        assert len(surface.faces) == 2 * 5 * 5  # 6 x 6 dual vertices
        assert_close(surface.vertices[:, 2], torch.full((36,), 0.1))

    def test_attributes_follow_the_vertices(self):
        points = lattice(10)
        surface = flexicubes(points.norm(dim=-1) - 0.3, attributes=points * 2 + 1)
        assert_close(surface.attributes, surface.vertices * 2 + 1)

    def test_gamma_chooses_the_diagonal(self):
        sdf = lattice(2)[..., 0].contiguous() + 0.1
        gamma = torch.ones(2, 2, 2)
        gamma[0, 0, 0] = gamma[0, 1, 1] = 2.0
        for weights, shared in ((gamma, {(0.25, 0.25), (-0.25, -0.25)}), (1 / gamma, {(0.25, -0.25), (-0.25, 0.25)})):
            surface = flexicubes(sdf, gamma=weights)
            assert surface.faces.shape == (2, 3)
            on_both = surface.vertices[surface.faces[0][torch.isin(surface.faces[0], surface.faces[1])]]
            assert {tuple(p) for p in on_both[:, 1:].tolist()} == shared

    def test_half_precision_features_and_autocast_keep_full_precision_geometry(self):
        golden = load_golden("flexicubes_torus_sparse")
        coords, feats = golden.inputs["coords"], golden.inputs["feats"].bfloat16()
        expected = cubes_to_mesh(coords, feats.float(), 20)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mesh = cubes_to_mesh(coords, feats, 20)
        assert_close(mesh.vertices, expected.vertices)


class TestGradients:
    """Finite differences in float64, with signs kept away from zero so that the topology does not change."""

    @pytest.mark.parametrize("training", [False, True])
    def test_dense(self, training):
        generator = torch.Generator().manual_seed(1)
        n = 3
        sdf = torch.rand(n + 1, n + 1, n + 1, generator=generator, dtype=torch.float64) + 0.2
        sdf[1:3, 1:3, 1:3] *= -1
        sdf[1, 1, 1] *= -1
        positions = lattice(n, torch.float64) + 0.02 * torch.randn(4, 4, 4, 3, generator=generator, dtype=torch.float64)
        alpha, beta, gamma = map_weights(torch.randn(n**3, 21, generator=generator, dtype=torch.float64))
        arguments = [
            sdf,
            positions,
            alpha.view(n, n, n, 8),
            beta.view(n, n, n, 12),
            gamma.view(n, n, n),
            torch.rand(4, 4, 4, 2, generator=generator, dtype=torch.float64),
        ]

        def extract(*values):
            surface = flexicubes(*values, training=training)
            outputs = (surface.vertices, surface.attributes)
            return (*outputs, surface.deviation) if training else outputs

        assert torch.autograd.gradcheck(extract, [a.clone().requires_grad_() for a in arguments], fast_mode=True)

    def test_decoder_features(self):
        coords, feats = full_features(lattice(2, torch.float64).norm(dim=-1) - 0.3)
        generator = torch.Generator().manual_seed(1)
        feats = feats + 0.02 * torch.randn(feats.shape, generator=generator, dtype=torch.float64)

        def extract(values):
            mesh = cubes_to_mesh(coords[:-1], values, 2, training=True)
            return mesh.vertices, mesh.corner_positions, mesh.corner_sdf, *mesh.regularizers.values()

        assert torch.autograd.gradcheck(extract, feats[:-1].clone().requires_grad_(), fast_mode=True)

    def test_optimising_the_field_moves_the_surface(self):
        sdf = (lattice(8).norm(dim=-1) - 0.2).requires_grad_()
        optimiser = torch.optim.Adam([sdf], lr=0.01)
        for _ in range(30):
            loss = (flexicubes(sdf).vertices.norm(dim=-1) - 0.3).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        assert loss < 1e-3


class TestEdgeOfInput:
    @pytest.mark.parametrize("training", [False, True])
    @pytest.mark.parametrize("value", [1.0, -1.0, float("nan")])
    @pytest.mark.parametrize("channels", [53, 101])
    def test_without_a_surface(self, training, value, channels):
        coords, feats = full_features(torch.full((5, 5, 5), value), channels)
        mesh = cubes_to_mesh(coords, feats.requires_grad_(), 4, training=training)
        assert not mesh.success and len(mesh.faces) == 0
        assert (mesh.vertex_attrs is None) == (channels == 53)
        if training:
            sum(mesh.regularizers.values()).backward()

    def test_without_voxels(self):
        mesh = cubes_to_mesh(torch.zeros(0, 4, dtype=torch.int32), torch.zeros(0, 101), 8)
        assert not mesh.success and mesh.vertex_attrs.shape == (0, 6)

    def test_one_voxel_alone_is_a_closed_surface(self):
        mesh = cubes_to_mesh(torch.tensor([[3, 3, 3]]), torch.full((1, 53), -0.1), 8)
        assert mesh_stats(mesh.vertices, mesh.faces)[3] == 0
        assert mesh_stats(mesh.vertices, mesh.faces)[5] > 0

    @pytest.mark.parametrize(
        ("coords", "feats", "message"),
        [
            (torch.tensor([[0, 0, 8]]), torch.zeros(1, 53), r"lie in \[0, 8\), got 0 to 8"),
            (torch.tensor([[1, 1, 1], [1, 1, 1]]), torch.zeros(2, 53), "not repeat"),
            (torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]]), torch.zeros(2, 53), "several batch entries"),
            (torch.tensor([[1, 1, 1]]), torch.zeros(1, 60), r"got \(1, 60\)"),
            (torch.tensor([[1.0, 1, 1]]), torch.zeros(1, 53), "must be integers"),
        ],
    )
    def test_unusable_voxels_are_named(self, coords, feats, message):
        with pytest.raises(ValueError, match=message):
            cubes_to_mesh(coords, feats, 8)

    def test_unusable_lattices_are_named(self):
        with pytest.raises(ValueError, match=r"beta must have shape \(4, 4, 4, 12\)"):
            flexicubes(torch.ones(5, 5, 5), beta=torch.ones(5, 5, 5, 12))
        with pytest.raises(ValueError, match="attributes must have shape"):
            flexicubes(torch.ones(5, 5, 5), attributes=torch.ones(4, 5, 5, 3))
        with pytest.raises(ValueError, match="at least 2x2x2"):
            flexicubes(torch.ones(5, 5))
