from __future__ import annotations

import torch

from ensemble.distill.outputs import ensemble_margin
from search.pixels.loading.batches import Shown, count_images
from tests.ensemble.distill.conftest import (
    SIZE,
    make_teacher,
)


def batch_of(images: dict[int, torch.Tensor]) -> Shown:
    numbers = torch.arange(count_images(images))
    return Shown(images, numbers % 2, numbers, numbers)


def test_the_ensemble_margin_is_the_log_odds_of_the_mean_probability() -> None:
    margins = torch.tensor([[0.5, -3.0, 8.0], [2.0, 1.0, -8.0]], dtype=torch.float64)
    weights = torch.tensor([0.25, 0.75], dtype=torch.float64)
    mean = (weights[:, None] * margins.sigmoid()).sum(dim=0)
    torch.testing.assert_close(ensemble_margin(margins, weights.log()), torch.logit(mean))


def test_the_ensemble_margin_stays_finite_and_exact_where_probabilities_round() -> None:
    margins = torch.tensor([[120.0, -90.0], [120.0, -90.0]])
    result = ensemble_margin(margins, torch.tensor([0.5, 0.5]).log())
    torch.testing.assert_close(result, torch.tensor([120.0, -90.0]))


def test_a_teacher_is_the_mean_of_its_networks_on_the_images_it_gets() -> None:
    teacher = make_teacher()
    assert teacher.image_sizes == (32, SIZE)
    batch = batch_of({size: torch.rand(5, 3, size, size) for size in (32, SIZE)})
    with torch.inference_mode():
        first, second = (each(batch.images).softmax(dim=1)[:, 1] for each in teacher.networks)
    outputs = teacher(batch)
    torch.testing.assert_close(outputs.margins.sigmoid(), 0.75 * first + 0.25 * second)
    assert outputs.features is None
    assert not outputs.margins.requires_grad


def test_a_teacher_answers_in_its_own_precision() -> None:
    images = torch.rand(5, 3, SIZE, SIZE)
    exact, cheap = make_teacher(with_features=True), make_teacher(with_features=True)
    cheap.precision = "bf16"
    expected = exact.ask(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # as a student's step asks a live one
        assert torch.equal(exact.ask(images).margins, expected.margins)
    found = cheap.ask(images)
    for one, other in ((found.margins, expected.margins), (found.features, expected.features)):
        assert one is not None
        assert other is not None
        assert one.dtype == torch.float32
        assert not torch.equal(one, other)
        torch.testing.assert_close(one, other, atol=0.1, rtol=0.05)
