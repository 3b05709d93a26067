"""Process-wide switches that libraries read once, when they are imported. Import this before torch, numba or gradio."""

from __future__ import annotations

import os

import trellis  # noqa: F401  (sets what torch and numba read)

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
# Without it, huggingface_hub asks its server for a list of known programs as soon as a client is made.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
