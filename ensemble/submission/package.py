"""The files of a submission, from the weights to the manifest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from ensemble.compare.recommended import Choice
from ensemble.deploy.prediction_file import PREDICTION, write_prediction
from ensemble.deploy.probes import score_probes
from ensemble.network.evidence import RULES
from ensemble.network.model import SPEC, FusedNetwork, ModelSpec
from ensemble.settings import SubmitSettings
from ensemble.submission.card import CARD, render_card
from ensemble.submission.examination import PROBES
from ensemble.submission.manifest import write_manifest
from ensemble.submission.reproduce import FOLDER, portable_spec, submit_command, write_reproduction
from search.data.inputs import DATA
from search.machine.files import write_json_atomically
from search.settings.saved import load_settings
from search.training.candidate import METRICS, WEIGHTS
from search.training.network import Network


@dataclass(frozen=True)
class Content:
    """What a submission is made of."""

    choice: Choice
    model: Network | FusedNetwork
    spec: ModelSpec
    rules: Mapping[str, Any]
    prediction: pd.DataFrame  # img_name, y_pred in the list's order
    probe_seed: int


def write_package(folder: Path, settings: SubmitSettings, content: Content) -> str:
    """Fills an empty folder.

    Returns:
        The manifest's SHA-256.
    """
    run, choice, spec = settings.run, content.choice, content.spec
    shutil.copyfile(choice.folder / WEIGHTS, folder / WEIGHTS)
    portable_spec(spec).save(folder / SPEC)
    prediction = content.prediction
    write_prediction(
        folder / PREDICTION, prediction["img_name"].tolist(), prediction["y_pred"].tolist()
    )
    write_json_atomically(folder / RULES, content.rules)
    probes = score_probes(content.model, content.probe_seed, content.model.canvas)
    write_json_atomically(folder / PROBES, asdict(probes))
    metrics = _read(choice.folder / METRICS, json.loads)
    card = render_card(
        title=f"{run.resolve().name}: {choice.name}",
        spec=spec,
        rules=content.rules,
        metrics=metrics,
        data=_read(run / DATA, yaml.safe_load),
        objective=load_settings(run).objective,
        reason=choice.reason,
    )
    (folder / CARD).write_text(card, encoding="utf-8")
    write_reproduction(
        folder / FOLDER,
        run=run,
        model=choice.folder,
        spec=spec,
        names=prediction["img_name"].tolist(),
        label_files=[settings.names],
        probe_seed=content.probe_seed,
        submit=submit_command(settings, choice.name),
    )
    return write_manifest(folder)


def _read(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    """A mapping that may be absent."""
    return dict(parse(path.read_text(encoding="utf-8")) or {}) if path.exists() else {}
