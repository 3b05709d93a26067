"""A process that runs xatlas, so that it can be stopped: `python xatlas_worker.py < request.npz > answer.npz`.

Started by path, not as a module: it needs two packages and must not wait for the rest of the library to load.
"""

import io
import sys

import numpy as np
import xatlas


def main() -> None:
    """Read vertices, faces and settings from standard input; write origin, faces, uvs and the number of charts."""
    request = np.load(io.BytesIO(sys.stdin.buffer.read()))
    charts, packing = xatlas.ChartOptions(), xatlas.PackOptions()
    charts.max_cost, charts.max_iterations = float(request["max_cost"]), int(request["iterations"])
    charts.max_chart_area = float(request["max_chart_area"])
    packing.resolution, packing.padding = int(request["grid"]), int(request["padding"])
    packing.bruteForce, packing.bilinear = True, True  # on a coarse grid, trying every place takes no longer
    atlas = xatlas.Atlas()
    atlas.add_mesh(request["vertices"], request["faces"])
    atlas.generate(charts, packing)
    origin, faces, uvs = atlas.get_mesh(0)
    # An atlas that did not fit into one texture has several, whose coordinates lie on top of each other.
    answer = io.BytesIO()
    np.savez(answer, origin=origin, faces=faces, uvs=uvs, num_charts=atlas.chart_count, num_atlases=atlas.atlas_count)
    sys.stdout.buffer.write(answer.getvalue())


if __name__ == "__main__":
    main()
