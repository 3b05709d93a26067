"""Process-wide switches for all tests, set before anything imports torch, numba, gradio or the hub client."""

import os

import studio.environment  # noqa: F401  (sets the switches that the studio itself needs)

os.environ["HF_HUB_OFFLINE"] = "1"  # a test that needs the network is a broken test
