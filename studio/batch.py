"""A folder of objects, each a folder of photographs: one job each, those that are finished left out."""

from __future__ import annotations

import json
from pathlib import Path

from studio.events import RUN
from studio.fingerprint import view_key
from studio.inputs import SUFFIXES
from studio.job import Job
from trellis.errors import InputError


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


def is_finished(job: Job, any_seed: bool = False) -> bool:
    """Whether the job's folder holds a complete run of the same photographs with the same settings and
    stated cameras.

    any_seed: the job's seed was drawn, so another one is as good.
    """
    wanted = job.settings.model_dump(mode="json")
    try:
        record = json.loads((job.out_dir / RUN).read_text(encoding="utf-8"))
        photographs = [view_key(view) for view in job.views]
        if any_seed:
            wanted["seed"] = record["asked"]["seed"]
        stated = [(view.get("camera") or {}).get("given") for view in record["views"]]
        return (
            record["asked"] == wanted
            and [view["photograph"] for view in record["views"]] == photographs
            and stated == [view.camera and view.camera.as_json() for view in job.views]
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False
