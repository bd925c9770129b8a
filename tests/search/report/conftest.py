"""Runs made by hand, as a search leaves them: a study and a folder, no images, no weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
import yaml
from optuna.trial import TrialState, create_trial

import search.drawing.figure
from search.settings.saved import write_settings
from search.settings.search import SearchSettings
from search.study.storage import open_storage
from search.training.metrics import measure

OPTUNA_STATES = {
    "complete": TrialState.COMPLETE,
    "failed": TrialState.FAIL,
    "paused": TrialState.WAITING,
}
"""The others are pruned."""

MACHINE = {
    "device": "cuda NVIDIA H200, torch 2.15.0",
    "precision": "bf16",
    "versions": {"python": "3.12.3", "torch": "2.15.0", "timm": "1.0.31"},
}


@dataclass
class HandMadeRun:
    """A run of the demo set on a machine that is not here."""

    folder: Path
    study: optuna.Study = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir()
        write_settings(SearchSettings(out=self.folder, device="cuda").resolved(), self.folder)
        sizes = {"images": 2000, "real": 900, "fake": 1100, "groups": 50}
        data = {
            "study": "night",
            "budget": 200_000_000,
            "fingerprint": "0" * 16,
            "canvas": {"side": 224, "filter": "bilinear", "decoder": "Pillow 11.0"},
            "splits": {"fit": sizes, "select": sizes, "report": sizes},
            "division": {"kind": "unseen"},
            "notes": ["All networks were trained from scratch: --weights none."],
        }
        (self.folder / "data.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
        self.study = optuna.create_study(
            storage=open_storage(self.folder, None), study_name="night", direction="maximize"
        )

    def add(self, state: str, quality: float | None = None, **attributes: Any) -> int:
        """Adds a trial of the state, with a candidate's folder if it has a quality."""
        number = len(self.study.trials)
        row: dict[str, Any] = {
            "backbone": "test_vit.r160_in1k",
            "pretraining": "ImageNet-1K",
            "params_thop": 371_000,
            "params_exact": 371_778,
            "train_seconds": 75.0,
            "augmentation": "light:0.30",
        }
        if quality is not None:
            row |= self.write_candidate(number, quality, complete=state == "complete")
        self.study.add_trial(
            create_trial(
                state=OPTUNA_STATES.get(state, TrialState.PRUNED),
                value=row.get("auc") if state in ("complete", "pruned") else None,
                user_attrs={
                    "state": state,
                    "reason": "",
                    "row": row,
                    "recipe": {"backbone": row["backbone"], "learning_rate": 3e-4},
                    **attributes,
                },
            )
        )
        return number

    def write_candidate(
        self, number: int, quality: float, *, complete: bool = True
    ) -> dict[str, float | int]:
        """Writes a candidate's folder and returns its figures on select."""
        generator = np.random.default_rng(number)
        target = np.repeat([0, 1], 60)
        y_pred = 1 / (1 + np.exp(-generator.normal(quality * target)))
        figures = measure(y_pred, target).to_dict()
        folder = self.candidate(number)
        folder.mkdir(parents=True, exist_ok=True)
        looks = {"images": [1000, 2000], "epoch": [0.5, 1.0]}
        history = pd.DataFrame({**looks, "train_loss": [0.7, 0.5], "select_auc": [0.6, 1]})
        history.to_csv(folder / "history.csv", index=False)
        if complete:
            scores = pd.DataFrame({"img_name": "NA", "target": target, "y_pred": y_pred})
            scores.to_csv(folder / "scores.csv", index=False)
            report = measure(y_pred**2, target).to_dict()
            content = {**figures, **MACHINE, "report": report}
            (folder / "metrics.json").write_text(json.dumps(content), encoding="utf-8")
        return figures

    def candidate(self, number: int) -> Path:
        """The folder of a trial."""
        return self.folder / "candidates" / f"{number:04d}"


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[[str], HandMadeRun]:
    return lambda name: HandMadeRun(tmp_path / name)


@pytest.fixture
def night(make_run: Callable[[str], HandMadeRun]) -> HandMadeRun:
    """A run with a trial of every kind."""
    run = make_run("night")
    run.add("complete", 1.5)
    run.add("complete", 0.5, preset="baseline")
    run.add("pruned", 1.0, reason="its checkpoint was deleted: --disk")
    run.add("failed", reason="the loss must be finite")
    run.add("rejected", reason="pretraining must be ImageNet-1K alone, found ImageNet-12K")
    run.add("paused", 0.8, reason="the time limit was reached")
    return run


@pytest.fixture
def coarse() -> Iterator[None]:
    """Small figures, which are drawn fast."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search.drawing.figure, "DPI", 50)
        yield
