"""Checkpoint folders: a `pipeline.json` and, for each network, a configuration and its weights.

    pipeline.json              {"name": ..., "args": {...}}, optionally "licence": an SPDX identifier, of the weights
    ckpts/<stem>.json          {"name": class, "args": {constructor arguments}}
    ckpts/<stem>.safetensors   state dict, optionally with 8-bit tensors (see `quantisation`)

A checkpoint is a local folder if that folder holds a pipeline.json, and otherwise a Hugging Face repository, looked up
in the local cache before the network. Nothing in a checkpoint is executed: classes come from a fixed table, arguments
are plain JSON, weights are safetensors (one published file, DINOv2's, is a pickle; torch's restricted loader reads it).
"""

from __future__ import annotations

import inspect
import logging
import pickle
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.overrides import TorchFunctionMode

from trellis import models
from trellis.errors import InputError
from trellis.files import read_configuration
from trellis.pipelines.hub import MINI_HINT, hub_file, torch_hub_file
from trellis.pipelines.published import LICENCES, TORCH_HUB_ENCODERS, VGGT_REPOSITORY
from trellis.pipelines.quantisation import dequantise

logger = logging.getLogger(__name__)

# Weights that published files hold and no network here has: remains of the conditioner's training.
UNUSED_PREFIXES = ("fuse_blocks.",)
SAMPLER = "FlowEulerGuidanceIntervalSampler"


@dataclass(frozen=True)
class ModelReport:
    """How one network's weights fitted.

    missing: parameters and buffers the file lacks; they keep their initial values, usually random.
    surplus: entries of the file that the network has no place for (those known to be unused are not listed).
    licence: of the weights, as far as the checkpoint or this package states it.
    """

    name: str
    file: Path
    missing: tuple[str, ...] = ()
    surplus: tuple[str, ...] = ()
    licence: str | None = None


@dataclass
class LoadReport:
    """How all networks' weights fitted; `complete` if every parameter was found and every entry used."""

    models: list[ModelReport] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return not (self.missing or self.surplus)

    @property
    def missing(self) -> dict[str, tuple[str, ...]]:
        """Missing keys of the networks that miss some."""
        return {model.name: model.missing for model in self.models if model.missing}

    @property
    def surplus(self) -> dict[str, tuple[str, ...]]:
        """Surplus keys of the networks whose file has some."""
        return {model.name: model.surplus for model in self.models if model.surplus}

    def add(self, model: ModelReport) -> None:
        """Append one network's report, and log what did not fit."""
        self.models.append(model)
        for kind, keys in (("missing", model.missing), ("surplus", model.surplus)):
            if keys:
                logger.warning("%s: %d %s weights in %s: %s", model.name, len(keys), kind, model.file, _some(keys))


@dataclass(frozen=True)
class SamplerSettings:
    """One sampler of pipeline.json: constructor arguments and default GuidanceParams."""

    args: dict[str, float]
    params: dict[str, Any]


@dataclass(frozen=True)
class PipelineSettings:
    """What pipeline.json states beside its networks; the last five default to what suits the published ones."""

    sparse_structure_sampler: SamplerSettings
    slat_sampler: SamplerSettings
    slat_normalization: dict[str, list[float]]
    image_resolution: int = 518
    camera_frame: str = "first_view"
    camera_readings: int = 1
    structure_candidates: int = 1
    structure_thresholds: tuple[float, ...] = (0.0,)


class Checkpoint:
    """An opened checkpoint: its pipeline arguments, and its networks on request.

    path: a local folder with a pipeline.json, or a Hugging Face repository id.
    revision: branch, tag or commit of the repository; ignored for a folder.
    device: where networks are loaded to. Each weight goes from the mapped file straight to its place there; on a CPU
        the mapped file is the place, as long as nothing has to be converted.

    Raises InputError if there is no such checkpoint or its pipeline.json cannot be used.
    """

    def __init__(
        self, path: str | Path, revision: str | None = None, device: torch.device | str = "cpu"
    ) -> None:
        self.name = str(path)
        self.revision = revision
        self.device = torch.device(device)
        self.report = LoadReport()
        folder = Path(path).expanduser()
        self.folder = folder if (folder / "pipeline.json").is_file() else None
        if self.folder is None and folder.is_dir():
            raise InputError(f"The folder '{self.name}' holds no pipeline.json, so it is no checkpoint; {MINI_HINT}.")
        config = read_configuration(self._file("pipeline.json"))
        self.args: dict[str, Any] = _member(config, "args", dict, "pipeline.json")
        self.licence = config.get("licence")
        if not (self.licence is None or (isinstance(self.licence, str) and len(self.licence) <= 200)):
            raise InputError(f"The licence in pipeline.json must be a short text, but is {self.licence!r:.80}.")
        stems = _member(self.args, "models", dict, "pipeline.json")
        if not all(isinstance(stem, str) for stem in stems.values()):
            raise InputError("In pipeline.json, 'models' must map names to file stems.")
        self.stems: dict[str, str] = stems

    def settings(self) -> PipelineSettings:
        """The pipeline's own settings; InputError if one is missing or of the wrong kind."""
        normalization = _member(self.args, "slat_normalization", dict, "pipeline.json")
        for key in ("mean", "std"):
            if not all(isinstance(v, int | float) for v in _member(normalization, key, list, "slat_normalization")):
                raise InputError(f"slat_normalization must have numbers only under '{key}'.")
        resolution = self.args.get("image_resolution", PipelineSettings.image_resolution)
        if not isinstance(resolution, int) or not 1 <= resolution <= 4096:
            raise InputError(f"image_resolution in pipeline.json must be in pixels, but is {resolution!r:.80}.")
        readings = self.args.get("camera_readings", 1)
        if not (isinstance(readings, int) and 1 <= readings <= 32):
            raise InputError(f"camera_readings in pipeline.json must be 1 to 32, but is {readings!r:.80}.")
        candidates = self.args.get("structure_candidates", 1)
        if not (isinstance(candidates, int) and 1 <= candidates <= 100):
            raise InputError(f"structure_candidates in pipeline.json must be 1 to 100, but is {candidates!r:.80}.")
        thresholds = self.args.get("structure_thresholds", [0.0])
        if not (
            isinstance(thresholds, list)
            and 1 <= len(thresholds) <= 16
            and all(isinstance(t, int | float) and -20 <= t <= 20 for t in thresholds)
        ):
            raise InputError(f"structure_thresholds in pipeline.json must be logits, but are {thresholds!r:.80}.")
        return PipelineSettings(
            self._sampler("sparse_structure_sampler"),
            self._sampler("slat_sampler"),
            normalization,
            resolution,
            self.args.get("camera_frame", PipelineSettings.camera_frame),
            readings,
            candidates,
            tuple(thresholds),
        )

    def _sampler(self, key: str) -> SamplerSettings:
        config = _member(self.args, key, dict, "pipeline.json")
        if config.get("name") != SAMPLER:
            raise InputError(f"The {key} must be a {SAMPLER}, but pipeline.json names {config.get('name')!r:.80}.")
        args = config.get("args", {})
        if not isinstance(args, dict) or not set(args) <= {"sigma_min"}:
            raise InputError(f"The {key} takes only sigma_min, but pipeline.json gives {args!r:.80}.")
        if not isinstance(args.get("sigma_min", 0.0), int | float):
            raise InputError(f"The sigma_min of {key} must be a number, but is {args['sigma_min']!r:.80}.")
        params = config.get("params", {})
        if not isinstance(params, dict):
            raise InputError(f"The params of {key} must be an object, but are {params!r:.80}.")
        return SamplerSettings(args, params)

    def load_model(self, key: str) -> nn.Module:
        """The network listed under `key` in the pipeline's models."""
        if key not in self.stems:
            raise InputError(f"The checkpoint '{self.name}' lists no {key}.")
        return self._load_stem(self.stems[key], key)

    def load_vggt(self, source: str | None = None) -> nn.Module:
        """VGGT from `source`, default pipeline.json's "vggt_model", default the published network.

        The configured one is a file stem in this checkpoint, or like `source` a repository with config.json and
        model.safetensors; `source` may also be such a folder.
        """
        stem = source or self.args.get("vggt_model", VGGT_REPOSITORY)
        if source is None and (self._is_own(stem) or self._local_pair(stem) is not None):
            return self._load_stem(stem, "vggt_model", "VGGT")
        folder = Path(source).expanduser() if source else None
        if folder is None and self.folder is not None:
            folder = self.folder / PurePosixPath(stem).name  # a copy of that repository beside pipeline.json
        if folder is not None and (folder / "config.json").is_file():
            files = folder / "config.json", folder / "model.safetensors"
        else:
            repository = "/".join(_checked_stem(stem).parts)
            files = hub_file(repository, "config.json"), hub_file(repository, "model.safetensors")
        args = read_configuration(files[0])
        known = inspect.signature(models.VGGT).parameters
        ignored = sorted(set(args) - set(known))
        if ignored:
            logger.info("VGGT's config.json also states %s, which this network has no use for", _some(ignored))
        args = {key: value for key, value in args.items() if key in known}
        return self._build("VGGT", args, read_safetensors(files[1]), "vggt_model", files[1], LICENCES.get(stem))

    def load_image_encoder(self, source: str | None = None) -> nn.Module:
        """DINOv2 from `source`, default pipeline.json's "image_cond_model": a file stem here or a torch-hub entry."""
        name = source or self.args.get("image_cond_model", "dinov2_vitl14_reg")
        if name not in TORCH_HUB_ENCODERS:
            return self._load_stem(name, "image_cond_model", "DinoVisionTransformer")
        encoder = TORCH_HUB_ENCODERS[name]
        filename = encoder.file
        local = [self.folder / filename, self.folder / "ckpts" / filename] if self.folder else []
        file = next((path for path in local if path.is_file()), None) or torch_hub_file(filename, encoder.url)
        try:
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
            raise InputError(f"{filename} is damaged or holds more than weights; download it again.") from error
        return self._build("DinoVisionTransformer", encoder.args, state, "image_cond_model", file, encoder.licence)

    def _load_stem(self, stem: str, key: str, expected_class: str | None = None) -> nn.Module:
        config_file, weights_file = self._pair(stem)
        config = read_configuration(config_file)
        class_name = _member(config, "name", str, config_file.name)
        if expected_class not in (None, class_name):
            raise InputError(f"{config_file.name} describes a {class_name}, but {key} must be a {expected_class}.")
        args = _member(config, "args", dict, config_file.name)
        return self._build(class_name, args, read_safetensors(weights_file), key, weights_file, self._licence_of(stem))

    def _licence_of(self, stem: str) -> str | None:
        """Of the weights of a stem: those of another repository are under another licence."""
        if self._is_own(stem) or self._local_pair(stem) is not None:
            return self.licence
        return LICENCES.get("/".join(_checked_stem(stem).parts[:2]))

    def _build(
        self,
        class_name: str,
        args: dict[str, Any],
        state: dict[str, torch.Tensor],
        key: str,
        file: Path,
        licence: str | None,
    ) -> nn.Module:
        module = build_model(class_name, args, file.stem, empty=True)
        if any(name not in state for name in module.state_dict()):
            module = build_model(class_name, args, file.stem)  # something keeps its initial values
        self.report.add(replace(load_weights(module, state, key, file, self.device), licence=licence))
        return module.to(self.device)

    def _pair(self, stem: str) -> tuple[Path, Path]:
        """Configuration and weights of a stem: in this checkpoint, or `owner/repository/stem` of another one."""
        pair = self._local_pair(stem)
        if pair is not None:
            return pair
        parts = _checked_stem(stem).parts
        if len(parts) > 2 and not self._is_own(stem):
            repository, rest = "/".join(parts[:2]), "/".join(parts[2:])
            return hub_file(repository, f"{rest}.json"), hub_file(repository, f"{rest}.safetensors")
        return self._file(f"{stem}.json"), self._file(f"{stem}.safetensors")

    @staticmethod
    def _is_own(stem: str) -> bool:
        """Whether a stem can only mean a file of this checkpoint, not `owner/repository` of another."""
        return _checked_stem(stem).parts[0] == "ckpts"

    def _local_pair(self, stem: str) -> tuple[Path, Path] | None:
        relative = _checked_stem(stem)
        if self.folder is None:
            return None
        base = self.folder / relative
        pair = base.with_name(f"{base.name}.json"), base.with_name(f"{base.name}.safetensors")
        return pair if all(file.is_file() for file in pair) else None

    def _file(self, name: str) -> Path:
        if self.folder is None:
            return hub_file(self.name, name, self.revision)
        if not (self.folder / name).is_file():
            raise InputError(f"The checkpoint '{self.name}' is incomplete: its file {name} is missing.")
        return self.folder / name


def build_model(class_name: str, args: dict[str, Any], name: str, empty: bool = False) -> nn.Module:
    """Construct a network named by a configuration, in evaluation mode.

    name: whose configuration it is, for messages.
    empty: give weights and persistent buffers a shape and no memory, for a caller that replaces all of them.

    Raises InputError for a class outside `trellis.models.MODEL_CLASSES` or for arguments it does not take.
    """
    if class_name not in models.MODEL_CLASSES:
        known = ", ".join(models.MODEL_CLASSES)
        raise InputError(f"The configuration of {name} names the class {class_name!r}; known are {known}.")
    cls = getattr(models, class_name)
    try:
        inspect.signature(cls).bind(**args)
        with torch.random.fork_rng(devices=[]), _Empty() if empty else nullcontext():
            return cls(**args).eval()
    except InputError:
        raise
    except Exception as error:  # constructors meet arbitrary JSON values here
        raise InputError(f"The configuration of {name} does not fit {class_name}: {error!s:.200}.") from error


def load_weights(
    module: nn.Module, state: dict[str, torch.Tensor], name: str, file: Path, device: torch.device
) -> ModelReport:
    """Give a module the entries of a state dict, one after another moved to a device and the module's dtypes.

    Missing and surplus keys are reported, not refused; entries under a prefix known to be unused are passed over.
    Raises InputError if a shape differs.
    """
    unused = (*UNUSED_PREFIXES, *getattr(module, "UNUSED_PREFIXES", ()))
    own = module.state_dict()
    for key, value in state.items():
        if key in own and own[key].shape != value.shape:
            raise InputError(
                f"The weights of {name} do not fit its configuration: {key} is {list(value.shape)} in {file.name}, "
                f"but {list(own[key].shape)} is expected."
            )
    missing = tuple(key for key in own if key not in state)
    surplus = tuple(key for key in state if key not in own and not key.startswith(unused))
    placed = {key: value.to(device, own[key].dtype) for key, value in state.items() if key in own}
    module.load_state_dict(placed, strict=False, assign=True)
    return ModelReport(name, file, missing, surplus)


def read_safetensors(file: Path) -> dict[str, torch.Tensor]:
    """All weights of a file, on the CPU, unpacked where they are stored in 8 bits; InputError if it is damaged."""
    try:
        return dequantise(load_file(file))
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{file.name} is damaged or incomplete ({error}); download it again.") from error


class _Empty(TorchFunctionMode):
    """Makes tensors without memory, and draws no random numbers into them: some draws are repeated until they fit."""

    _DRAWS = (torch.Tensor.uniform_, torch.Tensor.normal_)

    def __enter__(self) -> _Empty:
        self._device = torch.device("meta")
        self._device.__enter__()
        return super().__enter__()

    def __exit__(self, *exception) -> None:
        super().__exit__(*exception)
        self._device.__exit__(*exception)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return args[0] if func in self._DRAWS else func(*args, **(kwargs or {}))


def _member(config: dict[str, Any], key: str, kind: type, file: str) -> Any:
    value = config.get(key)
    if not isinstance(value, kind):
        wanted = {dict: "an object", str: "a text", list: "a list"}[kind]
        raise InputError(f"{file} must have {wanted} under '{key}', but has {value!r:.80}.")
    return value


def _checked_stem(stem: Any) -> PurePosixPath:
    """A relative path that stays inside its folder; a configuration file must not name others on this machine."""
    path = PurePosixPath(stem) if isinstance(stem, str) else None
    if path is None or not path.parts or path.is_absolute() or ".." in path.parts or "\\" in stem or "\0" in stem:
        raise InputError(f"{stem!r} is no file inside a checkpoint; use a relative stem such as 'ckpts/name'.")
    return path


def _some(keys: Sequence[str], limit: int = 5) -> str:
    return ", ".join(keys[:limit]) + (f" and {len(keys) - limit} more" if len(keys) > limit else "")
