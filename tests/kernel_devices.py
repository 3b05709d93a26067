"""Where a Triton kernel can be tested: on a GPU (marked `gpu`), else in Triton's interpreter.

The same tests run in both places. Import this before the kernels: the interpreter is chosen when they are defined.
"""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch

HAS_GPU = torch.cuda.is_available()
HAS_TRITON = importlib.util.find_spec("triton") is not None
if HAS_TRITON and not HAS_GPU:
    os.environ["TRITON_INTERPRET"] = "1"

on_gpu = pytest.mark.skipif(not HAS_GPU, reason="no CUDA device")
interpreted = pytest.mark.skipif(HAS_GPU or not HAS_TRITON, reason="for machines without a GPU, with triton installed")

needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")
KERNEL_DEVICES = [
    pytest.param("cuda", marks=[pytest.mark.gpu, on_gpu]),
    pytest.param("cpu", marks=interpreted, id="interpreter"),
]
