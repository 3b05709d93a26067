"""Process-wide switches that libraries read once, when they are imported. Import this before torch, numba or gradio."""

from __future__ import annotations

import os

# Idle OpenMP threads sleep instead of spinning. With a browser or a second request on the same cores the spinning
# default makes torch and numba three to six times slower; on an idle machine sleeping costs some 6 %.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# The threading layer of stock numba that survives calls from several Python threads.
os.environ.setdefault("NUMBA_THREADING_LAYER", "omp")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
# Without it, huggingface_hub asks its server for a list of known programs as soon as a client is made.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
