"""A merged model: a spec that rebuilds its module, counted, scored, and kept on disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from ensemble.network.admission import admit, check_count
from ensemble.network.heads import Head, HeadKind, build_head, head_cost, head_overhead
from ensemble.pool.eligibility import judge_recipe
from ensemble.pool.pool import Pool
from search.catalogue.rules import Counts, count_parameters, counter, over_budget
from search.errors import UserError
from search.machine.device import describe_device, library_versions
from search.machine.files import (
    COMPARISON,
    MERGED,
    first_problem,
    load_yaml,
    write_atomically,
    write_yaml_atomically,
)
from search.pixels.loading.batches import Images
from search.training.candidate import (
    CHECKPOINT,
    METRICS,
    RECIPE,
    REFIT_OF,
    REPORT_SCORES,
    WEIGHTS,
    Candidate,
    Look,
    copy_state,
    load_weights,
    save_candidate,
    score_table,
    score_tables,
)
from search.training.network import Network, build_network
from search.training.objective import value_of
from search.training.recipe import Recipe

SPEC = "model.yaml"

Method = Literal["candidate", "refit", "soup-greedy", "soup-uniform", "fused", "distilled"]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class HeadSpec:
    """The head of a fused network; see `ensemble.network.heads`."""

    kind: HeadKind
    hidden_size: Annotated[int, Field(ge=0)] = 0
    """Units of the hidden layer of "mlp"; 0 for the others."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class TeacherOrigin:
    """One network that taught a distilled student: what it learned from counts as pretraining."""

    name: str
    """The candidate, or the merged model that it is a trunk of."""
    backbone: str
    weights: Literal["hub", "file", "none"]
    """Where its starting weights came from."""
    pretraining: str
    weight: float
    """Share of its probability in what was taught."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ModelSpec:
    """All that is needed to rebuild a model's module, and where it comes from."""

    kind: Literal["single", "fused"]
    trunks: tuple[Recipe, ...]
    head: HeadSpec | None = None
    """Of a fused network."""
    method: Method = "candidate"
    merged_from: tuple[str, ...] = ()
    """Names of the candidates whose weights are in it, that it started from, or, of a refit, whose
    recipe it was trained by."""
    teachers: tuple[TeacherOrigin, ...] = ()
    """Of a distilled student; teachers of its teachers included."""
    overrides: tuple[str, ...] = ()
    """Rules that the user overrode, one line each."""
    notes: tuple[str, ...] = ()
    """What a reader of the model card should know."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kind == "single" and (len(self.trunks) != 1 or self.head is not None):
            raise ValueError(
                f"a single network has one trunk and no head, found {len(self.trunks)}"
            )
        if self.kind == "fused" and (len(self.trunks) < 2 or self.head is None):
            raise ValueError(
                f"a fused network has two trunks or more and a head, found {len(self.trunks)}"
            )
        if len(found := sorted({recipe.canvas for recipe in self.trunks})) != 1:
            raise ValueError(f"all trunks of a model take canvases of one side, found {found}")
        return self

    def save(self, path: Path) -> None:
        """Writes the spec as YAML, atomically."""
        write_yaml_atomically(path, TypeAdapter(ModelSpec).dump_python(self, mode="json"))

    @staticmethod
    def load(path: Path) -> ModelSpec:
        """Reads a spec that `save` wrote.

        Raises:
            UserError: if the file is absent, is no YAML, or has an unknown or ill-typed key.
        """
        content = load_yaml(path)
        try:
            return TypeAdapter(ModelSpec).validate_python(content)
        except ValidationError as error:
            raise UserError(
                f"{path} must be a model that onefold wrote: {first_problem(error)}"
            ) from error


class FusedNetwork(nn.Module):
    """Several trunks and a head in one module: one forward pass from one batch of canvases.

    Every trunk resizes and normalises the canvases itself, as it does alone.

    Attributes:
        trunks: Networks.
        head: see `ensemble.network.heads`.
        image_size: the largest size of a trunk, in pixels.
        canvas: side in pixels of the canvases that it takes.
    """

    def __init__(self, trunks: Sequence[Network], head: Head) -> None:
        super().__init__()
        self.trunks = nn.ModuleList(trunks)
        self.head = head
        self.image_size = max(trunk.image_size for trunk in trunks)
        self.canvas = trunks[0].canvas

    @property
    def image_sizes(self) -> tuple[int, ...]:
        """The sizes of the views that it is trained on: those of its trunks."""
        return tuple(sorted({trunk.image_size for trunk in self.networks}))

    def forward(self, images: Images) -> Tensor:
        """Logits (N, 2) of canvases, RGB in [0, 1], or of views at the sizes of its trunks."""
        if self.head.needs_features:
            return self.forward_with_features(images)[1]
        fused: Tensor = self.head([trunk(images) for trunk in self.trunks], [])
        return fused

    def forward_with_features(self, images: Images) -> tuple[Tensor, Tensor]:
        """Pooled features of all trunks side by side (N, sum of D), and logits (N, 2)."""
        features, logits = self.forward_trunks(images)
        fused: Tensor = self.head(logits, features)
        return torch.cat(features, dim=1), fused

    def forward_trunks(self, images: Images) -> tuple[list[Tensor], list[Tensor]]:
        """What the head is given: K features (N, D) and K logits (N, 2)."""
        given = [trunk.forward_with_features(images) for trunk in self.networks]
        return [features for features, _ in given], [logits for _, logits in given]

    @property
    def networks(self) -> list[Network]:
        """The trunks by their type."""
        return list(self.trunks)  # type: ignore[arg-type]

    def parameter_groups(
        self, weight_decay: float, lowest_layer_scale: float
    ) -> list[dict[str, Any]]:
        """The trunks' groups, and the head's, which is new and learns at the full rate."""
        groups = [
            group
            for trunk in self.networks
            for group in trunk.parameter_groups(weight_decay, lowest_layer_scale)
        ]
        head = list(self.head.parameters())
        if head:
            groups.append({"params": head, "weight_decay": 0.0, "lr_scale": 1.0})
        return groups


def feature_size(trunk: Any) -> int:
    """D of a timm model's pooled features; not every architecture has that as `num_features`."""
    return int(getattr(trunk, "head_hidden_size", trunk.num_features))


def fuse_networks(networks: Sequence[Network], head: HeadSpec, seed: int = 0) -> FusedNetwork:
    """Networks with an untrained head, in evaluation mode; their weights are shared, not copied."""
    sizes = [feature_size(network.trunk) for network in networks]
    return FusedNetwork(networks, build_head(head.kind, sizes, head.hidden_size, seed)).eval()


def build_model(spec: ModelSpec) -> Network | FusedNetwork:
    """The module of a spec, on the CPU, in evaluation mode, its weights random.

    Raises:
        UserError: if a trunk would load a file or reach the network, an argument is out of bounds,
            or it would have more parameters than the competition allows; it took no memory then.
    """
    trunks = admit(spec.trunks)
    if spec.head is not None:
        kind, hidden_size = spec.head.kind, spec.head.hidden_size
        costs = [head_cost(kind, feature_size(trunk), hidden_size) for trunk in trunks]
        exact = sum(parameter.numel() for trunk in trunks for parameter in trunk.parameters())
        check_count(exact + sum(costs) + head_overhead(kind, hidden_size))
    networks = [build_network(recipe, pretrained=False) for recipe in spec.trunks]
    return networks[0] if spec.head is None else fuse_networks(networks, spec.head)


def load_spec(folder: Path) -> ModelSpec:
    """The spec of a merged model's folder, of a submission, of a candidate, or of a refit.

    Raises:
        UserError: if it is none of them.
    """
    if (folder / SPEC).exists():
        return ModelSpec.load(folder / SPEC)
    if (folder / RECIPE).exists():
        recipe = Recipe.load(folder / RECIPE)
        origin = refit_of(folder)
        if origin is not None:
            return ModelSpec(kind="single", trunks=(recipe,), method="refit", merged_from=(origin,))
        return ModelSpec(kind="single", trunks=(recipe,), merged_from=(folder.name,))
    raise UserError(f"{folder} must be the folder of a model, but it has no {SPEC} and no {RECIPE}")


def refit_of(folder: Path) -> str | None:
    """The candidate whose recipe a refit was trained by; None for other models."""
    if not Candidate(folder).is_complete:
        return None
    origin = Candidate(folder).metrics.get(REFIT_OF)
    return None if origin is None else str(origin)


def load_model(folder: Path) -> tuple[Network | FusedNetwork, ModelSpec]:
    """The trained model of a folder, on the CPU, in evaluation mode, and its spec.

    Raises:
        UserError: if the folder holds no model, or its weights are gone or do not fit.
    """
    spec = load_spec(folder)
    if not (folder / WEIGHTS).exists():
        if (folder / CHECKPOINT).exists():
            raise UserError(
                f"{folder} must hold weights, but its training is not complete; the "
                "command that began it goes on with it"
            )
        raise UserError(
            f"{folder} must hold weights, but {WEIGHTS} is gone: the search keeps those of the "
            "best --keep candidates; choose one of them"
        )
    model = build_model(spec)
    load_weights(folder / WEIGHTS, model)
    return model, spec


def merged_folder(run: Path, name: str) -> Path:
    """Where a run keeps a merged model: "soup-greedy", "soup-uniform", "fused", "distilled"."""
    return run / MERGED / name


def merged_models(run: Path) -> tuple[Candidate, ...]:
    """The merged models of a run that are complete, by name."""
    folders = sorted(path.parent for path in (run / MERGED).glob(f"*/{METRICS}"))
    # Hidden ones are at work, or wait to take a place.
    return tuple(
        Candidate(folder)
        for folder in folders
        if (folder / SPEC).exists() and not folder.name.startswith(".")
    )


def check_budget(model: Network | FusedNetwork, budget: int, what: str) -> Counts:
    """Counts a model both ways.

    Args:
        model: its own image size is counted at.
        budget: largest number of parameters, for both counts.
        what: names the model in the error.

    Raises:
        UserError: if a count is over the budget: which, and by how much.
    """
    counts = count_parameters(model, model.image_size)
    if over_budget(counts, budget):
        excess = max(counts.params_exact, counts.params_thop) - budget
        raise UserError(
            f"{what} must have at most {budget:,} parameters, found {counts.params_exact:,} "
            f"exactly and {counts.params_thop:,} by thop: {excess:,} too many"
        )
    return counts


def keep_merged(
    pool: Pool,
    name: str,
    model: Network | FusedNetwork,
    spec: ModelSpec,
    recipe: Recipe,
    *,
    history: Sequence[Look] = (),
    figures: Mapping[str, Any] | None = None,
    on_batch: Callable[[], None] = lambda: None,
) -> Candidate:
    """Counts and scores a finished model and writes its folder.

    It is written beside the folder and takes its place as a whole, so that what the folder held
    before stays valid until then. A comparison that was made before is gone.

    Args:
        pool: whose run it belongs to.
        name: of its folder, see `merged_folder`.
        model: in its final state.
        spec: rebuilds it.
        recipe: what it was trained with, if it was; only for people to read where it is fused.
        history: one record an epoch of its own training.
        figures: further entries of metrics.json; device, precision and versions are those of the
            scoring unless a training tells its own.
        on_batch: called between batches; what it raises ends the scoring.

    Raises:
        UserError: if either count of its parameters is over the budget.
    """
    counts = check_budget(model, pool.catalogue.budget, f"the model of {name}")
    select = pool.evaluate(model, "select", on_batch, whole=True)
    report = pool.evaluate(model, "report", on_batch)
    metrics = {
        **_row(pool, spec, counts, model.image_size),
        "device": describe_device(pool.runtime.device),
        "precision": "fp32",
        "versions": library_versions(),
        **(figures or {}),
        **select.metrics.to_dict(),
        "objective": value_of(select.metrics.to_dict(), pool.objective),
        "report": report.metrics.to_dict(),
    }
    folder = merged_folder(pool.run, name)
    finish_replacing(folder)
    new = _beside(folder, NEW)
    if new.exists():
        shutil.rmtree(new)  # half-written
    new.mkdir(parents=True)
    spec.save(new / SPEC)
    scores = score_table(pool.splits.report, report.predictions)
    write_atomically(new / REPORT_SCORES, lambda path: scores.to_csv(path, index=False))
    on_select, on_altered = score_tables(pool.splits, select.predictions)
    save_candidate(
        new,
        recipe=recipe,
        metrics=metrics,
        history=history,
        scores=on_select,
        altered_scores=on_altered,
        weights=copy_state(model),
    )
    finish_replacing(folder)
    return Candidate(folder)


def finish_all_replacing(run: Path) -> None:
    """Lets merged models that are whole take their place, where a kill came before or amid that."""
    for suffix in (NEW, OLD):
        for beside in (run / MERGED).glob(f".*{suffix}"):
            finish_replacing(beside.with_name(beside.name[1:].removesuffix(suffix)))


def finish_replacing(folder: Path) -> None:
    """Lets a merged model that is whole take the place of the one before it; whatever moment a kill
    came at, one of both is there, and this goes on."""
    new, old = _beside(folder, NEW), _beside(folder, OLD)
    if (new / METRICS).exists():
        # A comparison recommends what it measured, not what took its place.
        (folder.parent.parent / COMPARISON).unlink(missing_ok=True)
        if folder.exists():
            if old.exists():
                shutil.rmtree(old)
            folder.rename(old)
        new.rename(folder)
    if old.exists():
        shutil.rmtree(old)


NEW, OLD = ".new", ".old"
"""Ends of the hidden names of the next model of a folder, and of the one before it."""


def _beside(folder: Path, suffix: str) -> Path:
    """A hidden folder beside a model's, so that it is not listed."""
    return folder.with_name(f".{folder.name}{suffix}")


def summarise(candidate: Candidate) -> str:
    """One line for the terminal, without report: only a comparison tells its figures."""
    metrics = candidate.metrics
    return (
        f"{candidate.name}: {metrics['params_exact'] / 1e6:.1f}M parameters exactly, "
        f"{metrics['params_thop'] / 1e6:.1f}M by thop, AUC {metrics['auc']:.4f} on select"
    )


def _row(pool: Pool, spec: ModelSpec, counts: Counts, image_size: int) -> dict[str, Any]:
    """The columns of leaderboard.csv that are no figures, and where the model comes from."""
    origins = [judge_recipe(recipe, pool.catalogue) for recipe in spec.trunks]
    teachers = [teacher.pretraining for teacher in spec.teachers]
    return {
        "method": spec.method,
        "backbone": " + ".join(recipe.backbone for recipe in spec.trunks),
        "pretraining": "; ".join(
            dict.fromkeys([*(origin.pretraining for origin in origins), *teachers])
        ),
        "params_thop": counts.params_thop,
        "params_exact": counts.params_exact,
        "gmacs": counts.macs / 1e9,
        "counter": counter(),
        "image_size": image_size,
        "canvas": spec.trunks[0].canvas,
        "members": list(spec.merged_from),
        "overrides": list(spec.overrides),
        "notes": list(spec.notes),
    }
