"""A timm backbone with two logits that does its own resizing and normalisation."""

from __future__ import annotations

from math import log
from typing import Any

import timm
import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from search.errors import UserError
from search.pixels.canvas import resample
from search.pixels.loading.batches import Images
from search.training.recipe import Recipe

NUM_CLASSES = 2
"""Column 0 is real, column 1 is fake."""

REACHING_OUT = frozenset(
    {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}
)
"""Arguments of timm.create_model that load files or reach the network: with them a network would
start from other weights than the rules have judged."""

CLASSIFIER_STD = 0.01
"""Standard deviation of a new classifier's weights."""


class Network(nn.Module):
    """A trunk that takes canvases, resizes them once to its own size and normalises them itself.

    Because the preprocessing lives inside, networks with different image sizes and normalisations
    can be fed one and the same batch, be fused, and be exported as they are.

    Attributes:
        trunk: the timm model, with two classes.
        image_size: side in pixels at which the trunk works.
        canvas: side in pixels of the canvases that it takes.
    """

    def __init__(
        self,
        trunk: nn.Module,
        image_size: int,
        canvas: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.image_size, self.canvas = image_size, canvas
        # Not in the state dict: they come with the recipe, and thop must count the trunk alone.
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    @property
    def image_sizes(self) -> tuple[int, ...]:
        """The sizes of the views that it is trained on: its own."""
        return (self.image_size,)

    def preprocess(self, images: Images) -> Tensor:
        """Brings RGB in [0, 1], canvases or views of its own size, to the trunk's size, and
        normalises it."""
        if not isinstance(images, Tensor):
            images = images[self.image_size]
        if images.shape[-2:] != (self.image_size, self.image_size):
            # The bytes that it would have been given, had they been resized beforehand.
            images = resample((images * 255.0).round(), self.image_size) / 255.0
        return (images - self.mean) / self.std

    def forward(self, images: Images) -> Tensor:
        """Logits (N, 2); of images see `preprocess`."""
        logits: Tensor = self.trunk(self.preprocess(images))
        return logits

    def forward_with_features(self, images: Images) -> tuple[Tensor, Tensor]:
        """Pooled features (N, D) just before the classifier, and logits (N, 2), in one pass."""
        trunk: Any = self.trunk
        maps = trunk.forward_features(self.preprocess(images))
        return trunk.forward_head(maps, pre_logits=True), trunk.forward_head(maps)

    def parameter_groups(
        self, weight_decay: float, lowest_layer_scale: float
    ) -> list[dict[str, Any]]:
        """Optimizer groups: no weight decay on one-dimensional parameters and those that the
        architecture names; `lr_scale` falls geometrically from 1 at the head to
        `lowest_layer_scale` at the first layer (BEiT, arXiv:2106.08254, gives the factor of one
        layer, which means something else for each depth).
        """
        exempt: set[str] = getattr(self.trunk, "no_weight_decay", set)()
        if lowest_layer_scale == 1.0:
            return list(
                param_groups_weight_decay(self.trunk, weight_decay, no_weight_decay_list=exempt)
            )
        groups: list[dict[str, Any]] = param_groups_layer_decay(
            self.trunk, weight_decay, no_weight_decay_list=exempt, layer_decay=0.5
        )
        lowest = min(group["lr_scale"] for group in groups)
        for group in groups:
            # How far from the head, as a share of the network's depth.
            depth = log(group["lr_scale"]) / log(lowest) if lowest < 1.0 else 0.0
            group["lr_scale"] = lowest_layer_scale**depth
        return groups


def build_trunk(recipe: Recipe, *, pretrained: bool) -> nn.Module:
    """The timm model of a recipe, with two classes.

    Args:
        recipe: names the architecture and where its weights come from.
        pretrained: load the starting weights; False leaves the random initialisation of the
            recipe's seed, as it must when trained weights are loaded over it anyway.

    Raises:
        UserError: if the recipe, which may come from elsewhere, names no architecture of timm or
            an argument that reaches out.
    """
    if not timm.is_model(recipe.architecture):
        raise UserError(f"architectures must be timm's own, found '{recipe.architecture}'")
    if reaching := sorted(REACHING_OUT & recipe.model_args.keys()):
        raise UserError(f"model_args must not load anything, found {', '.join(reaching)}")
    arguments: dict[str, Any] = dict(recipe.model_args)
    if recipe.drop_path > 0:
        arguments["drop_path_rate"] = recipe.drop_path
    name = recipe.architecture
    wanted = pretrained and recipe.weights != "none"
    if wanted and recipe.weights == "hub":
        name = recipe.backbone
    elif wanted:
        arguments["pretrained_cfg_overlay"] = {"file": recipe.weights_file, "num_classes": 1000}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        trunk: nn.Module = timm.create_model(
            name, pretrained=wanted, num_classes=NUM_CLASSES, **arguments
        )
        _initialise_classifier(trunk)
    return trunk


def _initialise_classifier(trunk: Any) -> None:
    """Starts the new classifier near zero, so that training starts from a loss of ln 2.

    Some architectures draw it from a range of 1 / sqrt(classes): with two classes
    tf_efficientnet_lite0 then starts at a loss above 2, and its first steps spoil the trunk.
    """
    classifier = trunk.get_classifier()
    if isinstance(classifier, nn.Linear):
        nn.init.trunc_normal_(classifier.weight, std=CLASSIFIER_STD)
        nn.init.zeros_(classifier.bias)


def build_network(recipe: Recipe, *, pretrained: bool = True) -> Network:
    """The network of a recipe, on the CPU, in evaluation mode."""
    trunk = build_trunk(recipe, pretrained=pretrained)
    return Network(trunk, recipe.image_size, recipe.canvas, recipe.mean, recipe.std).eval()


def margin(logits: Tensor) -> Tensor:
    """z1 - z0 of two logits (N, 2), shape (N,): the log-odds of fake; its sigmoid is y_pred."""
    return logits[:, 1] - logits[:, 0]


def set_batch_norm(network: nn.Module, *, training: bool) -> None:
    """Lets batch-norm layers learn their statistics, or keep those that they have."""
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.train(training)


def mend_batch_norm(network: nn.Module) -> None:
    """Forgets running statistics that are not finite: a moving average never loses an infinity."""
    for module in network.modules():
        if isinstance(module, _BatchNorm) and module.running_var is not None:
            statistics = torch.stack([module.running_mean, module.running_var])  # type: ignore[list-item]
            if not statistics.isfinite().all():
                module.reset_running_stats()
