"""Options that commands share, the endings of a command, and Ctrl-C."""

from __future__ import annotations

import inspect
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer

from studio.backends import parse
from studio.events import Cancelled, JobError, Result
from studio.groups import Ended, Failure, run_group
from studio.job import Job
from studio.presets import PRESETS
from studio.service import Service
from studio.settings import ReconstructSettings, Setting, Settings, expected, leaves
from studio.talk import JsonTalk, Talk, TextTalk
from trellis.errors import InputError

UNEXPECTED, BAD_INPUT, DIFFERENT, NO_MEMORY, WORKER_DIED, CANCELLED = 1, 2, 3, 4, 5, 130
_EXIT_BY_KIND = {"memory": NO_MEMORY, "worker": WORKER_DIED}

CheckpointOption = Annotated[
    str | None,
    typer.Option(help="Networks to use: a folder or a Hugging Face repository. Default: the embedded mini checkpoint."),
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ... Default: a GPU if there is one.")]
BackendOption = Annotated[
    list[str] | None,
    typer.Option(
        "--backend", metavar="NEED=NAME", show_default=False,
        help="What does a part of the work, for instance attention=flash-attn; may be repeated. Default: what works "
        "here and is fastest; `doctor` lists them.",
    ),
]  # fmt: skip
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object per line instead of text.")]
CacheOption = Annotated[bool, typer.Option(help="Keep finished stages, so that a changed run repeats only the rest.")]
PresetOption = Annotated[
    str | None,
    typer.Option(help=" ".join(f"{preset.name}: {preset.help}" for preset in PRESETS.values()), show_default=False),
]


def with_settings_of(model: type[Settings]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace the parameter `settings` of a command by one option for each setting of a model.

    An option that is not given stays None, because its default may come from a checkpoint that is not known yet.
    """
    options = [
        inspect.Parameter(setting.key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_option(setting, model))
        for setting in leaves(model)
    ]
    keys = [option.name for option in options]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def wrapper(**values: Any) -> None:
            command(settings={key: values.pop(key) for key in keys}, **values)

        return _with_options(wrapper, command, "settings", options)

    return decorate


def _option(setting: Setting, model: type[Settings]) -> Any:
    """The type annotation of a setting's option: plain types, since bounds are checked by the settings themselves."""
    default = setting.of(model())
    if setting.type is bool:
        kind, text = bool, setting.help
    else:
        kind = tuple[float, float] if setting.is_interval else str if setting.choices else setting.type
        text = f"{setting.help} Takes {expected(setting)}"
        if not setting.optional:
            shown = " ".join(f"{value:g}" for value in default) if setting.is_interval else default
            source = ", or what the checkpoint recommends" if len(setting.path) > 1 else ""
            text += f"; default {shown}{source}"
        text += "."
    return Annotated[kind | None, typer.Option(help=text, show_default=False)]


with_settings = with_settings_of(ReconstructSettings)


@dataclass(frozen=True)
class Desk:
    """What the commands that hand jobs to a worker have in common.

    Attributes:
        talk: tells what happens.
        cache: whether finished stages are used and kept.
    """

    talk: Talk
    cache: bool
    _checkpoint: str | None
    _device: str | None
    _backends: Mapping[str, str]
    _cancel: threading.Event = field(default_factory=threading.Event)

    def service(self) -> AbstractContextManager[Service]:
        """A started service. Ctrl-C cancels its jobs, and its start."""
        return working(self.talk, self._checkpoint, self._device, self._backends, self._cancel)

    def run(self, service: Service, job: Job) -> Result:
        """Hand in a job and tell what happens until it ends."""
        return run(service, job, self.talk, self._cancel)

    def run_all(self, service: Service, jobs: Mapping[str, Job]) -> dict[str, Result | Failure]:
        """Hand in jobs by name, tell what happens, and return how each of them ended."""
        names = list(jobs)
        ended: dict[str, Result | Failure] = {}
        with self.talk:
            for index, event in run_group(service, list(jobs.values()), self._cancel):
                name = names[index]
                self.talk.event(event, name)
                if isinstance(event, Failure):
                    self.talk.say(f"{name} failed: {event}")
                elif isinstance(event, Result):
                    self.talk.done(event)
                if isinstance(event, Ended):
                    ended[name] = event
        return ended

    @contextmanager
    def open(self) -> Iterator[None]:
        """Within it, Ctrl-C cancels."""
        with interruptible(self._cancel):
            yield


def with_desk(cache: bool = True) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace the parameter `desk` of a command by --checkpoint, --device, --backend and --json, and --cache if asked.

    The command then runs with its outcomes turned into exit statuses.
    """
    kinds = {"checkpoint": (CheckpointOption, None), "device": (DeviceOption, None), "backend": (BackendOption, None),
             "as_json": (JsonOption, False)}  # fmt: skip
    if cache:
        kinds["cache"] = (CacheOption, True)
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in kinds.items()
    ]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def wrapper(**values: Any) -> None:
            chosen = {name: values.pop(name) for name in kinds}
            talk = JsonTalk() if chosen["as_json"] else TextTalk()
            with outcome(talk):
                names = parse(chosen["backend"] or ())
                desk = Desk(talk, chosen.get("cache", True), chosen["checkpoint"], chosen["device"], names)
                with desk.open():
                    command(desk=desk, **values)

        return _with_options(wrapper, command, "desk", options)

    return decorate


def _with_options(
    wrapper: Callable[..., None], command: Callable[..., None], replaced: str, options: list[inspect.Parameter]
) -> Callable[..., None]:
    """Give a wrapper the name, help and parameters of its command, one of which is replaced by options."""
    signature = inspect.signature(command, eval_str=True)
    own = [parameter for name, parameter in signature.parameters.items() if name != replaced]
    wrapper.__name__, wrapper.__doc__ = command.__name__, command.__doc__
    wrapper.__signature__ = signature.replace(parameters=[*own, *options])
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *options]}
    return wrapper


@contextmanager
def working(
    talk: Talk, checkpoint: str | None, device: str | None, backends: Mapping[str, str], cancel: threading.Event
) -> Iterator[Service]:
    """A started service; Ctrl-C while the networks are loaded is a cancellation."""
    service = Service(checkpoint, [device], say=talk.say, backends=backends)
    try:
        service.start(cancel.is_set)
    except JobError:
        if cancel.is_set():
            raise Cancelled from None
        raise
    with service:
        yield service


def run(service: Service, job: Job, talk: Talk, cancel: threading.Event) -> Result:
    """Hand a job to the worker and tell what happens until it ends."""
    with talk:
        for event in service.submit(job, cancel).events():
            talk.event(event)
    return event


@contextmanager
def outcome(talk: Talk) -> Iterator[None]:
    """Turn exceptions into a sentence and an exit status; unexpected ones also into a traceback on standard error."""
    try:
        yield
    except InputError as error:
        talk.failed(str(error), BAD_INPUT)
        raise typer.Exit(BAD_INPUT) from error
    except JobError as error:
        code = _EXIT_BY_KIND.get(error.kind, UNEXPECTED)
        talk.failed(f"{error}\n{error.details}".strip() if code == UNEXPECTED else str(error), code)
        raise typer.Exit(code) from error
    except (KeyboardInterrupt, Cancelled) as error:
        talk.failed("Cancelled; the same command goes on from the stages that were finished.", CANCELLED)
        raise typer.Exit(CANCELLED) from error
    except typer.Exit:
        raise
    except Exception as error:
        talk.failed(f"The studio failed with an unexpected {type(error).__name__}: {error}", UNEXPECTED)
        traceback.print_exception(error)
        raise typer.Exit(UNEXPECTED) from error


@contextmanager
def interruptible(cancel: threading.Event) -> Iterator[None]:
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
