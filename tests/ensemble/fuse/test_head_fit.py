from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ensemble.fuse.head_fit import (
    LEARNING_RATES,
    HeadFit,
    TrunkOutputs,
    fit_head,
    trunk_outputs,
)
from ensemble.network.heads import Head, HeadKind, MeanHead, MlpHead, WeightsHead
from ensemble.network.model import FusedNetwork, HeadSpec, fuse_networks
from ensemble.pool.pool import Pool
from search.machine.interruption import Interrupted
from search.pixels.loading.epochs import eval_batches
from search.training.network import margin
from search.training.objective import Yardstick
from tests.stopping import StopAfter


def outputs(
    seed: int, strengths: tuple[float, ...], feature_strength: float = 0.0, flip: bool = False
) -> TrunkOutputs:
    """What trunks say that know the target as well as their strength says."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, 2, (200,), generator=generator)
    signs = (2 * targets - 1).float() * (-1 if flip else 1)

    def noisy(strength: float, size: int) -> Tensor:
        noise = torch.randn(200, size, generator=generator)
        noise[:, 0] += strength * signs
        return noise

    logits = [torch.cat([torch.zeros(200, 1), noisy(strength, 1)], 1) for strength in strengths]
    features = tuple(noisy(feature_strength, 4) for _ in strengths)
    return TrunkOutputs(torch.stack(logits), features, targets, torch.arange(200))


def fit(head: Head, known: TrunkOutputs, select: TrunkOutputs, **options: int) -> HeadFit:
    """Fits a head, judged by the AUC."""
    return fit_head(head, known, select, Yardstick("auc", select.targets.numpy()), **options)


def test_weights_find_the_trunk_that_knows() -> None:
    head = WeightsHead(3)
    found = fit(head, outputs(0, (0.0, 2.0, 0.0)), outputs(1, (0.0, 2.0, 0.0)), seed=0)
    assert head.weights[1] > 0.8
    assert found.reached > found.start + 0.02
    assert found.best_epoch > 0
    assert not head.training


def test_the_mlp_uses_what_only_features_know() -> None:
    head = MlpHead((4, 4), 8)
    found = fit(head, outputs(0, (0.2, 0.2), 2.0), outputs(1, (0.2, 0.2), 2.0), seed=0, epochs=60)
    assert found.start < 0.75
    assert found.reached > 0.9


@pytest.mark.parametrize("head", [WeightsHead(2), MlpHead((4, 4), 8)], ids=["weights", "mlp"])
def test_a_head_that_select_contradicts_stays_as_it_started(head: WeightsHead | MlpHead) -> None:
    before = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    contradicting = outputs(1, (-0.3, 1.0), -2.0)
    found = fit(head, outputs(0, (3.0, 0.0), 2.0), contradicting, seed=0)
    assert found.best_epoch == 0
    assert found.reached == found.start
    assert all(torch.equal(before[name], tensor) for name, tensor in head.state_dict().items())


def test_a_head_without_parameters_is_left_alone() -> None:
    found = fit(MeanHead(), outputs(0, (1.0, 1.0)), outputs(1, (1.0, 1.0)), seed=0)
    assert found.best_epoch == 0


def test_the_same_seed_gives_the_same_head() -> None:
    heads = [MlpHead((4, 4), 8) for _ in range(2)]
    heads[1].load_state_dict(heads[0].state_dict())
    torch.manual_seed(5)
    fit(heads[0], outputs(0, (1.0, 0.5), 1.0), outputs(1, (1.0, 0.5), 1.0), seed=3, epochs=4)
    torch.manual_seed(6)
    fit(heads[1], outputs(0, (1.0, 0.5), 1.0), outputs(1, (1.0, 0.5), 1.0), seed=3, epochs=4)
    for name, tensor in heads[0].state_dict().items():
        assert torch.equal(tensor, heads[1].state_dict()[name]), name


def test_a_diverged_head_is_never_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LEARNING_RATES, "mlp", 1e30)
    head = MlpHead((4, 4), 8)
    found = fit(head, outputs(0, (1.0, 1.0), 1.0), outputs(1, (1.0, 1.0), 1.0), seed=0)
    assert found.reached >= found.start
    assert all(tensor.isfinite().all() for tensor in head.state_dict().values())


def test_a_stop_ends_the_fitting_before_its_next_epoch() -> None:
    head, known = MlpHead((4, 4), 8), outputs(0, (1.0, 1.0), 1.0)
    yardstick = Yardstick("auc", known.targets.numpy())
    with pytest.raises(Interrupted):
        fit_head(head, known, known, yardstick, seed=0, check=StopAfter(2).check)
    assert head.output.weight.abs().sum() > 0  # two epochs were run


@pytest.mark.parametrize("head", [WeightsHead(2), MlpHead((4, 4), 8)], ids=["weights", "mlp"])
def test_scoring_copies_no_features_and_takes_a_part_at_a_time(
    head: WeightsHead | MlpHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ensemble.fuse.head_fit.CHUNK", 64)
    given: list[int] = []

    def look(_: nn.Module, said: tuple[list[Tensor], list[Tensor]]) -> None:
        if not head.training:
            logits, features = said
            given.append(len(logits[0]))
            assert all(part._base is not None for part in [*logits, *features])

    head.register_forward_pre_hook(look)
    known = outputs(0, (1.0, 0.5), 1.0)
    found = fit(head, known, known, seed=0, epochs=0)
    assert given == [64, 64, 64, 8]
    whole = margin(head(*known.rows(slice(None))).double()).detach().numpy()
    assert found.start == Yardstick("auc", known.targets.numpy()).quality(whole)[0]


def run_short_of_memory(model: FusedNetwork, most: int) -> None:
    """Makes a network refuse more than `most` images at a time."""

    def look(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        if len(given[0]) > most:
            raise torch.OutOfMemoryError

    model.trunks[1].register_forward_pre_hook(look)


@pytest.mark.parametrize("kind", ["weights", "mlp"])
@pytest.mark.parametrize("most", [None, 5])
def test_outputs_of_trunks_give_the_fused_networks_scores(
    kind: HeadKind, most: int | None, tiny_pool: Pool
) -> None:
    networks = [tiny_pool.get(name).load() for name in ("0002", "0003")]
    model = fuse_networks(networks, HeadSpec(kind, 8 if kind == "mlp" else 0))
    loader = tiny_pool.loader("select")
    calls: list[int] = []
    if most is not None:
        run_short_of_memory(model, most)
    given = trunk_outputs(model, loader, tiny_pool.runtime, lambda: calls.append(1))
    assert len(calls) == len(loader)
    assert given.targets.tolist() == tiny_pool.splits.select["target"].tolist()
    small = eval_batches(tiny_pool.reader, tiny_pool.splits.select, batch_size=4)
    few = trunk_outputs(model, small, tiny_pool.runtime, limit=5)
    assert len(few.targets) == few.logits.shape[1] == 8  # whole batches
    head = model.head.eval()
    scores = head(*given.rows(torch.arange(24))).softmax(-1)[:, 1].detach()
    expected = tiny_pool.evaluate(model, "select").predictions.scores
    torch.testing.assert_close(scores.double(), torch.from_numpy(expected), rtol=0, atol=1e-5)
