"""Everything a person can choose about a refinement; see `studio.settings`."""

from __future__ import annotations

from typing import Literal

from studio.settings import MAX_SEED, Settings, choice


class RefineSettings(Settings):
    """All settings of one refinement."""

    steps: int = choice(
        "Steps",
        "Each step looks at one photo; more settle the result better and take proportionally longer.",
        default=400,
        ge=20,
        le=4000,
    )
    resolution: int = choice(
        "Photo size",
        "Longer side of the photos as they are compared; larger shows finer detail and takes longer.",
        default=256,
        unit="pixels",
        ge=64,
        le=1024,
        multiple_of=32,
    )
    geometry: Literal["auto", "surface", "volume", "fixed"] = choice(
        "Shape",
        "surface: moves the mesh's vertices. volume: first lets holes open and close, on a grid. fixed: keeps the "
        "shape. auto: volume where the silhouettes are far from those of the photos, else surface.",
        default="auto",
        technical="vertex offsets, FlexiCubes, or neither",
    )
    material: bool = choice("Fit the surface's colours", "Off keeps the texture as it is.", default=True)
    light: bool = choice(
        "Separate the light",
        "Finds the light of the photos and takes it out of the colours, so that the asset can be lit anew.",
        default=True,
        technical="split-sum environment, roughness and metallic",
    )
    normal_map: bool = choice(
        "Fine relief", "Also fits a map of the surface's small bumps.", default=False, technical="tangent normal map"
    )
    correct_cameras: bool | None = choice(
        "Correct the cameras",
        "Lets every photo's camera move a little. Unless you decide, it does so where a network estimated cameras, and "
        "not where all of them were stated as known, in a file or by hand.",
        default=None,
        technical="SE(3) and focal length per view",
    )
    correct_exposure: bool = choice(
        "Correct the exposure", "For photos that are not equally bright.", default=False, technical="gain per view"
    )
    turntable: bool = choice(
        "The object turned under a fixed lamp", "Instead of a camera that went around it.", default=False
    )
    registration: Literal["auto", "search", "keep"] = choice(
        "Placing the cameras",
        "search: looks for where the cameras stand around the asset, from any frame. keep: they are in its frame. "
        "auto: searches only if they do not fit as they are, and never if all were stated around the asset.",
        default="auto",
        technical="similarity from silhouettes and colours",
    )
    texture_size: int = choice(
        "Texture size",
        "Side of the square textures; larger shows more detail.",
        default=512,
        unit="pixels",
        technical="base colour, roughness and metallic",
        ge=256,
        le=2048,
        multiple_of=256,
    )
    video_frames: int = choice(
        "Turntable frames",
        "Pictures of each relit turntable, 15 a second. 0: none are filmed.",
        default=60,
        ge=0,
        le=240,
    )
    video_size: int = choice(
        "Turntable size", "Height and width of the relit turntables.", default=256, unit="pixels", ge=64, le=1024,
        multiple_of=64,
    )  # fmt: skip
    seed: int = choice("Seed", "Of the order of the photos.", default=0, ge=0, le=MAX_SEED)
