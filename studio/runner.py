"""Runs one job on loaded networks: stage after stage, from the cache where it can, into a folder of files.

The folder it fills:

    mesh.glb          textured mesh
    gaussian.ply      3D Gaussian splats
    turntable.mp4     colour beside normals
    transforms.json   the camera of each view, for the images in views/
    views/000.png     the views as the networks saw them: cut out, centred, square
    coverage.png      which parts of the texture were observed, inferred or invented (registered cameras only)
    coverage.mp4      the same as a turntable
    run.json          how it was made; written last, so its presence says that the folder is complete

All of them share the glTF frame (y up).
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from studio import memory, previews, stages
from studio.cache import NO_ROOM, StageCache
from studio.engine import Engine
from studio.events import RUN, WRITTEN, CamerasFound, Cancelled, FoundView, JobError, Note, Progress, Result
from studio.fingerprint import images_key, stage_key, view_key
from studio.history import History
from studio.inputs import View
from studio.job import Job
from studio.report import PeakMemory
from studio.settings import ReconstructSettings
from studio.stages import STAGES, PreparedView
from studio.trust import trust_in_cameras
from studio.write import camera_record, view_names, write_files
from trellis.errors import InputError

Emit = Callable[[Progress | Note], None]

_MESSAGES = {stage.name: stage.message for stage in STAGES}


def run_job(
    job: Job,
    engine: Engine,
    *,
    emit: Emit = lambda event: None,
    cancelled: Callable[[], bool] = lambda: False,
    cache: StageCache | None = None,
    history: History | None = None,
    free_memory: memory.Free | None = None,
) -> Result | CamerasFound:
    """Run a job to its end. Files appear in its folder only when all of them are finished; an earlier result stays
    until then.

    Args:
        emit: told the progress and the notes.
        cancelled: asked before the first step and after every step of every stage.
        cache: where finished stages are kept; None keeps nothing.
        history: measured times, for the time left.
        free_memory: what may be used; None measures.

    Raises:
        InputError: the views or the folder cannot be used, no object came out, or there is too little memory.
        Cancelled: `cancelled` said so.
        JobError: anything else; the details hold the traceback.
    """
    if cache is None or not job.use_cache:
        cache = StageCache(None)
    run = Run(job, engine, emit, cancelled, cache, history)
    try:
        return run.run(free_memory)
    except (InputError, Cancelled):
        raise
    except Exception as error:
        details = "".join(traceback.format_exception(error))
        if memory.is_out_of_memory(error):
            raise JobError(memory.explain(run.stage, engine.pipeline.device), "memory", details) from None
        raise


class _Output:
    """What a stage makes: loaded or computed when it is first needed."""

    def __init__(self, run: Run, name: str, key: str | None, inputs: tuple[_Output, ...], function: Any) -> None:
        self._run, self.name, self.key, self.inputs, self.function = run, name, key, inputs, function
        self._made: list[Any] = []

    def ensure(self) -> None:
        """See to it that the output exists, in memory or in the cache."""
        if not self._made and self.key in self._run.cache:
            self._run.found(self)
        else:
            self.value()

    def value(self) -> Any:
        if not self._made:
            self._made.append(self._run.make(self))
        return self._made[0]


class Run:
    """One job on its way: what ran, what was there already, and what it took."""

    def __init__(
        self,
        job: Job,
        engine: Engine,
        emit: Emit,
        cancelled: Callable[[], bool],
        cache: StageCache,
        history: History | None,
    ) -> None:
        self.stage = STAGES[0].name
        self.cache = cache
        self.cached: list[str] = []
        self.notes: list[str] = []
        self.photographs: list[str] = []  # hashes
        self.seconds: dict[str, float] = {}
        self._job, self._engine, self._history = job, engine, history
        self._emit, self._cancelled = emit, cancelled
        self._started = time.monotonic()
        self._expected: dict[str, float] | None = None
        self._memory = PeakMemory(engine.pipeline.device)
        self.peaks: dict[str, dict[str, int | None]] = {}
        self._preview: bytes | None = None  # the latest of the running stage

    def run(self, free: memory.Free | None) -> Result | CamerasFound:
        job, pipeline = self._job, self._engine.pipeline
        self._check()
        self.plan = memory.fit(pipeline, job.settings, len(job.views), free or memory.free(pipeline.device))
        settings = self.plan.settings
        for note in self.plan.notes:
            self.note(note)
        if self._history is not None:
            self._expected = self._history.expected(self._engine.environment, settings, len(job.views))
        with self._memory, self._placed():
            ended = self._find_cameras(settings) if job.until == "cameras" else self._make_asset(settings)
        if self._history is not None:
            self._history.record(self._engine.environment, settings, len(job.views), self.seconds)
        return ended

    def _make_asset(self, settings: ReconstructSettings) -> Result:
        job = self._job
        with unfinished_folder(job.out_dir) as staging:
            outputs = self._plan(settings)
            for name in ("cameras", "structure", "latent", "decode", "mesh", "bake", "video"):
                outputs[name].ensure()
            counts = write_files(self, outputs, job, self._engine, staging)
            publish(staging, job.out_dir)
        return Result(job.out_dir, settings, self.elapsed(), counts, tuple(self.cached), tuple(self.notes))

    def _find_cameras(self, settings: ReconstructSettings) -> CamerasFound:
        if self._expected is not None:
            self._expected = {name: self._expected[name] for name in ("prepare", "cameras")}
        outputs = self._plan(settings)
        prepared, conditions = outputs["prepare"].value(), outputs["cameras"].value()
        record = camera_record(conditions.cameras, view_names(len(prepared)), self._engine.pipeline.camera_frame)
        trusts: list[float | None] = [None] * len(prepared)
        if self._engine.pipeline.camera_frame == "object":
            trusts = trust_in_cameras(conditions.cameras, [view.image for view in prepared])
        views = tuple(
            FoundView(view.name, previews.jpeg(view.image), view.cut_out_by, tuple(view.notes), trust)
            for view, trust in zip(prepared, trusts, strict=True)
        )
        return CamerasFound(self._job.id, views, record, self.elapsed(), tuple(self.cached), tuple(self.notes))

    def _plan(self, settings: ReconstructSettings) -> dict[str, _Output]:
        """Every stage with its key, its inputs and its function. The views are prepared, nothing else runs yet."""
        engine, pipeline, views = self._engine, self._engine.pipeline, self._job.views
        photographs = [_photograph_key(view) for view in views]
        self.photographs = [view.earlier.photograph if view.earlier else key
                            for view, key in zip(views, photographs, strict=True)]  # fmt: skip
        plan: dict[str, _Output] = {}

        def add(
            name: str, inputs: tuple[str, ...], reads: dict[str, Any], function: Any, keys: list[str] | None = None
        ) -> None:
            keys = keys or [plan[needed].key for needed in inputs]
            key = stage_key(name, keys, reads, engine.environment)
            plan[name] = _Output(self, name, key, tuple(plan[needed] for needed in inputs), function)

        s = settings
        how = {"removal": "rembg" if stages.rembg_available() else "grabcut"}

        def recall(view: View, make: Callable[[], PreparedView]) -> PreparedView:
            """Each view is kept by itself too, for jobs with some of these views."""
            key = stage_key("view", [photographs[views.index(view)]], how, engine.environment)
            value = self.cache.get(key)
            if value is None:
                value = make()
                self.cache.put(key, value)
            return value

        add("prepare", (), how, lambda report: stages.prepare(views, pipeline, report, recall), photographs)
        pixels = [images_key(view.image for view in plan["prepare"].value())]
        add("cameras", ("prepare",), {}, lambda prepared, report: stages.cameras(prepared, pipeline, report), pixels)
        add(
            "structure",
            ("cameras",),
            {"sampler": s.structure.model_dump(mode="json"), "seed": s.seed_of_structure},
            lambda conditions, report: stages.structure(conditions, s, pipeline, report),
        )
        add(
            "latent",
            ("cameras", "structure"),
            {"sampler": s.latent.model_dump(mode="json"), "seed": s.seed_of_latent, "mode": s.mode},
            lambda conditions, coords, report: stages.latent(conditions, coords, s, pipeline, report),
        )
        add("decode", ("latent",), {}, lambda slat, report: stages.decode(slat, pipeline, report))
        add("mesh", ("decode",), {"simplify": s.simplify}, lambda decoded, report: stages.mesh(decoded[1], s, report))
        add(
            "bake",
            ("mesh", "decode"),
            {"texture_size": s.texture_size},
            lambda surfaces, decoded, report: stages.bake(*surfaces, decoded[0], s, report),
        )
        add(
            "video",
            ("decode",),
            {"frames": s.video_frames, "size": s.video_size},
            lambda decoded, report: stages.video(*decoded, s, report),
        )
        return plan

    def make(self, output: _Output) -> Any:
        """Load an output from the cache, or compute it and keep it there."""
        value = self.cache.get(output.key)
        if value is not None:
            self.found(output)
            return value
        if output.name in self.cached:  # it was there a moment ago; another process needed the room
            self.cached.remove(output.name)
        inputs = [needed.value() for needed in output.inputs]
        value = self.timed(output.name, partial(output.function, *inputs))
        if self.cache.put(output.key, value) and self._preview is not None:
            self.cache.put(_preview_key(output.key), self._preview)
        return value

    def found(self, output: _Output) -> None:
        """Tell, once, that a stage needs not run."""
        if output.name not in self.cached and output.name not in self.seconds:
            self.cached.append(output.name)
            self._check()
            self._tell(output.name, 1, 1, self.cache.get(_preview_key(output.key)), cached=True)

    def timed(self, name: str, function: Callable[[stages.Report], Any]) -> Any:
        """Run a stage's function, with its time and its peak memory taken down."""
        started = time.monotonic()
        self.stage, self._preview = name, None
        if self.plan.offload:
            memory.place(self._engine.pipeline, name)
        self._memory.begin()
        value = function(partial(self.report, name))
        self.seconds[name] = time.monotonic() - started
        self.peaks[name] = self._memory.end()
        return value

    @contextmanager
    def _placed(self) -> Iterator[None]:
        """Bring every network back to its device afterwards."""
        try:
            yield
        finally:
            if self.plan.offload:
                memory.place(self._engine.pipeline, None)

    def elapsed(self) -> float:
        return time.monotonic() - self._started

    def memory_record(self) -> dict[str, Any]:
        """Peaks in bytes: of the whole job, of each stage that ran, and what was predicted beyond the networks."""
        return {
            "rss": self._memory.rss,
            "vram": self._memory.vram,
            "stages": dict(self.peaks),
            "predicted": dict(self.plan.predicted),
        }

    def note(self, sentence: str) -> None:
        self.notes.append(sentence)
        self._emit(Note(sentence))

    def report(self, stage: str, step: int, of: int, preview: bytes | None = None) -> None:
        self._check()
        self._preview = preview or self._preview
        self._tell(stage, step, of, preview)

    def _check(self) -> None:
        if self._cancelled():
            raise Cancelled

    def _tell(self, stage: str, step: int, of: int, preview: bytes | None, cached: bool = False) -> None:
        remaining = self._remaining(stage, step / of if of else 1.0)
        self._emit(Progress(stage, step, of, _MESSAGES[stage], self.elapsed(), remaining, preview, cached))

    def _remaining(self, stage: str, share: float) -> float | None:
        if self._expected is None:
            return None
        pending = [name for name in self._expected if name not in self.seconds and name not in self.cached]
        return sum(seconds * (1 - share if name == stage else 1) for name, seconds in self._expected.items()
                   if name in pending)  # fmt: skip


def _photograph_key(view: View) -> str:
    try:
        return view_key(view)
    except OSError:  # `prepare` will say that it cannot be read
        return uuid.uuid4().hex


def _preview_key(key: str) -> str:
    return f"{key}-preview"


def publish(staging: Path, target: Path, written: Sequence[str] = WRITTEN) -> None:
    """Move the finished files into place; run.json goes first and comes back last.

    written: the names that an earlier run may have left there.
    """
    (target / RUN).unlink(missing_ok=True)
    for name in written:  # what an earlier run left and this one did not make
        old = target / name
        if old.is_dir():
            shutil.rmtree(old, ignore_errors=True)
        elif name != RUN:
            old.unlink(missing_ok=True)
    for item in sorted(staging.iterdir(), key=lambda item: item.name == RUN):
        if item.is_dir():
            shutil.rmtree(target / item.name, ignore_errors=True)
        os.replace(item, target / item.name)


@contextmanager
def unfinished_folder(out_dir: Path) -> Iterator[Path]:
    """A hidden folder inside `out_dir` for unfinished files.

    It is gone afterwards; after a failure so are the folders made for it, unless somebody else has put files there.
    """
    made = [folder for folder in (out_dir, *out_dir.parents) if not folder.exists()]
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=out_dir))
    except OSError as error:
        raise InputError(f"Nothing can be written to '{out_dir}': {error.strerror or error}.") from error
    try:
        yield folder
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # not empty
            for parent in made:
                parent.rmdir()
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise InputError(f"Nothing more can be written to '{out_dir}': {error.strerror or error}.") from error
        raise
    else:
        shutil.rmtree(folder, ignore_errors=True)
