"""Vertex attributes at the pixels of a raster, with analytic gradients to the attributes and the screen positions."""

from __future__ import annotations

import numpy as np
import torch

from trellis import backends
from trellis.errors import InputError
from trellis.renderers.mesh_topology import FaceTable, face_table
from trellis.renderers.mesh_visibility import Raster, screen_array
from trellis.renderers.numba_runtime import exclusive, kernel, prange

_MAX_PARTIAL_SUMS = 8


def interpolate(
    attributes: torch.Tensor,
    screen: torch.Tensor,
    faces: torch.Tensor,
    raster: Raster,
    attribute_faces: torch.Tensor | None = None,
) -> torch.Tensor:
    """Perspective-correct attributes at every pixel centre.

    Differentiable in `attributes` and in `screen` (position and depth), by closed-form expressions; the visible face
    of a pixel is taken as fixed, so silhouettes get their gradient from `antialias`. Deterministic on the CPU.

    Args:
        attributes: [A, C] float.
        screen: [V, 3], the positions that `raster` was made from.
        faces: [F, 3] integer, the faces that `raster` was made from.
        raster: from `rasterize`.
        attribute_faces: [F, 3] integer indices into `attributes`, if they differ from `faces` (texture coordinates).

    Returns:
        [H, W, C] float32 on the device of `attributes`, 0 where nothing is seen.
    """
    if attributes.ndim != 2:
        raise InputError(f"Attributes must be [A, C], but came as {list(attributes.shape)}.")
    table = face_table(faces)
    table.require_vertices(len(screen))
    corners = table if attribute_faces is None else face_table(attribute_faces)
    corners.require_vertices(len(attributes))
    if len(corners.triangles) != len(table.triangles):
        raise InputError(
            f"Every face needs attribute indices: {len(table.triangles)} faces came with {len(corners.triangles)}."
        )
    backend = backends.of("mesh_rasterisation", raster.face_ids.device)
    return backend.interpolate(attributes, screen, faces, raster, faces if attribute_faces is None else attribute_faces)


def interpolate_numba(
    attributes: torch.Tensor,
    screen: torch.Tensor,
    faces: torch.Tensor,
    raster: Raster,
    attribute_faces: torch.Tensor,
) -> torch.Tensor:
    """`interpolate` on the CPU; arguments are checked."""
    local = attributes.to("cpu", torch.float32), screen.to("cpu", torch.float32)
    image = _Interpolate.apply(*local, face_table(faces), face_table(attribute_faces), raster)
    return image.to(attributes.device)


class _Interpolate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        attributes: torch.Tensor,
        screen: torch.Tensor,
        table: FaceTable,
        corners: FaceTable,
        raster: Raster,
    ) -> torch.Tensor:
        face_ids, barycentrics = raster.face_ids.cpu(), raster.barycentrics.cpu()
        image = torch.empty(*face_ids.shape, attributes.shape[1])
        with exclusive():
            _forward(
                attributes.detach().contiguous().numpy(),
                corners.triangles,
                face_ids.numpy(),
                barycentrics.numpy(),
                image.numpy(),
            )
        ctx.save_for_backward(attributes, screen, face_ids, barycentrics)
        ctx.tables = table, corners
        return image

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        attributes, screen, face_ids, barycentrics = ctx.saved_tensors
        table, corners = ctx.tables
        need_attributes, need_screen = ctx.needs_input_grad[:2]
        # Partial sums over bands of rows, added up in a fixed order: how many depends on the sizes alone, never on
        # the number of threads, so that a gradient is the same number on every machine.
        parts = max(1, min(_MAX_PARTIAL_SUMS, face_ids.numel() // max(1, len(screen)), len(face_ids)))
        grad_attributes = np.zeros((parts, *attributes.shape) if need_attributes else (parts, 0, 0), np.float32)
        grad_screen = np.zeros((parts, *screen.shape) if need_screen else (parts, 0, 0), np.float32)
        with exclusive():
            _backward(
                grad.to(torch.float32).contiguous().numpy(),
                attributes.detach().contiguous().numpy(),
                screen_array(screen),
                table.triangles,
                corners.triangles,
                face_ids.numpy(),
                barycentrics.numpy(),
                grad_attributes,
                grad_screen,
            )
        return (
            torch.from_numpy(grad_attributes.sum(axis=0)) if need_attributes else None,
            torch.from_numpy(grad_screen.sum(axis=0)) if need_screen else None,
            *(None, None, None),
        )


@kernel(parallel=True)
def _forward(
    attributes: np.ndarray, faces: np.ndarray, face_ids: np.ndarray, barycentrics: np.ndarray, image: np.ndarray
) -> None:
    height, width, channels = image.shape
    for row in prange(height):
        for column in range(width):
            face = face_ids[row, column]
            if face < 0:
                image[row, column, :] = 0.0
                continue
            a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
            wa, wb, wc = barycentrics[row, column, 0], barycentrics[row, column, 1], barycentrics[row, column, 2]
            for channel in range(channels):
                image[row, column, channel] = (
                    wa * attributes[a, channel] + wb * attributes[b, channel] + wc * attributes[c, channel]
                )


@kernel(parallel=True)
def _backward(
    grad: np.ndarray,
    attributes: np.ndarray,
    screen: np.ndarray,
    faces: np.ndarray,
    corners: np.ndarray,
    face_ids: np.ndarray,
    barycentrics: np.ndarray,
    grad_attributes: np.ndarray,
    grad_screen: np.ndarray,
) -> None:
    """Adds to grad_attributes [parts, A, C] and grad_screen [parts, V, 3]; one with no rows is not wanted.

    With screen barycentrics u, weights w_i = (u_i / z_i) / s, s = sum_j u_j / z_j, and value v = sum_i w_i a_i:

        dL/du_i = g . (a_i - v) / (s z_i)          dL/dz_i = -dL/du_i u_i / z_i
        dL/dp_j = -u_j sum_i dL/du_i grad(u_i)     for the vertex p_j on screen

    The last line holds because the pixel centre is sum_j u_j p_j: moving p_j by d acts on u as moving the centre
    by -u_j d.
    """
    height, width, channels = grad.shape
    parts = grad_screen.shape[0]
    want_attributes, want_screen = grad_attributes.shape[1] > 0, grad_screen.shape[1] > 0
    for part in prange(parts):
        for row in range(part * height // parts, (part + 1) * height // parts):
            for column in range(width):
                face = face_ids[row, column]
                if face < 0:
                    continue
                a, b, c = corners[face, 0], corners[face, 1], corners[face, 2]
                wa, wb, wc = barycentrics[row, column, 0], barycentrics[row, column, 1], barycentrics[row, column, 2]
                ga = gb = gc = 0.0
                for channel in range(channels):
                    g = grad[row, column, channel]
                    ga += g * attributes[a, channel]
                    gb += g * attributes[b, channel]
                    gc += g * attributes[c, channel]
                    if want_attributes:
                        grad_attributes[part, a, channel] += wa * g
                        grad_attributes[part, b, channel] += wb * g
                        grad_attributes[part, c, channel] += wc * g
                if not want_screen:
                    continue
                a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
                za, zb, zc = screen[a, 2], screen[b, 2], screen[c, 2]
                # u_i = w_i z_i s, and u sums to one.
                scale = 1.0 / (wa * za + wb * zb + wc * zc)
                ua, ub, uc = wa * za * scale, wb * zb * scale, wc * zc * scale
                value = wa * ga + wb * gb + wc * gc
                da, db, dc = (ga - value) / (scale * za), (gb - value) / (scale * zb), (gc - value) / (scale * zc)
                bx, by = screen[b, 0] - screen[a, 0], screen[b, 1] - screen[a, 1]
                cx, cy = screen[c, 0] - screen[a, 0], screen[c, 1] - screen[a, 1]
                area = bx * cy - by * cx
                dx = ((db - da) * cy - (dc - da) * by) / area
                dy = ((dc - da) * bx - (db - da) * cx) / area
                grad_screen[part, a, 0] -= ua * dx
                grad_screen[part, a, 1] -= ua * dy
                grad_screen[part, a, 2] -= da * ua / za
                grad_screen[part, b, 0] -= ub * dx
                grad_screen[part, b, 1] -= ub * dy
                grad_screen[part, b, 2] -= db * ub / zb
                grad_screen[part, c, 0] -= uc * dx
                grad_screen[part, c, 1] -= uc * dy
                grad_screen[part, c, 2] -= dc * uc / zc
