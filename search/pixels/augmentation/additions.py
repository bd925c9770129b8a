"""What is added to the views of any policy, off until a recipe asks for it.

Each addition draws from its own generator: with one of them off, the others and the policy draw
what they would anyway.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from search.errors import UserError
from search.pixels.augmentation.alterations import Steps
from search.pixels.augmentation.blending import draw_blend
from search.pixels.augmentation.degradation import COMPRESS, degradation


@dataclass(frozen=True)
class Additions:
    """None of them looks at a label.

    Attributes:
        compression_quality: of the JPEG that every image is made once before anything else of its
            view, so that reals and fakes share one history of compression, and none is told by its
            files' (arXiv:2403.17608); 0: none.
        degradation_rounds: of blur, resizing, noise and compression, each in random order
            (arXiv:2103.14006) and one after the other (arXiv:2107.10833), before the policy.
        patch_masking: share of an image's small patches that are hidden (arXiv:1704.04232).

    Raises:
        UserError: if one is out of its range.
    """

    compression_quality: int = 0
    degradation_rounds: int = 0
    patch_masking: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.compression_quality <= 95:
            raise UserError(
                "compression_quality must be between 0, for none, and 95, found "
                f"{self.compression_quality}"
            )
        if self.degradation_rounds < 0:
            raise UserError(
                f"degradation_rounds must be 0 or more, found {self.degradation_rounds}"
            )
        if not 0.0 <= self.patch_masking < 1.0:
            raise UserError(
                f"patch_masking must be from 0 to less than 1, found {self.patch_masking}"
            )

    def before(self, seed: int, strength: float, side: int, *, blended: bool) -> Steps:
        """Alterations of a canvas that come before those of the policy.

        Args:
            seed: of the view.
            strength: of the policy, which is that of the degradations as well.
            side: of the canvas, in pixels.
            blended: whether it is a real that is shown as a self-blended fake: forged first, then
                compressed and degraded as all others are.
        """
        steps = draw_blend(_generator("blend", seed)) if blended else ()
        if self.compression_quality:
            steps += ((COMPRESS, (0, self.compression_quality, 1)),)
        rng = _generator("degradations", seed)
        for _ in range(self.degradation_rounds):
            steps += degradation(rng, strength, side)
        return steps

    def after(self, seed: int) -> Steps:
        """Alterations of what is seen that come after those of the policy."""
        if not self.patch_masking:
            return ()
        rng = _generator("patches", seed)
        key = (rng.getrandbits(32), rng.getrandbits(32))
        return (("hide_patches", (self.patch_masking, *key)),)


NOTHING = Additions()


def _generator(purpose: str, seed: int) -> random.Random:
    return random.Random(f"{purpose} {seed}")
