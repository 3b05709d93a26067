"""Everything a person can choose about a reconstruction.

Range, default, unit and help of each choice are written here and nowhere else: the sliders of the page, the options of
the command line and the messages about bad values are all made from these models.
"""

from __future__ import annotations

import logging
import reprlib
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from annotated_types import Ge, Le, MultipleOf
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from trellis.errors import InputError

logger = logging.getLogger(__name__)

MAX_SEED = 2**31 - 1

Kind = TypeVar("Kind", bound="Settings")

_Time = Annotated[float, Field(ge=0, le=1)]


def choice(title: str, help: str, *, default: Any = ..., unit: str = "", technical: str = "", **bounds: float) -> Any:
    """A pydantic field whose title, help, unit and technical name travel with it; required without a default."""
    extra = {"unit": unit, "technical": technical}
    return Field(default, title=title, description=help, json_schema_extra=extra, **bounds)


class Settings(BaseModel):
    """What a person can choose about one kind of job. A change gives a new object."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SamplerSettings(Settings):
    """How a rectified flow is sampled; the names are those of a checkpoint's pipeline.json."""

    steps: int = choice(
        "Steps",
        "More steps settle the result better and take proportionally longer.",
        technical="Euler steps",
        ge=1,
        le=50,
    )
    cfg_strength: float = choice(
        "Faithfulness to the photos",
        "How strongly the photos steer; 1 adds nothing, high values exaggerate.",
        technical="CFG strength",
        ge=0,
        le=10,
    )
    rescale_t: float = choice(
        "Attention to the coarse",
        "Above 1, more of the steps go into the coarse shape and fewer into detail.",
        technical="rescale t",
        ge=1,
        le=6,
    )
    guidance_rescale: float = choice(
        "Calming",
        "Takes back the exaggeration that strong steering causes.",
        technical="guidance rescale",
        ge=0,
        le=1,
    )
    cfg_interval: tuple[_Time, _Time] = choice(
        "Steered part",
        "Between which times the photos steer; time runs from 1 (noise) to 0 (finished).",
        technical="CFG interval",
    )

    @model_validator(mode="after")
    def _ordered(self) -> SamplerSettings:
        low, high = self.cfg_interval
        if low > high:
            raise ValueError(f"the lower end of the interval, {low:g}, must not lie above its upper end, {high:g}")
        return self


_STRUCTURE = SamplerSettings(steps=30, cfg_strength=7.5, rescale_t=5.0, guidance_rescale=0.7, cfg_interval=(0.6, 1.0))
_LATENT = SamplerSettings(steps=12, cfg_strength=3.0, rescale_t=3.0, guidance_rescale=0.5, cfg_interval=(0.6, 1.0))


class ReconstructSettings(Settings):
    """All settings of one reconstruction."""

    seed: int = choice(
        "Seed",
        "The same photos, settings and seed give the same asset; another seed guesses anew at what no photo shows.",
        default=0,
        ge=0,
        le=MAX_SEED,
    )
    randomise_seed: bool = choice(
        "New seed every time", "Draws a seed for every reconstruction and records it in run.json.", default=False
    )
    structure_seed: int | None = choice(
        "Seed of the shape", "Guesses anew at the shape only; not given, it follows the seed.",
        default=None, ge=0, le=MAX_SEED,
    )  # fmt: skip
    structure_candidates: int = choice(
        "Shapes to choose from",
        "Works out the rough shape so many times and keeps the one that fits the photos' outlines best; each takes as "
        "long again.",
        default=1,
        technical="best of N samples by silhouette IoU",
        ge=1,
        le=8,
    )
    latent_seed: int | None = choice(
        "Seed of the detail", "Guesses anew at colour and detail and keeps the shape; not given, it follows the seed.",
        default=None, ge=0, le=MAX_SEED,
    )  # fmt: skip
    structure: SamplerSettings = _STRUCTURE
    latent: SamplerSettings = _LATENT
    mode: Literal["multidiffusion", "stochastic"] = choice(
        "How the views share the work",
        "multidiffusion: every step sees all views. stochastic: each step sees one "
        "view, in turns, which is faster with many views.",
        default="multidiffusion",
        technical="latent sampling mode",
    )
    simplify: float = choice(
        "Simplification",
        "Share of the triangles to remove; higher makes a smaller file.",
        default=0.95,
        technical="mesh decimation",
        ge=0.90,
        le=0.98,
    )
    texture_size: int = choice(
        "Texture size",
        "Side of the square texture; larger shows more detail.",
        default=1024,
        unit="pixels",
        technical="base colour texture",
        ge=512,
        le=2048,
        multiple_of=256,
    )
    texture_source: Literal["splats", "photographs"] = choice(
        "Colours from",
        "splats: as the networks see them, even and all around. photographs: laid over those, on splats and texture, "
        "where a photo looks straight at the surface, which is sharper if the cameras are right.",
        default="splats",
        technical="texture bake source",
    )
    watertight: bool = choice(
        "Closed for printing",
        "Closes every hole, so that the surface encloses a volume; where that is impossible it is made anew, coarser.",
        default=False,
    )
    longest_side: float | None = choice(
        "Real length",
        "Of the object's longest side. Further formats (exports/) then have that size; in all other files, and without "
        "it, the studio's frame is one metre wide.",
        default=None,
        unit="metres",
        ge=0.001,
        le=1000,
    )
    video_frames: int = choice(
        "Turntable frames",
        "Pictures of the turntable video, 15 a second; filming them takes a good part of the time. 0: no video.",
        default=120,
        ge=0,
        le=240,
    )
    video_size: int = choice(
        "Turntable size",
        "Height of the turntable video; it is twice as wide.",
        default=512,
        unit="pixels",
        ge=64,
        le=1024,
        multiple_of=64,
    )

    @property
    def seed_of_structure(self) -> int:
        """The seed that the structure is sampled with."""
        return self.seed if self.structure_seed is None else self.structure_seed

    @property
    def seed_of_latent(self) -> int:
        """The seed that the latent is sampled with."""
        return self.seed if self.latent_seed is None else self.latent_seed

    def with_drawn_seed(self) -> ReconstructSettings:
        """Itself, or a copy with a random seed if that was asked for (and no further one to ask for)."""
        if not self.randomise_seed:
            return self
        return self.model_copy(update={"seed": secrets.randbelow(MAX_SEED + 1), "randomise_seed": False})


@dataclass(frozen=True)
class Setting:
    """One leaf of a settings model, as a slider or an option needs it."""

    path: tuple[str, ...]  # ("structure", "steps")
    info: FieldInfo

    @property
    def key(self) -> str:
        """One word, as in "structure_steps"."""
        return "_".join(self.path)

    @property
    def title(self) -> str:
        return self.info.title or self.path[-1]

    @property
    def help(self) -> str:
        return self.info.description or ""

    @property
    def unit(self) -> str:
        return self.info.json_schema_extra["unit"]

    @property
    def technical(self) -> str:
        return self.info.json_schema_extra["technical"]

    @property
    def type(self) -> Any:
        """Its type, without the None of an optional setting."""
        given = [kind for kind in get_args(self.info.annotation) if kind is not type(None)]
        return given[0] if self.optional else self.info.annotation

    @property
    def optional(self) -> bool:
        """Whether it may be left open; None stands for that."""
        return type(None) in get_args(self.info.annotation)

    @property
    def choices(self) -> tuple[str, ...]:
        """The words to choose from; empty for anything but a choice of words."""
        return get_args(self.type) if get_origin(self.type) is Literal else ()

    @property
    def is_interval(self) -> bool:
        return get_origin(self.type) is tuple

    @property
    def low(self) -> float | None:
        return 0.0 if self.is_interval else next((m.ge for m in self.info.metadata if isinstance(m, Ge)), None)

    @property
    def high(self) -> float | None:
        return 1.0 if self.is_interval else next((m.le for m in self.info.metadata if isinstance(m, Le)), None)

    @property
    def step(self) -> float:
        """A sensible slider step."""
        multiple = next((m.multiple_of for m in self.info.metadata if isinstance(m, MultipleOf)), None)
        if multiple is not None:
            return multiple
        if self.type is int:
            return 1
        return 0.1 if self.high - self.low > 1 else 0.01 if self.high - self.low < 0.5 else 0.05

    def of(self, settings: BaseModel) -> Any:
        """Its value in `settings`."""
        value: Any = settings
        for name in self.path:
            value = getattr(value, name)
        return value


def leaves(model: type[BaseModel] = ReconstructSettings, prefix: tuple[str, ...] = ()) -> Iterator[Setting]:
    """All settings, in the order of definition, nested ones with their path."""
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from leaves(info.annotation, (*prefix, name))
        else:
            yield Setting((*prefix, name), info)


def make_settings(values: Mapping[str, Any], defaults: Kind | None = None) -> Kind:
    """Settings from flat values by key ("structure_steps": 12, ...), over `defaults`; None counts as not given.

    Without defaults, those of a reconstruction.

    Raises InputError, one sentence per bad value, naming the setting, its range and what came.
    """
    defaults = defaults or ReconstructSettings()
    tree = defaults.model_dump()
    known = {setting.key: setting for setting in leaves(type(defaults))}
    for key, value in values.items():
        if key not in known:
            raise InputError(f"There is no setting {key!r}; the settings are {', '.join(known)}.")
        if value is None:
            continue
        node = tree
        for name in known[key].path[:-1]:
            node = node[name]
        node[known[key].path[-1]] = value
    try:
        return type(defaults).model_validate(tree)
    except ValidationError as error:
        raise InputError(" ".join(_sentences(error, type(defaults)))) from error


def settings_from_json(value: Any, defaults: Kind | None = None) -> Kind:
    """Settings from a JSON object shaped like the model, parts of which may be left out; see `make_settings`.

    Raises InputError, one sentence per problem, whatever comes in.
    """
    if not isinstance(value, Mapping):
        raise InputError(f"Settings must be an object of names and values, but a {type(value).__name__} came.")
    defaults = defaults or ReconstructSettings()
    tree = defaults.model_dump()
    for key, item in value.items():
        nested = isinstance(tree.get(key), dict) and isinstance(item, Mapping)
        tree[str(key)] = {**tree[key], **item} if nested else item
    try:
        return type(defaults).model_validate(tree)
    except ValidationError as error:
        raise InputError(" ".join(_sentences(error, type(defaults)))) from error


def defaults_of_checkpoint(
    structure_params: Mapping[str, Any],
    latent_params: Mapping[str, Any],
    structure_candidates: int = 1,
    camera_frame: str = "first_view",
) -> ReconstructSettings:
    """The defaults with a checkpoint's own laid over them: parameters of its samplers, how many shapes to choose from,
    and colours from the photographs if it places them around the object (`camera_frame` is "object").

    A parameter that the settings do not know, or outside their range, is left out with a line in the log: such a
    checkpoint is usable, only its recommendation is not.
    """
    settings = ReconstructSettings(texture_source="photographs" if camera_frame == "object" else "splats")
    recommended = {"structure": {**structure_params, "candidates": structure_candidates}, "latent": latent_params}
    for name, params in recommended.items():
        for key, value in params.items():
            try:
                settings = make_settings({f"{name}_{key}": value}, settings)
            except InputError as error:
                logger.warning("The checkpoint's default for %s %s is not used: %s", name, key, error)
    return settings


def _sentences(error: ValidationError, model: type[BaseModel]) -> Iterator[str]:
    known = {setting.path: setting for setting in leaves(model)}
    for problem in error.errors():
        path = tuple(part for part in problem["loc"] if isinstance(part, str))
        setting = known.get(path)
        where = " ".join(path).replace("_", " ").capitalize() or "The settings"
        if problem["type"] == "extra_forbidden":
            yield f"There is no setting {reprlib.repr(path[-1])}."
        elif problem["type"].startswith("model_"):
            yield f"{where} must be an object of names and values, but {reprlib.repr(problem['input'])} came."
        elif setting is None:
            yield f"{where}: {problem['msg'].removeprefix('Value error, ')}."
        else:
            yield f"{where} must be {expected(setting)}, but {reprlib.repr(problem['input'])} came."


def expected(setting: Setting) -> str:
    """What values a setting takes, in words."""
    if setting.choices:
        return f"one of {', '.join(setting.choices)}"
    if setting.type is bool:
        return "true or false"
    span = f"from {setting.low:g} to {setting.high:g}" if setting.high <= 1e6 else f"from 0 to {setting.high}"
    if setting.is_interval:
        return f"two numbers {span}"
    kind = "a whole number" if setting.type is int else "a number"
    multiple = f" in steps of {setting.step}" if setting.type is int and setting.step > 1 else ""
    unit = f" {setting.unit}" if setting.unit else ""
    return f"{kind} {span}{unit}{multiple}"
