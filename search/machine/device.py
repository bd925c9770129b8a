"""Where and how training runs: device, precision, seeds, memory."""

from __future__ import annotations

import ctypes
import os
import platform
import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import nn

from search.errors import UserError

Precision = Literal["fp32", "bf16", "fp16"]

MOST_WORKERS = 16
"""More decode faster than one GPU trains, and each takes some hundred MB."""

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Runtime:
    """The machine that a fit runs on; nothing here changes what is learned on one device kind."""

    device: torch.device
    workers: int = 0
    """Processes that read images, and on a CPU make their views; 0 does it in this process."""

    @property
    def on_cuda(self) -> bool:
        """Whether the device is a CUDA GPU."""
        return self.device.type == "cuda"


def resolve_device(name: str) -> torch.device:
    """The torch device of "auto", "cpu", "cuda", "cuda:1", "mps"...

    "auto" takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        UserError: if the name is unknown, the device absent, or the GPU one that the installed
            torch has no kernels for (a P100 with current wheels, for example).
    """
    if name == "auto":
        if torch.cuda.is_available():
            name = "cuda"
        elif torch.backends.mps.is_available():
            name = "mps"
        else:
            name = "cpu"
    if name == "cpu":
        keep_freed_memory()
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(
            f"--device must be auto, cpu, cuda, cuda:N or mps, found '{name}'"
        ) from None
    if device.type == "cuda":
        _check_cuda(device)
        if device.index is not None:
            # The thread that pins memory, and other parts of torch, use the current GPU.
            torch.cuda.set_device(device)
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps needs an Apple GPU, none was found; use --device auto")
    return device


def _check_cuda(device: torch.device) -> None:
    if not torch.cuda.is_available():
        raise UserError(
            f"--device {device} needs a CUDA GPU that torch {torch.__version__} can use, none was "
            "found; use --device auto"
        )
    if device.index is not None and device.index >= torch.cuda.device_count():
        raise UserError(
            f"--device {device} must be below cuda:{torch.cuda.device_count()}, the number of GPUs"
        )
    capability = torch.cuda.get_device_capability(device)
    if not supports_capability(capability, torch.cuda.get_arch_list()):
        raise UserError(
            f"torch {torch.__version__} has no kernels for {torch.cuda.get_device_name(device)} "
            f"(compute capability {capability[0]}.{capability[1]}; it has "
            f"{', '.join(torch.cuda.get_arch_list())}); install an older torch build that "
            "supports this GPU, choose another GPU (Kaggle: T4 x2), or use --device cpu"
        )


def supports_capability(capability: tuple[int, int], architectures: list[str]) -> bool:
    """Whether kernels built for `architectures` ("sm_75", "compute_90"...) run on a GPU.

    Binaries (sm_XY) run on the same major version from their minor version on; intermediate code
    (compute_XY) on everything from its version on.
    """
    for architecture in architectures:
        kind, _, version = architecture.partition("_")
        digits = "".join(character for character in version if character.isdigit())
        if len(digits) < 2:
            continue
        major, minor = int(digits[:-1]), int(digits[-1])
        if kind == "sm" and major == capability[0] and minor <= capability[1]:
            return True
        if kind == "compute" and (major, minor) <= capability:
            return True
    return False


def widest_float(device: torch.device) -> torch.dtype:
    """float64, or float32 on MPS, which has no other."""
    return torch.float32 if device.type == "mps" else torch.float64


def describe_device(device: torch.device) -> str:
    """What computes, as far as it bears on the last digits of a score: kind, model, torch."""
    kind = device.type
    if kind == "cuda":
        kind += f" {torch.cuda.get_device_name(device)}"
    elif kind == "cpu":
        kind += f" {torch.backends.cpu.get_cpu_capability()}"
    return f"{kind}, torch {torch.__version__}"


def default_workers(device: torch.device) -> int:
    """Processes that read images: none beside a training on a small CPU, else one a core, up to a
    limit."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = cores or 1
    if device.type == "cpu":
        return 0 if cores < 4 else 2
    return min(MOST_WORKERS, cores)


def resolve_precision(name: str, device: torch.device) -> Precision:
    """The precision of "auto", "fp32", "bf16" or "fp16" on a device.

    "auto" is bf16 on GPUs that compute it natively, fp16 (with loss scaling) on other CUDA GPUs,
    and fp32 elsewhere.

    Raises:
        UserError: for fp16 outside CUDA, where loss scaling is not available.
    """
    if name == "auto":
        half = native_half_precision(device) if device.type == "cuda" else None
        return half or "fp32"
    if name == "fp16" and device.type != "cuda":
        raise UserError(f"--precision fp16 needs a CUDA GPU, found {device}; use --precision auto")
    if name not in ("fp32", "bf16", "fp16"):
        raise UserError(f"--precision must be auto, fp32, bf16 or fp16, found '{name}'")
    return name  # type: ignore[return-value]


def check_training_precision(name: str, device: torch.device) -> Precision | Literal["auto"]:
    """The precision to train in: as given; "auto" is left to be measured, see
    `search.training.arithmetic`.

    Raises:
        UserError: as `resolve_precision`.
    """
    return "auto" if name == "auto" else resolve_precision(name, device)


def native_half_precision(device: torch.device) -> Literal["bf16", "fp16"] | None:
    """The precision of 16 bits that a device may be fast in: bf16 on GPUs that compute it natively
    and on CPUs, fp16 (with loss scaling) on other CUDA GPUs."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16" if native else "fp16"
    return "bf16" if device.type == "cpu" else None


OUT_OF_MEMORY_SIGNS = (
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    # What cuBLAS says where its handle does not fit, and torch where no workspace that a
    # convolution of cuDNN needs does.
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "unable to find an engine to execute this computation",
    # torch's allocator for Apple GPUs, which raises plain RuntimeErrors: its limit is reached, or
    # one tensor is larger than any buffer that Metal gives.
    "MPS backend out of memory",
    "Invalid buffer size",
)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a GPU had no memory left, whether torch, CUDA, its libraries or Metal say so."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return any(sign in str(error) for sign in OUT_OF_MEMORY_SIGNS)


def seed_everything(seed: int) -> None:
    """Seeds Python, NumPy (which timm's mixup draws from) and torch on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - timm draws from NumPy's global generator
    torch.manual_seed(seed)


def random_state(device: torch.device) -> dict[str, Any]:
    """Where Python's, NumPy's and torch's global generators are, as plain values and tensors."""
    numpy_state: Any = np.random.get_state()  # noqa: NPY002
    kind, keys, *rest = numpy_state
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (str(kind), torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "device": device.type,
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def restore_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Puts the generators where `random_state` found them; a device of another kind keeps its
    own."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["device"] != device.type:
        return
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
    elif device.type == "mps":
        torch.mps.set_rng_state(state["mps"])


def compile_anew(network: nn.Module) -> nn.Module:
    """torch.compile, for one network at a time: what was compiled before is dropped.

    torch compiles a function, all networks' `forward` alike, for eight of them at most, and runs
    the ninth as it is without a word.
    """
    torch.compiler.reset()
    # `Interruption.amid_passes` has one, which asks once more and no harm is done.
    warnings.filterwarnings("ignore", "Using `torch.compile.* when there are global hooks")
    return cast(nn.Module, torch.compile(network))


LIBRARIES = ("torch", "torchvision", "timm", "numpy", "pillow", "scikit-learn", "thop")


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that a figure depends on."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


def exact_float32() -> AbstractContextManager[None]:
    """Computes fp32 matrix products and convolutions without TF32, so that scores do not depend
    on the device beyond rounding."""
    return _tf32(allowed=False)


@contextmanager
def fast_float32(device: torch.device) -> Iterator[None]:
    """Computes fp32 as fast as training may: on a CUDA GPU in TF32, and with the convolutions that
    cuDNN measures to be the fastest for shapes that stay the same."""
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        with _tf32(allowed=True):
            yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextmanager
def _tf32(*, allowed: bool) -> Iterator[None]:
    with warnings.catch_warnings():
        # torch 2.11 to 2.15 warn differently about these two names; both versions honour them.
        warnings.simplefilter("ignore")
        before = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
        torch.backends.cuda.matmul.allow_tf32 = allowed
        torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # mallopt(3)

LARGEST_KEPT_BLOCK_BYTES = 2**30

NEVER = -1


def keep_freed_memory() -> bool:
    """Lets malloc reuse large blocks instead of handing each one back to the kernel.

    glibc maps every block above 32 MB anew and unmaps it when it is freed, and a training step
    allocates hundreds of them. On two CPU cores mobilenetv2_100 at 192 px trained at 22 images/s,
    with 42% of its processor time in the kernel, and with this at 49 (medians of three rounds of
    tests/benchmarks/pixels/bench_memory.py). The process then keeps its peak memory.

    Returns:
        Whether the C library took the settings; other libraries than glibc have no mallopt.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((M_MMAP_THRESHOLD, LARGEST_KEPT_BLOCK_BYTES), (M_TRIM_THRESHOLD, NEVER))
    return all(mallopt(name, value) == 1 for name, value in settings)
