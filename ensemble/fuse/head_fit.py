"""Training a fused network's head alone, on what its frozen trunks say: computed once, kept in
memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ensemble.network.heads import Head, WeightsHead
from ensemble.network.model import FusedNetwork
from search.machine.device import Runtime, exact_float32
from search.pixels.loading.batches import Images
from search.pixels.loading.epochs import Loader
from search.training.candidate import copy_state
from search.training.network import margin
from search.training.objective import Yardstick
from search.training.scoring import MemoryBackOff, show

EPOCHS = 30
BATCH_SIZE = 128
CHUNK = 1024
"""Images that a head scores at a time."""
WEIGHT_DECAY = 1e-2
MOST_IMAGES = 50_000
"""Images that a head is fitted on: its few parameters need no more, and the MLP's features of so
many take 1 GB for four trunks of 1,280."""

LEARNING_RATES = {"weights": 5e-2, "mlp": 1e-3}


@dataclass(frozen=True)
class TrunkOutputs:
    """What K trunks say of N images: all that a head is given."""

    logits: Tensor  # (K, N, 2)
    features: tuple[Tensor, ...]  # K tensors (N, D of the trunk); none if the head needs none
    targets: Tensor  # (N,) int64, 1 = fake
    indices: Tensor  # (N,) int64, rows of the table

    def rows(self, index: Tensor | slice) -> tuple[list[Tensor], list[Tensor]]:
        """Logits and features of some images, as `Head.forward` takes them; of a slice, no copies
        of them."""
        return list(self.logits[:, index]), [features[index] for features in self.features]


@dataclass(frozen=True)
class HeadFit:
    """How the fitting of a head went; the head holds the state of the best epoch."""

    best_epoch: int  # 0: as it started, no better epoch came
    start: float  # the objective on select, as it started
    reached: float


def trunk_outputs(
    model: FusedNetwork,
    loader: Loader,
    runtime: Runtime,
    on_batch: Callable[[], None] = lambda: None,
    limit: int | None = None,
) -> TrunkOutputs:
    """Asks every trunk about every image of a loader, once, in fp32.

    Args:
        model: moved to the device and left in evaluation mode.
        loader: the images.
        runtime: the device.
        on_batch: called after every batch; what it raises ends the pass.
        limit: images to stop after; None for all.
    """
    model.to(runtime.device).eval()
    logits: list[Tensor] = []
    features: list[list[Tensor]] = []
    targets: list[Tensor] = []
    indices: list[Tensor] = []
    back_off = MemoryBackOff()

    def ask(images: Images) -> tuple[list[Tensor], Tensor]:
        if model.head.needs_features:
            given, said = model.forward_trunks(images)
        else:
            given, said = [], [trunk(images) for trunk in model.trunks]
        return [feature.float().cpu() for feature in given], torch.stack(said).float().cpu()

    with torch.no_grad(), exact_float32():
        for batch in loader:
            for given, said in back_off(ask, show(batch, model.image_sizes, runtime).images):
                features.append(given)
                logits.append(said)
            targets.append(batch.targets.clone())  # see `predict`
            indices.append(batch.indices.clone())
            on_batch()
            if limit is not None and sum(map(len, targets)) >= limit:
                break
    return TrunkOutputs(
        logits=torch.cat(logits, dim=1),
        features=tuple(torch.cat(parts) for parts in zip(*features, strict=True)),
        targets=torch.cat(targets),
        indices=torch.cat(indices),
    )


def fit_head(
    head: Head,
    fit: TrunkOutputs,
    select: TrunkOutputs,
    yardstick: Yardstick,
    *,
    seed: int,
    epochs: int = EPOCHS,
    check: Callable[[], None] = lambda: None,
) -> HeadFit:
    """Trains a head by cross entropy and leaves in it the epoch that is best on select, which may
    be its start: a fitted head is never worse there than equal weights are.

    Args:
        head: on the CPU afterwards; one without parameters stays as it is.
        fit: outputs on the images to train on.
        select: outputs on the images to choose by.
        yardstick: of the whole table that these are rows of.
        seed: of the order and the dropout.
        epochs: passes over `fit`.
        check: called before each of them; what it raises ends the fitting.
    """
    head.cpu()
    yardstick = yardstick.of(select.indices.numpy())
    best = start = _quality(head, select, yardstick)
    best_epoch, best_state = 0, copy_state(head)
    if list(head.parameters()):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            optimizer = _optimizer(head)
            for epoch in range(1, epochs + 1):
                check()
                _run_epoch(head, fit, optimizer)
                reached = _quality(head, select, yardstick)
                if reached > best:
                    best, best_epoch, best_state = reached, epoch, copy_state(head)
            # Of the last batch: a joint training would add it to its first one's.
            optimizer.zero_grad(set_to_none=True)
    head.load_state_dict(best_state)
    head.eval()
    return HeadFit(best_epoch, start[0], best[0])


def _optimizer(head: nn.Module) -> torch.optim.Optimizer:
    if isinstance(head, WeightsHead):
        return torch.optim.Adam(head.parameters(), lr=LEARNING_RATES["weights"])
    return torch.optim.AdamW(head.parameters(), lr=LEARNING_RATES["mlp"], weight_decay=WEIGHT_DECAY)


def _run_epoch(head: Head, fit: TrunkOutputs, optimizer: torch.optim.Optimizer) -> None:
    head.train()
    order = torch.randperm(len(fit.targets))
    for index in order.chunk(math.ceil(len(order) / BATCH_SIZE)):
        loss = F.cross_entropy(head(*fit.rows(index)), fit.targets[index])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def _quality(head: Head, select: TrunkOutputs, yardstick: Yardstick) -> tuple[float, float]:
    head.eval()
    starts = range(0, len(select.targets), CHUNK)
    with torch.inference_mode():
        logits = [head(*select.rows(slice(start, start + CHUNK))) for start in starts]
    scores = margin(torch.cat(logits).double()).sigmoid().numpy()
    # A head that diverged is no choice, whatever order NaN would give.
    if not np.isfinite(scores).all():
        return (-math.inf, -math.inf)
    return yardstick.quality(scores)
