"""The named endpoints: the studio for other programs, through `gradio_client`, plain HTTP, or as MCP tools.

They are attached to hidden components rather than declared by `gr.api`, because only components check that a file which
a client names has been uploaded, and is no other file of this machine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from studio.camera_files import cameras_of_transforms
from studio.events import CamerasFound, Cancelled, JobError, Result
from studio.job import make_job
from studio.pages.follow import FollowedJob, Watch
from studio.pages.refine import job_of_uploads
from studio.pages.result_view import FORMATS
from studio.pages.sessions import Sessions
from studio.presets import PRESETS, apply_preset
from studio.refine_events import Refined
from studio.refine_settings import RefineSettings
from studio.replay import read_run, revise, view_names
from studio.service import Service
from studio.settings import make_settings
from trellis.errors import InputError

# Gradio describes a list of files, and free JSON, to the Model Context Protocol by schemas that its own check of calls
# fails on. These say what can be handed in. They must not let the path of any other file of this machine through,
# neither as a file nor hidden among the settings: Gradio would read it on behalf of the caller.
_NOTHING_ELSE = {"additionalProperties": {"type": "null"}}  # Gradio cannot read a plain False
_UPLOADED = f"^(https?://|{re.escape(get_upload_folder().rstrip('/'))}/[0-9a-f]{{64}}/[^/]+$)"
_FILES = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "path": {
                "type": "string",
                "pattern": _UPLOADED,
                "description": "the file's address on the web, or what a POST to /gradio_api/upload answered",
            },
            "meta": {
                "type": "object",
                "properties": {"_type": {"enum": ["gradio.FileData"]}},
                "required": ["_type"],
                **_NOTHING_ELSE,
            },
        },
        "required": ["path", "meta"],
        **_NOTHING_ELSE,
    },
}
_VALUES = {
    "type": "object",
    "additionalProperties": {
        "anyOf": [{"type": kind} for kind in ("number", "boolean", "string")]
        + [{"type": "array", "items": {"type": "number"}}]
    },
}
# Likewise for a transforms.json: numbers and words by name, of all views together and of each.
_WORDS = {"anyOf": [{"type": kind} for kind in ("number", "boolean", "string", "null")]}
_MATRIX = {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}
_FRAME = {"type": "object", "properties": {"transform_matrix": _MATRIX}, "additionalProperties": _WORDS}
_TRANSFORMS = {
    "type": "object",
    "properties": {"frames": {"type": "array", "items": _FRAME}},
    "additionalProperties": _WORDS,
}


class Api:
    """Adds the endpoints to the current `gr.Blocks`. `mcp`: they are offered as tools too."""

    def __init__(self, service: Service, sessions: Sessions, refine_only: bool = False, mcp: bool = False) -> None:
        self._service, self._sessions = service, sessions
        with gr.Column(visible=False):
            self._trigger = gr.Button("API")
            photos = gr.File(label="Photos of one object, the front first", file_count="multiple")
            steps = gr.Number(RefineSettings().steps, label="Steps", precision=0)
            model = gr.File(label="Model (GLB)")
            report = gr.JSON(label="Report")
            settings = gr.JSON({}, label="Further settings by name, as in the table of settings")
            if not refine_only:
                self._offer_reconstruction(photos, settings, model, report, mcp)
            cameras = gr.File(label="Cameras: transforms.json or COLMAP's text files", file_count="multiple")
            if mcp:
                for several in (photos, cameras):
                    several.api_info = lambda: _FILES
                settings.api_info = lambda: _VALUES
            self._offer("refine", self.refine, [model, photos, cameras, steps, settings], [model, report])

    def _offer_reconstruction(self, photos: Any, settings: Any, model: Any, report: Any, mcp: bool) -> None:
        preset = gr.Dropdown(list(PRESETS), value="standard", label="Preset")
        seed = gr.Number(0, label="Seed", precision=0)
        splats, turntable = gr.File(label="Splats (PLY)"), gr.File(label="Turntable (MP4)")
        run = gr.Textbox(label="Key of a run, as its report gives it")
        simplify = gr.Number(0.95, label="Share of the triangles to remove")
        texture = gr.Number(1024, label="Side of the texture in pixels", precision=0)
        made = [model, splats, turntable, report]
        self._offer("reconstruct", self.reconstruct, [photos, preset, seed, settings], made)
        self._offer("find_cameras", self.find_cameras, [photos], [report])
        cameras = gr.JSON(label="Cameras of the photos, as in a transforms.json")
        if mcp:
            cameras.api_info = lambda: _TRANSFORMS
        self._offer("bake_again", self.bake_again, [run, simplify, texture, cameras], [model, report])

    def _offer(self, name: str, function: Callable[..., Any], inputs: list[Any], outputs: list[Any]) -> None:
        # The service has a queue of its own, and serves visitors in turn.
        self._trigger.click(function, inputs, outputs, api_name=name, api_description=function.__doc__,
                            concurrency_limit=None)  # fmt: skip

    async def reconstruct(
        self,
        photos: list[str],
        preset: str = "standard",
        seed: int = 0,
        settings: dict[str, Any] | None = None,
        request: gr.Request = None,
    ) -> tuple[str, str, str | None, dict[str, Any]]:
        """Turn photos of one object into a textured 3D model.

        Args:
            photos: 1 to 32 image files, the front first, or one short video.
            preset: draft, standard or best.
            seed: the same photos, settings and seed give the same model.
            settings: further settings by name, for instance {"texture_size": 2048}.

        Returns:
            The model as GLB, the Gaussian splats as PLY, a turntable as MP4 (null if no frames were asked for),
            and the report of the run.
        """
        with _told(), self._sessions.guest(request.session_hash) as session:
            chosen = make_settings({**(settings or {}), "seed": seed}, apply_preset(preset, self._service.defaults))
            key, folder = self._sessions.new_run(session)
            result = await self._run(make_job(photos, chosen, folder, formats=FORMATS, user=session.key), Result)
        film = None if result.turntable is None else str(result.turntable)
        return str(result.mesh), str(result.gaussian), film, _report(result, key)

    async def find_cameras(self, photos: list[str], request: gr.Request = None) -> dict[str, Any]:
        """Find out where each photo of an object was taken from, without making a model.

        Args:
            photos: 1 to 32 image files, the front first.

        Returns:
            {"cameras": as in transforms.json, "views": [{"name", "trust" from 0 to 1 or null, "notes"}]}.
        """
        with _told(), self._sessions.guest(request.session_hash) as session:
            job = make_job(photos, self._service.defaults, session.folder / "none", user=session.key, until="cameras")
            found = await self._run(job, CamerasFound)
        views = [{"name": view.name, "trust": view.trust, "notes": list(view.notes)} for view in found.views]
        return {"cameras": found.transforms, "views": views}

    async def bake_again(
        self,
        run: str,
        simplify: float = 0.95,
        texture_size: int = 1024,
        cameras: dict[str, Any] | None = None,
        request: gr.Request = None,
    ) -> tuple[str, dict[str, Any]]:
        """Write the model of an earlier run again, finer or coarser, without guessing anything anew.

        Args:
            run: the key that the report of `reconstruct` gave.
            simplify: share of the triangles to remove, from 0.90 to 0.98.
            texture_size: pixels, from 512 to 2048 in steps of 256.
            cameras: the content of a transforms.json for all photos: that of `find_cameras` or of a run, edited; or one
                in any frame, without "frame", whose file_path are the photos' names. Null keeps those of the run.

        Returns:
            The model as GLB, and the report.
        """
        with _told(), self._sessions.guest(request.session_hash) as session:
            earlier = self._sessions.shelf.find(run)
            if earlier is None:
                raise InputError("There is no such run, or it has been removed.")
            key, folder = self._sessions.new_run(session)
            changes = {"simplify": simplify, "texture_size": texture_size}
            stated = None
            if cameras is not None:
                stated = cameras_of_transforms(cameras, view_names(read_run(earlier)[0]), "What was sent")
            job = revise(earlier, changes, folder, FORMATS, session.key, stated)
            result = await self._run(job, Result)
        return str(result.mesh), _report(result, key)

    async def refine(
        self,
        model: str,
        photos: list[str],
        cameras: list[str] | None = None,
        steps: int = 400,
        settings: dict[str, Any] | None = None,
        request: gr.Request = None,
    ) -> tuple[str, dict[str, Any]]:
        """Make a model agree with photos of the object.

        Args:
            model: a GLB file.
            photos: at least two image files.
            cameras: a transforms.json, or COLMAP's cameras.txt and images.txt; without, cameras are estimated.
            steps: from 20 to 4000; each looks at one photo.
            settings: further settings of a refinement by name, for instance {"geometry": "fixed"}.

        Returns:
            The refined model as GLB, and {"helped": whether it helped, "message", "views": scores before and after}.
        """
        with _told(), self._sessions.guest(request.session_hash) as session:
            chosen = make_settings({**(settings or {}), "steps": steps}, RefineSettings())
            out, given = (self._sessions.new_folder(session, stem) for stem in ("refined", "given"))
            job = job_of_uploads(given, model, photos or (), cameras or (), chosen, out, session.key)
            refined = await self._run(job, Refined)
        fields = ("name", "placed", "held_out", "psnr_before", "psnr_after", "iou_before", "iou_after")
        views = [{field: getattr(view, field) for field in fields} for view in refined.views]
        return str(refined.mesh), {"helped": refined.helped, "message": refined.message, "views": views}

    async def _run(self, job: Any, kind: type) -> Any:
        """Hand a job in and wait for its end; a client that goes away takes its job along."""
        ticket = self._service.submit(job)
        work = FollowedJob(ticket.events(), ticket.cancelled)
        try:
            async for _ in Watch(work):
                pass
        finally:
            if not work.ended:
                work.cancel()
        if not isinstance(work.outcome, kind):
            raise work.error or Cancelled()
        return work.outcome


@contextmanager
def _told() -> Iterator[None]:
    """Tell the client why a job ended badly."""
    try:
        yield
    except (InputError, JobError) as error:
        raise gr.Error(str(error), print_exception=False) from error
    except Cancelled as error:
        raise gr.Error("The job was cancelled.", print_exception=False) from error


def _report(result: Result, key: str) -> dict[str, Any]:
    record = json.loads(result.run.read_text(encoding="utf-8"))
    return {**record, "run": key}
