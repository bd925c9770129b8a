from __future__ import annotations

import ctypes
import random
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from search.errors import UserError
from search.machine.device import (
    exact_float32,
    is_out_of_memory,
    keep_freed_memory,
    resolve_device,
    resolve_precision,
    seed_everything,
    supports_capability,
)


@pytest.mark.parametrize(
    ("capability", "architectures", "expected"),
    [
        ((7, 5), ["sm_75", "sm_80"], True),
        ((8, 6), ["sm_75", "sm_80"], True),  # sm_80 binaries run on 8.6
        ((6, 0), ["sm_75", "sm_80", "sm_90"], False),  # a P100 with current wheels
        ((8, 0), ["sm_86"], False),
        ((9, 0), ["sm_75", "compute_80"], True),  # intermediate code compiles upwards
        ((7, 0), ["compute_80"], False),
        ((9, 0), ["sm_90a"], True),
        ((12, 0), ["sm_100", "sm_120"], True),
        ((7, 5), [], False),
        ((9, 0), ["gfx90a", "sm_"], False),  # names of other makers are passed over
    ],
)
def test_kernels_exist_for_a_gpu(
    capability: tuple[int, int], architectures: list[str], expected: bool
) -> None:
    assert supports_capability(capability, architectures) is expected


def test_unsupported_gpu_is_told_before_the_first_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla P100")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80"])
    with pytest.raises(UserError, match=r"no kernels for Tesla P100 \(compute capability 6\.0"):
        resolve_device("auto")
    with pytest.raises(UserError, match=r"must be below cuda:1"):
        resolve_device("cuda:3")


def test_a_gpu_is_made_the_current_one_only_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch refuses to make a device without a number the current one."""
    current = list[int]()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_90"])
    monkeypatch.setattr(torch._C, "_cuda_setDevice", current.append, raising=False)
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda")
    assert current == []
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    assert current == [1]


@pytest.mark.parametrize("name", ["gpu", "cuda:x", ""])
def test_unknown_device_names_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="--device must be auto"):
        resolve_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_absent_gpu_is_refused() -> None:
    with pytest.raises(UserError, match="needs a CUDA GPU"):
        resolve_device("cuda")


def test_auto_device_without_accelerators_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    with pytest.raises(UserError, match="Apple GPU"):
        resolve_device("mps")


@pytest.mark.parametrize(
    ("name", "device", "expected"),
    [("auto", "cpu", "fp32"), ("fp32", "cpu", "fp32"), ("bf16", "cpu", "bf16")],
)
def test_precision(name: str, device: str, expected: str) -> None:
    assert resolve_precision(name, torch.device(device)) == expected


@pytest.mark.parametrize("name", ["fp16", "int8"])
def test_impossible_precision_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="--precision"):
        resolve_precision(name, torch.device("cpu"))


def test_seed_everything_repeats_all_generators() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.random()), float(torch.rand(()))  # noqa: NPY002

    seed_everything(7)
    first = draw()
    seed_everything(7)
    assert draw() == first
    seed_everything(8)
    assert draw() != first


def test_exact_float32_restores_what_it_found() -> None:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    with exact_float32():
        assert not torch.backends.cuda.matmul.allow_tf32
        assert not torch.backends.cudnn.allow_tf32
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling cublasCreate"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("GET was unable to find an engine to execute this computation"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_BAD_PARAM"), False),
        (RuntimeError("MPS backend out of memory (MPS allocated: 17.9 GiB, other: 1 GiB)"), True),
        (RuntimeError("Invalid buffer size: 24.00 GiB"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 2x3)"), False),
    ],
)
def test_memory_that_ran_out_is_told_from_other_errors(error: RuntimeError, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


class Library(SimpleNamespace):
    """A C library whose mallopt records what it is told."""


def test_both_thresholds_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(sys, "platform", "linux")

    def load(_: Any) -> Library:
        return Library(mallopt=lambda name, value: told.append((name, value)) or 1)  # type: ignore[func-returns-value]

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert keep_freed_memory()
    assert told == [(-3, 2**30), (-1, -1)]


@pytest.mark.parametrize(
    ("platform", "library"),
    [
        ("darwin", Library(mallopt=lambda *_: 1)),
        ("linux", Library()),  # musl
        ("linux", Library(mallopt=lambda *_: 0)),
    ],
)
def test_where_it_cannot_be_set_it_says_so(
    platform: str, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    assert not keep_freed_memory()
