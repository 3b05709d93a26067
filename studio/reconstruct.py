"""A reconstruction inside this process, for programs that hold the networks themselves.

Everything else hands its jobs to the worker: see `studio.service`.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from os import PathLike

from PIL import Image

from studio.cache import StageCache
from studio.engine import Engine
from studio.events import Cancelled, Note, Progress, Result
from studio.inputs import View
from studio.job import make_job
from studio.runner import run_job
from studio.settings import ReconstructSettings
from trellis.pipelines.trellis_vggt_to_3d import TrellisVGGTTo3DPipeline

__all__ = ["Cancelled", "Progress", "Result", "reconstruct"]

_HEARTBEAT = 0.5  # seconds between repeated messages while a step takes longer


def reconstruct(
    views: Iterable[str | PathLike | Image.Image | View],
    settings: ReconstructSettings,
    out_dir: str | PathLike,
    pipeline: TrellisVGGTTo3DPipeline,
    *,
    cancel: threading.Event | None = None,
    checkpoint: str | None = None,
    cache: StageCache | None = None,
) -> Iterator[Progress | Result]:
    """Reconstruct the object that the views show; yields Progress at least twice a second, and a Result at the end.

    The work happens in a thread of its own. Files appear in `out_dir` only when all of them are finished; whatever run
    was there before stays until then.

    Args:
        views: 1 to 32 images, image files, or one folder of them; the first one defines the front.
        settings: see `studio.settings`.
        out_dir: folder for the files; made if it is missing.
        pipeline: the networks.
        cancel: set it to stop the job within one sampler step. Closing the generator does the same.
        checkpoint: what to call the networks in run.json.
        cache: where finished stages are kept; None keeps nothing.

    Raises:
        InputError: the views or the folder cannot be used, or no object came out of the views.
        Cancelled: `cancel` was set.
        JobError: memory ran out.
    """
    job = make_job(views, settings, out_dir)
    engine = Engine(pipeline, checkpoint, settings)
    cancel, abandoned = cancel or threading.Event(), threading.Event()
    messages: queue.SimpleQueue[Progress | Note | Result | BaseException] = queue.SimpleQueue()

    def work() -> None:
        """Whatever happens ends up in `messages`, because nobody else watches this thread."""
        try:
            stop = (cancel, abandoned)
            messages.put(run_job(job, engine, emit=messages.put, cache=cache,
                                 cancelled=lambda: any(event.is_set() for event in stop)))  # fmt: skip
        except BaseException as error:
            messages.put(error)

    thread = threading.Thread(target=work, name="reconstruction", daemon=True)
    thread.start()
    try:
        latest: Progress | None = None
        while True:
            try:
                message = messages.get(timeout=_HEARTBEAT)
            except queue.Empty:
                if latest is not None:
                    yield latest
                continue
            if isinstance(message, BaseException):
                raise message
            if isinstance(message, Note):
                continue
            yield message
            if isinstance(message, Result):
                return
            latest = message
    finally:
        abandoned.set()  # of no effect on a finished job
        thread.join()
