"""What a submission is checked for: each check recomputes what its folder records."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from ensemble.deploy.prediction_file import PREDICTION, examples, find_faults, read_prediction
from ensemble.deploy.probes import COUNT, score_probes
from ensemble.deploy.scoring import score_images
from ensemble.network.admission import BUDGET
from ensemble.network.evidence import RULES, describe_rules
from ensemble.network.model import SPEC, FusedNetwork, ModelSpec, build_model
from ensemble.settings import TOLERANCE
from ensemble.submission.manifest import find_changes
from ensemble.submission.reproduce import FOLDER, IMAGES, carried_recipes
from ensemble.submission.samples import IN_TRAINING, BlendingCode, describe_samples
from search.data.labels import read_list, read_rows
from search.errors import UserError
from search.machine.device import Runtime, describe_device, resolve_precision
from search.machine.files import read_json
from search.training.candidate import WEIGHTS, load_weights
from search.training.network import Network

PROBES = "probes.json"

ROUNDING = 1e-3
"""A tolerance that allows for the rounding of another device. It moved scores by 1.2e-5 between two
memory layouts of one CPU (mobilenetv4_conv_medium, 16 images), and a set of images shows its
largest difference."""

MARGIN_TOLERANCE = 1e-3
"""Likewise between margins, relative above 1: they tell models apart whose scores are 0 or 1."""


WEIGHTS_SUFFIXES = frozenset({".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".pkl", ".onnx"})


class Examination:
    """A folder under examination; every check returns what it found or raises why it failed."""

    def __init__(
        self,
        folder: Path,
        runtime: Runtime,
        console: Console,
        tolerance: float = TOLERANCE,
    ) -> None:
        """
        Args:
            folder: the submission.
            runtime: the device to score listed images on; probes are scored on the CPU.
            console: shows the progress.
            tolerance: largest difference between a recorded score and the one recomputed.
        """
        self.folder, self.runtime, self.console = folder, runtime, console
        self.tolerance = tolerance

    @cached_property
    def spec(self) -> ModelSpec:
        """What rebuilds the module: model.yaml."""
        return ModelSpec.load(self.folder / SPEC)

    @cached_property
    def model(self) -> Network | FusedNetwork:
        """The module, rebuilt and loaded strictly."""
        model = build_model(self.spec)
        load_weights(self.folder / WEIGHTS, model)
        return model

    @cached_property
    def rules(self) -> dict[str, Any]:
        """rules.json as it was handed in."""
        return _read_record(self.folder / RULES)

    @cached_property
    def recomputed_rules(self) -> dict[str, Any]:
        """rules.json as this machine, counting and judging anew, would write it."""
        networks = self.rules["pretraining"]["networks"]
        return describe_rules(
            self.model,
            self.model.image_size,
            self.spec,
            budget=int(self.rules["parameters"]["budget"]),
            declared={network["backbone"]: network["declared"] for network in networks},
        )

    @cached_property
    def names(self) -> list[str]:
        """The listed images."""
        names: list[str] = read_rows(self.folder / FOLDER / IMAGES, (None,))["img_name"].tolist()
        return names

    def check_files(self) -> str:
        """Every file's SHA-256 against the manifest; none may be added or missing."""
        changes = find_changes(self.folder)
        if changes:
            raise UserError("; ".join(changes))
        return "every file is as the manifest says, and there is no other"

    def check_module(self) -> str:
        """One weights file, which fits the module of the spec."""
        weights = {WEIGHTS, *_weights_files(self.folder)}
        if len(weights) > 1:
            raise UserError(f"one weights file is allowed, found {', '.join(sorted(weights))}")
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        return f"rebuilt from {SPEC} and loaded strictly, {parameters:,} parameters"

    def check_parameters(self) -> str:
        """Both counts, made anew, against those recorded and the budget."""
        found, recorded = self.recomputed_rules["parameters"], self.rules["parameters"]
        for name in ("params_thop", "params_exact", "image_size"):
            if found[name] != recorded[name]:
                raise UserError(f"{name} is recorded as {recorded[name]:,}, found {found[name]:,}")
        if recorded["budget"] > BUDGET:
            raise UserError(f"the budget is {BUDGET:,}, recorded as {recorded['budget']:,}")
        for name in ("params_thop", "params_exact"):
            if found[name] > found["budget"]:
                raise UserError(f"{name} {found[name]:,} is over the budget {found['budget']:,}")
        return (
            f"{found['params_thop']:,} by {found['counter']}, {found['params_exact']:,} exactly, "
            f"of {found['budget']:,}"
        )

    def check_pretraining(self) -> str:
        """Provenance of every trunk and teacher, judged anew; one model, no other data."""
        found, recorded = self.recomputed_rules, self.rules
        for name in ("one_model", "overrides"):
            if found[name] != recorded[name]:
                raise UserError(f"{name} is recorded as {recorded[name]}, found {found[name]}")
        networks = found["pretraining"]["networks"]
        if _without_reasons(networks) != _without_reasons(recorded["pretraining"]["networks"]):
            raise UserError(f"trunks and teachers are not those of {SPEC}, or judged otherwise")
        if found["broken_rules"]:
            raise UserError("; ".join(found["broken_rules"]))
        kinds = sorted({network["pretraining"] for network in networks})
        overrides = f"; overrides: {'; '.join(found['overrides'])}" if found["overrides"] else ""
        return f"{len(networks)} trunks and teachers: {', '.join(kinds)}{overrides}"

    def check_samples(self) -> str:
        """Generated samples: what is said of them, against their manifest and the tool's code."""
        folder = self.folder / FOLDER
        code = BlendingCode.carried(folder)
        found = describe_samples(folder, self.spec, carried_recipes(folder), code)
        recorded = self.rules["generated_samples"]
        if found != recorded:
            raise UserError(f"generated samples are recorded as {recorded}, found {found}")
        if isinstance(found, str):
            return f"generated samples: {found}"
        told = []
        if "samples" in found:
            told.append(
                f"{found['samples']:,} generated samples, with their manifest and the "
                f"{len(found['tool_files'])} files of the tool that computed them"
            )
        if IN_TRAINING in found:
            told.append(
                f"views blended in the training of {', '.join(found[IN_TRAINING]['networks'])}, "
                "with the code that blended them"
            )
        return "; ".join(told)

    def check_prediction(self) -> str:
        """Exactly the listed images, once each, with finite scores in [0, 1]."""
        faults = find_faults(read_prediction(self.folder / PREDICTION), self.names)
        if faults:
            raise UserError("; ".join(faults))
        return f"{len(self.names):,} listed images, each once, scores in [0, 1]"

    def check_probes(self) -> str:
        """Scores of images made from the recorded seed, recomputed to the tolerance."""
        recorded = _read_record(self.folder / PROBES)
        if recorded["canvas"] != self.model.canvas or len(recorded["scores"]) != COUNT:
            raise UserError(f"must be {COUNT} images of {self.model.canvas} px")
        found = asdict(score_probes(self.model, int(recorded["seed"]), self.model.canvas))
        score_difference = _largest_difference(found["scores"], recorded["scores"])
        scale = 1 + np.abs(found["margins"])
        margin_difference = _largest_difference(
            found["margins"] / scale, np.asarray(recorded["margins"]) / scale
        )
        # Either may be NaN.
        if not (score_difference <= self.tolerance and margin_difference <= MARGIN_TOLERANCE):
            raise UserError(
                f"scores differ by {score_difference:.1e} from those recorded"
                f"{_elsewhere(recorded['device'], found['device'])}"
            )
        return f"{COUNT} scores recomputed, largest difference {score_difference:.1e}"

    def check_images(self, images: Path) -> str:
        """Scores of all listed images, recomputed to the tolerance; `images` is their folder."""
        table = read_list(self.folder / FOLDER / IMAGES, images)
        made = self.rules["prediction"]
        scored = score_images(
            self.model,
            table,
            runtime=self.runtime,
            console=self.console,
            # Rounding depends on both; submissions from before they were recorded had these.
            batch_size=int(made.get("batch_size", 32)),
            precision=resolve_precision(made.get("precision", "fp32"), self.runtime.device),
        )
        recorded = read_prediction(self.folder / PREDICTION).set_index("img_name")["y_pred"]
        unreadable = sorted(broken.img_name for broken in scored.broken)
        if unreadable != self.rules["prediction"]["unreadable"]:
            raise UserError(f"unreadable images are not those recorded: {examples(unreadable)}")
        given = self.rules["prediction"]["unreadable_score"]
        wrong = [name for name in unreadable if recorded.get(name) != given]
        if wrong:
            raise UserError(f"unreadable images must score {given}, as recorded: {examples(wrong)}")
        expected = recorded.reindex(scored.table["img_name"]).to_numpy()
        differences = np.abs(scored.table["y_pred"].to_numpy() - expected)
        differing = scored.table["img_name"][~(differences <= self.tolerance)]
        if len(differing):
            here = describe_device(self.runtime.device)
            raise UserError(
                f"{len(differing)} of {len(differences)} scores differ by more than "
                f"{self.tolerance:g}: {examples(differing)}"
                f"{_elsewhere(self.rules['prediction']['device'], here)}"
            )
        return f"{len(differences):,} scores recomputed, largest difference {differences.max():.1e}"


def _elsewhere(recorded: str, here: str) -> str:
    """What to do about scores that another device recorded, whose rounding differs."""
    if recorded == here:
        return ""
    return (
        f"; they were recorded on {recorded} and recomputed on {here}: recompute them there, or "
        f"allow for rounding with --tolerance {ROUNDING:g}"
    )


def _weights_files(folder: Path) -> Iterator[str]:
    """Files that may hold weights, relative to the folder."""
    for path in folder.rglob("*"):
        if path.suffix in WEIGHTS_SUFFIXES:
            yield path.relative_to(folder).as_posix()


def _read_record(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path.name} must be JSON that onefold wrote: {error}") from None


def _without_reasons(networks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Reasons are for people; another version may word them otherwise."""
    return [{**network, "reason": None} for network in networks]


def _largest_difference(found: Any, recorded: Any) -> float:
    return float(np.abs(np.asarray(found, float) - np.asarray(recorded, float)).max())
