"""One tiny checkpoint and pipeline for all tests of this folder."""

import pytest
from tiny_checkpoint import write_tiny_checkpoint

from trellis.pipelines import TrellisVGGTTo3DPipeline


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def pipeline(tiny_folder):
    return TrellisVGGTTo3DPipeline.from_pretrained(tiny_folder)
