"""How a reconstruction is put together: every stage with its key, its inputs and its function."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Protocol

from studio import stages
from studio.cache import StageCache
from studio.engine import Engine
from studio.fingerprint import images_key, stage_key, view_key
from studio.inputs import View
from studio.memory import Plan
from studio.photo_cameras import PhotoCamera, aligned
from studio.settings import ReconstructSettings
from studio.stages import PreparedView
from studio.view_cameras import ViewCamera, same_camera, view_camera, with_stated
from trellis.errors import InputError
from trellis.renderers.cameras import Cameras


class Maker(Protocol):
    """What outputs are made by: it runs functions, and keeps what they return."""

    cache: StageCache

    def make(self, output: Output) -> Any: ...
    def found(self, output: Output) -> None: ...


class Output:
    """What a stage makes: loaded or computed when it is first needed."""

    def __init__(
        self, maker: Maker, name: str, key: str, inputs: tuple[Output, ...], function: Callable[..., Any]
    ) -> None:
        self._maker, self.name, self.key, self.inputs, self.function = maker, name, key, inputs, function
        self._made: list[Any] = []

    def ensure(self) -> None:
        """See to it that the output exists, in memory or in the cache."""
        if not self._made and self.key in self._maker.cache:
            self._maker.found(self)
        else:
            self.value()

    def value(self) -> Any:
        if not self._made:
            self._made.append(self._maker.make(self))
        return self._made[0]


class Recipe:
    """The outputs of one reconstruction by the names of their stages.

    The stages up to the shape come first; the others follow once its voxels are known, for what they may cost decides
    how they are run.

    Attributes:
        photographs: a hash of each view as the person handed it in.
    """

    def __init__(self, maker: Maker, engine: Engine, views: Sequence[View]) -> None:
        self._maker, self._engine, self._views = maker, engine, views
        self._keys = [_photograph_key(view) for view in views]
        self._outputs: dict[str, Output] = {}
        self._given = [view.camera for view in views]
        self._in_own_frame = any(isinstance(camera, PhotoCamera) for camera in self._given)
        if engine.pipeline.camera_frame != "object" and any(self._given):
            if self._in_own_frame:
                raise InputError(
                    "These networks do not place the photos around the object, so they cannot place cameras of another "
                    "frame; give these to a refinement, which looks for where they stand."
                )
            if not all(self._given):
                raise InputError(
                    "These networks do not place the photos around the object; state the cameras of all photos."
                )
        self.photographs = [view.earlier.photograph if view.earlier else key
                            for view, key in zip(views, self._keys, strict=True)]  # fmt: skip

    def __getitem__(self, name: str) -> Output:
        return self._outputs[name]

    def add_shape(self, plan: Plan) -> None:
        """The stages up to "structure". Prepares the views, for their pixels are part of all further keys."""
        pipeline, s = self._engine.pipeline, plan.settings
        self._add("prepare", (), self._removal, self._prepare, self._keys)
        pixels = [images_key(view.image for view in self["prepare"].value())]
        how = {"chunked": plan.chunked}
        self._add(
            "cameras", ("prepare",), how,
            lambda prepared, report: stages.cameras(prepared, pipeline, report, plan.chunked), pixels,
        )  # fmt: skip
        self._add(
            "structure", ("cameras", "prepare"),
            {**how, "sampler": s.structure.model_dump(mode="json"), "seed": s.seed_of_structure,
             "candidates": s.structure_candidates},
            lambda conditions, prepared, report: stages.structure(
                conditions, s, pipeline, report, plan.chunked, prepared
            ),
            [self["cameras"].key],
        )  # fmt: skip

    def add_surface(self, plan: Plan) -> None:
        """The stages from "latent" to "video"."""
        pipeline, s = self._engine.pipeline, plan.settings
        self._add(
            "latent", ("cameras", "structure"),
            {"chunked": plan.chunked, "sampler": s.latent.model_dump(mode="json"), "seed": s.seed_of_latent,
             "mode": s.mode},
            lambda conditions, coords, report: stages.latent(conditions, coords, s, pipeline, report, plan.chunked),
        )  # fmt: skip
        self._add("decode", ("latent",), {}, lambda slat, report: stages.decode(slat, pipeline, report))
        self._add(
            "mesh", ("decode",), {"simplify": s.simplify, "watertight": s.watertight},
            lambda decoded, report: stages.mesh(decoded[1], s, report, pipeline.device),
        )  # fmt: skip
        if self.paints_photographs(s):
            stated = {"stated": [camera and camera.as_json() for camera in self.stated]}
            photographed = [self["cameras"].key, images_key(view.sharpest for view in self["prepare"].value())]
            self._add(
                "paint", ("decode", "prepare", "cameras"), stated,
                lambda decoded, prepared, conditions, report: stages.paint(
                    *decoded, report, prepared, with_stated(conditions.cameras, self.stated)
                ),
                [self["decode"].key, *photographed],
            )  # fmt: skip
            self._add(
                "bake", ("mesh", "decode", "prepare", "cameras"), {"texture_size": s.texture_size, **stated},
                lambda surfaces, decoded, prepared, conditions, report: stages.bake(
                    surfaces, decoded[0], s, report, prepared, with_stated(conditions.cameras, self.stated),
                    pipeline.device,
                ),
                [self["mesh"].key, self["decode"].key, *photographed],
            )  # fmt: skip
        else:
            self._add("paint", ("decode",), {}, lambda decoded, report: stages.paint(*decoded, report))
            self._add(
                "bake", ("mesh", "decode"), {"texture_size": s.texture_size},
                lambda surfaces, decoded, report: stages.bake(
                    surfaces, decoded[0], s, report, device=pipeline.device
                ),
            )  # fmt: skip
        self._add(
            "video", ("paint", "decode"), {"frames": s.video_frames, "size": s.video_size},
            lambda gaussian, decoded, report: stages.video(gaussian, decoded[1], s, report),
        )  # fmt: skip

    def paints_photographs(self, settings: ReconstructSettings) -> bool:
        """Whether colours are to come from the photographs, and their cameras are in the object's frame."""
        return settings.texture_source == "photographs" and self.camera_frame == "object"

    @property
    def camera_frame(self) -> str:
        """The frame of `cameras`: the networks' own, unless a person states all cameras in that of the object."""
        return "object" if all(self._given) else self._engine.pipeline.camera_frame

    def cameras(self) -> Cameras:
        """The cameras of the views: those that a person states, and for all others those that the networks found."""
        return with_stated(self["cameras"].value().cameras, self.stated)

    @property
    def stated(self) -> list[ViewCamera | None]:
        """Of each view the camera that a person states, around the object; None for one that is the one found.

        Raises InputError if cameras of photographs cannot be brought there.
        """
        return self._settled[0]

    @property
    def alignment(self) -> str | None:
        """How cameras in a frame of their own were brought around the object, in a sentence."""
        return self._settled[1]

    @cached_property
    def _settled(self) -> tuple[list[ViewCamera | None], str | None]:
        if not any(self._given):
            return self._given, None
        found = self["cameras"].value().cameras
        if self._in_own_frame:
            return aligned(self._given, self["prepare"].value(), found)
        if self._engine.pipeline.camera_frame != "object":
            return self._given, None
        # As in a whole file of found cameras of which some were edited.
        edits = [
            None if camera and not camera.aligned and same_camera(camera, view_camera(found, index)) else camera
            for index, camera in enumerate(self._given)
        ]
        return edits, None

    def camera_records(self) -> list[dict[str, Any] | None]:
        """Of each view whose camera a person states: {"stated": that camera around the object, "given": as it was
        stated, "found": the one in its place or None}."""
        found = self["cameras"].value().cameras
        comparable = self._engine.pipeline.camera_frame == "object"
        return [
            camera and {"stated": camera.as_json(), "given": self._given[index].as_json(),
                        "found": view_camera(found, index).as_json() if comparable else None}
            for index, camera in enumerate(self.stated)
        ]  # fmt: skip

    def _add(
        self,
        name: str,
        inputs: tuple[str, ...],
        reads: dict[str, Any],
        function: Callable[..., Any],
        depends_on: list[str] | None = None,
    ) -> None:
        """reads: the settings that the stage reads. depends_on: keys, if not those of the inputs."""
        keys = [self[needed].key for needed in inputs] if depends_on is None else depends_on
        key = stage_key(name, keys, reads, self._engine.environment)
        self._outputs[name] = Output(self._maker, name, key, tuple(self[needed] for needed in inputs), function)

    @property
    def _removal(self) -> dict[str, Any]:
        return {"removal": "rembg" if stages.rembg_available() else "grabcut"}

    def _prepare(self, report: stages.Report) -> list[PreparedView]:
        """Each view is kept by itself too, for jobs with some of these views."""

        def recall(view: View, make: Callable[[], PreparedView]) -> PreparedView:
            photograph = self._keys[self._views.index(view)]
            key = stage_key("view", [photograph], self._removal, self._engine.environment)
            value = self._maker.cache.get(key)
            if value is None:
                value = make()
                self._maker.cache.put(key, value)
            return value

        return stages.prepare(self._views, self._engine.pipeline, report, recall)


def _photograph_key(view: View) -> str:
    try:
        return view_key(view)
    except OSError:  # `prepare` will say that it cannot be read
        return uuid.uuid4().hex
