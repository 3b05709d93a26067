"""A process that runs xatlas, so that it can be stopped: `python xatlas_worker.py < request.npz > answer.npz`.

Started by path, not as a module: it needs two packages and must not wait for the rest of the library to load.
"""

import io
import sys

import numpy as np
import xatlas


def main() -> None:
    """Read vertices, faces, their parts and settings; write origin, faces, uvs and the number of charts.

    Charts of different parts are cut on different cores, and all are packed into one texture.
    """
    request = np.load(io.BytesIO(sys.stdin.buffer.read()))
    charts, packing = xatlas.ChartOptions(), xatlas.PackOptions()
    charts.max_cost, charts.max_iterations = float(request["max_cost"]), int(request["iterations"])
    charts.max_chart_area = float(request["max_chart_area"])
    packing.resolution, packing.padding = int(request["grid"]), int(request["padding"])
    packing.bruteForce, packing.bilinear = True, True  # on a coarse grid, trying every place takes no longer
    atlas = xatlas.Atlas()
    vertices, faces, parts = request["vertices"], request["faces"], request["parts"]
    members = [np.flatnonzero(parts == number) for number in range(parts.max() + 1)]
    used = [np.unique(faces[rows]) for rows in members]
    for rows, own in zip(members, used, strict=True):
        atlas.add_mesh(vertices[own], np.searchsorted(own, faces[rows]).astype(np.uint32))
    atlas.generate(charts, packing)
    count, origins, places = 0, [], []
    for number, (rows, own) in enumerate(zip(members, used, strict=True)):
        origin, made, uvs = atlas.get_mesh(number)
        origins.append(own[origin])
        places.append(uvs)
        if len(made) != len(rows):
            sys.exit("faces were lost")
        faces[rows] = made + count
        count += len(origin)
    origin, uvs = np.concatenate(origins), np.concatenate(places)
    # An atlas that did not fit into one texture has several, whose coordinates lie on top of each other.
    answer = io.BytesIO()
    np.savez(answer, origin=origin, faces=faces, uvs=uvs, num_charts=atlas.chart_count, num_atlases=atlas.atlas_count)
    sys.stdout.buffer.write(answer.getvalue())


if __name__ == "__main__":
    main()
