"""The parameters of a refinement, their optimisers, and the two as plain tensors that can be saved."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nvdiffrec.asset import Asset
from nvdiffrec.camera_fit import corrected, corrected_cameras
from nvdiffrec.camera_newton import align_camera
from nvdiffrec.geometry import LargeSteps, SmoothnessTerms, UniformAdam
from nvdiffrec.light import FITTED_SIZE, FilteredLight, filter_light
from nvdiffrec.losses import light_neutrality, log_tonemapped_l1, mask_l2, total_variation
from nvdiffrec.material import Material
from nvdiffrec.shading import PreparedMaterial, render
from nvdiffrec.views import Views
from trellis.renderers.cameras import Cameras

_LIGHT_RANGE = (-7.0, 7.0)  # of the logarithm of a fitted light


@dataclass(frozen=True)
class FitOptions:
    """What is fitted, how fast, and how strongly it is held back.

    Attributes:
        geometry, material, light, exposure, normal_map: whether each is fitted.
        cameras: the same; None fits them where they were predicted (`Views.predicted`).
        turntable: the object turned under a fixed lamp.
        smoothness: lambda of the large steps.
        vertex_rate: step of the vertices, in parts of the object's radius.
        color_rate, orm_rate, light_rate, exposure_rate: Adam's step sizes.
        mask_weight: of the mask loss against the colour loss.
        laplacian, normal_consistency, light_neutrality, material_prior, color_smoothness: weights of the regularisers.
            The last keeps the noise of single texels out of the change of the base colour; ten times as much suits
            textures that are nearly right already, but keeps plain ones from taking up a pattern.
    """

    geometry: bool = True
    material: bool = True
    light: bool = True
    cameras: bool | None = None
    exposure: bool = False
    normal_map: bool = False
    turntable: bool = False
    smoothness: float = 3.0
    vertex_rate: float = 0.03
    color_rate: float = 0.02
    orm_rate: float = 0.01
    light_rate: float = 0.02
    exposure_rate: float = 5e-3
    mask_weight: float = 2.0
    laplacian: float = 2e-4
    normal_consistency: float = 1e-3
    light_neutrality: float = 5e-3
    material_prior: float = 1e-3
    color_smoothness: float = 0.3


class Fit:
    """An asset under refinement against N views, on the asset's device, which must be that of the cameras.

    `parameters` holds every number that may change, by name: vertices [V, 3] (preconditioned if fitted),
    color [3, S, S], orm [2, S, S], normal [3, S, S], light [3, H, 2H] (logarithm), twists [N, 6], log_focals [N],
    exposures [N] (logarithm).
    """

    def __init__(self, asset: Asset, cameras: Cameras, options: FitOptions) -> None:
        """`options.cameras` must be decided: None counts as no."""
        self.asset, self.cameras, self.options = asset, cameras, options
        vertices, material = asset.geometry.vertices.detach(), asset.material
        if options.geometry:
            self.steps = LargeSteps(asset.geometry.faces, len(vertices), options.smoothness)
            self.smooth = SmoothnessTerms(vertices, asset.geometry.faces)
        size, count = material.base_color.shape[-1], len(cameras)
        normal = vertices.new_zeros(3, size, size)
        normal[2] = 1
        light = asset.environment if asset.environment is not None else vertices.new_ones(3, *FITTED_SIZE)
        start = {
            "vertices": self.steps.to_parameter(vertices) if options.geometry else vertices.clone(),
            "color": material.base_color.clone(),
            "orm": material.orm.clone(),
            "normal": normal if material.normal is None else material.normal.clone(),
            "light": light.clamp(min=1e-3).log(),
            "twists": vertices.new_zeros(count, 6),
            "log_focals": vertices.new_zeros(count),
            "exposures": vertices.new_zeros(count),
        }
        self._use_normals = options.normal_map or material.normal is not None
        fitted = {
            "vertices": options.geometry,
            "color": options.material,
            "orm": options.material and options.light,
            "normal": options.normal_map,
            "light": options.light,
            "exposures": options.exposure,
        }
        self.fits_anything = any(fitted.values()) or bool(options.cameras)
        # Cameras take no part in the gradient steps: `align` moves them.
        self.parameters = {name: value.requires_grad_(fitted.get(name, False)) for name, value in start.items()}
        self._start_color, self._start_orm = material.base_color.clone(), material.orm.clone()
        rates = {
            "color": options.color_rate, "orm": options.orm_rate, "normal": options.orm_rate,
            "light": options.light_rate, "exposures": options.exposure_rate,
        }  # fmt: skip
        groups = [{"params": [self.parameters[n]], "lr": rate, "base": rate} for n, rate in rates.items() if fitted[n]]
        self.adam = torch.optim.Adam(groups, fused=True) if groups else None
        extent = vertices.amax(0) - vertices.amin(0)
        self._vertex_rate = options.vertex_rate * 0.5 * float(extent.norm())
        self.vertex_adam = UniformAdam(self.parameters["vertices"], self._vertex_rate) if options.geometry else None

    def vertices(self) -> Tensor:
        parameter = self.parameters["vertices"]
        return self.steps.to_vertices(parameter) if self.options.geometry else self.asset.geometry.vertices

    def material(self) -> Material:
        values = self.parameters
        return Material(values["color"], values["orm"], values["normal"] if self._use_normals else None)

    def light(self) -> FilteredLight | None:
        """None if the asset's colours are shown as they are."""
        if not self.options.light and self.asset.environment is None:
            return None
        return filter_light(self.parameters["light"].exp())

    def image(
        self, index: int, prepared: tuple, cameras: Cameras | None = None,
        correction: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:  # fmt: skip
        """View `index` as [H, W, 4]; `cameras` are the uncorrected ones in the resolution wanted, `correction` another
        twist [6] and logarithm of the focal length [] than the view has."""
        geometry, material, light = prepared
        cameras = cameras or self.cameras
        values = self.parameters
        correction = correction or (values["twists"][index], values["log_focals"][index])
        extrinsics, intrinsics = corrected(cameras, index, *correction)
        size = cameras.height_width(index)
        return render(
            geometry, material, light, extrinsics, intrinsics, size,
            turntable=self.options.turntable, exposure=self.exposures()[index],
        )  # fmt: skip

    def exposures(self) -> Tensor:
        """Factor per view [N]. They only say how views differ; their geometric mean is one."""
        logarithms = self.parameters["exposures"]
        return (logarithms - logarithms.mean()).exp()

    def prepared(self) -> tuple:
        """What all views of a step share."""
        return self.asset.geometry.with_vertices(self.vertices()), PreparedMaterial.of(self.material()), self.light()

    def loss(self, views: Views, index: int) -> Tensor:
        """Of one training view, with all regularisers."""
        options, values = self.options, self.parameters
        prepared = self.prepared()
        loss = self._data_loss(views, index, prepared)
        vertices = prepared[0].vertices
        if options.geometry:
            loss = loss + options.laplacian * self.smooth.laplacian(vertices)
            loss = loss + options.normal_consistency * self.smooth.normal_consistency(vertices)
        if options.light:
            loss = loss + options.light_neutrality * light_neutrality(values["light"].exp())
        if options.material:
            loss = loss + options.color_smoothness * total_variation(values["color"] - self._start_color)
            if options.light:
                loss = loss + options.material_prior * (values["orm"] - self._start_orm).square().mean()
        return loss

    def align(self, views: Views, index: int, steps: int) -> None:
        """Move one camera to where the asset as it stands agrees better with the view."""
        values = self.parameters
        with torch.no_grad():
            prepared = self.prepared()
        values["twists"][index], values["log_focals"][index] = align_camera(
            lambda twist, log_focal: self.image(index, prepared, views.cameras, (twist, log_focal)),
            views.linear(index),
            values["twists"][index],
            values["log_focals"][index],
            steps,
        )

    def exposure_loss(self, views: Views, index: int) -> Tensor:
        """Of a held-out view: it may find its own exposure, and change nothing else."""
        with torch.no_grad():
            prepared = self.prepared()
        return self._data_loss(views, index, prepared)

    def _data_loss(self, views: Views, index: int, prepared: tuple) -> Tensor:
        image, target = self.image(index, prepared, views.cameras), views.linear(index)
        color = log_tonemapped_l1(image[..., :3], target[..., :3])
        return color + self.options.mask_weight * mask_l2(image[..., 3], target[..., 3])

    def step(self, share: float) -> None:
        """One optimiser step with the rates for when `share` in [0, 1] of all is done, then back to valid values."""
        decay = 0.1**share
        if self.vertex_adam is not None:
            self.vertex_adam.rate = self._vertex_rate * decay
            self.vertex_adam.step()
        if self.adam is not None:
            for group in self.adam.param_groups:
                group["lr"] = group["base"] * decay
            self.adam.step()
            self.adam.zero_grad(set_to_none=True)
        with torch.no_grad():
            self.parameters["color"].clamp_(0, 1)
            self.parameters["orm"][0].clamp_(0.08, 1)
            self.parameters["orm"][1].clamp_(0, 1)
            self.parameters["light"].clamp_(*_LIGHT_RANGE)

    @torch.no_grad()
    def result(self) -> tuple[Asset, Cameras]:
        """The asset and the cameras as they stand; see also `exposures`."""
        material = self.material()
        maps = (material.base_color, material.orm, material.normal)
        copies = [None if values is None else values.detach().clone() for values in maps]
        environment = self.parameters["light"].exp().clone() if self.light() is not None else None
        geometry = self.asset.geometry.with_vertices(self.vertices().detach().clone())
        values = self.parameters
        cameras = corrected_cameras(self.cameras, values["twists"], values["log_focals"])
        return Asset(geometry, Material(*copies), environment), cameras

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of all parameters."""
        return {name: value.detach().clone() for name, value in self.parameters.items()}

    @torch.no_grad()
    def restore(self, snapshot: dict[str, Tensor]) -> None:
        """Take over parameters of the same shapes."""
        for name, value in self.parameters.items():
            value.copy_(snapshot[name])

    def optimiser_tensors(self) -> dict[str, Tensor]:
        """The optimisers' memory, flat."""
        tensors = {}
        if self.adam is not None:
            for index, state in self.adam.state_dict()["state"].items():
                tensors.update({f"adam.{index}.{key}": torch.as_tensor(value).clone() for key, value in state.items()})
        if self.vertex_adam is not None:
            tensors["vertex.first"] = self.vertex_adam.first.clone()
            tensors["vertex.rest"] = torch.tensor(
                [self.vertex_adam.second, self.vertex_adam.steps], dtype=torch.float64
            )
        return tensors

    def load_optimiser_tensors(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `optimiser_tensors`."""
        if self.adam is not None:
            whole = self.adam.state_dict()
            whole["state"] = {}
            for name, value in tensors.items():
                if name.startswith("adam."):
                    _, index, key = name.split(".")
                    whole["state"].setdefault(int(index), {})[key] = value.clone()
            self.adam.load_state_dict(whole)
        if self.vertex_adam is not None:
            self.vertex_adam.first.copy_(tensors["vertex.first"])
            second, steps = tensors["vertex.rest"].tolist()
            self.vertex_adam.second, self.vertex_adam.steps = second, int(steps)
