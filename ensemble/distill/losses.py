"""Distillation losses for two classes, one pure function each.

With two logits, z-scores are +-0.707 and the correlation between the classes is +-1 for every
image, so losses built on them teach nothing. What can be taught is the margin z1 - z0, the order
of the images of a batch, and features.

All are computed in float32 and averaged over the N images of a (micro-)batch.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from search.training.network import margin

REFERENCES = {
    "margin_bce": "https://arxiv.org/abs/1503.02531",
    "margin_mse": "https://arxiv.org/abs/2105.08919",
    "hard_label": "https://arxiv.org/abs/1503.02531",
    "relation": "https://arxiv.org/abs/2205.10536",
    "feature_matching": "https://arxiv.org/abs/2205.14141",
}
"""Where each loss comes from, by the name of its function."""

SMALLEST_DEVIATION = 1e-2
"""A batch of margins that varies less is taken to vary so much: the gradient of a correlation grows
without bound as one side becomes constant, as the margins of a new head nearly are."""


def margin_bce(student_logits: Tensor, teacher_margins: Tensor, temperature: float) -> Tensor:
    """Binary cross entropy between both sides' probability of fake at a temperature.

    T^2 mean_i [-q_i log p_i - (1 - q_i) log(1 - p_i)] with p = sigmoid(m_student / T) and
    q = sigmoid(m_teacher / T): Hinton et al., arXiv:1503.02531, for two classes. T^2 keeps the
    gradient's size as T grows, where the loss tends to half of a quarter of `margin_mse`.

    Args:
        student_logits: (N, 2).
        teacher_margins: (N,) log-odds of fake.
        temperature: above 0; the higher, the more the large margins count.

    Returns:
        A scalar; at its least, when the margins agree, it is T^2 times the teacher's entropy.
    """
    wanted = (teacher_margins.float() / temperature).sigmoid()
    margins = margin(student_logits.float()) / temperature
    return F.binary_cross_entropy_with_logits(margins, wanted) * temperature**2


def margin_mse(student_logits: Tensor, teacher_margins: Tensor) -> Tensor:
    """mean_i (m_student - m_teacher)^2: logit matching, Kim et al., arXiv:2105.08919.

    Args:
        student_logits: (N, 2).
        teacher_margins: (N,) log-odds of fake.
    """
    return F.mse_loss(margin(student_logits.float()), teacher_margins.float())


def hard_label(student_logits: Tensor, targets: Tensor) -> Tensor:
    """mean_i -log softmax(z)_target: the cross entropy with the true label that is mixed into
    distillation, Hinton et al., arXiv:1503.02531.

    Args:
        student_logits: (N, 2).
        targets: (N,) int64, 1 = fake.
    """
    return F.cross_entropy(student_logits.float(), targets)


def relation(student_logits: Tensor, teacher_margins: Tensor) -> Tensor:
    """1 - Pearson correlation of both sides' margins along the batch.

    The intra-class relation of DIST, Huang et al., arXiv:2205.10536: it asks for the teacher's
    order and spacing of the images, whatever their scale. In a batch of one image, or where the
    teacher's margins are equal, there is no relation: the loss is 1 and teaches nothing.

    Args:
        student_logits: (N, 2).
        teacher_margins: (N,) log-odds of fake.

    Returns:
        A scalar in [0, 2].
    """
    least = SMALLEST_DEVIATION * len(teacher_margins) ** 0.5
    students, teachers = (
        F.normalize(margins - margins.mean(), dim=0, eps=least)
        for margins in (margin(student_logits.float()), teacher_margins.float())
    )
    return 1 - (students * teachers).sum()


def feature_matching(projected: Tensor, teacher_features: Tensor) -> Tensor:
    """mean_id smooth_l1(projected - teacher): the student's features, after a learned projection
    into the teacher's space, are held against the teacher's.

    FitNets' regression (arXiv:1412.6550) with the smooth L1 distance (half the square below 1)
    and the normalised targets of Wei et al., arXiv:2205.14141.

    Args:
        projected: (N, D) what the projection makes of the student's features.
        teacher_features: (N, D) normalised, see `normalise_features`.
    """
    return F.smooth_l1_loss(projected.float(), teacher_features.float())


def normalise_features(features: Tensor) -> Tensor:
    """(N, D) features, those of each image shifted and scaled to mean 0 and variance 1.

    Teachers of any architecture then weigh alike (arXiv:2205.14141).
    """
    return F.layer_norm(features.float(), features.shape[-1:])
