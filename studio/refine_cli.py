"""The command `refine`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from studio.cli_options import Desk, with_desk, with_settings_of
from studio.refine_events import Refined
from studio.refine_job import make_refine_job
from studio.refine_settings import RefineSettings
from studio.settings import make_settings


@with_settings_of(RefineSettings)
@with_desk()
def refine(
    asset: Annotated[Path, typer.Argument(help="The folder of a finished run, or a GLB file.")],
    views: Annotated[
        list[Path] | None, typer.Argument(help="Photos, or one folder of them. Default: the run's own.")
    ] = None,
    cameras: Annotated[
        Path | None,
        typer.Option(
            help="A transforms.json or a folder with COLMAP's text files, in any frame, matched to photos by name. "
            "They are known, and stay as they are to each other, unless the file says that a network predicted them. "
            "Default: the run's, or what the networks estimate."
        ),
    ] = None,
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results; made if it is missing.")],
    desk: Desk,
    settings: dict[str, Any],
) -> None:
    """Make an asset agree with photos: shape, colours, light and cameras are fitted. Ctrl-C keeps the best so far."""
    chosen = make_settings(settings, RefineSettings())
    job = make_refine_job(asset, chosen, out, views=views or None, cameras=cameras, use_cache=desk.cache)
    with desk.service() as service:
        result: Refined = desk.run(service, job)
    sentences = (result.message, *result.notes, f"Finished in {result.seconds:.0f} s: {result.mesh}.")
    desk.talk.told(
        " ".join(sentences),
        folder=str(result.folder), helped=result.helped, cancelled=result.cancelled, mesh=str(result.mesh),
        transforms=str(result.transforms), run=str(result.run), notes=list(result.notes),
        seconds=round(result.seconds, 2), cached=list(result.cached),
    )  # fmt: skip
