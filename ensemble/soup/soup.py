"""Model soups (arXiv:2203.05482): weights of one start averaged into one network."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, get_args

from rich.console import Console
from torch import Tensor

from ensemble.network.model import ModelSpec, keep_merged, summarise
from ensemble.pool.eligibility import FEWEST
from ensemble.pool.pool import Pool
from ensemble.soup.averaging import add_states, divide_state, refresh_batch_norm
from search.errors import UserError
from search.machine.interruption import Interruption
from search.machine.progress import tell_line
from search.pixels.loading.epochs import train_batches
from search.training.candidate import Candidate, copy_state
from search.training.network import Network
from search.training.objective import NAMES, value_of
from search.training.recipe import Recipe

SoupMethod = Literal["greedy", "uniform"]

NORM_IMAGES = 2048
"""Training images that batch-norm statistics are recomputed from."""

NORM_BATCH = 64


def run_soup(
    pool: Pool,
    method: SoupMethod = "greedy",
    *,
    members: Sequence[str] | None = None,
    norm_images: int = NORM_IMAGES,
    console: Console | None = None,
    interruption: Interruption | None = None,
) -> Candidate:
    """Averages candidates of one start, and keeps the soup in merged/soup-<method>.

    Args:
        pool: the candidates.
        method: "uniform" averages all; "greedy" starts with the best and adds, from the best down,
            each one with which the soup is not worse on select. So it is never worse there than
            its best member.
        members: names; None takes the largest set that can be averaged, of equals the one with the
            best candidate.
        norm_images: training images that batch-norm statistics are recomputed from.
        console: is told what happens.
        interruption: asked between batches.

    Raises:
        UserError: if the members cannot be averaged, or no two candidates can.
        Interrupted: if asked to stop; nothing is written then, and the next time starts anew: a
            greedy soup repeats its pass over select for each member.
    """
    if method not in get_args(SoupMethod):
        raise UserError(f"--method must be greedy or uniform, found '{method}'")
    console = console or Console(quiet=True)
    interruption = interruption or Interruption()
    chosen = find_group(pool.candidates) if members is None else pool.choose(members)
    check_compatible(chosen)
    tell_line(console, f"{method} soup of {', '.join(c.name for c in chosen)}")
    cooking = _Cooking(pool, norm_images, console, interruption)
    used = cooking.uniform(chosen) if method == "uniform" else cooking.greedy(chosen)
    names = tuple(c.name for c in used)
    spec = ModelSpec(
        kind="single",
        trunks=(chosen[0].recipe,),
        method="soup-greedy" if method == "greedy" else "soup-uniform",
        merged_from=names,
        overrides=pool.overrides(names),
        notes=_notes(chosen, used),
    )
    candidate = keep_merged(
        pool,
        spec.method,
        cooking.network,
        spec,
        chosen[0].recipe,
        figures=cooking.figures,
        on_batch=interruption.check,
    )
    tell_line(console, summarise(candidate))
    return candidate


def start_of(recipe: Recipe) -> dict[str, Any]:
    """What must be the same for two networks' weights to have a meaningful mean."""
    start: dict[str, Any] = {
        "architecture": recipe.architecture,
        "set of arguments": sorted(recipe.model_args.items(), key=str),
        "start": _starting_weights(recipe),
        "image size": recipe.image_size,
        "normalisation": (recipe.mean, recipe.std),
    }
    return start


def find_group(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """The largest set of candidates that can be averaged, of equals that with the best candidate.

    Args:
        candidates: best first.

    Raises:
        UserError: if no two can.
    """
    keys = {c.name: str(start_of(c.recipe)) for c in candidates}
    by_key = sorted(candidates, key=lambda c: keys[c.name])
    groups = [tuple(group) for _, group in groupby(by_key, key=lambda c: keys[c.name])]
    rank = {c.name: place for place, c in enumerate(candidates)}
    largest = max(groups, key=lambda group: (len(group), -rank[group[0].name]))
    if len(largest) < FEWEST:
        raise UserError(
            "a soup needs two candidates of one architecture, one start and one image size, found "
            f"none among {', '.join(c.name for c in candidates)}; search on with fewer backbones "
            "and one --image-size"
        )
    return largest


def check_compatible(candidates: Sequence[Candidate]) -> None:
    """
    Raises:
        UserError: naming the first candidate that cannot be averaged with the first one, and why.
    """
    first = candidates[0]
    wanted = start_of(first.recipe)
    for candidate in candidates[1:]:
        for what, value in start_of(candidate.recipe).items():
            if value != wanted[what]:
                raise UserError(
                    f"members of a soup must have one {what}, but candidate {first.name} has "
                    f"{_text(wanted[what])} and candidate {candidate.name} has {_text(value)}; "
                    f"leave {candidate.name} out"
                )


class _Cooking:
    """One network whose weights become the soup."""

    def __init__(
        self, pool: Pool, norm_images: int, console: Console, interruption: Interruption
    ) -> None:
        self.pool, self.norm_images = pool, norm_images
        self.console, self.check = console, interruption.check
        self.network: Network
        self.figures: dict[str, Any] = {}

    def uniform(self, members: Sequence[Candidate]) -> tuple[Candidate, ...]:
        """Averages all."""
        self.network = members[0].load()
        total: dict[str, Tensor] = self.network.state_dict()
        for member in members[1:]:
            total = add_states(total, member.load().state_dict())
        self._pour(divide_state(total, len(members)))
        return tuple(members)

    def greedy(self, members: Sequence[Candidate]) -> tuple[Candidate, ...]:
        """Adds members, best first, as long as select does not suffer; returns those used."""
        self.network = members[0].load()
        best_state = total = copy_state(self.network)
        best = start = self._value()
        used = [members[0]]
        for member in members[1:]:
            tried = add_states(total, member.load().state_dict())
            self._pour(divide_state(tried, len(used) + 1))
            value = self._value()
            added = value >= best
            tell_line(
                self.console,
                f"  with {member.name}: {NAMES[self.pool.objective]} {value:.4f} on select after "
                f"{best:.4f}, "
                f"{'added' if added else 'left out'}",
            )
            if added:
                best, best_state, total = value, copy_state(self.network), tried
                used.append(member)
        self.network.cpu().load_state_dict(best_state)
        self.figures |= {"best_member": start, "tried": [c.name for c in members]}
        return tuple(used)

    def _pour(self, state: dict[str, Tensor]) -> None:
        """Loads averaged weights and recomputes the batch-norm statistics."""
        self.network.cpu().load_state_dict(state)
        loader = train_batches(
            self.pool.reader,
            self.pool.splits.fit,
            None,
            batch_size=NORM_BATCH,
            seed=self.pool.settings.seed,
        )
        seen = refresh_batch_norm(
            self.network, loader, self.pool.runtime, self.norm_images, self.check
        )
        self.figures["norm_images"] = seen

    def _value(self) -> float:
        found = self.pool.evaluate(self.network, "select", self.check)
        return value_of(found.metrics.to_dict(), self.pool.objective)


def _starting_weights(recipe: Recipe) -> tuple[Any, ...]:
    if recipe.weights == "none":
        return ("from scratch with seed", recipe.seed)
    if recipe.weights == "file":
        # Its name alone: a folder of weights may have moved, or the run to another machine.
        return ("the file", Path(recipe.weights_file or "").name, "for", recipe.backbone)
    return (recipe.backbone,)


def _notes(tried: Sequence[Candidate], used: Sequence[Candidate]) -> tuple[str, ...]:
    notes = []
    if tried[0].recipe.weights == "none":
        notes.append(
            "Averaged networks were trained from scratch, from one random start; soups are known "
            "to work for networks fine-tuned from one pretrained start."
        )
    if len(used) == 1:
        notes.append(f"No other member improved the soup: it is candidate {used[0].name} alone.")
    return tuple(notes)


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
