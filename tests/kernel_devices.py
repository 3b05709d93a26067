"""Where a Triton kernel can be tested: on a GPU (marked `gpu`), else in Triton's interpreter.

The same tests run in both places. Import this before the kernels: the interpreter is chosen when they are defined.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os

import pytest
import torch
from packaging.version import parse

HAS_GPU = torch.cuda.is_available()
HAS_TRITON = importlib.util.find_spec("triton") is not None
# The interpreter of older versions takes no sizes that are computed from others.
HAS_INTERPRETER = HAS_TRITON and parse(importlib.metadata.version("triton")) >= parse("3.1")
if HAS_TRITON and not HAS_GPU:
    os.environ["TRITON_INTERPRET"] = "1"

on_gpu = pytest.mark.skipif(not HAS_GPU, reason="no CUDA device")
interpreted = pytest.mark.skipif(
    HAS_GPU or not HAS_INTERPRETER, reason="for machines without a GPU, with triton 3.1 or newer installed"
)

needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")
KERNEL_DEVICES = [
    pytest.param("cuda", marks=[pytest.mark.gpu, on_gpu]),
    pytest.param("cpu", marks=interpreted, id="interpreter"),
]
