"""How the C library's allocator is told to keep what is freed, for training on a CPU."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # mallopt(3)

LARGEST_KEPT_BLOCK_BYTES = 2**30

NEVER = -1


def keep_freed_memory() -> bool:
    """Lets malloc reuse large blocks instead of handing each one back to the kernel.

    glibc maps every block above 32 MB anew and unmaps it when it is freed, and a training step
    allocates hundreds of them. On two CPU cores mobilenetv2_100 at 192 px trained at 22 images/s,
    with 42% of its processor time in the kernel, and with this at 49 (medians of three rounds of
    tests/benchmarks/bench_memory.py). The process then keeps its peak memory.

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
