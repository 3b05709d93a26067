"""Texture coordinates: smooth a copy, cut it into charts and pack them (xatlas, in a process of its own)."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE

import numpy as np
from scipy import sparse

from trellis.errors import InputError
from trellis.export.box_charts import box_charts
from trellis.export.surface import Surface
from trellis.export.topology import EdgeTable, pieces

_PACKED_SHARE = 0.77  # of the texture's side: xatlas overshoots the side that it is given by about this much
_PART_FACES = 2500  # at least, of a part that xatlas cuts into charts on a core of its own
_MAX_PARTS = 16
_MAX_PIECES = 1000  # separate ones; each is a chart at least, and xatlas packs charts in the square of their number
_REMEMBERED = 4  # atlases kept, a megabyte each, so that a new bake of the same surface need not wait
_recent: dict[bytes, Atlas] = {}
_lock = threading.Lock()


@dataclass(frozen=True, eq=False)
class Atlas:
    """A surface with texture coordinates: vertices are repeated along chart borders.

    Attributes:
        vertices: [V, 3] float32, object frame.
        faces: [F, 3] int32.
        uvs: [V, 2] float32 in [0, 1]; (0, 0) is the lower left corner of the texture, v points up.
        normals: [V, 3] float32 unit normals, equal on both sides of a chart border.
        num_charts: how many charts the surface was cut into.
        method: "xatlas", or "box" where that took too long, would have, or failed.
    """

    vertices: np.ndarray
    faces: np.ndarray
    uvs: np.ndarray
    normals: np.ndarray
    num_charts: int = 0
    method: str = "xatlas"

    @property
    def surface(self) -> Surface:
        return Surface(self.vertices, self.faces)


@dataclass(frozen=True)
class UnwrapOptions:
    """How to cut and pack.

    Attributes:
        smooth_steps: Taubin steps on the copy that is cut. Charts break at noise, and their number drives the time.
        max_cost: how uneven a chart may get before a new one begins; higher gives fewer, more stretched charts.
        max_chart_faces: a chart's area is bounded by that of this many average faces; time grows with the square.
        iterations: rounds of growing charts again from better seeds.
        padding: empty texels between charts; None for 1/256 of the texture, at least 2: charts then stay apart in
            the first mipmap levels of any texture.
        time_limit: seconds for xatlas; when they are over the charts come from `box_charts`, which never takes long.
            0 goes there at once.
    """

    smooth_steps: int = 5
    max_cost: float = 2.0
    max_chart_faces: int = 1000
    iterations: int = 1
    padding: int | None = None
    time_limit: float = 60.0

    def padding_for(self, texture_size: int) -> int:
        """Texels between charts on a texture of this size."""
        return max(2, round(texture_size / 256)) if self.padding is None else self.padding


def unwrap(surface: Surface, texture_size: int = 1024, options: UnwrapOptions | None = None) -> Atlas:
    """Cut the surface into charts and pack them for a square texture of `texture_size` texels.

    The charts are found on a smoothed copy and applied to the given vertices. 25k faces take one to two seconds. The
    last few answers are remembered; from 512 texels on, textures of one shape differ only in scale and share them.

    Raises:
        InputError: the texture size is not between 16 and 8192.
    """
    if not 16 <= texture_size <= 8192:
        raise InputError(f"The texture size must lie between 16 and 8192, but is {texture_size}.")
    options = options or UnwrapOptions()
    padding = options.padding_for(texture_size)
    # Charts are packed in steps of half the padding, which is fine enough, fast, and the same for every large texture.
    grid = max(round(2 * texture_size / padding * _PACKED_SHARE), 16)
    key = _key(surface, grid, options)
    with _lock:
        known = _recent.get(key)
    if known is not None:
        return known
    atlas = _unwrap(surface, texture_size, grid, padding, options)
    if atlas.method == "xatlas":
        with _lock:
            _recent[key] = atlas
            while len(_recent) > _REMEMBERED:
                _recent.pop(next(iter(_recent)))
    return atlas


def _unwrap(surface: Surface, texture_size: int, grid: int, padding: int, options: UnwrapOptions) -> Atlas:
    soup = pieces(EdgeTable.welded(surface))[0] > _MAX_PIECES
    answer = None if soup else _run_xatlas(surface, grid, options)
    if answer is None:
        charts = box_charts(surface, texture_size, padding)
        origin, faces, uvs = _joined(surface.faces, charts.labels, charts.corners)
        number, method = charts.number, "box"
    else:
        origin, faces, uvs, number = (answer[name] for name in ("origin", "faces", "uvs", "num_charts"))
        method = "xatlas"
    return Atlas(
        surface.vertices[origin],
        np.ascontiguousarray(faces, dtype=np.int32),
        np.ascontiguousarray(uvs, dtype=np.float32).clip(0, 1),
        surface.vertex_normals()[origin],
        int(number),
        method,
    )


def _key(surface: Surface, grid: int, options: UnwrapOptions) -> bytes:
    """Equal for equal atlases: another size of texture often changes nothing."""
    digest = hashlib.sha256(repr((grid, options)).encode())
    for array in (surface.vertices, surface.faces):
        digest.update(repr((array.shape, array.dtype.str)).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.digest()


def _run_xatlas(surface: Surface, grid: int, options: UnwrapOptions) -> dict | None:
    """What `xatlas_worker` answers, or None, with a warning, if it took too long, died, or lost faces."""
    if options.time_limit <= 0:
        return None
    command = [sys.executable, str(Path(__file__).with_name("xatlas_worker.py"))]
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=PIPE) as process:
        try:  # while it loads its packages, what it is asked gets ready
            output, errors = process.communicate(_request(surface, grid, options), timeout=options.time_limit)
        except subprocess.TimeoutExpired:
            warnings.warn(f"xatlas took longer than {options.time_limit:g} s; simpler charts are used.", stacklevel=3)
            return None
        finally:
            process.kill()  # which does nothing to one that has ended
    if process.returncode != 0:
        reason = errors.decode(errors="replace").strip().splitlines()[-1:] or [f"status {process.returncode}"]
        warnings.warn(f"xatlas failed ({reason[0]}); simpler charts are used.", stacklevel=3)
        return None
    answer = dict(np.load(io.BytesIO(output)))
    if (
        len(answer["faces"]) != len(surface.faces)
        or not np.isfinite(answer["uvs"]).all()
        or int(answer["num_atlases"]) != 1
    ):
        warnings.warn("xatlas lost faces or did not fit them into one texture; simpler charts are used.", stacklevel=3)
        return None
    return answer


def _request(surface: Surface, grid: int, options: UnwrapOptions) -> bytes:
    """What `xatlas_worker` reads: a smoothed copy of the surface in parts, and the settings."""
    smooth = taubin_smooth(surface, options.smooth_steps)
    request = io.BytesIO()
    np.savez(
        request,
        vertices=smooth.vertices,
        faces=smooth.faces.astype(np.uint32),
        parts=parts_of(smooth),
        grid=grid,
        padding=2,
        max_cost=options.max_cost,
        max_chart_area=options.max_chart_faces * smooth.face_areas().mean(),
        iterations=options.iterations,
    )
    return request.getvalue()


def parts_of(surface: Surface) -> np.ndarray:
    """[F] int64 in 0..P - 1: parts of as many faces each, halves of halves across the longest side.

    A chart lies within one part. Their number depends on the mesh alone, so that charts are alike on every machine.
    """
    middles, part = surface.corner_positions().mean(axis=1), np.zeros(len(surface.faces), dtype=np.int64)
    groups = [np.arange(len(part))]
    while 2 * len(groups) <= min(len(part) // _PART_FACES, _MAX_PARTS):
        halves = []
        for group in groups:
            axis = np.ptp(middles[group], axis=0).argmax()
            order = group[np.argsort(middles[group, axis], kind="stable")]
            halves += [order[: len(order) // 2], order[len(order) // 2 :]]
        groups = halves
    for number, group in enumerate(groups):
        part[group] = number
    return part


def _joined(faces: np.ndarray, labels: np.ndarray, corners: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Origin vertices [V'], faces [F, 3] and uvs [V', 2]: the corners of one vertex in one chart become one vertex."""
    keys = faces.astype(np.int64) + labels.astype(np.int64)[:, None] * (int(faces.max()) + 1)
    _, first, new = np.unique(keys.ravel(), return_index=True, return_inverse=True)
    return faces.ravel()[first], new.reshape(faces.shape), corners.reshape(-1, 2)[first]


def taubin_smooth(surface: Surface, steps: int, shrink: float = 0.5, grow: float = -0.53) -> Surface:
    """Low-pass filter without shrinkage: alternate a positive and a negative Laplacian step (Taubin 1995).

    Vertices move along their normals only: within a plane there is nothing to smooth, and sliding would stretch the
    triangles of what is unfolded. Those on open borders stay where they are.
    """
    if steps == 0:
        return surface
    count = len(surface.vertices)
    edges = surface.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    links = sparse.coo_matrix((np.ones(len(edges)), edges.T), shape=(count, count)).tocsr()
    border = np.unique((links - links.T).nonzero()[0])
    neighbours = ((links + links.T) > 0).astype(np.float64)
    mean = sparse.diags(1 / np.maximum(neighbours.sum(axis=1).A1, 1)) @ neighbours
    points, normals = surface.vertices.astype(np.float64), surface.vertex_normals().astype(np.float64)
    for _ in range(steps):
        for factor in (shrink, grow):
            change = mean @ points - points
            change = np.einsum("vk,vk->v", change, normals)[:, None] * normals
            change[border] = 0
            points += factor * change
    return Surface(points.astype(np.float32), surface.faces, surface.colors)
