"""One object under many settings: the cells of a sweep, and the page and the table that compare their results.

    cells = sweep(views, ["structure_steps=6,12", "seed=0,1"], settings, folder)
    for index, event in run_group(service, [cell.job for cell in cells]):
        if isinstance(event, Result):
            row = row_of(cells[index])
"""

from __future__ import annotations

import base64
import csv
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from os import PathLike
from pathlib import Path
from typing import Any

from PIL import Image

from studio.events import RENDERS, RUN
from studio.inputs import View
from studio.job import LOCAL_USER, Job, make_job
from studio.settings import ReconstructSettings, make_settings
from trellis.errors import InputError

MAX_CELLS = 200
_SCORES = ("psnr", "ssim", "iou")


@dataclass(frozen=True, eq=False)
class Cell:
    """One combination of a sweep.

    Attributes:
        name: what is special about it, "structure_steps=6 seed=1".
        varied: the same as values by setting.
        job: what makes it, in a folder of its own.
    """

    name: str
    varied: Mapping[str, str]
    job: Job


def sweep(
    views: Iterable[str | PathLike | Image.Image | View],
    variations: Sequence[str],
    settings: ReconstructSettings,
    out_dir: Path,
    *,
    use_cache: bool = True,
    user: str = LOCAL_USER,
) -> list[Cell]:
    """Every combination of variations like "structure_steps=6,12", each over `settings`, in `out_dir`/001 and so on.

    What cells have in common is computed once, if the cache is used.

    Raises InputError: a setting or a value is none, there are more than 200 combinations, or the views cannot be used.
    """
    axes: dict[str, list[str]] = {}
    for variation in variations:
        key, equals, values = variation.partition("=")
        if not equals or not values:
            raise InputError(f"A variation looks like structure_steps=6,12, but {variation!r} came.")
        known = axes.setdefault(key.strip().replace("-", "_"), [])
        known += [value for value in map(str.strip, dict.fromkeys(values.split(","))) if value not in known]
    combinations = [dict(zip(axes, values, strict=True))
                    for values in itertools.islice(itertools.product(*axes.values()), MAX_CELLS + 1)]  # fmt: skip
    if len(combinations) > MAX_CELLS:
        raise InputError(f"That would be more than {MAX_CELLS} runs, which are the most to be compared at once.")
    cells = []
    for number, varied in enumerate(combinations, start=1):
        name = " ".join(f"{key}={value}" for key, value in varied.items())
        chosen = make_settings(varied, settings)
        job = make_job(views, chosen, out_dir / f"{number:03d}", use_cache=use_cache, user=user)
        cells.append(Cell(name, varied, job))
        views = job.views  # a video among them is decoded once
    return cells


def row_of(cell: Cell) -> dict[str, Any]:
    """What a comparison shows of a finished cell."""
    return summary_row(cell.name, cell.varied, cell.job.out_dir)


def summary_row(name: str, varied: Mapping[str, str], folder: Path) -> dict[str, Any]:
    """The figures of a finished run as one row of a table. Scores that were not measured are None."""
    record = json.loads((folder / RUN).read_text(encoding="utf-8"))
    agreement = (record["quality"]["agreement"] or {}).get("mean", {}).get("mesh", {})
    coverage = (record["quality"]["coverage"] or {}).get("shares", {})
    return {
        "name": name,
        **varied,
        **{score: agreement.get(score) for score in _SCORES},
        "observed": coverage.get("observed"),
        "triangles": record["counts"]["triangles"],
        "voxels": record["counts"]["voxels"],
        "seconds": record["seconds"]["total"],
        "peak_mb": round(record["peak_memory_bytes"]["rss"] / 2**20),
    }


def write_csv(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """One line per row; the columns of all rows, in the order in which they first appear."""
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, _columns(rows))
        writer.writeheader()
        writer.writerows(rows)


def write_html(file: Path, title: str, rows: Sequence[Mapping[str, Any]], folders: Mapping[str, Path]) -> None:
    """One page that needs no other file: the table, and of every run the photographs' views as it renders them.

    folders: of the runs, by the name of their row.
    """
    columns = _columns(rows)
    head = "".join(f"<th>{escape(column)}</th>" for column in columns) + "<th>renders</th>"
    body = "".join(
        "<tr>"
        + "".join(f"<td>{escape(_shown(row.get(column)))}</td>" for column in columns)
        + f"<td class=p>{_pictures(folders[row['name']])}</td></tr>"
        for row in rows
    )
    file.write_text(
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title>"
        "<style>body{font:15px system-ui,sans-serif;margin:2rem;color:#292524}table{border-collapse:collapse}"
        "td,th{padding:.4rem .7rem;border-bottom:1px solid #e7e5e4;text-align:left;vertical-align:top}"
        "td.p{white-space:nowrap}img{height:112px;background:#f5f5f4;margin-right:4px}</style>"
        f"<h1>{escape(title)}</h1><table><tr>{head}</tr>{body}</table></html>\n",
        encoding="utf-8",
    )


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(column for row in rows for column in row))


def _shown(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _pictures(folder: Path) -> str:
    files = sorted((folder / RENDERS).glob("*.png"))[:8]
    return "".join(
        f'<img alt="view {number}" src="data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}">'
        for number, file in enumerate(files, start=1)
    )
