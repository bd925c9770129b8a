"""From a finished search to a submission, and what must hold on that way after each blow."""

from __future__ import annotations

import hashlib
import math
import shutil
from pathlib import Path
from typing import Any

from ensemble.deploy.prediction_file import PREDICTION
from ensemble.distill.distill import DISTILLED, VIEWS
from ensemble.fuse.joint import FUSED
from ensemble.network.model import NEW, OLD, load_model
from ensemble.submission.ledger import LEDGER as LEDGER_FILE
from ensemble.submission.ledger import Ledger
from ensemble.submission.submit import SUBMISSION
from ensemble.submission.verify import verify
from search.errors import UserError
from search.machine.files import MERGED
from search.machine.seconds import SECONDS
from search.training.candidate import METRICS, WEIGHTS, Candidate
from tests.e2e.conftest import DataSet
from tests.faults import phases
from tests.faults.courses import CHECKPOINT_MINUTES, MEASURED, Command
from tests.faults.evidence import FinishedCandidates, Problem, half_written, left_over
from tests.faults.phases import MERGE, Phase

ROUNDS = 3
"""Views of each image."""

EPOCHS = 2
"""Of the student and of the joint training."""

ROUNDING = 1e-6

OF_DISTILLING = (phases.VIEWS, phases.STUDENT)


class MergeCourse:
    """Distilling, fusing with a joint training, and submitting what was fused: a Course of three
    commands, or of two without the first, on the copy of a finished run."""

    def __init__(
        self,
        folder: Path,
        data: DataSet,
        *,
        finished: Path,
        unbroken: Path | None,
        distils: bool = True,
    ) -> None:
        """
        Args:
            folder: the run folder to make.
            data: the images.
            finished: the run to copy.
            unbroken: the folder of the same merge without a blow; None compares nothing.
            distils: else only what comes after it, where nothing of distilling is struck.
        """
        self.phases = tuple(phase for phase in MERGE if distils or phase not in OF_DISTILLING)
        self._models = (DISTILLED, FUSED) if distils else (FUSED,)
        shutil.copytree(finished, folder)
        self.run, self.unbroken = folder, unbroken
        self._candidates = FinishedCandidates(folder / "candidates")
        self._candidates.examine()
        self._rounds: dict[str, str] = {}
        self._trained: set[str] = set()
        self._placed: dict[str, str] = {}
        machine = ("--run", str(folder), "--device", "cpu", "--workers", "0")
        trained = (*machine, "--checkpoint-minutes", str(CHECKPOINT_MINUTES))
        self._distill = Command(
            "ensemble",
            ("distill", *trained, "--views", str(ROUNDS), "--epochs", str(EPOCHS)),
        )
        self._fuse = Command("ensemble", ("fuse", *trained, "--finetune-epochs", str(EPOCHS)))
        names = data.folder / "list.txt"
        names.write_text(
            "\n".join(["img_name", *sorted(p.name for p in (data.folder / "valset").iterdir()), ""])
        )
        self._submit = Command(
            "ensemble",
            (
                *("submit", *machine, "--phase", "validation", "--model", FUSED),
                *("--images", str(data.folder / "valset"), "--list", str(names)),
            ),
        )

    @property
    def finished(self) -> frozenset[str]:
        """Names of the trainings, and of the recording, that were seen complete."""
        return frozenset(self._trained)

    def command(self) -> Command | None:
        """What is to be done next, as the run folder tells."""
        if DISTILLED in self._models and not self._is_done(DISTILLED):
            return self._distill
        if not self._is_done(FUSED):
            return self._fuse
        # To be counted comes first, to have a place last. The process that gave a counted one its
        # place may have been killed while it made another, which the next one takes up.
        is_placed = (self.run / SUBMISSION).exists()
        return self._submit if not is_placed or self._hidden() else None

    def succeeded(self) -> None:
        """The run folder tells."""

    def reachable(self) -> tuple[Phase, ...]:
        """The phases that the next process will come to."""
        command = self.command()
        if command is self._submit:
            return phases.SUBMIT
        is_student = command is self._distill
        name, training = (DISTILLED, phases.STUDENT) if is_student else (FUSED, phases.JOINT)
        if self._working(name).is_complete:
            return (phases.KEEPING,)
        recording = is_student and len(self._recorded()) < ROUNDS
        return (*((phases.VIEWS,) if recording else ()), training, phases.KEEPING)

    def examine(self, *, gracefully: bool) -> list[Problem]:
        """What is wrong after a process has ended."""
        problems = [*half_written(self.run), *self._candidates.examine()]
        problems += self._examine_rounds()
        for name in self._models:
            problems += self._examine_merged(name)
        return problems + self._examine_submission()

    def examine_end(self) -> list[Problem]:
        """What is wrong once there is a submission."""
        problems = left_over(self.run / MERGED)
        hidden = [*self._hidden(), *self.run.glob(f".{LEDGER_FILE}.*.part")]
        # A model that was replaced goes at the next merge.
        hidden += [p for p in (self.run / MERGED).glob(".*") if not p.name.endswith(OLD)]
        problems += [Problem("broken", f"{path.name} was left over") for path in hidden]
        entries = Ledger(self.run / LEDGER_FILE).entries
        if len(entries) != 1:
            kind = "lost" if not entries else "repeated"
            problems.append(Problem(kind, f"the submission was counted {len(entries)} times"))
        if not (self.run / SUBMISSION).exists():
            problems.append(Problem("lost", "the submission is counted, and not there"))
        return problems if self.unbroken is None or problems else self._compare(self.unbroken)

    def _hidden(self) -> list[Path]:
        """Packages that are being made, or wait to take their place."""
        return list(self.run.glob(f".{SUBMISSION}.*"))

    def _working(self, name: str) -> Candidate:
        """The training of a merged model."""
        return Candidate(self.run / MERGED / f".{name}")

    def _is_done(self, name: str) -> bool:
        """Whether a merged model has its place and nothing is left to do."""
        is_kept = Candidate(self.run / MERGED / name).is_complete
        return is_kept and not self._working(name).path.exists()

    def _recorded(self) -> list[Path]:
        return sorted((self.run / MERGED / VIEWS).glob("margins_*.npy"))

    def _examine_rounds(self) -> list[Problem]:
        """A round that is recorded stays as it is."""
        problems = []
        found = {
            path.name: f"{_digest(path)} {path.stat().st_mtime_ns}" for path in self._recorded()
        }
        for name, before in self._rounds.items():
            if found.get(name) != before:
                kind = "repeated" if name in found else "lost"
                problems.append(Problem(kind, f"{name} was recorded, and is another now"))
        self._rounds = found
        if len(found) == ROUNDS:
            self._trained.add(VIEWS)
        return problems

    def _examine_merged(self, name: str) -> list[Problem]:
        """A model that has its place is whole and stays; its training is not repeated."""
        folder = self.run / MERGED / name
        if self._working(name).is_complete or (folder / METRICS).exists():
            self._trained.add(f".{name}")
        if not folder.exists():
            # While the same model takes its place once more, it is beside.
            is_beside = (folder.with_name(f".{name}{NEW}") / METRICS).exists()
            is_lost = name in self._placed and not is_beside
            return [Problem("lost", f"{name} is gone")] if is_lost else []
        try:
            load_model(folder)
            Candidate(folder).metrics["report"]
        except (UserError, KeyError) as error:
            return [Problem("broken", f"{name} has its place and is not whole: {error}")]
        digest = _digest(folder / WEIGHTS)
        if self._placed.setdefault(name, digest) != digest:
            return [Problem("repeated", f"{name} had its place, and is another now")]
        return []

    def _examine_submission(self) -> list[Problem]:
        """A folder of the submission's name passes every check, and is counted."""
        problems = []
        entries = Ledger(self.run / LEDGER_FILE).entries
        folders = list(self.run.glob(f"{SUBMISSION}*"))
        if len(entries) > 1:
            text = f"one submission was counted {len(entries)} times"
            problems.append(Problem("repeated", text))
        if len(folders) > len(entries):
            problems.append(
                Problem("broken", f"{len(folders)} submissions, {len(entries)} counted")
            )
        for folder in folders:
            for check in verify(folder):
                if not check.ok:
                    text = f"{folder.name}: {check.name}: {check.detail}"
                    problems.append(Problem("broken", text))
        return problems

    def _compare(self, unbroken: Path) -> list[Problem]:
        """Models, predictions and views equal those of an unbroken way to the bit, figures but for
        rounding: the same weights lie elsewhere in the memory of a process that loaded them."""
        same = [f"{MERGED}/{VIEWS}/{path.name}" for path in self._recorded()]
        same += [f"{MERGED}/{name}/{WEIGHTS}" for name in self._models]
        same += [f"{SUBMISSION}/{name}" for name in (PREDICTION, WEIGHTS)]
        differing = [name for name in same if _digest(self.run / name) != _digest(unbroken / name)]
        for name in self._models:
            ours, theirs = (_figures(run / MERGED / name) for run in (self.run, unbroken))
            differing += [f"{name}: {key}" for key in theirs if not _agree(ours[key], theirs[key])]
        return [
            Problem("broken", f"{name} differs from that of an unbroken run") for name in differing
        ]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _figures(folder: Path) -> dict[str, Any]:
    """A merged model's figures, history and scores, without what is measured by the clock."""
    candidate = Candidate(folder)
    metrics = candidate.metrics
    figures = {
        **{name: value for name, value in metrics.items() if name not in MEASURED},
        **{f"report {name}": value for name, value in metrics["report"].items()},
        "scores": candidate.scores["y_pred"].tolist(),
        "history": candidate.history.drop(columns=list(SECONDS)).to_numpy().ravel().tolist(),
    }
    del figures["report"]
    return figures


def _agree(ours: Any, theirs: Any) -> bool:
    if isinstance(theirs, float):
        return math.isclose(ours, theirs, abs_tol=ROUNDING)
    if isinstance(theirs, list) and isinstance(ours, list) and len(theirs) == len(ours):
        return all(map(_agree, ours, theirs))
    return bool(ours == theirs)
