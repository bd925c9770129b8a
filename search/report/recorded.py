"""What lies in a run's folder, for its reports: what is missing or damaged stays blank and is told.

Nothing here asks the machine that reports: a run may have been made on another one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from search.data.inputs import DATA
from search.errors import UserError
from search.machine.files import CANDIDATES, load_yaml, read_json
from search.settings.saved import load_settings
from search.settings.search import SearchSettings
from search.training.candidate import HISTORY, METRICS
from search.training.objective import NAMES

MISSING = "\N{EN DASH}"
"""Stands for what is not known."""

SPLITS = {
    "random": "random: image by image, whatever their groups",
    "group": "group: images of one group are in one split",
    "unseen": "unseen: of groups, with forgery methods held out",
}
"""How images were divided, by --split."""

SCORE_COLUMNS = ("target", "y_pred")
LOOK_COLUMNS = ("epoch", "train_loss", "select_auc")
"""Of a candidate's tables, what is drawn."""

MOST_NAMED = 6
"""Candidates that are named one by one."""

Tell = Callable[[str], None]


def has_candidate(folder: Path) -> bool:
    """Whether a trial left anything to look at: it is complete, or was looked at."""
    return (folder / METRICS).exists() or (folder / HISTORY).exists()


def read_metrics(folder: Path, tell: Tell) -> dict[str, Any]:
    """A candidate's metrics.json; empty if it is absent or damaged, and told if damaged."""
    path = folder / METRICS
    try:
        return read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        tell(f"{path} must hold a candidate's figures, which are left blank: {error}")
        return {}


def report_figures_of(metrics: Mapping[str, Any]) -> dict[str, float]:
    """A candidate's figures on report; empty before it was scored there."""
    figures = metrics.get("report")
    if not isinstance(figures, dict):
        return {}
    return {name: value for name, value in figures.items() if isinstance(value, int | float)}


def read_table(path: Path, columns: Iterable[str], tell: Tell) -> pd.DataFrame | None:
    """A table of a candidate, as history.csv; None if it is absent or damaged, and told if damaged.

    Args:
        path: of the CSV.
        columns: that it must have, with a number in each row.
        tell: given a line on a damaged one.
    """
    try:
        # The name "NA" is a name.
        table = pd.read_csv(path, dtype={"img_name": str}, keep_default_na=False)
        return table.assign(**{name: pd.to_numeric(table[name]) for name in columns})
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        tell(
            f"{path} must be a table that onefold wrote, and is left out: "
            f"{' '.join(str(error).split())}"
        )
        return None


def describe_run(run: Path, tell: Tell = lambda _: None) -> dict[str, str]:
    """Facts that every report of a run states, by name; those of several lines are lists.

    Args:
        run: the run folder: settings.yaml, data.yaml and the candidates' metrics.json are read.
        tell: given a line on what is damaged or absent; its facts are left blank.
    """
    settings = _settings(run, tell)
    data = _mapping(run / DATA, tell)
    budget = data.get("budget")
    weights = {
        "hub": "timm's hub, pinned ImageNet-1K tags",
        "file": "local files, pinned ImageNet-1K tags",
        "none": "none: trained from scratch",
    }
    facts = {
        f"{name} images": _images(split) for name, split in _dictionary(data.get("splits")).items()
    }
    facts["split"] = _split(_dictionary(data.get("division")))
    generated = _dictionary(data.get("generated"))
    if generated:
        facts["generated among fit"] = _generated(generated)
    facts |= {
        "pool": _text(settings and settings.pool),
        "starting weights": MISSING if settings is None else weights[settings.weights_source],
        "budget": (
            f"{budget / 1e6:.0f}M parameters, by thop and exactly"
            if isinstance(budget, int)
            else MISSING
        ),
        "epochs of a finished candidate": _text(settings and settings.epochs),
        "objective": MISSING if settings is None else NAMES[settings.objective],
        "seed": _text(settings and settings.seed),
        **describe_machines(run, tell),
    }
    notes = data.get("notes")
    if isinstance(notes, list) and notes:
        facts["notes"] = " ".join(map(str, notes))
    return facts


def describe_machines(run: Path, tell: Tell = lambda _: None) -> dict[str, str]:
    """Device, precision and versions that each complete candidate was trained with.

    One line where all agree, else a line for each value with the candidates that have it; a dash
    stands for what was not recorded.
    """
    folders = sorted(path.parent for path in (run / CANDIDATES).glob(f"*/{METRICS}"))
    recorded = {folder.name: read_metrics(folder, tell) for folder in folders}
    versions = {name: _dictionary(metrics.get("versions")) for name, metrics in recorded.items()}
    packages = dict.fromkeys(package for found in versions.values() for package in found)
    shared, differing = [], []
    for package in packages:
        numbers = {name: _text(found.get(package)) for name, found in versions.items()}
        if len(set(numbers.values())) == 1:
            shared.append(f"{package} {next(iter(numbers.values()))}")
        else:
            differing.append(f"{package} {_grouped(numbers, '; ')}")
    return {
        key: _grouped({name: _text(found.get(key)) for name, found in recorded.items()}, "\n")
        for key in ("device", "precision")
    } | {"versions": "\n".join([", ".join(shared), *differing]).strip() or MISSING}


def _grouped(values: Mapping[str, str], separator: str) -> str:
    """The value that all candidates share, or each with the candidates that have it."""
    names: dict[str, list[str]] = {}
    for name, value in values.items():
        names.setdefault(value, []).append(name)
    if len(names) <= 1:
        return next(iter(names), MISSING)
    return separator.join(f"{value} ({named(found)})" for value, found in names.items())


def named(names: Sequence[str]) -> str:
    """A few names, or the first of many: "0000, 0001, 0002, 0003, 0004 and 12 more"."""
    if len(names) <= MOST_NAMED:
        return ", ".join(names)
    return f"{', '.join(names[: MOST_NAMED - 1])} and {len(names) - MOST_NAMED + 1} more"


def _images(split: Any) -> str:
    images, fake = (_dictionary(split).get(name) for name in ("images", "fake"))
    if not isinstance(images, int) or not isinstance(fake, int):
        return MISSING
    return f"{images:,} ({fake:,} fake)"


def _split(division: Mapping[Any, Any]) -> str:
    kind = _text(division.get("kind"))
    return SPLITS.get(kind, kind)


def _generated(generated: Mapping[Any, Any]) -> str:
    kinds = ", ".join(f"{n} {kind}" for kind, n in _dictionary(generated.get("kinds")).items())
    return (
        f"{_text(generated.get('samples'))} ({kinds}), made of its other images by `search expand` "
        f"{_text(generated.get('version'))}, seed {_text(generated.get('seed'))}"
    )


def _settings(run: Path, tell: Tell) -> SearchSettings | None:
    try:
        return load_settings(run)
    except UserError as error:
        tell(f"{error}; what they say is left blank")
        return None


def _mapping(path: Path, tell: Tell) -> dict[Any, Any]:
    try:
        content = load_yaml(path)
    except UserError as error:
        tell(f"{error}; what it says is left blank")
        return {}
    return _dictionary(content)


def _dictionary(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    return MISSING if value is None else str(value)
