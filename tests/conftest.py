"""Process-wide switches for all tests, set before anything imports torch, numba, gradio or the hub client."""

import os
from typing import Any

import pytest

import studio.environment  # noqa: F401  (sets the switches that the studio itself needs)

os.environ["HF_HUB_OFFLINE"] = "1"  # a test that needs the network is a broken test


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Where several processes run the tests: those of a file stay in one, and all that share the browser's server."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "tests/browser" if file.startswith("tests/browser/") else file

    return ByFile(config, log)
