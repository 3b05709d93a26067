"""The command line: `python -m studio COMMAND`, or `reconstudio COMMAND` once installed.

Exit status: 0 done, 1 an unexpected error, 2 bad input, 3 a replay or an examination that found something, 4 too little
memory, 5 the worker died, 130 cancelled.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import studio.environment  # noqa: F401  (before anything that imports torch)

# isort: split
import typer

from studio import batch as batches
from studio import compare as comparison
from studio import replay as replays
from studio import video, weights_cli
from studio.backends import parse
from studio.camera_files import read_cameras
from studio.cli_options import (
    DIFFERENT,
    BackendOption,
    CheckpointOption,
    Desk,
    DeviceOption,
    JsonOption,
    PresetOption,
    outcome,
    with_desk,
    with_settings,
)
from studio.presets import apply_preset
from studio.refine_cli import refine
from studio.settings import ReconstructSettings, make_settings
from studio.talk import JsonTalk, TextTalk
from trellis.errors import InputError

if TYPE_CHECKING:
    from studio.inputs import View

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None, help=__doc__)
app.add_typer(weights_cli.app, name="weights")

_ViewsArgument = Annotated[
    list[Path], typer.Argument(help="Photos of one object, front first, or one folder of them, or one video.")
]
_OutOption = Annotated[Path, typer.Option("--out", "-o", help="Folder for the results; made if it is missing.")]
_FormatOption = Annotated[
    list[str] | None,
    typer.Option("--format", help="Write this format too, into exports/: glb, obj, stl, ply, spz, transforms, colmap."),
]
_CamerasOption = Annotated[
    Path | None,
    typer.Option(
        help="The photos' known cameras, matched by file name: a transforms.json or a folder with COLMAP's text files, "
        "in any frame, which is aligned with the cameras that are found. Or the studio's own transforms.json, edited. "
        "They change the colours taken from photos, comparison, coverage and camera files, not the shape. A refinement "
        "trusts them if all are stated, and starts from them if some are. Default: as found.",
        show_default=False,
    ),
]
_FramesOption = Annotated[int, typer.Option(help="How many frames to take from a video.", min=1, max=32)]
_RunArgument = Annotated[Path, typer.Argument(help="A finished run: its folder or its run.json.")]

app.command()(refine)


def main() -> None:
    """Run the command line."""
    app()


def _chosen(preset: str | None, values: dict[str, Any], defaults: ReconstructSettings) -> ReconstructSettings:
    """A preset over the defaults, and what was given by name over that."""
    return make_settings(values, apply_preset(preset or "standard", defaults))


def _photos(sources: list[Path], frames: int = video.DEFAULT_FRAMES, cameras: Path | None = None) -> list[View]:
    """Views of files that can be read, with the cameras of a file.

    Raises InputError as `as_views`, `check_views` and `read_cameras` do.
    """
    from studio.inputs import as_views, check_views

    absent = [f"'{source}'" for source in sources if not source.exists()]
    if absent:
        raise InputError(f"There is no {' and no '.join(absent)}.")
    views = as_views(sources, frames)
    check_views(views)
    if cameras is None:
        return views
    stated = read_cameras(cameras, [view.name for view in views])
    return [replace(view, camera=camera) for view, camera in zip(views, stated, strict=True)]


def _check_out(out: Path, photos: list[Path] | None = None) -> None:
    """Raises InputError if the results cannot lie there, so that nobody learns of it only after a long wait."""
    there = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    if not there.is_dir():
        raise InputError(f"'{there}' is a file, but the results need a folder; name another one with --out.")
    if not os.access(there, os.W_OK):
        raise InputError(f"Nothing can be written to '{there}'; name another folder with --out.")
    if any(photo.is_dir() and photo.resolve() == out.resolve() for photo in photos or ()):
        raise InputError(
            f"'{out}' holds the photos, and pictures of the results would be taken for photos next time; name another "
            "folder with --out."
        )


@app.command()
@with_settings
@with_desk()
def reconstruct(
    views: _ViewsArgument,
    out: _OutOption,
    preset: PresetOption = None,
    frames: _FramesOption = video.DEFAULT_FRAMES,
    formats: _FormatOption = None,
    cameras: _CamerasOption = None,
    *,
    desk: Desk,
    settings: dict[str, Any],
) -> None:
    """Turn photos of one object into a textured mesh, splats, a turntable video and cameras."""
    from studio.job import make_job

    # Before the networks are loaded, so that a typing error costs no wait.
    photos = _photos(views, frames, cameras)
    make_job(photos, _chosen(preset, settings, ReconstructSettings()), out, formats=formats or ())
    _check_out(out, views)
    with desk.service() as service:
        chosen = _chosen(preset, settings, service.defaults)
        job = make_job(photos, chosen, out, formats=formats or (), use_cache=desk.cache)
        desk.talk.done(desk.run(service, job))


@app.command()
@with_settings
@with_desk()
def export(
    finished: _RunArgument,
    out: _OutOption,
    formats: _FormatOption = None,
    cameras: _CamerasOption = None,
    *,
    desk: Desk,
    settings: dict[str, Any],
) -> None:
    """Write a finished run again, in other formats or with some settings changed; only what they touch runs again."""
    record, folder = replays.read_run(finished)
    stated = None if cameras is None else read_cameras(cameras, replays.view_names(record))
    job = replays.job_of_run(record, folder, out, settings, formats or (), use_cache=desk.cache, cameras=stated)
    _check_out(out)
    with desk.service() as service:
        replays.check_weights(record, service.weights)
        desk.talk.done(desk.run(service, job))


@app.command()
@with_desk(cache=False)
def replay(finished: _RunArgument, out: _OutOption, *, desk: Desk) -> None:
    """Make a finished run's asset again from scratch, and say whether it is the same, byte by byte."""
    record, folder = replays.read_run(finished)
    job = replays.job_of_run(record, folder, out, use_cache=False)
    if out.resolve() == folder.resolve():
        raise InputError("A replay needs a folder of its own; this one holds the run itself.")
    _check_out(out)
    with desk.service() as service:
        replays.check_weights(record, service.weights)
        desk.run(service, job)
    different = replays.differences(record, replays.read_run(out)[0])
    text = "The replay differs. " + " ".join(different) if different else "The replay is the same, byte by byte."
    desk.talk.told(text, same=not different, differences=different, folder=str(out))
    if different:
        raise typer.Exit(DIFFERENT)


@app.command()
@with_settings
@with_desk()
def batch(
    folder: Annotated[Path, typer.Argument(help="A folder with one folder of photos for each object.")],
    out: _OutOption,
    preset: PresetOption = None,
    *,
    desk: Desk,
    settings: dict[str, Any],
) -> None:
    """Reconstruct many objects. Those that are finished already are left alone, so a batch goes on where it stopped."""
    from studio.job import make_job

    objects = batches.objects_in(folder)
    _chosen(preset, settings, ReconstructSettings())
    _check_out(out, [folder])
    failed: dict[str, str] = {}
    with desk.service() as service:
        chosen = _chosen(preset, settings, service.defaults)
        jobs = {}
        for name, photos in objects:
            try:
                jobs[name] = make_job([photos], chosen, out / name, use_cache=desk.cache)
            except InputError as error:
                failed[name] = str(error)
                desk.talk.say(f"{name} failed: {error}")
        finished = [name for name, job in jobs.items() if batches.is_finished(job, chosen.randomise_seed)]
        ended = desk.run_all(service, {name: job for name, job in jobs.items() if name not in finished})
    failed |= {name: str(end) for name, end in ended.items() if isinstance(end, Exception)}
    made = [name for name in ended if name not in failed]
    rows = [comparison.summary_row(name, {}, out / name) for name, _ in objects if name in {*made, *finished}]
    out.mkdir(parents=True, exist_ok=True)
    comparison.write_csv(out / "batch.csv", rows)
    text = f"{len(made)} made, {len(finished)} there already, {len(failed)} failed; see {out / 'batch.csv'}."
    desk.talk.told(text, made=made, skipped=finished, failed=failed)
    if failed:
        raise typer.Exit(DIFFERENT)


@app.command()
@with_settings
@with_desk()
def compare(
    views: _ViewsArgument,
    out: _OutOption,
    vary: Annotated[list[str], typer.Option(help="A setting and its values, structure_steps=6,12; may be repeated.")],
    preset: PresetOption = None,
    *,
    desk: Desk,
    settings: dict[str, Any],
) -> None:
    """Reconstruct one object under every combination of some settings; one HTML page and one CSV show the outcome."""
    photos = _photos(views)
    comparison.sweep(photos, vary, _chosen(preset, settings, ReconstructSettings()), out)
    _check_out(out, views)
    with desk.service() as service:
        chosen = _chosen(preset, settings, service.defaults)
        cells = comparison.sweep(photos, vary, chosen, out, use_cache=desk.cache)
        jobs = {cell.name: cell.job for cell in cells if not batches.is_finished(cell.job)}
        ended = desk.run_all(service, jobs)
    failed = {name: str(end) for name, end in ended.items() if isinstance(end, Exception)}
    rows = [comparison.row_of(cell) for cell in cells if cell.name not in failed]
    page, table = out / "compare.html", out / "compare.csv"
    out.mkdir(parents=True, exist_ok=True)
    comparison.write_csv(table, rows)
    comparison.write_html(page, "Comparison of settings", rows, {cell.name: cell.job.out_dir for cell in cells})
    text = f"{len(rows)} runs compared in {page}" + (f"; {len(failed)} failed." if failed else ".")
    desk.talk.told(text, html=str(page), csv=str(table), failed=failed)
    if failed:
        raise typer.Exit(DIFFERENT)


@app.command()
def doctor(checkpoint: CheckpointOption = None, as_json: JsonOption = False) -> None:
    """Examine this machine: what the studio needs, what it has, and what is wrong."""
    from studio.doctor import examine

    problems = 0
    with outcome(JsonTalk() if as_json else TextTalk()):
        for finding in examine(checkpoint):
            problems += finding.state == "problem"
            if as_json:
                typer.echo(json.dumps(vars(finding), ensure_ascii=False))
            else:
                typer.echo(f"{finding.state:9} {finding.name}: {finding.text}")
    if problems:
        raise typer.Exit(DIFFERENT)


@app.command()
def serve(checkpoint: CheckpointOption = None, device: DeviceOption = None, backend: BackendOption = None) -> None:
    """Open the studio in a browser: http://127.0.0.1:7860, or where GRADIO_SERVER_NAME and GRADIO_SERVER_PORT say."""
    with outcome(TextTalk()):
        from studio.pages.launch import serve as start

        start(checkpoint, device, backends=parse(backend or ()))
