"""The networks, under the class names that checkpoint configuration files use.

Classes are imported on first use, so that reading a configuration does not load every network's code.
"""

from importlib import import_module

MODEL_CLASSES = {
    "SparseStructureEncoder": "sparse_structure_vae",
    "SparseStructureDecoder": "sparse_structure_vae",
    "SparseStructureFlowModel": "sparse_structure_flow",
    "SLatEncoder": "structured_latent_vae",
    "SLatGaussianDecoder": "structured_latent_vae",
    "SLatMeshDecoder": "structured_latent_vae",
    "SLatFlowModel": "structured_latent_flow",
    "ModulatedMultiViewCond": "conditioners",
    "ModulatedSLATMultiViewCond": "conditioners",
    "VGGT": "vggt",
    "DinoVisionTransformer": "dinov2",
}

__all__ = ["MODEL_CLASSES", *MODEL_CLASSES]


def __getattr__(name: str):
    if name not in MODEL_CLASSES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{MODEL_CLASSES[name]}"), name)
