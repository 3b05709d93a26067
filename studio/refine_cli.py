"""The command `refine`."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Annotated, Any

import typer

from studio.cli_options import (
    CacheOption,
    CheckpointOption,
    DeviceOption,
    JsonOption,
    interruptible,
    outcome,
    run,
    with_settings_of,
    working,
)
from studio.refine_events import Refined
from studio.refine_job import make_refine_job
from studio.refine_settings import RefineSettings
from studio.settings import make_settings
from studio.talk import JsonTalk, TextTalk


@with_settings_of(RefineSettings)
def refine(
    asset: Annotated[Path, typer.Argument(help="The folder of a finished run, or a GLB file.")],
    views: Annotated[
        list[Path] | None, typer.Argument(help="Photos, or one folder of them. Default: the run's own.")
    ] = None,
    cameras: Annotated[
        Path | None,
        typer.Option(
            help="A transforms.json, or a folder with COLMAP's text files; photos are matched by file name. Default: "
            "the run's, or what the networks estimate."
        ),
    ] = None,
    checkpoint: CheckpointOption = None,
    device: DeviceOption = None,
    cache: CacheOption = True,
    as_json: JsonOption = False,
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results; made if it is missing.")],
    settings: dict[str, Any],
) -> None:
    """Make an asset agree with photos: shape, colours, light and cameras are fitted. Ctrl-C keeps the best so far."""
    talk, cancel = JsonTalk() if as_json else TextTalk(), threading.Event()
    with outcome(talk), interruptible(cancel):
        chosen = make_settings(settings, RefineSettings())
        job = make_refine_job(asset, chosen, out, views=views or None, cameras=cameras, use_cache=cache)
        with working(talk, checkpoint, device, cancel) as service:
            result: Refined = run(service, job, talk, cancel)
        sentences = (result.message, *result.notes, f"Finished in {result.seconds:.0f} s: {result.mesh}.")
        talk.told(
            " ".join(sentences),
            folder=str(result.folder), helped=result.helped, cancelled=result.cancelled, mesh=str(result.mesh),
            transforms=str(result.transforms), run=str(result.run), notes=list(result.notes),
            seconds=round(result.seconds, 2), cached=list(result.cached),
        )  # fmt: skip
