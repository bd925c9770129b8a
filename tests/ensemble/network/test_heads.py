from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor

from ensemble.network.heads import (
    HeadKind,
    MeanHead,
    MlpHead,
    WeightsHead,
    build_head,
    head_cost,
    head_overhead,
)

SIZES = (5, 3, 8)
HIDDEN = 4


@pytest.fixture
def said() -> tuple[list[Tensor], list[Tensor]]:
    """Logits and features of three trunks about six images."""
    generator = torch.Generator().manual_seed(0)
    logits = [3 * torch.randn(6, 2, generator=generator) for _ in SIZES]
    return logits, [torch.randn(6, size, generator=generator) for size in SIZES]


def test_mean_is_the_mean_of_the_probabilities(said: tuple[list[Tensor], list[Tensor]]) -> None:
    logits, features = said
    expected = torch.stack([one.softmax(-1) for one in logits]).mean(0)
    torch.testing.assert_close(MeanHead()(logits, features).softmax(-1), expected)
    torch.testing.assert_close(MeanHead()(logits, features).exp(), expected)


def test_mean_keeps_sure_answers_apart() -> None:
    sure = [torch.tensor([[0.0, 200.0], [0.0, 300.0]]), torch.tensor([[0.0, 210.0], [0.0, 310.0]])]
    logits = MeanHead()(sure, [])
    assert logits.isfinite().all()
    margins = logits[:, 1] - logits[:, 0]
    assert margins[1] > margins[0] + 50


def test_weights_are_convex_and_weigh_logits(said: tuple[list[Tensor], list[Tensor]]) -> None:
    logits, features = said
    head = WeightsHead(3)
    torch.testing.assert_close(head(logits, features), torch.stack(logits).mean(0))
    with torch.no_grad():
        head.raw.copy_(torch.tensor([5.0, -40.0, 0.0]))
    assert head.weights.sum().item() == pytest.approx(1)
    assert (head.weights >= 0).all()
    expected = sum(weight * one for weight, one in zip(head.weights, logits, strict=True))
    torch.testing.assert_close(head(logits, features), expected)


def test_an_untrained_mlp_is_the_mean(said: tuple[list[Tensor], list[Tensor]]) -> None:
    logits, features = said
    head = MlpHead(SIZES, HIDDEN).eval()
    torch.testing.assert_close(head(logits, features), MeanHead()(logits, features))


def test_the_mlp_sees_features_of_any_scale(said: tuple[list[Tensor], list[Tensor]]) -> None:
    logits, features = said
    head = MlpHead(SIZES, HIDDEN).eval()
    with torch.no_grad():
        head.output.weight.fill_(1.0)
        head.output.weight[0] = -1.0
    assert not torch.allclose(head(logits, features), MeanHead()(logits, features))
    scaled = [1000 * feature + 7 for feature in features]
    torch.testing.assert_close(head(logits, scaled), head(logits, features), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["mean", "weights"])
def test_trunks_are_averaged_in_fp32_whatever_they_were_computed_in(
    kind: HeadKind, said: tuple[list[Tensor], list[Tensor]]
) -> None:
    """A product of matrices used to round the logits to 16 bits again."""
    logits, features = [one.bfloat16() for one in said[0]], said[1]
    head = build_head(kind, SIZES, 0)
    expected = head([one.float() for one in logits], features)
    with torch.autocast("cpu", torch.bfloat16):
        found = head(logits, features)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", ["weights", "mlp"])
def test_learned_heads_get_gradients(
    kind: HeadKind, said: tuple[list[Tensor], list[Tensor]]
) -> None:
    head = build_head(kind, SIZES, HIDDEN)
    torch.nn.functional.cross_entropy(head(*said), torch.tensor([0, 1, 0, 1, 1, 0])).backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())


@pytest.mark.parametrize("kind", get_args(HeadKind))
def test_the_cost_that_members_are_chosen_by_is_the_heads_size(kind: HeadKind) -> None:
    hidden = HIDDEN if kind == "mlp" else 0
    head = build_head(kind, SIZES, hidden)
    expected = sum(parameter.numel() for parameter in head.parameters())
    cost = sum(head_cost(kind, size, hidden) for size in SIZES) + head_overhead(kind, hidden)
    assert cost == expected


def test_the_seed_decides_the_start_and_nothing_else() -> None:
    before = torch.get_rng_state()
    first, second, other = (build_head("mlp", SIZES, HIDDEN, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    weights = [head.hidden.weight for head in (first, second, other) if isinstance(head, MlpHead)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
