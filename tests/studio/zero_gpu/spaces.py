"""A stand-in for Hugging Face's package of this name, as far as the studio uses it: the decorator, and its contract.

A call asks how long it may last, then runs the decorated generator in a thread of a process forked off this one. The
arguments go there and what is yielded comes back by pickle. The process is kept for the next call. If it dies, the
call raises an error with a title, as do the calls that `refusal` forbids.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from functools import wraps
from multiprocessing.connection import Connection
from typing import Any

import gradio as gr

VISITOR: ContextVar[str | None] = ContextVar("visitor", default=None)  # whom a call is charged to
calls: list[tuple[int, str | None]] = []  # seconds asked for, and by whom
refusal: gr.Error | None = None

_fork = multiprocessing.get_context("fork")


class _Process:
    def __init__(self, task: Callable[..., Iterator[Any]]) -> None:
        self.arguments = _fork.SimpleQueue()
        self.results, theirs = _fork.Pipe(duplex=False)
        _fork.Process(target=self._serve, args=(task, theirs), daemon=True).start()
        theirs.close()  # so that the results end when the process does

    def _serve(self, task: Callable[..., Iterator[Any]], results: Connection) -> None:
        while True:
            arguments = self.arguments.get()
            with ThreadPoolExecutor(1) as executor:
                executor.submit(self._iterate, task, arguments, results).result()
            results.send(("end", None))

    def _iterate(self, task: Callable[..., Iterator[Any]], arguments: tuple[Any, ...], results: Connection) -> None:
        for value in task(*arguments):
            results.send(("value", value))


def GPU(duration: Callable[..., int]) -> Callable[..., Any]:  # noqa: N802 (that is its name)
    def decorate(task: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        idle: list[_Process] = []

        @wraps(task)
        def call(*arguments: Any) -> Iterator[Any]:
            calls.append((duration(*arguments), VISITOR.get()))
            if refusal is not None:
                raise refusal
            worker = idle.pop() if idle else _Process(task)
            worker.arguments.put(arguments)
            while True:
                try:
                    kind, value = worker.results.recv()
                except (EOFError, OSError):  # OSError: it died within a message
                    raise gr.Error("GPU task aborted", title="ZeroGPU worker error", print_exception=False) from None
                if kind == "end":
                    idle.append(worker)
                    return
                yield value

        return call

    return decorate
