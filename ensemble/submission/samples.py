"""The generated samples that a submission's model was trained on, and the tool that made them.

The rules allow them if the tool is submitted. A run and a submission's reproduce/ keep both in one
form: data.yaml says how many were trained on, generated/ has the manifest and the tool's code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ensemble.network.evidence import NO_SAMPLES
from search.data.generated import (
    GENERATED,
    MANIFEST,
    check_tool,
    keep_record,
    read_manifest,
)
from search.data.inputs import DATA
from search.errors import UserError
from search.machine.files import file_sha256

TOOL = "python -m search expand"

PLACE = f"reproduce/{GENERATED}"
"""Of the manifest and the tool in a submission."""


def describe_samples(folder: Path) -> dict[str, Any] | str:
    """What rules.json says of generated samples.

    Args:
        folder: of a run, or a submission's reproduce/.

    Raises:
        UserError: if the manifest or the tool is absent, or not that of the images trained on.
    """
    trained_on = _trained_on(folder / DATA)
    place = folder / GENERATED
    if trained_on is None:
        if place.exists():
            raise UserError(f"{place} must not be there: {DATA} knows of no generated samples")
        return NO_SAMPLES
    manifest = read_manifest(place / MANIFEST)
    check_tool(place, manifest)
    sha256 = file_sha256(place / MANIFEST)
    if sha256 != trained_on["manifest_sha256"]:
        raise UserError(
            f"{place / MANIFEST} must be the manifest that {DATA} records, SHA-256 "
            f"{trained_on['manifest_sha256']}, found {sha256}"
        )
    return {
        "samples": sum(trained_on["kinds"].values()),
        "kinds": dict(trained_on["kinds"]),
        "sources": "training images (fit) alone",
        "tool": TOOL,
        "tool_files": dict(manifest.head.tool),
        "version": manifest.head.version,
        "libraries": dict(manifest.head.libraries),
        "seed": manifest.head.seed,
        "manifest": f"{PLACE}/{MANIFEST}",
        "manifest_sha256": sha256,
    }


def carry_samples(run: Path, folder: Path) -> None:
    """Copies the manifest and the tool of a run, if it has them, into a reproduce/."""
    if _trained_on(run / DATA) is not None:
        keep_record(run / GENERATED, folder)


def tell_samples(samples: dict[str, Any] | str) -> str:
    """The same in a sentence, for the model card."""
    if isinstance(samples, str):
        return samples
    kinds = ", ".join(f"{number:,} {kind}" for kind, number in samples["kinds"].items())
    return (
        f"{samples['samples']:,} ({kinds}), made of the training images alone by "
        f"`{samples['tool']}` of onefold {samples['version']}, seed {samples['seed']}; "
        f"`{PLACE}` has their manifest and the tool's code"
    )


def _trained_on(path: Path) -> dict[str, Any] | None:
    """What a data.yaml says of generated samples; None where there are none."""
    if not path.exists():
        return None
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} must be YAML that onefold wrote: {error}") from None
    found: dict[str, Any] | None = (content or {}).get(GENERATED)
    return found
