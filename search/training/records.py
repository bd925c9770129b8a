"""What a training tells of its steps, of its epochs, and at its end."""

from __future__ import annotations

from dataclasses import dataclass

from search.training.evaluate import Evaluation


@dataclass(frozen=True)
class StepRecord:
    """What one optimizer step tells a progress display."""

    epoch: int  # from 0
    step: int  # finished steps of this epoch
    steps: int  # of one epoch
    loss: float | None  # mean since the last look; None between looks
    images_per_second: float


@dataclass(frozen=True)
class EpochRecord:
    """One row of history.csv."""

    epoch: int  # from 1
    train_loss: float
    learning_rate: float  # of the head, after the epoch's last step
    select_auc: float
    select_log_loss: float
    seconds: float  # training steps only


@dataclass(frozen=True)
class FitResult:
    """A finished training; the network handed to `fit` holds the weights of the best epoch."""

    history: tuple[EpochRecord, ...]
    best: Evaluation
    best_epoch: int  # from 1
    train_seconds: float  # training steps only, without evaluation
    images_per_second: float
    peak_memory_mb: float | None  # CUDA's peak; None elsewhere
    micro_batch_size: int  # what was left of it after running out of memory
