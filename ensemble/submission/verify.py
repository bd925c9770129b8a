"""`verify`: whether a submission is what it says, from its folder alone; every failure is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from ensemble.deploy.prediction_file import PREDICTION
from ensemble.deploy.scoring import open_runtime
from ensemble.network.model import SPEC
from ensemble.settings import TOLERANCE
from ensemble.submission.examination import Examination
from ensemble.submission.manifest import MANIFEST
from search.errors import UserError
from search.machine.device import Runtime
from search.machine.files import file_sha256
from search.machine.progress import tell_line


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    ok: bool
    detail: str  # what was found; why it failed


def run_verify(
    folder: Path,
    images: Path | None,
    console: Console,
    *,
    device: str = "cpu",
    workers: int | None = None,
    tolerance: float = TOLERANCE,
) -> list[Check]:
    """Verifies a submission and tells the outcome of every check.

    Args:
        folder: the submission.
        images: the folder of the listed images, to recompute their scores too.
        console: where the checks are told.
        device: computes the listed images' scores; probes are scored on the CPU.
        workers: processes that decode images.
        tolerance: largest difference between a recorded score and the one recomputed.

    Raises:
        UserError: if any check fails, after all were made.
    """
    runtime = open_runtime(device, workers)
    checks = verify(folder, images, runtime=runtime, console=console, tolerance=tolerance)
    for check in checks:
        mark = "[green]ok[/]    " if check.ok else "[red]FAILED[/]"
        console.print(mark, end=" ")
        tell_line(console, f"{check.name}: {check.detail}")
    if images is None:
        tell_line(console, "not checked: the scores in prediction.csv, which need --images IMAGES")
    failed = [check.name for check in checks if not check.ok]
    if failed:
        raise UserError(
            f"{folder} must pass every check, but {len(failed)} of {len(checks)} failed: "
            f"{', '.join(failed)}; do not hand it in"
        )
    tell_line(console, f"manifest SHA-256 {file_sha256(folder / MANIFEST)}")
    return checks


def verify(
    folder: Path,
    images: Path | None = None,
    *,
    runtime: Runtime | None = None,
    console: Console | None = None,
    tolerance: float = TOLERANCE,
) -> list[Check]:
    """Makes every check of a submission; none keeps the others from being made.

    Args:
        folder: the submission; nothing outside it is read, but `images`.
        images: the folder of the listed images; None leaves their scores unchecked.
        runtime: computes the listed images' scores; the CPU by default.
        console: shows the progress of the scoring.
        tolerance: largest difference between a recorded score and the one recomputed.

    Raises:
        UserError: if there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} must be the folder of a submission, found nothing there")
    if not any((folder / name).exists() for name in (MANIFEST, SPEC, PREDICTION)):
        raise UserError(
            f"{folder} must be the folder of a submission, found none of {MANIFEST}, {SPEC} and "
            f"{PREDICTION}"
        )
    runtime = runtime or open_runtime("cpu", 0)
    examination = Examination(folder, runtime, console or Console(quiet=True), tolerance)
    checks: dict[str, Callable[[], str]] = {
        "files": examination.check_files,
        "module": examination.check_module,
        "parameters": examination.check_parameters,
        "pretraining": examination.check_pretraining,
        "samples": examination.check_samples,
        "prediction": examination.check_prediction,
        "probes": examination.check_probes,
    }
    if images is not None:
        checks["images"] = lambda: examination.check_images(images)
    return [_made(name, check) for name, check in checks.items()]


def _made(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name, True, check())
    except (KeyError, TypeError, AttributeError) as error:
        return Check(name, False, f"a record is incomplete: {type(error).__name__} {error}")
    except Exception as error:  # a tampered spec makes timm raise anything; the other checks go on
        return Check(name, False, " ".join(str(error).split()) or type(error).__name__)
