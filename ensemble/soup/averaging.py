"""Means of weights, and the batch-norm statistics that a mean of weights needs anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from search.machine.device import Runtime, exact_float32
from search.pixels.loading.epochs import Loader
from search.training.scoring import MemoryBackOff, to_device

State = Mapping[str, Tensor]


def add_states(total: State, added: State) -> dict[str, Tensor]:
    """Sum of two state dicts; whole numbers, such as batch counts, stay the first's.

    Raises:
        ValueError: if names or shapes differ.
    """
    shapes = [{name: tensor.shape for name, tensor in state.items()} for state in (total, added)]
    if shapes[0] != shapes[1]:
        raise ValueError("weights can be averaged only if all names and shapes agree")
    return {
        name: tensor + added[name] if tensor.is_floating_point() else tensor
        for name, tensor in total.items()
    }


def divide_state(total: State, count: int) -> dict[str, Tensor]:
    """The mean of `count` state dicts, from their sum."""
    return {
        name: tensor / count if tensor.is_floating_point() else tensor
        for name, tensor in total.items()
    }


def refresh_batch_norm(
    network: nn.Module,
    loader: Loader,
    runtime: Runtime,
    limit: int,
    on_batch: Callable[[], None] = lambda: None,
) -> int:
    """Recomputes the running statistics of all batch-norm layers from images.

    Averaged weights give other activations than any member's, so the averages of the members'
    statistics fit none. torch's `swa_utils.update_bn` does the same with the whole network in
    training mode, where stochastic depth would distort what is measured; here only the
    batch-norm layers are.

    Args:
        network: moved to the device and left in evaluation mode.
        loader: training images.
        runtime: the device.
        limit: images to stop after.
        on_batch: called after every batch; what it raises ends the pass.

    Returns:
        How many images were used; 0 if there is no batch norm.
    """
    network.to(runtime.device).eval()
    layers = [layer for layer in network.modules() if isinstance(layer, _BatchNorm)]
    if not layers:
        return 0
    momenta = [layer.momentum for layer in layers]
    back_off = MemoryBackOff()
    try:
        while True:
            largest = back_off.largest
            for layer in layers:
                layer.reset_running_stats()
                layer.momentum = None  # the plain mean over batches instead of a moving one
                layer.train()
            seen = _show(network, loader, runtime, limit, back_off, on_batch)
            if back_off.largest == largest:
                break
            # Memory ran out: some layers have seen images that the failed try showed to them.
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
            layer.eval()
    return seen


def _show(
    network: nn.Module,
    loader: Loader,
    runtime: Runtime,
    limit: int,
    back_off: MemoryBackOff,
    on_batch: Callable[[], None],
) -> int:
    """Shows images to a network until there were `limit`; returns how many there were."""
    seen = 0
    with torch.no_grad(), exact_float32():
        for batch in loader:
            back_off(network, to_device(batch, runtime))
            seen += len(batch.targets)
            on_batch()
            if seen >= limit:
                break
    return seen
