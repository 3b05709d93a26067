"""Many jobs from the command line: a folder of objects, or one object under many settings."""

from __future__ import annotations

import base64
import csv
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from studio.events import RENDERS, RUN
from studio.inputs import SUFFIXES
from studio.settings import ReconstructSettings, make_settings
from trellis.errors import InputError

_COLUMNS = ("psnr", "ssim", "iou")
_MAX_RUNS = 200


def objects_in(folder: Path) -> list[tuple[str, Path]]:
    """(name, folder) of every subfolder with photographs in it, in the order of names. Raises InputError if none."""
    if not folder.is_dir():
        raise InputError(f"'{folder}' is not a folder.")
    found = [
        (sub.name, sub)
        for sub in sorted(folder.iterdir())
        if sub.is_dir() and any(file.suffix.lower() in SUFFIXES for file in sub.iterdir())
    ]
    if not found:
        raise InputError(f"'{folder.name}' holds no folders of photos; a batch needs one folder for each object.")
    return found


def is_finished(out_dir: Path, settings: ReconstructSettings) -> bool:
    """Whether a complete run with these settings is there already."""
    try:
        record = json.loads((out_dir / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and record.get("asked") == settings.model_dump(mode="json")


def sweep(
    variations: Sequence[str], defaults: ReconstructSettings
) -> Iterator[tuple[dict[str, str], ReconstructSettings]]:
    """Every combination of variations like "structure_steps=6,12": (what varies, settings).

    Raises InputError for a setting or a value that is none, before the first combination.
    """
    axes: list[list[tuple[str, str]]] = []
    for variation in variations:
        key, equals, values = variation.partition("=")
        if not equals or not values:
            raise InputError(f"A variation looks like structure_steps=6,12, but {variation!r} came.")
        axes.append([(key.strip().replace("-", "_"), value.strip()) for value in values.split(",")])
    combinations = [dict(choice) for choice in itertools.product(*axes)]
    if len(combinations) > _MAX_RUNS:
        raise InputError(f"That would be {len(combinations)} runs; at most {_MAX_RUNS} are compared at once.")
    return iter([(choice, make_settings(choice, defaults)) for choice in combinations])


def row_of(name: str, varied: Mapping[str, str], folder: Path) -> dict[str, Any]:
    """What a comparison shows of a finished run."""
    record = json.loads((folder / RUN).read_text(encoding="utf-8"))
    agreement = (record["quality"]["agreement"] or {}).get("mean", {}).get("mesh", {})
    coverage = (record["quality"]["coverage"] or {}).get("shares", {})
    return {
        "name": name,
        **varied,
        **{column: agreement.get(column) for column in _COLUMNS},
        "observed": coverage.get("observed"),
        "triangles": record["counts"]["triangles"],
        "voxels": record["counts"]["voxels"],
        "seconds": record["seconds"]["total"],
        "peak_mb": round(record["peak_memory_bytes"]["rss"] / 2**20),
    }


def write_csv(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """One line per row; the columns of all rows, in the order in which they first appear."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(rows)


def write_html(file: Path, title: str, rows: Sequence[Mapping[str, Any]], folders: Mapping[str, Path]) -> None:
    """One page that needs no other file: the table, and of every run the photographs' views as it renders them."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
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


def _shown(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _pictures(folder: Path) -> str:
    files = sorted((folder / RENDERS).glob("*.png"))[:8]
    return "".join(
        f'<img alt="view {number}" src="data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}">'
        for number, file in enumerate(files, start=1)
    )
