"""The doctor: each fault of a package is recognised, each has one fix, and nothing it meets makes it fail."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from studio import doctor, doctor_faults
from studio.doctor_faults import Facts, diagnose
from trellis import backends

ROOT = Path(__file__).resolve().parents[2]
FACTS = Facts("2.11.0", "13.0", "2.4.6", "/usr/local/cuda/bin/nvcc", {"spconv-cu120": "2.3.6", "xformers": "0.0.29"})


@pytest.mark.parametrize(
    ("package", "error", "facts", "sentence"),
    [
        (
            "flash_attn",
            "ImportError: libcudart.so.12: cannot open shared object file: No such file or directory",
            FACTS,
            "it was built for CUDA 12, and torch 2.11.0 here uses CUDA 13.0: install the flash-attn built for CUDA 13",
        ),
        (
            "spconv",
            "AttributeError: module 'numpy' has no attribute 'np.bool'. `np.bool` was a deprecated alias",
            FACTS,
            "spconv-cu120 needs numpy 1, and 2.4.6 is installed: pip install 'numpy<2'",
        ),
        (
            "spconv",
            "ImportError: numpy.core.multiarray failed to import",
            FACTS,
            "spconv-cu120 needs numpy 1, and 2.4.6 is installed: pip install 'numpy<2'",
        ),
        (
            "xformers",
            "NotImplementedError: No operator found for `memory_efficient_attention_forward` with inputs",
            FACTS,
            "no published xformers has kernels for torch 2.11.0 with CUDA 13.0, and torch's own attention serves as "
            "well: pip uninstall xformers",
        ),
        (
            "xformers",
            "NotImplementedError: No operator found for `memory_efficient_attention_forward` with inputs",
            Facts("2.4.0", "12.1", "1.26.4", None, {"xformers": "0.0.35"}),
            "pip install --no-deps xformers==0.0.27.post2",
        ),
        (
            "flash_attn",
            "ImportError: flash_attn_2_cuda.cpython-312-x86_64-linux-gnu.so: undefined symbol: _ZN3c105ErrorC2E",
            FACTS,
            "it was compiled for another torch than 2.11.0 (its C++ interface differs)",
        ),
        (
            "gsplat",
            "OSError: CUDA_HOME environment variable is not set. Please set it to your CUDA install root.",
            Facts("2.11.0", "13.0", "2.4.6", None),
            "it has to be compiled, and there is no nvcc: install the CUDA 13.0 toolkit, or a wheel of gsplat",
        ),
        (
            "nvdiffrast",
            "RuntimeError: The detected CUDA version (12.1) mismatches the version that was used to compile PyTorch",
            FACTS,
            "put the nvcc of CUDA 13.0 first on PATH",
        ),
        ("gsplat", "RuntimeError: Ninja is required to load C++ extensions", FACTS, "pip install ninja"),
        ("triton", "RuntimeError: Failed to find C compiler. Please specify via CC", FACTS, "install gcc"),
        ("spconv", "RuntimeError: CUDA error: no kernel image is available", FACTS, "no code for this card"),
        ("spconv", "ModuleNotFoundError: No module named 'cumm.core'", FACTS, "pip install cumm"),
        ("gsplat", "OutOfMemoryError: CUDA out of memory.", FACTS, "end other programs"),
        ("spconv", "RuntimeError: something new", FACTS, "pip install --force-reinstall --no-deps spconv-cu120"),
    ],
)
def test_every_fault_has_one_fix(package, error, facts, sentence):
    assert sentence in diagnose(package, error, facts)


def test_numpy_is_not_blamed_where_it_is_old_enough():
    facts = Facts("2.4.0", "12.1", "1.26.4")
    assert "numpy" not in diagnose("spconv", "ImportError: numpy.core.multiarray failed to import", facts)


def findings() -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in doctor._backends()}


@pytest.fixture
def gpu_machine(monkeypatch):
    """As if there were a GPU: every candidate is tried, and no package is there unless a test puts it there."""
    monkeypatch.setattr(doctor, "_device", lambda: "cuda")
    monkeypatch.setattr(backends, "_chosen", {})
    packages = ["flash_attn", "xformers", "triton", "spconv", "gsplat", "diff_gaussian_rasterization", "nvdiffrast"]
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)  # importing it raises ModuleNotFoundError
    for name in ("attention_cudnn", "gelu_cublaslt", "launch_graph"):  # part of torch, and would try the GPU
        module = importlib.import_module(f"trellis.modules.{name}")
        monkeypatch.setattr(module, "self_test", lambda device: None)
    return monkeypatch


def test_absent_packages_are_a_line_each_and_no_problem(gpu_machine):
    found = findings()
    assert {finding.state for finding in found.values()} == {"ok", "optional"}
    assert found["attention: flash-attn"].text == "absent; pip install flash-attn"
    assert "mip-splatting" in found["gaussian_splatting: diff-gaussian-rasterization"].fix
    assert found["sparse_convolution: torch"].text == "found, used"


class Exploding(ModuleType):
    """A module whose every attribute fails, as compiled extensions do."""

    def __init__(self, name: str, error: Exception) -> None:
        super().__init__(name)
        self.__dict__.update(error=error, __path__=[], __spec__=None)

    def __getattr__(self, name: str):
        raise self.error


@pytest.mark.parametrize(
    ("package", "line", "error", "fix"),
    [
        ("flash_attn", "attention: flash-attn", ImportError("x.so: undefined symbol: _ZN3c10"), "another torch than"),
        ("gsplat", "gaussian_splatting: gsplat", ImportError("libcudart.so.11.0: cannot open"), "built for CUDA 11"),
        ("triton", "norms: triton", RuntimeError("Failed to find C compiler."), "install gcc"),
    ],
)
def test_broken_packages_are_passed_over_with_a_fix(gpu_machine, package, line, error, fix):
    gpu_machine.delitem(sys.modules, "trellis.modules.norms_triton", raising=False)
    gpu_machine.setitem(sys.modules, f"{package}.language", ModuleType("language"))  # triton's submodule
    gpu_machine.setitem(sys.modules, package, Exploding(package, error))
    found = findings()
    assert found[line].state == "broken" and fix in found[line].fix
    need = line.split(":")[0]
    assert any(f.text.endswith(", used") for name, f in found.items() if name.startswith(f"{need}: "))


def test_spconv_that_tunes_itself_is_told(gpu_machine, monkeypatch):
    monkeypatch.setenv("SPCONV_ALGO", "auto")
    assert "unset it" in {f.name: f.text for f in doctor._backends()}["sparse_convolution: spconv"]
    monkeypatch.delenv("SPCONV_ALGO")
    assert doctor_faults.spconv_algorithm() is None


def fake_torch(monkeypatch, available: bool, cuda: str | None) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.version, "cuda", cuda)


@pytest.mark.parametrize(
    ("driver", "cuda", "state", "text"),
    [
        (None, None, "optional", "everything runs on the CPU"),
        (("NVIDIA H100", "580.1"), None, "problem", "built without CUDA"),
        (("Tesla T4", "450.0"), "13.0", "problem", "driver for CUDA 13.0"),
    ],
)
def test_a_card_that_torch_cannot_use_is_a_problem(monkeypatch, driver, cuda, state, text):
    fake_torch(monkeypatch, False, cuda)
    monkeypatch.setattr(doctor_faults, "nvidia_smi", lambda: driver)
    finding = doctor._gpu()
    assert finding.state == state and text in finding.text


def test_a_card_is_described(monkeypatch):
    import torch

    fake_torch(monkeypatch, True, "13.0")
    card = SimpleNamespace(name="NVIDIA H100", total_memory=80 * 2**30, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (70 * 2**30, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_90"])
    monkeypatch.setattr(doctor_faults, "nvidia_smi", lambda: ("NVIDIA H100", "580.95"))
    text = doctor._gpu().text
    assert text == "NVIDIA H100 and 1 more, 80 GB (70 free), compute capability 9.0, driver 580.95, CUDA 13.0"


def test_nvidia_smi_that_fails_is_no_driver(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor_faults.nvidia_smi() is None
    for script, expected in (("exit 9", None), ("echo 'NVIDIA H100, 80GB, 580.1'", ("NVIDIA H100, 80GB", "580.1"))):
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)
        assert doctor_faults.nvidia_smi() == expected


def test_missing_and_broken_packages_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "xatlas", None)
    monkeypatch.setitem(sys.modules, "trimesh", None)
    (finding,) = doctor._packages()
    assert finding.state == "problem" and finding.fix == "pip install trimesh xatlas"


def test_published_weights_are_present_missing_or_cut_short(monkeypatch, tmp_path):
    from studio import weights

    monkeypatch.setattr(weights, "default_folder", lambda: tmp_path)
    monkeypatch.delenv("RECONSTUDIO_CHECKPOINT", raising=False)
    assert doctor._published().state == "optional"
    (tmp_path / "a").write_bytes(b"12345")
    weights.Record({}, {"a": {"bytes": 5, "sha256": ""}}).write(tmp_path)
    assert doctor._published().state == "ok"
    (tmp_path / "a").write_bytes(b"123")
    assert doctor._published().state == "broken"


def test_it_explains_a_machine_without_any_package():
    """Not even the command line's own packages: -S leaves the installed ones out."""
    command = [sys.executable, "-S", "-E", "-m", "studio.doctor", "--json"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == doctor.PROBLEM_STATUS, result.stderr
    found = {line["name"]: line for line in map(json.loads, result.stdout.splitlines())}
    assert "numpy" in found["packages"]["fix"] and found["torch"]["fix"] == "pip install torch"
    assert found["python"]["state"] == "ok"
