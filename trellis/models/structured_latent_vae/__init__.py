"""Encoder and decoders of the structured latent."""

from .decoder_gaussian import SLatGaussianDecoder
from .decoder_mesh import SLatMeshDecoder
from .encoder import SLatEncoder

__all__ = ["SLatEncoder", "SLatGaussianDecoder", "SLatMeshDecoder"]
