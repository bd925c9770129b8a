"""Probing a pool before anything is trained: how much the frozen features of each backbone tell,
and how fast it trains."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from search.catalogue.backbones import Backbone
from search.data.splits import draw_part
from search.errors import UserError
from search.machine.device import (
    Precision,
    Runtime,
    exact_float32,
    is_out_of_memory,
    resolve_precision,
)
from search.machine.interruption import Interrupted, Interruption
from search.pixels.loading.epochs import eval_batches
from search.pixels.loading.reading import Reader
from search.study.plan import SearchPlan
from search.study.prior import Probe, read_probes, settled, tell_settled, write_probes
from search.training.arithmetic import training_speed
from search.training.metrics import roc_auc
from search.training.network import Network, build_network
from search.training.recipe import Recipe
from search.training.scoring import SCORED_WHILE_TRAINED, MemoryBackOff, autocast, to_device

IMAGES = 1_000
"""Of fit, that are probed with; on dfdc-faces the AUC of five folds of them has a standard error of
about 0.02."""

FEWEST_IMAGES = 200
"""Fewer tell nothing."""

FOLDS = 5

REGULARISATION = 0.01
"""Inverse strength of the logistic regression's penalty, on standardised features; of 1e-4 to 1 in
steps of ten."""

BATCH = 16
"""Images of one forward pass: small, for a slow network on a CPU to be stopped in time."""

SHARE = 0.05
"""Of the time limit, what probing may take."""

FEATURES_SHARE = 0.6
"""Of a backbone's part of that time, what its features may take; its speed is measured after."""

MEASURED_IMAGES = 16 * 16
"""That the measurement of a speed takes: three or four steps of each of four arithmetics."""

Floats = NDArray[np.float64]


class _OutOfTime(Interrupted):
    """The part of a backbone is used up."""


@dataclass(frozen=True)
class Allotment:
    """The time that one backbone may take; readings of `time.monotonic`."""

    features: float = np.inf  # when its features must do
    whole: float = np.inf

    @classmethod
    def of(cls, seconds: float) -> Allotment:
        """So many seconds from now on."""
        now = time.monotonic()
        return cls(now + FEATURES_SHARE * seconds, now + seconds)


def is_worth_probing(plan: SearchPlan) -> bool:
    """Whether there is something to find out: an order of several backbones, which start from
    weights that have learned something.

    On the demo set the probe of random networks ranks five backbones at 0.4 (Spearman) with what
    their presets have at the first look; what it has first comes out fourth.
    """
    return plan.space.weights != "none" and len(plan.space.backbones) > 1


def probe_pool(
    plan: SearchPlan,
    run: Path,
    reader: Reader,
    interruption: Interruption,
    tell: Callable[[str], None],
) -> tuple[Probe, ...]:
    """Probes the backbones of a search that were not probed yet, and decides which are kept; what
    was decided before stays.

    With a time limit it takes `SHARE` of it at most: each backbone gets an equal part of what is
    left, sees fewer images where that is too short, and is kept unseen where nothing is left.

    Raises:
        Interrupted: if it was interrupted; what was found out is in `probe.csv`.
        UserError: if the images or the GPU are at fault, or `probe.csv` is damaged.
    """
    backbones = plan.space.backbones
    known = {probe.backbone: probe for probe in read_probes(run)}
    found = [known[backbone.name] for backbone in backbones if backbone.name in known]
    if len(found) == len(backbones) and all(probe.kept is not None for probe in found):
        return tuple(found)
    table = _probed_images(plan)
    tell(
        f"probing {len(backbones) - len(found)} of {len(backbones)} backbones: features of "
        f"{len(table):,} images of fit, and speed (--no-probe leaves it out)"
    )
    timeout = plan.settings.timeout
    budget = None if timeout is None else SHARE * timeout.total_seconds()
    for done, backbone in enumerate(backbones):
        if backbone.name in known:
            continue
        allotment = Allotment()
        if budget is not None:
            left = budget - sum(probe.seconds for probe in found)
            allotment = Allotment.of(max(0.0, left) / (len(backbones) - done))
        probe = _probed(plan, backbone, table, reader, allotment, interruption)
        tell(f"  {describe_probe(probe)}")
        found.append(probe)
        write_probes(found, run)
    decided = settled(found, plan.rules, interruption.seconds_left)
    write_probes(decided, run)
    tell_settled(decided, tell)
    return decided


def describe_probe(probe: Probe) -> str:
    """ "resnet18 at 224 px: probe 0.712 ± 0.018 (1,000 images), trains 54 images/s, 21 s"."""
    parts = []
    if probe.auc is not None and probe.auc_spread is not None:
        parts.append(f"probe {probe.auc:.3f} ± {probe.auc_spread:.3f} ({probe.images:,} images)")
    if probe.images_per_second is not None:
        about = "about " if probe.is_estimated else ""
        parts.append(f"trains {about}{probe.images_per_second:.3g} images/s")
    parts += [f"{probe.seconds:.0f} s", probe.reason]
    return f"{probe.backbone} at {probe.image_size} px: {', '.join(filter(None, parts))}"


def _probed_images(plan: SearchPlan) -> pd.DataFrame:
    """The images that are probed with, in random order: any beginning is a sample."""
    seed = plan.settings.seed
    part = draw_part(plan.splits.fit, IMAGES, seed)
    if part["target"].nunique() < 2 or part["group"].nunique() < 2:
        # A few large groups, of which none fits, or but one.
        part = plan.splits.fit.sample(min(IMAGES, len(plan.splits.fit)), random_state=seed)
    return part.sample(frac=1, random_state=seed).reset_index(drop=True)


def _probed(
    plan: SearchPlan,
    backbone: Backbone,
    table: pd.DataFrame,
    reader: Reader,
    allotment: Allotment,
    interruption: Interruption,
) -> Probe:
    """One backbone; what fails is told in its row, and fails again where it is trained."""
    recipe = plan.space.recipe(plan.space.centre(backbone))
    probe = Probe(backbone.name, recipe.image_size)
    started = time.monotonic()
    if started >= allotment.whole:
        return replace(probe, reason="not probed: the share of the time for it is used up")
    network: Network | None = None
    problem: Exception
    try:
        network = build_network(recipe)
    except Exception as error:
        problem = error
    else:
        try:
            probe = _measured(plan, probe, recipe, network, table, reader, allotment, interruption)
            return replace(probe, seconds=round(time.monotonic() - started, 2))
        except UserError:
            raise  # not this backbone is at fault, but the images
        except torch.AcceleratorError as error:
            if not is_out_of_memory(error):
                found = " ".join(str(error).split())[:200]
                raise UserError(
                    f"the GPU stopped working ({found}); the same command goes on in a new process"
                ) from error
            problem = error
        except Exception as error:
            problem = error
    finally:
        # For the next: networks hold references to themselves.
        del network
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    found = " ".join(str(problem).split())[:200] or type(problem).__name__
    seconds = round(time.monotonic() - started, 2)
    return replace(probe, seconds=seconds, reason=f"could not be probed: {found}")


def _measured(
    plan: SearchPlan,
    probe: Probe,
    recipe: Recipe,
    network: Network,
    table: pd.DataFrame,
    reader: Reader,
    allotment: Allotment,
    interruption: Interruption,
) -> Probe:
    """Features first, which tell how fast a training is at least about; then its speed, if there is
    time for it or it was measured before."""
    runtime = plan.runtime

    def goes_on() -> bool:
        interruption.check()
        return time.monotonic() < allotment.features

    precision = resolve_precision(plan.space.precision, runtime.device)
    seen = frozen_features(network, table, reader, runtime, precision, goes_on)
    rows = table.iloc[seen.indices]
    found = None
    if len(rows) >= min(FEWEST_IMAGES, len(table)):
        found = cross_validated_auc(
            seen.features, rows["target"], rows["group"], interruption.check
        )
    if found is not None:
        auc, spread, folds = found
        probe = replace(probe, auc=round(auc, 4), auc_spread=round(spread, 4), folds=folds)
    about = seen.images_per_second / SCORED_WHILE_TRAINED
    fits = time.monotonic() + MEASURED_IMAGES / about < allotment.whole

    def check() -> None:
        interruption.check()
        if not fits or time.monotonic() >= allotment.whole:
            raise _OutOfTime("its part of the time is used up")

    speed: float | None = None
    with suppress(_OutOfTime):
        speed = training_speed(network, recipe, runtime, check)
    return replace(
        probe,
        images=len(rows),
        images_per_second=float(f"{speed or about:.4g}"),
        is_estimated=speed is None,
        reason="" if found else f"{len(rows)} images are too few for the probe",
    )


@dataclass(frozen=True)
class Features:
    """What a frozen backbone makes of some images."""

    features: Floats  # (N, D) - pooled, just before the classifier
    indices: NDArray[np.int64]  # (N,) - rows of the table
    images_per_second: float  # of the forward passes alone


def frozen_features(
    network: Network,
    table: pd.DataFrame,
    reader: Reader,
    runtime: Runtime,
    precision: Precision,
    goes_on: Callable[[], bool] = lambda: True,
) -> Features:
    """Features of the images of a table as they are, in its order.

    Args:
        network: is moved to the device and left in evaluation mode.
        table: label table; images that cannot be read are left out.
        reader: reads them.
        runtime: the device.
        precision: of the forward passes.
        goes_on: called after every batch; False ends it there.

    Raises:
        FloatingPointError: if a feature is not a finite number.
    """
    network.to(runtime.device).eval()
    back_off = MemoryBackOff()
    parts: list[Floats] = []
    indices: list[NDArray[np.int64]] = []
    speeds: list[float] = []
    for batch in eval_batches(reader, table, batch_size=BATCH):
        images = to_device(batch, runtime)
        started = time.perf_counter()
        with torch.inference_mode(), exact_float32(), autocast(runtime, precision):
            pooled = torch.cat(
                back_off(lambda part: network.forward_with_features(part)[0], images)
            )
        # Copies: what a worker sent lies in shared memory.
        parts.append(pooled.cpu().double().numpy().copy())
        speeds.append(len(images) / (time.perf_counter() - started))
        indices.append(batch.indices.numpy().copy())
        if not goes_on():
            break
    features = np.concatenate(parts)
    if not np.isfinite(features).all():
        raise FloatingPointError("its features are not finite")
    # The quickest: whatever else the machine did meanwhile only slowed the others.
    return Features(features, np.concatenate(indices), max(speeds))


def cross_validated_auc(
    features: Floats,
    targets: pd.Series[int],
    groups: pd.Series[str],
    check: Callable[[], None] = lambda: None,
) -> tuple[float, float, int] | None:
    """AUC of a logistic regression on images whose group it has not seen.

    Args:
        features: (N, D).
        targets: (N,), 1 = fake.
        groups: (N,); none is on both sides of a fold.
        check: called before each fold.

    Returns:
        Mean and standard deviation over the folds, and how many there were; None where fewer than
        two folds can have images of both classes.
    """
    labels, names = targets.to_numpy(), pd.factorize(groups)[0]
    folds = min(FOLDS, int(names.max()) + 1, int(np.bincount(labels, minlength=2).min()))
    if folds < 2:
        return None
    aucs = []
    for train, test in StratifiedGroupKFold(folds).split(features, labels, names):
        check()
        if np.unique(labels[train]).size == np.unique(labels[test]).size == 2:
            model = make_pipeline(
                StandardScaler(), LogisticRegression(C=REGULARISATION, max_iter=1_000)
            ).fit(features[train], labels[train])
            aucs.append(roc_auc(model.decision_function(features[test]), labels[test]))
    if len(aucs) < 2:
        return None
    return float(np.mean(aucs)), float(np.std(aucs, ddof=1)), len(aucs)
