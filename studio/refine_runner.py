"""Runs one refinement, stage after stage, from the cache where it can, into a folder of files.

The folder it fills:

    mesh.glb          the refined mesh with its textures, or the asset as it came if refining did not help
    transforms.json   the refined camera of each placed view, for the images in views/
    environment.hdr   the light of the photographs, if it was separated
    views/000.png     the photographs, cut out, at the size of the comparison
    before/000.png    the asset as it came, as each view's camera saw it; after/000.png the refined one
    comparison.png    all three as one sheet
    relit/*.mp4       turntables under other lights (if frames were asked for, and there is an ffmpeg)
    run.json          how it was made, with a table of all views; written last

All of them share the glTF frame (y up).
"""

from __future__ import annotations

import hashlib
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from nvdiffrec.views import Views
from studio import memory, refine_stages, refine_write
from studio.cache import StageCache
from studio.engine import Engine
from studio.events import RUN, Cancelled, JobError, Note
from studio.fingerprint import stage_key
from studio.refine_events import RELIT, WRITTEN, Refined, RefineProgress
from studio.refine_job import RefineJob
from studio.report import PeakMemory, sha256, write_json
from studio.runner import publish, unfinished_folder
from trellis.errors import InputError
from trellis.renderers.turntable import EncoderError

Emit = Callable[[RefineProgress | Note], None]

_MESSAGES = {stage.name: stage.message for stage in refine_stages.STAGES}
_REGISTERED = ("registration", "seed")  # what each stage reads of the settings
_TRUSTED = ["The cameras of all photos were stated, so they are kept as they are; correct_cameras fits them too."]


def run_refine(
    job: RefineJob,
    engine: Engine,
    *,
    emit: Emit = lambda event: None,
    cancelled: Callable[[], bool] = lambda: False,
    cache: StageCache | None = None,
) -> Refined:
    """Run a refinement to its end. Files appear in its folder only when all are finished.

    Args:
        engine: its networks estimate the cameras if the job brings none.
        emit: told the progress and the notes.
        cancelled: asked after every step. Before the first step of "optimise" it ends the job without a result; from
            then on the best state so far becomes the result.
        cache: where finished stages, and the state of an interrupted loop, are kept; None keeps nothing.

    Raises:
        InputError: asset, photographs, cameras or folder cannot be used.
        Cancelled: `cancelled` said so before there was anything to keep.
        JobError: memory ran out.
    """
    run = _Run(job, engine, emit, cancelled, cache if cache is not None and job.use_cache else StageCache(None))
    try:
        return run.run()
    except Exception as error:
        if not isinstance(error, (InputError, Cancelled)) and memory.is_out_of_memory(error):
            details = "".join(traceback.format_exception(error))
            sentence = "There was not enough memory to refine; use a smaller photo size or texture, or fewer photos."
            raise JobError(sentence, "memory", details) from None
        raise


def _views_key(views: Views) -> str:
    """A hash of photographs and cameras."""
    digest = hashlib.sha256(f"{views.names} {views.predicted} {views.registered}".encode())
    cameras = views.cameras
    for tensor in (*views.images, *views.masks, cameras.extrinsics, cameras.intrinsics, cameras.image_size):
        digest.update(f"{list(tensor.shape)}".encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


class _Run:
    """One refinement on its way."""

    def __init__(
        self, job: RefineJob, engine: Engine, emit: Emit, cancelled: Callable[[], bool], cache: StageCache
    ) -> None:
        self._job, self._engine, self._emit, self._cancelled, self._cache = job, engine, emit, cancelled, cache
        self._started = time.monotonic()
        self._keeping = False  # there is something to keep: a cancellation no longer ends the job
        self._seconds: dict[str, float] = {}
        self._cached: list[str] = []
        self._memory = PeakMemory(engine.pipeline.device)

    def run(self) -> Refined:
        job, settings = self._job, self._job.settings
        self._check()
        with self._memory, unfinished_folder(job.out_dir) as folder:
            asset = refine_stages.open_asset(job.asset, settings)
            views = self._stage(
                "open", None, refine_stages.open_views, job.views, job.cameras, settings, self._engine.pipeline,
            )  # fmt: skip
            placed = self._key("register", [_views_key(views), sha256(job.asset)], (*_REGISTERED, "texture_size"))
            registration = self._stage("register", placed, refine_stages.register, views, asset, settings)
            notes = [registration.message] if registration.message else []
            notes += _TRUSTED if refine_stages.trusts(views, settings) and settings.correct_cameras is None else []
            for note in notes:
                self._emit(Note(note))
            result, start = self._optimise(registration, asset, placed)
            result = self._stage("bake", None, refine_stages.bake, result, start, asset, registration.views, settings)
            shown = self._stage("report", None, refine_write.compare, registration, asset, result, settings)
            films = {}
            if result.cancelled:
                notes.append("It was stopped early, so the asset has not been filmed under other lights.")
            else:
                try:
                    films = self._stage("relight", None, refine_write.relight, result, settings)
                except EncoderError as error:  # the asset is worth having without
                    notes.append(f"The asset has not been filmed under other lights. {error}")
                    self._emit(Note(notes[-1]))
            lines = self._write(folder, registration, result, shown, films, notes)
            publish(folder, job.out_dir, WRITTEN)
        relit = {name: job.out_dir / RELIT / f"{name}.mp4" for name in films}
        return Refined(job.out_dir, settings, self._elapsed(), result.helped, result.message, result.cancelled, lines,
                       relit, tuple(self._cached), tuple(notes))  # fmt: skip

    def _optimise(self, registration: Any, asset: Any, placed: str) -> tuple[Any, Any]:
        """The loop, from the cache, from a saved state, or from its beginning."""
        settings = self._job.settings
        unread = {"video_frames", "video_size", *_REGISTERED[:1]}
        key = self._key("optimise", [placed], tuple(name for name in type(settings).model_fields if name not in unread))
        state = self._cache.place(f"{key}-state")
        if state is not None and state.is_file():
            self._emit(Note("An interrupted refinement of the same photos goes on from its saved state."))

        def work(report: refine_stages.Report) -> Any:
            self._keeping = True
            return refine_stages.optimise(registration, asset, settings, report, self._cancelled, state)

        value = self._cache.get(key)
        if value is not None:
            self._found("optimise")
            return value
        value = self._timed("optimise", work)
        if not value[0].cancelled:
            self._cache.put(key, value)
            if state is not None:
                state.unlink(missing_ok=True)
        return value

    def _write(
        self, folder: Path, registration: Any, result: Any, shown: Any, films: dict[str, bytes], notes: list[str]
    ) -> Any:
        job = self._job

        def write(report: refine_stages.Report) -> None:
            report(0, 1)
            refine_write.write_asset(folder, job, result, registration, shown, films)
            report(1, 1)

        self._timed("write", write)
        lines = refine_write.table(registration, result, job.out_dir)
        record = refine_write.run_record(
            job=job, checkpoint=self._engine.checkpoint, device=self._engine.pipeline.device, result=result,
            registration=registration, lines=refine_write.table(registration, result, folder), folder=folder,
            seconds=self._seconds, cached=self._cached, peak_bytes=self._memory.rss, notes=notes,
        )  # fmt: skip
        write_json(folder / RUN, record)
        return lines

    def _key(self, name: str, depends_on: list[str], reads: tuple[str, ...]) -> str:
        settings = self._job.settings.model_dump(mode="json")
        return stage_key(name, depends_on, {field: settings[field] for field in reads}, self._engine.environment)

    def _stage(self, name: str, key: str | None, function: Callable[..., Any], *inputs: Any) -> Any:
        """The output of a stage: from the cache under `key`, or computed and kept there."""
        value = None if key is None else self._cache.get(key)
        if value is not None:
            self._found(name)
            return value
        value = self._timed(name, partial(function, *inputs))
        if key is not None:
            self._cache.put(key, value)
        return value

    def _timed(self, name: str, function: Callable[[refine_stages.Report], Any]) -> Any:
        started = time.monotonic()
        value = function(partial(self._report, name))
        self._seconds[name] = time.monotonic() - started
        return value

    def _found(self, name: str) -> None:
        self._check()
        self._cached.append(name)
        self._tell(name, 1, 1, cached=True)

    def _report(
        self,
        stage: str,
        step: int,
        of: int,
        preview: bytes | None = None,
        loss: float | None = None,
        psnr: float | None = None,
    ) -> None:
        self._check()
        self._tell(stage, step, of, preview=preview, loss=loss, psnr=psnr)

    def _tell(self, stage: str, step: int, of: int, **more: Any) -> None:
        self._emit(RefineProgress(stage, step, of, _MESSAGES[stage], self._elapsed(), **more))

    def _check(self) -> None:
        if not self._keeping and self._cancelled():
            raise Cancelled

    def _elapsed(self) -> float:
        return time.monotonic() - self._started
