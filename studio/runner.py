"""Runs one job on loaded networks: stage after stage, from the cache where it can, into a folder of files.

The folder it fills:

    mesh.glb          textured mesh
    gaussian.ply      3D Gaussian splats
    turntable.mp4     colour beside normals (if frames were asked for, and there is an ffmpeg)
    transforms.json   the camera of each view, for the images in views/
    views/000.png     the views as the networks saw them: cut out, centred, square
    photos/000.png    the same with more of the photograph's pixels, where there are more
    coverage.png      which parts of the texture were observed, inferred or invented (registered cameras only)
    coverage.glb      the mesh wearing that map
    coverage.mp4      the same as a turntable (likewise)
    run.json          how it was made; written last, so its presence says that the folder is complete

All of them share the glTF frame (y up).
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from studio import memory, previews, stages
from studio.cache import NO_ROOM, StageCache
from studio.engine import Engine
from studio.events import RUN, WRITTEN, CamerasFound, Cancelled, FoundView, JobError, Note, Progress, Result
from studio.history import History
from studio.inputs import pixels_of
from studio.interruption import asking_between_blocks
from studio.job import Job
from studio.recipe import Output, Recipe
from studio.report import PeakMemory
from studio.settings import ReconstructSettings
from studio.stages import STAGES
from studio.trust import trust_in_cameras
from studio.write import camera_record, view_names, write_files
from trellis.errors import InputError
from trellis.renderers.turntable import EncoderError

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
        cancelled: asked before the first step, after every step of every stage, and between the blocks of networks.
        cache: where finished stages are kept; None keeps nothing.
        history: measured times, for the time left.
        free_memory: what may be used; None measures.

    Raises:
        InputError: the views or the folder cannot be used, or no object came out.
        Cancelled: `cancelled` said so.
        JobError: there is too little memory, or it ran out; then the details hold the traceback.
    """
    if cache is None or not job.use_cache:
        cache = StageCache(None)
    run = Run(job, engine, emit, cancelled, cache, history)
    try:
        return run.run(free_memory)
    except (InputError, Cancelled, JobError):
        raise
    except Exception as error:
        details = "".join(traceback.format_exception(error))
        if memory.is_out_of_memory(error):
            raise JobError(memory.explain(run.stage, engine.pipeline.device), "memory", details) from None
        raise


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
        self._free = (lambda: memory.free(pipeline.device)) if free is None else lambda: free
        self._size = memory.Size(len(job.views), max(pixels_of(view) for view in job.views))
        stages_to_come = ("prepare", "cameras") if job.until == "cameras" else tuple(_MESSAGES)
        self.plan = memory.fit(pipeline, self._possible(job.settings), self._size, self._free(), stages_to_come)
        self._tell_concessions()
        if self._history is not None:
            self._expected = self._history.expected(self._engine.pace, self.plan.settings, len(job.views))
        networks = [*pipeline.models.values(), pipeline.vggt, pipeline.image_cond_model]
        with self._memory, self._placed(), asking_between_blocks(networks, self._check):
            ended = self._find_cameras() if job.until == "cameras" else self._make_asset()
        if self._history is not None:
            self._history.record(self._engine.pace, self.plan.settings, len(job.views), self.seconds)
        return ended

    def _possible(self, settings: ReconstructSettings) -> ReconstructSettings:
        """The settings without what these networks cannot do; and a word on what they were not trained for."""
        recommended = self._engine.pipeline.sparse_structure_sampler_params.get("cfg_strength")
        if recommended == 1 < settings.structure.cfg_strength:
            self.note("These networks follow the photos unasked; more than 1 of faithfulness makes the shape worse.")
        if settings.structure_candidates == 1 or self._engine.pipeline.camera_frame == "object":
            return settings
        self.note("These networks do not place the photos around the object, so there is one try at its shape.")
        return settings.model_copy(update={"structure_candidates": 1})

    def _make_asset(self) -> Result:
        job = self._job
        with unfinished_folder(job.out_dir) as staging:
            recipe = Recipe(self, self._engine, job.views)
            recipe.add_shape(self.plan)
            recipe["cameras"].ensure()
            self._tell_stated_cameras(recipe)  # those that cannot be used are refused before anything is sampled
            recipe["structure"].ensure()
            self._look_again(len(recipe["structure"].value()))
            recipe.add_surface(self.plan)
            if job.settings.texture_source == "photographs" and not recipe.paints_photographs(job.settings):
                self.note("These networks do not place the photos around the object; its colours come from the splats.")
            for name in ("latent", "decode", "paint", "mesh", "bake"):
                recipe[name].ensure()
            film = self._film(recipe["video"])
            counts = write_files(self, recipe, film, job, self._engine, staging)
            publish(staging, job.out_dir)
        settings = self.plan.settings
        return Result(job.out_dir, settings, self.elapsed(), counts, tuple(self.cached), tuple(self.notes))

    def _film(self, video: Output) -> bytes:
        """The turntable, or nothing: an asset is worth having without it."""
        try:
            return video.value()
        except EncoderError as error:
            self.note(f"There is no turntable video. {error}")
            return b""

    def _look_again(self, voxels: int) -> None:
        """Predict anew for the stages to come, now that the number of voxels is known."""
        to_come = tuple(_MESSAGES)[tuple(_MESSAGES).index("latent") :]
        earlier = self.plan.predicted
        size = replace(self._size, voxels=voxels)
        self.plan = memory.fit(self._engine.pipeline, self.plan.settings, size, self._free(), to_come, self.plan)
        self.plan = replace(self.plan, predicted={**earlier, **self.plan.predicted})
        self._tell_concessions()

    def _tell_concessions(self) -> None:
        for note in self.plan.notes:
            if note not in self.notes:
                self.note(note)

    def _tell_stated_cameras(self, recipe: Recipe) -> None:
        numbers = [str(number) for number, camera in enumerate(recipe.stated, start=1) if camera]
        if recipe.alignment is not None:
            self.note(recipe.alignment)
        elif numbers:
            which = f"camera of photo {numbers[0]} was"
            if len(numbers) > 1:
                which = f"cameras of photos {', '.join(numbers)} were"
            self.note(f"The {which} set by hand; the shape does not depend on that.")

    def _find_cameras(self) -> CamerasFound:
        if self._expected is not None:
            self._expected = {name: self._expected[name] for name in ("prepare", "cameras")}
        recipe = Recipe(self, self._engine, self._job.views)
        recipe.add_shape(self.plan)
        prepared, cameras = recipe["prepare"].value(), recipe.cameras()
        record = camera_record(cameras, view_names(len(prepared)), recipe.camera_frame, recipe.stated)
        trusts: list[float | None] = [None] * len(prepared)
        if recipe.camera_frame == "object":
            trusts = trust_in_cameras(cameras, [view.image for view in prepared])
        views = tuple(
            FoundView(view.name, previews.jpeg(view.image), previews.mask(view.image), view.cut_out_by,
                      tuple(view.notes), trust)
            for view, trust in zip(prepared, trusts, strict=True)
        )  # fmt: skip
        return CamerasFound(self._job.id, views, record, self.elapsed(), tuple(self.cached), tuple(self.notes))

    def make(self, output: Output) -> Any:
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

    def found(self, output: Output) -> None:
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
            "offloaded": self.plan.offload,
            "chunked": self.plan.chunked,
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
