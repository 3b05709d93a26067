"""The finished runs in a folder, as a list to choose from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from typing import Any

from studio.events import RENDERS, RUN, VIEWS, Result
from studio.replay import read_run
from studio.settings import settings_from_json
from trellis.errors import InputError

_MAX_FOLDERS = 1000  # looked at; a folder with more was not made by the studio


@dataclass(frozen=True)
class Finished:
    """A finished run, as a list shows it.

    Attributes:
        result: its files, settings, seconds, counts and notes, as when it had just ended.
        finished: when.
        checkpoint: the name of its networks, or None.
        psnr, iou: agreement of the mesh with the photographs, in dB and from 0 to 1; None if it was not measured.
        observed: share of the surface that the photographs show, from 0 to 1; None if it was not measured.
        picture: the mesh as the first view's camera sees it, or that view itself.
    """

    result: Result
    finished: datetime
    checkpoint: str | None
    psnr: float | None
    iou: float | None
    observed: float | None
    picture: Path | None


def list_results(folder: Path, limit: int = 100) -> list[Finished]:
    """The finished runs in a folder's subfolders, latest first; what is none is passed over."""
    found = list(_finished_in(folder))
    return sorted(found, key=lambda entry: entry.finished, reverse=True)[:limit]


def read_result(folder: Path) -> Finished:
    """The finished run in a folder. Raises InputError if there is none."""
    record, folder = read_run(folder)
    try:
        quality = record["quality"]
        agreement = ((quality.get("agreement") or {}).get("mean") or {}).get("mesh") or {}
        coverage = (quality.get("coverage") or {}).get("shares") or {}
        result = Result(
            folder,
            settings_from_json(record["settings"]),
            float(record["seconds"]["total"]),
            {str(name): int(count) for name, count in record["counts"].items()},
            tuple(map(str, record["cached"])),
            tuple(map(str, record["notes"])),
        )
        finished = datetime.fromisoformat(record["finished"])
        return Finished(
            result,
            finished if finished.tzinfo else finished.replace(tzinfo=timezone.utc),
            None if record["checkpoint"] is None else str(record["checkpoint"]),
            _number(agreement.get("psnr")),
            _number(agreement.get("iou")),
            _number(coverage.get("observed")),
            next((file for place in (RENDERS, VIEWS) if (file := folder / place / "000.png").is_file()), None),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"'{RUN}' is not a record of a run of this version of the studio.") from error


def _finished_in(folder: Path) -> Iterator[Finished]:
    if not folder.is_dir():
        return
    for sub in islice(folder.iterdir(), _MAX_FOLDERS):
        if not (sub / RUN).is_file():
            continue
        try:
            yield read_result(sub)
        except InputError:  # of another version, or not ours
            continue


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
