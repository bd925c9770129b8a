"""The Optuna dashboard over a run, and the notes and artifacts of trials that it shows.

Both are made of what lies on disk and in the study, after a trial was told, and can be made again.
"""

from __future__ import annotations

import json
import mimetypes
import shutil
import socket
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import optuna
from optuna.artifacts import ArtifactMeta, FileSystemArtifactStore
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial
from optuna_dashboard import get_note, run_server, save_note
from rich.console import Console

from search.errors import UserError
from search.machine.files import CANDIDATES, file_sha256, write_atomically
from search.machine.progress import tell_line
from search.report.leaderboard import outcome
from search.report.plots import draw_candidate_roc, draw_epochs
from search.report.recorded import LOOK_COLUMNS, SCORE_COLUMNS, named, read_table
from search.report.terminal import Problems, one_line
from search.study.storage import open_storage
from search.training.candidate import HISTORY, SCORES

ARTIFACTS = "artifacts"

PUBLISHED = "onefold:published:{}"
"""System attribute of a study: what the note and the artifacts of a trial were made of."""

ARTIFACT = "dashboard:artifacts:{}:{}"
"""System attribute of a study where the dashboard looks for the artifacts of a trial. Those of the
trial, which Optuna's `upload_artifact` writes, are closed once the trial has been told."""

DELETED = "null"
"""What the dashboard leaves there of an artifact that a user has deleted."""

FIGURES = (
    "objective",
    "auc",
    "auc_low",
    "auc_high",
    "auc_unseen",
    "auc_stress",
    "tpr_at_fpr_1e-2",
    "accuracy",
    "log_loss",
)


def serve(run: Path, storage_url: str | None, host: str = "127.0.0.1", port: int = 8080) -> None:
    """Serves the dashboard until Ctrl-C; the search may be running.

    Args:
        run: the run folder.
        storage_url: the run's `--storage`; None for its journal file.
        host: address to listen on. The dashboard has no password: who reaches it can change notes
            and delete the study.
        port: port to listen on.

    Raises:
        UserError: if the port is taken or the address is not this machine's.
        KeyboardInterrupt: after Ctrl-C.
    """
    _check_free(host, port)
    console = Console()
    shown = f"[{host}]" if ":" in host else host
    tell_line(console, f"dashboard of {run} on http://{shown}:{port} (Ctrl-C ends it)")
    store = artifact_store(run)
    run_server(open_storage(run, storage_url), host=host, port=port, artifact_store=store)
    raise KeyboardInterrupt  # The server swallows it, and ends for nothing else.


def artifact_store(run: Path) -> FileSystemArtifactStore:
    """The folder of a run that holds what the dashboard shows beside the numbers."""
    folder = run / ARTIFACTS
    folder.mkdir(exist_ok=True)
    return FileSystemArtifactStore(str(folder))


def publish(
    study: optuna.Study, run: Path, problems: Problems, numbers: Collection[int] | None = None
) -> None:
    """Gives trials their notes (Markdown) and artifacts: ROC, looks and history.csv.

    Only where the outcome is another than when it was last published, or an artifact's file is
    gone. What a user has written or deleted in the dashboard stays as it is.

    Args:
        study: its trials tell their outcome, see `search.report.leaderboard.outcome`.
        run: the run folder; candidates/ is read, artifacts/ written.
        problems: told of artifacts that could not be made.
        numbers: of the trials to look at; None for all.

    Raises:
        Exception: whatever the study's storage raises, if it cannot be written.
    """
    folder = run / ARTIFACTS
    folder.mkdir(exist_ok=True)
    attributes = study._storage.get_study_system_attrs(study._study_id)
    unmade: dict[str, str] = {}
    for trial in study.get_trials(deepcopy=False):
        if numbers is not None and trial.number not in numbers:
            continue
        told = outcome(trial)
        if told is None:
            continue
        publication = _Publication(study, trial, run, attributes)
        try:
            publication.make_artifacts(problems.tell)
        except Exception as error:
            unmade[publication.name] = one_line(error)
        publication.write_note(trial_note(*told, trial.user_attrs))
        publication.mark()
    if unmade:
        # One line, for most often one cause costs all of them.
        problems.not_made(f"artifacts of {named(list(unmade))}", next(iter(unmade.values())))


def trial_note(state: str, reason: str, attributes: Mapping[str, Any]) -> str:
    """Markdown: outcome, verdict of the rules, and the whole recipe.

    Args:
        state: how the trial ended.
        reason: why.
        attributes: of the trial: `row`, `recipe`.
    """
    row, recipe = attributes.get("row", {}), attributes.get("recipe", {})
    lines = [f"**{state}**" + (f": {reason}" if reason else "")]
    figures = [name for name in FIGURES if row.get(name) is not None]
    if figures:
        lines += ["", "| on select | |", "|---|---|"]
        lines += [f"| {name} | {row[name]:.4f} |" for name in figures]
    if row.get("params_exact") is not None and row.get("params_thop") is not None:
        lines += [
            "",
            f"Verdict of the rules: {'rejected' if state == 'rejected' else 'allowed'}; "
            f"{row['params_thop'] / 1e6:.2f}M parameters by thop, "
            f"{row['params_exact'] / 1e6:.2f}M exactly; pretraining: {row.get('pretraining', '')}.",
        ]
    if recipe:
        lines += ["", "| recipe | |", "|---|---|"]
        lines += [f"| {name} | {value} |" for name, value in recipe.items()]
    return "\n".join(lines)


class _Publication:
    """What the dashboard shall show of one trial, and what it shows already."""

    def __init__(
        self, study: optuna.Study, trial: FrozenTrial, run: Path, attributes: Mapping[str, Any]
    ) -> None:
        self.study, self.trial, self.run, self.attributes = study, trial, run, attributes
        self.name = f"{trial.number:04d}"
        self.candidate = run / CANDIDATES / self.name
        known = attributes.get(PUBLISHED.format(trial._trial_id))
        self.known: dict[str, Any] = known if isinstance(known, dict) else {}
        self.published: dict[str, Any] = {}

    def make_artifacts(self, tell: Callable[[str], None]) -> None:
        """Makes the files that are missing, or that are of other scores or looks than now."""
        sources = {
            source: file_sha256(self.candidate / source)
            for source in (SCORES, HISTORY)
            if (self.candidate / source).exists()
        }
        for name, (source, make) in MAKERS.items():
            identity = str(uuid5(NAMESPACE_URL, f"onefold/{self.name}/{name}"))
            key = ARTIFACT.format(self.trial._trial_id, identity)
            target = self.run / ARTIFACTS / identity
            shown = self.attributes.get(key)
            if source not in sources or shown == DELETED:
                continue
            is_current = self.known.get("sources", {}).get(source) == sources[source]
            if is_current and shown is not None and target.exists():
                continue
            if make(self.candidate / source, target, tell) and shown is None:
                kind, encoding = mimetypes.guess_type(name)
                assert kind is not None
                meta = asdict(ArtifactMeta(identity, name, kind, encoding))
                self._set(key, json.dumps(meta))
        self.published["sources"] = sources

    def write_note(self, note: str) -> None:
        """Writes the note, unless it says so already or a user has changed it."""
        self.published["note"] = _digest(note)
        if self.known.get("note") == self.published["note"]:
            return
        place = _NotePlace(self.study, self.trial._trial_id)
        present = get_note(place)
        if present and present != note and _digest(present) != self.known.get("note"):
            return
        if present != note:
            save_note(place, note)

    def mark(self) -> None:
        """Records what was published, last: what is not recorded is made again."""
        if self.published != self.known:
            self._set(PUBLISHED.format(self.trial._trial_id), self.published)

    def _set(self, key: str, value: Any) -> None:
        self.study._storage.set_study_system_attr(self.study._study_id, key, value)


@dataclass(frozen=True)
class _NotePlace:
    """What optuna-dashboard 0.21 asks of a trial to keep a note, which it writes to the study.

    Optuna makes no `Trial` of one that has been told, without drawing from the sampler.
    """

    study: optuna.Study
    _trial_id: int

    @property
    def storage(self) -> BaseStorage:
        """Of the study."""
        return self.study._storage


def _draw_roc(source: Path, target: Path, tell: Callable[[str], None]) -> bool:
    scores = read_table(source, SCORE_COLUMNS, tell)
    return scores is not None and draw_candidate_roc(scores, target).exists()


def _draw_epochs(source: Path, target: Path, tell: Callable[[str], None]) -> bool:
    history = read_table(source, LOOK_COLUMNS, tell)
    return history is not None and draw_epochs({source.parent.name: history}, target).exists()


def _copy(source: Path, target: Path, _tell: Callable[[str], None]) -> bool:
    def write(temporary: Path) -> None:
        shutil.copyfile(source, temporary)

    write_atomically(target, write)
    return True


MAKERS: dict[str, tuple[str, Callable[[Path, Path, Callable[[str], None]], bool]]] = {
    "roc.png": (SCORES, _draw_roc),
    "history.png": (HISTORY, _draw_epochs),
    "history.csv": (HISTORY, _copy),
}
"""Artifacts of a candidate: of which of its files they are made, and how."""


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def _check_free(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise UserError(
                f"the dashboard must be able to listen on {host}:{port}, found: {error}; choose "
                "another --port or --host"
            ) from None
