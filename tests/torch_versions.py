"""Tests of what older versions of torch cannot do; the project itself runs from torch 2.4 on."""

from __future__ import annotations

import pytest
import torch
from packaging.version import parse


def needs_torch(version: str, why: str) -> pytest.MarkDecorator:
    """Skip a test with torch older than `version`."""
    return pytest.mark.skipif(parse(torch.__version__) < parse(version), reason=f"needs torch {version}: {why}")
