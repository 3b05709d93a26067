"""From photographs to outputs: image preparation, samplers, checkpoints, and the pipeline over them.

Names are imported on first use, so that opening an image does not load the networks' code.
"""

from importlib import import_module

_HOMES = {
    "Checkpoint": "checkpoints",
    "LoadReport": "checkpoints",
    "FlowEulerGuidanceIntervalSampler": "samplers",
    "GuidanceParams": "samplers",
    "Conditions": "conditioning",
    "TrellisVGGTTo3DPipeline": "trellis_vggt_to_3d",
    "MAX_VIEWS": "image_files",
    "check_views": "image_files",
    "open_image": "image_files",
    "preprocess_image": "image_preparation",
    "segmenter": "background",
}

__all__ = list(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
