"""How the command line tells what happens: to a person, or to a program."""

from __future__ import annotations

import json
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Column

from studio.events import Note, Progress, Queued, Result
from studio.refine_events import Refined, RefineProgress


class TextTalk:
    """Tells a person: progress on standard error, results on standard output."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bars: Bars | None = None
        self._tasks: dict[tuple[str, str], Any] = {}  # by job and stage

    def __enter__(self) -> TextTalk:
        self._tasks = {}
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(table_column=Column(min_width=7)),  # the bar gives way in a narrow window
            TextColumn("{task.fields[left]}"),
            console=self._console,
        )
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()
        self._bars = None

    def say(self, sentence: str) -> None:
        self._console.print(sentence, markup=False, highlight=False)

    def event(self, event: Any, job: str = "") -> None:
        """job: its name, if there are several."""
        if isinstance(event, Note):
            self.say(f"{job}: {event.message}" if job else event.message)
        elif isinstance(event, Progress):
            self._progress(event, job)
        elif isinstance(event, (Result, Refined, Exception)):
            self._finish_tasks(job)

    def done(self, result: Result) -> None:
        reused = f" ({len(result.cached)} stages were there already)" if result.cached else ""
        beside = (result.gaussian, result.turntable, result.transforms, result.run)
        others = ", ".join(path.name for path in beside if path is not None)
        typer.echo(
            f"Finished in {result.seconds:.0f} s{reused}: {result.counts['triangles']} triangles in {result.mesh}, "
            f"with {others} beside it."
        )

    def told(self, text: str, **fields: Any) -> None:
        """Something that is a result in itself."""
        typer.echo(text)

    def failed(self, sentence: str, code: int) -> None:
        typer.echo(sentence, err=True)

    def _progress(self, progress: Progress, job: str) -> None:
        key = (job, progress.stage)
        if key not in self._tasks:
            self._finish_tasks(job)
            text = f"{progress.message} (done before)" if progress.cached else progress.message
            self._tasks[key] = self._bars.add_task(f"{job}: {text}" if job else text, left="")
        left = {} if progress.remaining is None else {"left": f"about {progress.remaining:.0f} s left"}
        if isinstance(progress, RefineProgress) and progress.psnr is not None:
            left = {"left": f"{progress.psnr:.2f} dB"}
        self._bars.update(self._tasks[key], completed=progress.step, total=progress.of, **left)

    def _finish_tasks(self, job: str) -> None:
        """The bars of a single job stay to be read; of several jobs only those that run are shown."""
        for key in [key for key in self._tasks if key[0] == job]:
            self._bars.update(self._tasks[key], left="")
            self._bars.stop_task(self._tasks[key])
            if job:
                self._bars.remove_task(self._tasks.pop(key))


class JsonTalk:
    """Tells a program: one object per line on standard output."""

    def __enter__(self) -> JsonTalk:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def say(self, sentence: str) -> None:
        self._print(event="message", message=sentence)

    def event(self, event: Any, job: str = "") -> None:
        """job: its name, if there are several."""
        whose = {"job": job} if job else {}
        if isinstance(event, Note):
            self._print(event="message", **whose, message=event.message)
        elif isinstance(event, Queued):
            self._print(event="queued", **whose, ahead=event.ahead)
        elif isinstance(event, Progress):
            remaining = None if event.remaining is None else round(event.remaining, 1)
            fit = {"loss": event.loss, "psnr": event.psnr} if isinstance(event, RefineProgress) else {}
            self._print(event="progress", **whose, stage=event.stage, step=event.step, of=event.of,
                        cached=event.cached, seconds=round(event.seconds, 2), remaining=remaining, **fit)  # fmt: skip

    def done(self, result: Result) -> None:
        files = {name: str(getattr(result, name)) for name in ("mesh", "gaussian", "turntable", "transforms", "run")}
        self._print(event="result", folder=str(result.folder), **files, seed=result.settings.seed,
                    counts=result.counts, cached=list(result.cached), notes=list(result.notes),
                    seconds=round(result.seconds, 2))  # fmt: skip

    def told(self, text: str, **fields: Any) -> None:
        self._print(event="result", message=text, **fields)

    def failed(self, sentence: str, code: int) -> None:
        self._print(event="error", message=sentence, exit_code=code)

    def _print(self, **fields: Any) -> None:
        typer.echo(json.dumps(fields, ensure_ascii=False))


Talk = TextTalk | JsonTalk
