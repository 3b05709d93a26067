"""The command line: `python -m studio reconstruct VIEWS... -o OUT` and `python -m studio serve`.

Exit status: 0 done, 1 an unexpected error, 2 bad input, 130 cancelled.
"""

from __future__ import annotations

import inspect
import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import studio.environment  # noqa: F401  (before anything that imports torch)

# isort: split
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from studio.settings import ReconstructSettings, Setting, expected, leaves, make_settings
from trellis.errors import InputError

BAD_INPUT, CANCELLED = 2, 130

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None, help=__doc__)

_CheckpointOption = Annotated[
    str | None,
    typer.Option(help="Networks to use: a folder or a Hugging Face repository. Default: the embedded mini checkpoint."),
]
_DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ... Default: a GPU if there is one.")]


def main() -> None:
    """Run the command line."""
    app()


def _with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Replace the parameter `settings` of a command by one option for each setting.

    An option that is not given stays None, because its default may come from a checkpoint that is not known yet.
    """
    signature = inspect.signature(command, eval_str=True)
    options = [
        inspect.Parameter(setting.key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_option(setting))
        for setting in leaves()
    ]
    own = [parameter for name, parameter in signature.parameters.items() if name != "settings"]
    keys = [option.name for option in options]

    def wrapper(**values: Any) -> None:
        command(settings={key: values.pop(key) for key in keys}, **values)

    wrapper.__name__, wrapper.__doc__ = command.__name__, command.__doc__
    wrapper.__signature__ = signature.replace(parameters=[*own, *options])
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *options]}
    return wrapper


def _option(setting: Setting) -> Any:
    """The type annotation of a setting's option: plain types, since bounds are checked by the settings themselves."""
    default = setting.of(ReconstructSettings())
    if setting.type is bool:
        kind, text = bool, setting.help
    else:
        kind = tuple[float, float] if setting.is_interval else str if setting.choices else setting.type
        shown = " ".join(f"{value:g}" for value in default) if setting.is_interval else default
        source = ", or what the checkpoint recommends" if len(setting.path) > 1 else ""
        text = f"{setting.help} Takes {expected(setting)}; default {shown}{source}."
    return Annotated[kind | None, typer.Option(help=text, show_default=False)]


@app.command()
@_with_settings
def reconstruct(
    views: Annotated[list[Path], typer.Argument(help="Photos of one object, front first, or one folder of them.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results; made if it is missing.")],
    checkpoint: _CheckpointOption = None,
    device: _DeviceOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line instead of text.")] = False,
    *,
    settings: dict[str, Any],
) -> None:
    """Turn photos of one object into a textured mesh, splats, a turntable video and cameras."""
    talk = _JsonTalk() if as_json else _TextTalk()
    cancel = threading.Event()
    with _outcome(talk), _interruptible(cancel):
        from studio.inputs import as_views

        opened = as_views(views)
        make_settings(settings)  # before the networks are loaded, so that a typing error costs no wait
        from studio.engine import load_engine
        from studio.reconstruct import Result
        from studio.reconstruct import reconstruct as start

        engine = load_engine(checkpoint, device, talk.say)
        chosen = make_settings(settings, engine.defaults)
        job = start(opened, chosen, out, engine.pipeline, cancel=cancel, checkpoint=engine.checkpoint)
        with talk:
            for message in job:
                if isinstance(message, Result):
                    talk.done(message)
                else:
                    talk.progress(message)


@app.command()
def serve(checkpoint: _CheckpointOption = None, device: _DeviceOption = None) -> None:
    """Open the studio in a browser: http://127.0.0.1:7860, or where GRADIO_SERVER_NAME and GRADIO_SERVER_PORT say."""
    with _outcome(_TextTalk()):
        from studio.pages.launch import serve as start

        start(checkpoint, device)


class _TextTalk:
    """Tells a person."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
        )
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> None:
        self._bars.start()

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    def say(self, sentence: str) -> None:
        self._console.print(sentence, markup=False, highlight=False)

    def progress(self, progress: Any) -> None:
        if progress.stage not in self._tasks:
            self._finish_tasks()
            self._tasks[progress.stage] = self._bars.add_task(progress.message)
        self._bars.update(self._tasks[progress.stage], completed=progress.step, total=progress.of)

    def done(self, result: Any) -> None:
        self._finish_tasks()
        typer.echo(
            f"Finished in {result.seconds:.0f} s: {result.counts['triangles']} triangles in {result.mesh}, with "
            f"{', '.join(path.name for path in (result.gaussian, result.turntable, result.transforms, result.run))} "
            "beside it."
        )

    def failed(self, sentence: str, code: int) -> None:
        typer.echo(sentence, err=True)

    def _finish_tasks(self) -> None:
        for task in self._tasks.values():
            self._bars.stop_task(task)


class _JsonTalk:
    """Tells a program: one object per line on standard output."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exception: object) -> None:
        pass

    def say(self, sentence: str) -> None:
        self._print(event="message", message=sentence)

    def progress(self, progress: Any) -> None:
        self._print(event="progress", stage=progress.stage, step=progress.step, of=progress.of,
                    seconds=round(progress.seconds, 2))  # fmt: skip

    def done(self, result: Any) -> None:
        files = {name: str(getattr(result, name)) for name in ("mesh", "gaussian", "turntable", "transforms", "run")}
        self._print(event="result", folder=str(result.folder), **files, seed=result.settings.seed,
                    counts=result.counts, seconds=round(result.seconds, 2))  # fmt: skip

    def failed(self, sentence: str, code: int) -> None:
        self._print(event="error", message=sentence, exit_code=code)

    def _print(self, **fields: Any) -> None:
        typer.echo(json.dumps(fields, ensure_ascii=False))


@contextmanager
def _outcome(talk: _TextTalk | _JsonTalk) -> Iterator[None]:
    """Turn the exceptions that a person can do something about into a sentence and an exit status."""
    try:
        yield
    except InputError as error:
        talk.failed(str(error), BAD_INPUT)
        raise typer.Exit(BAD_INPUT) from error
    except (KeyboardInterrupt, _cancelled()) as error:
        talk.failed("Cancelled; nothing was written.", CANCELLED)
        raise typer.Exit(CANCELLED) from error


def _cancelled() -> type[BaseException]:
    from studio.reconstruct import Cancelled

    return Cancelled


@contextmanager
def _interruptible(cancel: threading.Event) -> Iterator[None]:
    """Let the first Ctrl-C ask the job to stop, and a second one stop the program."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(*_: Any) -> None:
        if cancel.is_set():
            raise KeyboardInterrupt
        cancel.set()

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
