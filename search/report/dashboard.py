"""The Optuna dashboard over a run, artifacts and notes included."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from optuna_dashboard import run_server, save_note
from rich.console import Console

from search.errors import UserError
from search.study.storage import open_storage

ARTIFACTS = "artifacts"


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
    console.print(f"dashboard of {run} on http://{shown}:{port} (Ctrl-C ends it)", soft_wrap=True)
    store = artifact_store(run)
    run_server(open_storage(run, storage_url), host=host, port=port, artifact_store=store)
    raise KeyboardInterrupt  # The server swallows it, and ends for nothing else.


def artifact_store(run: Path) -> FileSystemArtifactStore:
    """The folder of a run that holds what the dashboard shows beside the numbers."""
    folder = run / ARTIFACTS
    folder.mkdir(exist_ok=True)
    return FileSystemArtifactStore(str(folder))


def publish_trial(trial: optuna.Trial, note: str, artifacts: Sequence[Path], run: Path) -> None:
    """Gives a trial that has not been told yet its note (Markdown) and its files."""
    save_note(trial, note)
    store = artifact_store(run)
    for path in artifacts:
        upload_artifact(artifact_store=store, file_path=str(path), study_or_trial=trial)


def mark_infeasible(trial: optuna.Trial, key: str, value: float) -> None:
    """Records that a trial breaks a rule.

    Args:
        trial: not told yet.
        key: the rule.
        value: by how much it is broken, above 0.
    """
    trial.set_constraint(key, value)
    # optuna-dashboard 0.21 reads the attribute that Optuna 4 wrote.
    trial.storage.set_trial_system_attr(trial._trial_id, "constraints", [value])


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
