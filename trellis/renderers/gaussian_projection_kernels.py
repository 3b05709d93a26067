"""Numba kernels that turn 3D Gaussians into screen splats, and carry gradients back.

EWA splatting (Zwicker et al., 2001): the perspective map is linearised at each centre, so a Gaussian stays a Gaussian
on screen. The 2D low-pass keeps the energy of small splats, following Mip-Splatting (Yu et al., 2024):
opacity' = opacity * sqrt(det(S) / det(S + k I)) for the projected covariance S in pixels^2 and the kernel k.

Both kernels compute in float64 registers: the determinants of thin splats cancel in float32, and with a hundred
operations per Gaussian the cost is lost beside compositing.
"""

from __future__ import annotations

import math

import numpy as np

from trellis.renderers.numba_runtime import kernel, prange

MIN_DEPTH = float(np.float32(0.2))  # centres at this depth or nearer, in float32, are not drawn
MIN_ALPHA = 1.0 / 255.0  # weaker contributions are dropped
FIELD_MARGIN = 0.3  # the linearisation point may leave the image by this share of half the image size
MIN_DETERMINANT = 1e-6  # pixels^4; flatter splats vanish
EPSILON = 1e-6

# Columns of a splat row.
X, Y, CONIC_XX, CONIC_XY, CONIC_YY, OPACITY, DEPTH, RED, GREEN, BLUE, LIMIT = range(11)
SPLAT_COLUMNS = 12  # one spare, so that four rows fill three cache lines


@kernel
def _rotation(w, x, y, z):
    """Row-major rotation matrix of a unit quaternion."""
    return (
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    )  # fmt: skip


@kernel
def _linearise(x, y, z, focal_x, focal_y, centre_x, centre_y, width, height):
    """Clamped slopes at which the perspective map is linearised, and whether each one moves with the centre.

    Far outside the view the linearisation grows without bound, so the slopes are held near the image.
    """
    margin_x = FIELD_MARGIN * 0.5 * width / focal_x
    margin_y = FIELD_MARGIN * 0.5 * height / focal_y
    slope_x, slope_y = x / z, y / z
    held_x = min(max(slope_x, -centre_x / focal_x - margin_x), (width - centre_x) / focal_x + margin_x)
    held_y = min(max(slope_y, -centre_y / focal_y - margin_y), (height - centre_y) / focal_y + margin_y)
    return held_x, held_y, held_x == slope_x, held_y == slope_y


@kernel(parallel=True)
def project_forward(means, quats, scales, opacities, colors, pose, lens, height, width, kernel_size, splats, bounds):
    """Fill `splats` [G, 12] (columns above) and `bounds` [G, 4] int32 (first and last pixel column, then row).

    Pixel coordinates in `splats` put the centre of pixel j at j. `pose` is a [3, 4] world-to-camera matrix, `lens`
    holds fx, fy, cx, cy. A Gaussian that touches no pixel gets an empty column range (first > last).
    """
    focal_x, focal_y, centre_x, centre_y = float(lens[0]), float(lens[1]), float(lens[2]), float(lens[3])
    r00, r01, r02, t0 = float(pose[0, 0]), float(pose[0, 1]), float(pose[0, 2]), float(pose[0, 3])
    r10, r11, r12, t1 = float(pose[1, 0]), float(pose[1, 1]), float(pose[1, 2]), float(pose[1, 3])
    r20, r21, r22, t2 = float(pose[2, 0]), float(pose[2, 1]), float(pose[2, 2]), float(pose[2, 3])
    for g in prange(means.shape[0]):
        bounds[g, 0], bounds[g, 1], bounds[g, 2], bounds[g, 3] = 0, -1, 0, -1
        mx, my, mz = float(means[g, 0]), float(means[g, 1]), float(means[g, 2])
        z = r20 * mx + r21 * my + r22 * mz + t2
        splats[g, DEPTH] = z
        if not z > MIN_DEPTH:
            continue
        x = r00 * mx + r01 * my + r02 * mz + t0
        y = r10 * mx + r11 * my + r12 * mz + t1
        held_x, held_y, _, _ = _linearise(x, y, z, focal_x, focal_y, centre_x, centre_y, width, height)
        # T = J R: the 2x3 map from world offsets to pixel offsets.
        jx, jy = focal_x / z, focal_y / z
        t00, t01, t02 = jx * (r00 - held_x * r20), jx * (r01 - held_x * r21), jx * (r02 - held_x * r22)
        t10, t11, t12 = jy * (r10 - held_y * r20), jy * (r11 - held_y * r21), jy * (r12 - held_y * r22)
        qw, qx, qy, qz = float(quats[g, 0]), float(quats[g, 1]), float(quats[g, 2]), float(quats[g, 3])
        inverse = 1.0 / math.sqrt(qw * qw + qx * qx + qy * qy + qz * qz)
        q00, q01, q02, q10, q11, q12, q20, q21, q22 = _rotation(qw * inverse, qx * inverse, qy * inverse, qz * inverse)
        s0, s1, s2 = float(scales[g, 0]), float(scales[g, 1]), float(scales[g, 2])
        # N = T Q diag(s): one column per axis of the ellipsoid, seen on screen; S = N N^T.
        n00, n10 = s0 * (t00 * q00 + t01 * q10 + t02 * q20), s0 * (t10 * q00 + t11 * q10 + t12 * q20)
        n01, n11 = s1 * (t00 * q01 + t01 * q11 + t02 * q21), s1 * (t10 * q01 + t11 * q11 + t12 * q21)
        n02, n12 = s2 * (t00 * q02 + t01 * q12 + t02 * q22), s2 * (t10 * q02 + t11 * q12 + t12 * q22)
        xx = n00 * n00 + n01 * n01 + n02 * n02
        xy = n00 * n10 + n01 * n11 + n02 * n12
        yy = n10 * n10 + n11 * n11 + n12 * n12
        sharp = xx * yy - xy * xy
        xx += kernel_size
        yy += kernel_size
        determinant = xx * yy - xy * xy
        if not (sharp > MIN_DETERMINANT and determinant > MIN_DETERMINANT):
            continue
        opacity = float(opacities[g]) * math.sqrt(sharp / (determinant + EPSILON) + EPSILON)
        if not opacity >= MIN_ALPHA:
            continue
        limit = math.log(opacity / MIN_ALPHA)  # the exponent at which alpha falls to MIN_ALPHA
        px = focal_x * x / z + centre_x - 0.5
        py = focal_y * y / z + centre_y - 0.5
        half_x, half_y = math.sqrt(2 * limit * xx), math.sqrt(2 * limit * yy)
        # Compare before the conversion to integers: a centre far outside would overflow it.
        if not (px + half_x >= 0 and px - half_x <= width - 1 and py + half_y >= 0 and py - half_y <= height - 1):
            continue
        bounds[g, 0], bounds[g, 1] = math.ceil(max(px - half_x, 0.0)), math.floor(min(px + half_x, width - 1.0))
        bounds[g, 2], bounds[g, 3] = math.ceil(max(py - half_y, 0.0)), math.floor(min(py + half_y, height - 1.0))
        if bounds[g, 3] < bounds[g, 2]:
            bounds[g, 1] = bounds[g, 0] - 1
        splats[g, X], splats[g, Y] = px, py
        splats[g, CONIC_XX] = yy / determinant
        splats[g, CONIC_XY] = -xy / determinant
        splats[g, CONIC_YY] = xx / determinant
        splats[g, OPACITY] = opacity
        splats[g, RED], splats[g, GREEN], splats[g, BLUE] = colors[g, 0], colors[g, 1], colors[g, 2]
        splats[g, LIMIT] = limit


@kernel(parallel=True)
def project_backward(
    means, quats, scales, opacities, pose, lens, height, width, kernel_size, bounds, grad_splats,
    grad_means, grad_quats, grad_scales, grad_opacities, grad_colors, grad_camera,
):  # fmt: skip
    """Gradients of the Gaussians and of the camera from those of their splats, `grad_splats` [G, 10].

    The five per-Gaussian outputs must be zero on entry. `grad_camera` [P, 16], also zero, receives one partial sum
    per block of Gaussians: the pose's twelve entries row by row, then fx, fy, cx, cy. The blocks do not depend on
    the number of threads, so neither does the sum.
    """
    focal_x, focal_y, centre_x, centre_y = float(lens[0]), float(lens[1]), float(lens[2]), float(lens[3])
    r00, r01, r02, t0 = float(pose[0, 0]), float(pose[0, 1]), float(pose[0, 2]), float(pose[0, 3])
    r10, r11, r12, t1 = float(pose[1, 0]), float(pose[1, 1]), float(pose[1, 2]), float(pose[1, 3])
    r20, r21, r22, t2 = float(pose[2, 0]), float(pose[2, 1]), float(pose[2, 2]), float(pose[2, 3])
    count, blocks = means.shape[0], grad_camera.shape[0]
    for block in prange(blocks):
        for g in range(block * count // blocks, (block + 1) * count // blocks):
            if bounds[g, 1] < bounds[g, 0]:
                continue
            grad_colors[g, 0] = grad_splats[g, RED]
            grad_colors[g, 1] = grad_splats[g, GREEN]
            grad_colors[g, 2] = grad_splats[g, BLUE]

            # The forward pass again, up to the projected covariance.
            mx, my, mz = float(means[g, 0]), float(means[g, 1]), float(means[g, 2])
            x = r00 * mx + r01 * my + r02 * mz + t0
            y = r10 * mx + r11 * my + r12 * mz + t1
            z = r20 * mx + r21 * my + r22 * mz + t2
            held_x, held_y, free_x, free_y = _linearise(
                x, y, z, focal_x, focal_y, centre_x, centre_y, width, height
            )
            jx, jy = focal_x / z, focal_y / z
            e00, e01, e02 = r00 - held_x * r20, r01 - held_x * r21, r02 - held_x * r22
            e10, e11, e12 = r10 - held_y * r20, r11 - held_y * r21, r12 - held_y * r22
            t00, t01, t02 = jx * e00, jx * e01, jx * e02
            t10, t11, t12 = jy * e10, jy * e11, jy * e12
            qw, qx, qy, qz = float(quats[g, 0]), float(quats[g, 1]), float(quats[g, 2]), float(quats[g, 3])
            inverse = 1.0 / math.sqrt(qw * qw + qx * qx + qy * qy + qz * qz)
            qw, qx, qy, qz = qw * inverse, qx * inverse, qy * inverse, qz * inverse
            q00, q01, q02, q10, q11, q12, q20, q21, q22 = _rotation(qw, qx, qy, qz)
            s0, s1, s2 = float(scales[g, 0]), float(scales[g, 1]), float(scales[g, 2])
            a00, a10 = t00 * q00 + t01 * q10 + t02 * q20, t10 * q00 + t11 * q10 + t12 * q20
            a01, a11 = t00 * q01 + t01 * q11 + t02 * q21, t10 * q01 + t11 * q11 + t12 * q21
            a02, a12 = t00 * q02 + t01 * q12 + t02 * q22, t10 * q02 + t11 * q12 + t12 * q22
            n00, n10, n01, n11, n02, n12 = s0 * a00, s0 * a10, s1 * a01, s1 * a11, s2 * a02, s2 * a12
            xx = n00 * n00 + n01 * n01 + n02 * n02
            xy = n00 * n10 + n01 * n11 + n02 * n12
            yy = n10 * n10 + n11 * n11 + n12 * n12
            sharp = xx * yy - xy * xy
            wide_x, wide_y = xx + kernel_size, yy + kernel_size
            determinant = wide_x * wide_y - xy * xy

            # Opacity: o' = o * c, c = sqrt(sharp / (determinant + eps) + eps).
            factor = math.sqrt(sharp / (determinant + EPSILON) + EPSILON)
            grad_opacities[g] = grad_splats[g, OPACITY] * factor
            grad_ratio = grad_splats[g, OPACITY] * float(opacities[g]) * 0.5 / factor
            grad_sharp = grad_ratio / (determinant + EPSILON)
            grad_determinant = -grad_ratio * sharp / (determinant + EPSILON) ** 2

            # Conic (p, q, r) = (wide_y, -xy, wide_x) / determinant.
            gp, gq, gr = grad_splats[g, CONIC_XX], grad_splats[g, CONIC_XY], grad_splats[g, CONIC_YY]
            grad_determinant -= (gp * wide_y - gq * xy + gr * wide_x) / (determinant * determinant)
            gxx = gr / determinant + grad_determinant * wide_y + grad_sharp * yy
            gyy = gp / determinant + grad_determinant * wide_x + grad_sharp * xx
            gxy = -gq / determinant - 2 * xy * (grad_determinant + grad_sharp)

            # S = N N^T, N = A diag(s), A = T Q.
            h00, h10 = 2 * gxx * n00 + gxy * n10, 2 * gyy * n10 + gxy * n00
            h01, h11 = 2 * gxx * n01 + gxy * n11, 2 * gyy * n11 + gxy * n01
            h02, h12 = 2 * gxx * n02 + gxy * n12, 2 * gyy * n12 + gxy * n02
            grad_scales[g, 0] = h00 * a00 + h10 * a10
            grad_scales[g, 1] = h01 * a01 + h11 * a11
            grad_scales[g, 2] = h02 * a02 + h12 * a12
            h00, h10, h01, h11, h02, h12 = h00 * s0, h10 * s0, h01 * s1, h11 * s1, h02 * s2, h12 * s2
            k00, k01, k02 = t00 * h00 + t10 * h10, t00 * h01 + t10 * h11, t00 * h02 + t10 * h12
            k10, k11, k12 = t01 * h00 + t11 * h10, t01 * h01 + t11 * h11, t01 * h02 + t11 * h12
            k20, k21, k22 = t02 * h00 + t12 * h10, t02 * h01 + t12 * h11, t02 * h02 + t12 * h12
            gw = 2 * (qx * (k21 - k12) + qy * (k02 - k20) + qz * (k10 - k01))
            gx = 2 * (qy * (k01 + k10) + qz * (k02 + k20) + qw * (k21 - k12)) - 4 * qx * (k11 + k22)
            gy = 2 * (qx * (k01 + k10) + qz * (k12 + k21) + qw * (k02 - k20)) - 4 * qy * (k00 + k22)
            gz = 2 * (qx * (k02 + k20) + qy * (k12 + k21) + qw * (k10 - k01)) - 4 * qz * (k00 + k11)
            radial = gw * qw + gx * qx + gy * qy + gz * qz  # a unit quaternion cannot change its length
            grad_quats[g, 0] = (gw - radial * qw) * inverse
            grad_quats[g, 1] = (gx - radial * qx) * inverse
            grad_quats[g, 2] = (gy - radial * qy) * inverse
            grad_quats[g, 3] = (gz - radial * qz) * inverse

            # T = diag(jx, jy) E, E = R[:2] - held R[2], jx = fx / z.
            u00, u10 = h00 * q00 + h01 * q01 + h02 * q02, h10 * q00 + h11 * q01 + h12 * q02
            u01, u11 = h00 * q10 + h01 * q11 + h02 * q12, h10 * q10 + h11 * q11 + h12 * q12
            u02, u12 = h00 * q20 + h01 * q21 + h02 * q22, h10 * q20 + h11 * q21 + h12 * q22
            grad_jx = u00 * e00 + u01 * e01 + u02 * e02
            grad_jy = u10 * e10 + u11 * e11 + u12 * e12
            u00, u01, u02, u10, u11, u12 = u00 * jx, u01 * jx, u02 * jx, u10 * jy, u11 * jy, u12 * jy
            grad_held_x = -(u00 * r20 + u01 * r21 + u02 * r22)
            grad_held_y = -(u10 * r20 + u11 * r21 + u12 * r22)

            # Screen position f * slope + c, and the slopes x / z, y / z. A held slope moves with the lens instead.
            grad_px, grad_py = grad_splats[g, X], grad_splats[g, Y]
            slope_x, slope_y = x / z, y / z
            grad_slope_x, grad_slope_y = grad_px * focal_x, grad_py * focal_y
            grad_fx, grad_fy = grad_px * slope_x + grad_jx / z, grad_py * slope_y + grad_jy / z
            grad_cx, grad_cy = float(grad_px), float(grad_py)
            if free_x:
                grad_slope_x += grad_held_x
            else:
                grad_fx -= grad_held_x * held_x / focal_x
                grad_cx -= grad_held_x / focal_x
            if free_y:
                grad_slope_y += grad_held_y
            else:
                grad_fy -= grad_held_y * held_y / focal_y
                grad_cy -= grad_held_y / focal_y
            gcx, gcy = grad_slope_x / z, grad_slope_y / z
            gcz = grad_splats[g, DEPTH] - (
                grad_slope_x * slope_x + grad_slope_y * slope_y + grad_jx * jx + grad_jy * jy
            ) / z

            grad_means[g, 0] = r00 * gcx + r10 * gcy + r20 * gcz
            grad_means[g, 1] = r01 * gcx + r11 * gcy + r21 * gcz
            grad_means[g, 2] = r02 * gcx + r12 * gcy + r22 * gcz
            camera = grad_camera[block]
            camera[0] += gcx * mx + u00
            camera[1] += gcx * my + u01
            camera[2] += gcx * mz + u02
            camera[3] += gcx
            camera[4] += gcy * mx + u10
            camera[5] += gcy * my + u11
            camera[6] += gcy * mz + u12
            camera[7] += gcy
            camera[8] += gcz * mx - held_x * u00 - held_y * u10
            camera[9] += gcz * my - held_x * u01 - held_y * u11
            camera[10] += gcz * mz - held_x * u02 - held_y * u12
            camera[11] += gcz
            camera[12] += grad_fx
            camera[13] += grad_fy
            camera[14] += grad_cx
            camera[15] += grad_cy
