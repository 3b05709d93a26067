"""`python -m studio weights fetch` and `check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from studio import weights
from studio.cli_options import DIFFERENT, JsonOption, outcome
from studio.talk import JsonTalk, TextTalk
from trellis.errors import InputError

app = typer.Typer(no_args_is_help=True, help="The published networks: fetch them into a folder, check them.")

_FolderOption = Annotated[
    Path | None, typer.Option("--to", help="Folder of the networks. Default: ~/.local/share/reconstudio/published.")
]


@app.command()
def fetch(
    to: _FolderOption = None,
    revision: Annotated[
        list[str] | None,
        typer.Option(help="REPOSITORY=COMMIT instead of the recorded or newest commit; may be repeated."),
    ] = None,
    dinov2_url: Annotated[str | None, typer.Option(help="Another address of DINOv2's weights.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch the published networks (about 9 GB), or what is still missing of them."""
    talk = JsonTalk() if as_json else TextTalk()
    with outcome(talk):
        if as_json:
            from huggingface_hub.utils import disable_progress_bars

            disable_progress_bars()
        folder = (to or weights.default_folder()).expanduser()
        record = weights.fetch(folder, _revisions(revision or []), dinov2_url, talk.say)
        size = sum(entry["bytes"] for entry in record.files.values())
        text = f"{len(record.files)} files, {size / 1e9:.2f} GB. Use them with RECONSTUDIO_CHECKPOINT={folder}"
        talk.told(text, folder=str(folder), commits=record.commits, bytes=size)


@app.command()
def check(to: _FolderOption = None, as_json: JsonOption = False) -> None:
    """Compare every fetched file with what was recorded when it was fetched."""
    talk = JsonTalk() if as_json else TextTalk()
    with outcome(talk):
        folder = (to or weights.default_folder()).expanduser()
        damaged = {damage.file: damage.text for damage in weights.check(folder)}
        sentences = " ".join(f"{file}: {text}." for file, text in damaged.items())
        talk.told(sentences or "All files are as they were fetched.", damaged=damaged)
        if damaged:
            raise typer.Exit(DIFFERENT)


def _revisions(given: list[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in given]
    wrong = [text for text, (name, _, commit) in zip(given, pairs, strict=True) if not (name and commit)]
    if wrong:
        raise InputError(f"--revision takes REPOSITORY=COMMIT, but came as {wrong[0]!r}.")
    return {name: commit for name, _, commit in pairs}
