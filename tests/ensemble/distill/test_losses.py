from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from ensemble.distill import losses

N = 12
FAR = (-40.0, 40.0)
"""Margins at which a sigmoid in float32 is 0 or 1."""


def margins_of(logits: Tensor) -> list[float]:
    return [fake - real for real, fake in logits.tolist()]


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def plain_margin_bce(logits: Tensor, teacher: Tensor, temperature: float) -> float:
    total = 0.0
    for student, wanted in zip(margins_of(logits), teacher.tolist(), strict=True):
        p, q = sigmoid(student / temperature), sigmoid(wanted / temperature)
        total += -q * math.log(p) - (1 - q) * math.log(1 - p)
    return temperature**2 * total / len(logits)


def plain_margin_mse(logits: Tensor, teacher: Tensor) -> float:
    pairs = zip(margins_of(logits), teacher.tolist(), strict=True)
    return sum((student - wanted) ** 2 for student, wanted in pairs) / len(logits)


def plain_hard_label(logits: Tensor, targets: Tensor) -> float:
    total = 0.0
    for (real, fake), target in zip(logits.tolist(), targets.tolist(), strict=True):
        chosen = fake if target else real
        total += -math.log(math.exp(chosen) / (math.exp(real) + math.exp(fake)))
    return total / len(logits)


def plain_relation(logits: Tensor, teacher: Tensor) -> float:
    return 1 - float(np.corrcoef(margins_of(logits), teacher.tolist())[0, 1])


def plain_feature_matching(projected: Tensor, features: Tensor) -> float:
    total = 0.0
    for row, wanted in zip(projected.tolist(), features.tolist(), strict=True):
        for value, target in zip(row, wanted, strict=True):
            distance = abs(value - target)
            total += distance - 0.5 if distance >= 1 else 0.5 * distance**2
    return total / projected.numel()


def batch(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (N, 2), teacher margins (N,) and targets (N,)."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(N, 2, generator=generator)
    teacher = 3 * torch.randn(N, generator=generator)
    return logits, teacher, torch.randint(0, 2, (N,), generator=generator)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_margin_bce_is_its_formula(seed: int, temperature: float) -> None:
    logits, teacher, _ = batch(seed)
    expected = plain_margin_bce(logits, teacher, temperature)
    assert losses.margin_bce(logits, teacher, temperature).item() == pytest.approx(expected, 1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_the_others_are_their_formulas(seed: int) -> None:
    logits, teacher, targets = batch(seed)
    projected, features = 2 * logits, teacher[:, None].repeat(1, 2)
    for value, expected in (
        (losses.margin_mse(logits, teacher), plain_margin_mse(logits, teacher)),
        (losses.hard_label(logits, targets), plain_hard_label(logits, targets)),
        (losses.relation(logits, teacher), plain_relation(logits, teacher)),
        (
            losses.feature_matching(projected, features),
            plain_feature_matching(projected, features),
        ),
    ):
        assert value.shape == ()
        assert value.item() == pytest.approx(expected, 1e-5)


LogitLoss = Callable[[Tensor, Tensor], Tensor]
LOGIT_LOSSES: dict[str, LogitLoss] = {
    "margin_bce": lambda logits, teacher: losses.margin_bce(logits, teacher, 2.0),
    "margin_mse": losses.margin_mse,
    "relation": losses.relation,
}


@pytest.mark.parametrize("name", LOGIT_LOSSES)
def test_the_gradient_is_not_zero_and_leads_to_the_teacher(name: str) -> None:
    logits, teacher, _ = batch(0)
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(LOGIT_LOSSES[name](logits, teacher), logits)
    assert (gradient.abs().sum(dim=1) > 1e-4).all(), "some image teaches nothing"
    optimizer = torch.optim.Adam([logits], lr=0.05)
    for _ in range(600):
        optimizer.zero_grad()
        LOGIT_LOSSES[name](logits, teacher).backward()
        optimizer.step()
    reached = logits.detach()[:, 1] - logits.detach()[:, 0]
    assert np.corrcoef(reached, teacher)[0, 1] > 0.999
    if name != "relation":
        torch.testing.assert_close(reached, teacher, atol=0.05, rtol=0)


@pytest.mark.parametrize("name", LOGIT_LOSSES)
def test_the_gradient_is_zero_where_the_student_is_the_teacher(name: str) -> None:
    _, teacher, _ = batch(0)
    logits = torch.stack([-teacher / 2, teacher / 2], dim=1).requires_grad_()
    (gradient,) = torch.autograd.grad(LOGIT_LOSSES[name](logits, teacher), logits)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-6, rtol=0)


def standardised_kl(logits: Tensor, teacher: Tensor) -> Tensor:
    """Distillation on z-scored logits (arXiv:2403.01427), which needs more than two classes."""

    def distribution(values: Tensor) -> Tensor:
        spread = values.std(dim=1, keepdim=True)
        return F.log_softmax((values - values.mean(dim=1, keepdim=True)) / spread, dim=1)

    wanted = distribution(torch.stack([-teacher / 2, teacher / 2], dim=1))
    return F.kl_div(distribution(logits), wanted, log_target=True, reduction="batchmean")


def inter_class_relation(logits: Tensor, teacher: Tensor) -> Tensor:
    """The other half of DIST: correlation along the classes of one image."""
    wanted = torch.stack([-teacher / 2, teacher / 2], dim=1).softmax(dim=1)
    given = logits.softmax(dim=1)
    wanted, given = (
        F.normalize(values - values.mean(dim=1, keepdim=True), dim=1) for values in (wanted, given)
    )
    return 1 - (wanted * given).sum(dim=1).mean()


@pytest.mark.parametrize("trapped", [standardised_kl, inter_class_relation])
def test_the_two_class_trap_is_real_and_avoided(trapped: LogitLoss) -> None:
    logits, teacher, _ = batch(0)
    logits.requires_grad_()
    (nothing,) = torch.autograd.grad(trapped(logits, teacher), logits)
    assert nothing.abs().max() < 1e-5
    for loss in LOGIT_LOSSES.values():
        (something,) = torch.autograd.grad(loss(logits, teacher), logits)
        assert something.abs().max() > 1e-2


def test_the_hard_label_teaches() -> None:
    logits, _, targets = batch(0)
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(losses.hard_label(logits, targets), logits)
    assert (gradient.gather(1, targets[:, None]) < 0).all()


def test_feature_matching_trains_the_projection_and_the_student() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(8, 5, generator=generator, requires_grad=True)
    projection = torch.nn.Linear(5, 7)
    wanted = losses.normalise_features(torch.randn(8, 7, generator=generator))
    losses.feature_matching(projection(features), wanted).backward()
    assert features.grad is not None
    assert projection.weight.grad is not None
    assert (features.grad.abs().sum(dim=1) > 0).all()
    assert (projection.weight.grad.abs().sum(dim=1) > 0).all()


def test_normalised_features_are_of_one_scale() -> None:
    features = torch.randn(4, 50) * torch.tensor([[1e-2], [1.0], [1e3], [7.0]]) + 3
    normalised = losses.normalise_features(features)
    torch.testing.assert_close(normalised.mean(dim=1), torch.zeros(4), atol=1e-4, rtol=0)
    assert normalised.var(dim=1, unbiased=False)[1:].tolist() == pytest.approx([1, 1, 1], rel=1e-3)


def test_the_temperature_keeps_the_size_of_the_gradient() -> None:
    logits, teacher, _ = batch(0)
    logits.requires_grad_()
    (hot,) = torch.autograd.grad(losses.margin_bce(logits, teacher, 100.0), logits)
    (mse,) = torch.autograd.grad(losses.margin_mse(logits, teacher), logits)
    torch.testing.assert_close(hot, mse / 8, rtol=2e-2, atol=1e-4)


@pytest.mark.parametrize("name", LOGIT_LOSSES)
def test_extreme_margins_and_half_precision_stay_finite(name: str) -> None:
    teacher = torch.tensor([*FAR, *FAR])
    logits = torch.tensor([[20.0, -20.0], [20.0, -20.0], [-20.0, 20.0], [0.0, 0.0]])
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        given = logits.to(dtype).requires_grad_()
        loss = LOGIT_LOSSES[name](given, teacher.to(dtype))
        assert loss.dtype == torch.float32
        (gradient,) = torch.autograd.grad(loss, given)
        assert loss.isfinite()
        assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("logits", "teacher", "teaches"),
    [
        (torch.tensor([[0.3, 0.1]]), torch.tensor([2.0]), False),
        (torch.tensor([[0.5, 1.0], [1.0, 0.0]]), torch.tensor([2.0, 2.0]), False),
        (torch.tensor([[0.5, 1.0], [1.5, 2.0]]), torch.tensor([2.0, -1.0]), True),
    ],
    ids=["one image", "constant teacher", "constant student"],
)
def test_without_a_relation_the_gradient_is_small(
    logits: Tensor, teacher: Tensor, teaches: bool
) -> None:
    logits.requires_grad_()
    loss = losses.relation(logits, teacher)
    assert loss.item() == pytest.approx(1.0)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert bool(gradient.any()) == teaches
    assert gradient.abs().max() <= 1 / losses.SMALLEST_DEVIATION


@given(scale=st.floats(0.1, 50), shift=st.floats(-20, 20), seed=st.integers(0, 100))
def test_the_relation_knows_no_scale_and_no_shift(scale: float, shift: float, seed: int) -> None:
    logits, teacher, _ = batch(seed)
    same = losses.relation(logits, teacher)
    torch.testing.assert_close(
        losses.relation(logits, teacher * scale + shift), same, atol=1e-4, rtol=0
    )
    assert -1e-5 <= same.item() <= 2 + 1e-5


def test_every_loss_has_its_reference() -> None:
    for name, address in losses.REFERENCES.items():
        function = getattr(losses, name)
        assert "arXiv:" + address.rsplit("/", 1)[1] in function.__doc__
