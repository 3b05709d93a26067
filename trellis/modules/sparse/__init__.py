"""Networks on sparse voxel grids: the tensor, its spatial operations and its layers."""

from .attention import SparseCrossAttention, SparseSelfAttention
from .conv import SparseConv3d
from .nn import SparseGroupNorm32, SparseLinear, SparseSiLU
from .spatial import downsample, subdivide, upsample
from .tensor import Sites, SparseTensor

__all__ = [
    "Sites",
    "SparseConv3d",
    "SparseCrossAttention",
    "SparseGroupNorm32",
    "SparseLinear",
    "SparseSelfAttention",
    "SparseSiLU",
    "SparseTensor",
    "downsample",
    "subdivide",
    "upsample",
]
