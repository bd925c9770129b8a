"""Which configuration is tried next: around what is known to be good, then by what was learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import optuna
from optuna.samplers import TPESampler
from optuna.trial import create_trial

from search.study.decisions.space import Parameters, Space

FEWEST_TO_LEARN = 4
"""Configurations that were drawn and looked at before TPE is asked; its own default is ten. The
centres alone tell it only what has one value in all of them."""

NEAR_BEST = 0.5
"""Share of the draws around the best so far (incumbents as in PriorBand, arXiv:2306.12370)."""


def propose(
    space: Space, results: Sequence[tuple[Mapping[str, Any], float]], number: int
) -> Parameters:
    """The parameters of the next configuration.

    Half are drawn around the best so far. The others come from around the centre of the space at
    first; once there is something to learn from, TPE (arXiv:2304.11127) draws them from where the
    best ones lie and, in part, from everywhere. It learns from the AUC that each configuration had
    after the same stretch, however far it was trained since, and knows nothing of how a study is
    stored.

    Args:
        space: what may be varied.
        results: parameters of the configurations that were looked at, and their AUC.
        number: of the configuration, which with the space's seed decides the draw.
    """
    distributions = space.distributions
    centres = [space.centre(backbone) for backbone in space.backbones]
    learned = []
    for own, auc in results:
        full = space.completed(own)
        if full is None:
            continue
        # What lies outside of a space that was narrowed since is left out.
        with suppress(ValueError):
            learned.append(create_trial(params=full, distributions=distributions, value=auc))
    generator = np.random.default_rng((space.seed, number))
    if learned and generator.random() < NEAR_BEST:
        best = max(learned, key=lambda trial: trial.value or 0.0)
        return space.near(best.params, generator)
    if sum(trial.params not in centres for trial in learned) < FEWEST_TO_LEARN:
        return space.near_centre(generator)
    sampler = TPESampler(n_startup_trials=0, seed=int(generator.integers(2**32)))
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.add_trials(learned)
    return dict(study.ask(distributions).params)
