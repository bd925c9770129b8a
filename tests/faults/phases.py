"""The phases of a run that are struck, and the functions that each consists of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Phase:
    """A part of a run's way.

    Attributes:
        name: in the table.
        places: the functions, `module:attribute`, where they are looked up when they are called.
        occurrences: the blow falls on one of so many first ones in a process, drawn at random.
    """

    name: str
    places: tuple[str, ...]
    occurrences: int = 1


SPLITS = Phase("splits", ("search.study.plan:read_splits",))
OPENING = Phase(
    "opening",
    (
        "search.run.search:open_study",
        "search.run.search:write_data",
        "search.run.search:write_settings",
        "search.run.search:recover",
        "search.run.search:enqueue_first_trials",
    ),
    5,
)
CACHE = Phase("canvas cache", ("search.pixels.opening:fill_cache",))
TRAINING = Phase("training", ("search.training.loop:Training.run",), 6)
EVALUATION = Phase("evaluation", ("search.training.train:evaluate",), 6)
CHECKPOINT = Phase("checkpoint write", ("search.training.train:save_state",), 12)
CANDIDATE = Phase("candidate save", ("search.training.train:save_candidate",), 2)
TELLING = Phase(
    "telling",
    (
        "search.study.driving:claim",
        "search.study.driving:record_outcome",
        "search.study.driving:put_back",
        "search.study.driving:_TrialWatch.look",
        "search.study.driving:tell_complete",
        "optuna:Study.tell",
    ),
    12,
)
LEADERBOARD = Phase("leaderboard", ("search.report.projections:write_leaderboard",), 2)
REPORT_SCORING = Phase("report scoring", ("search.run.search:score_best_on_report",))
RESULTS = Phase("results", ("search.run.search:write_projections",))

VIEWS = Phase("recorded views", ("ensemble.distill.distill:record_views",))
STUDENT = Phase("student training", ("search.training.loop:Training.run",), 2)
JOINT = Phase("joint training", ("search.training.loop:Training.run",), 2)
KEEPING = Phase(
    "merged model save",
    (
        "ensemble.distill.distill:keep_merged",
        "ensemble.fuse.fuse:keep_merged",
        "ensemble.network.training:MergeTraining.clear",
    ),
    2,
)
PACKAGING = Phase(
    "packaging",
    ("ensemble.submission.submit:write_package", "ensemble.submission.submit:_check"),
    2,
)
LEDGER = Phase("ledger", ("ensemble.submission.submit:_count",))

SEARCH = (
    *(SPLITS, OPENING, CACHE, TRAINING, EVALUATION, CHECKPOINT, CANDIDATE, TELLING),
    *(LEADERBOARD, REPORT_SCORING, RESULTS),
)
DISTILL = (VIEWS, STUDENT, KEEPING)
FUSE = (JOINT, KEEPING)
SUBMIT = (PACKAGING, LEDGER)
MERGE = (VIEWS, STUDENT, JOINT, KEEPING, PACKAGING, LEDGER)

EVERY = (*SEARCH, *MERGE)

COMMANDS = {
    ("search", "run"): SEARCH,
    ("ensemble", "distill"): DISTILL,
    ("ensemble", "fuse"): FUSE,
    ("ensemble", "submit"): SUBMIT,
}
"""What each command comes to, by its program and its name."""
