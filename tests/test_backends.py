"""The table of backends: choosing, falling back, and telling why."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch

from trellis import backends
from trellis.errors import InputError


@pytest.fixture
def table(monkeypatch):
    """One need with a preferred candidate that stands on an optional package, and a reference that runs anywhere."""
    reference, fast = ModuleType("reference_module"), ModuleType("fast_module")
    monkeypatch.setitem(sys.modules, "reference_module", reference)
    monkeypatch.setitem(sys.modules, "fast_module", fast)
    needs = {
        "work": (
            backends.Candidate("fast", "fast_module", ("cuda",), "MIT", "fast_package"),
            backends.Candidate("reference", "reference_module", ("cpu", "cuda"), "MIT"),
        )
    }
    monkeypatch.setattr(backends, "NEEDS", needs)
    monkeypatch.setattr(backends, "_chosen", {})
    return fast


def test_a_cpu_uses_the_references():
    assert backends.choose("cpu").keys() == backends.NEEDS.keys()
    for need in backends.NEEDS:
        assert backends.name_of(need, torch.device("cpu")) in {"sdpa", "torch", "stream", "numba"}


def test_every_need_has_a_candidate_for_both_kinds_of_device():
    for need in backends.NEEDS:
        assert len(backends.candidates(need, "cpu")) == 1
        assert len(backends.candidates(need, "cuda:1")) > 1


def test_an_absent_package_is_passed_over(table):
    assert backends.name_of("work", "cuda") == "reference"
    (state, _) = backends.states("cuda")
    assert (state.state, state.reason) == ("absent", "fast_package is not installed")


def test_a_present_package_is_preferred(table, monkeypatch):
    monkeypatch.setitem(sys.modules, "fast_package", ModuleType("fast_package"))
    tested = []
    table.self_test = tested.append
    assert backends.of("work", torch.device("cuda", 1)) is table
    assert tested  # what compiles, compiles now
    assert backends.used("cuda")["work"].name == "fast"
    assert backends.name_of("work", "cpu") == "reference"


def test_a_kernel_that_does_not_run_is_broken_and_passed_over(table, monkeypatch):
    monkeypatch.setitem(sys.modules, "fast_package", ModuleType("fast_package"))

    def fails(device):
        raise RuntimeError("no kernel image is available\nfor execution on the device")

    table.self_test = fails
    (state, _) = backends.states("cuda")
    assert (state.state, state.reason) == ("broken", "RuntimeError: no kernel image is available")
    assert backends.choose("cuda")["work"].name == "reference"
    with pytest.raises(InputError, match="'fast' cannot be used here: RuntimeError: no kernel image"):
        backends.choose("cuda", work="fast")


def test_a_missing_dependency_of_a_package_makes_it_broken(table, monkeypatch, tmp_path):
    (tmp_path / "fast_package.py").write_text("import no_such_module_anywhere")
    monkeypatch.syspath_prepend(tmp_path)
    (state, _) = backends.states("cuda")
    assert state.state == "broken" and "no_such_module_anywhere" in state.reason


def test_a_choice_by_name_holds(table, monkeypatch):
    monkeypatch.setitem(sys.modules, "fast_package", ModuleType("fast_package"))
    backends.choose("cuda", work="reference")
    assert backends.name_of("work", "cuda") == "reference"


@pytest.mark.parametrize(
    ("names", "message"),
    [({"play": "auto"}, "no need called 'play'"), ({"work": "magic"}, "choose from auto, fast, reference")],
)
def test_unknown_names_are_refused(table, names, message):
    with pytest.raises(InputError, match=message):
        backends.choose("cuda", **names)


def test_no_environment_variable_decides():
    source = open(backends.__file__).read()
    assert "environ" not in source and "getenv" not in source
