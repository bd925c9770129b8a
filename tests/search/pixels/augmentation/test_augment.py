"""Policies: the same in distribution as image by image, views a function of (image, seed)."""

from __future__ import annotations

import pickle
import random
from collections import Counter
from functools import lru_cache

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision.transforms import v2

from search.errors import UserError
from search.pixels.augmentation import augment
from search.pixels.augmentation.augment import POLICIES, Augmentation, View, render
from search.pixels.augmentation.degradation import COMPRESS
from search.pixels.augmentation.geometry import crop_resize, resize
from tests.search.pixels.augmentation.reference_augment import show

SIDE, SIZE = 64, 48
WITH_STRENGTH = [name for name, policy in POLICIES.items() if policy.has_strength]
WITHOUT_STRENGTH = [name for name, policy in POLICIES.items() if not policy.has_strength]


def picture(side: int = SIDE, seed: int = 0) -> Image.Image:
    """Smooth shapes, edges and texture in many colours, without black and without grey 128."""
    x, y = np.meshgrid(np.linspace(0, 1, side), np.linspace(0, 1, side))
    channels = [np.sin(9 * x + seed) * np.cos(7 * y), np.hypot(x - 0.4, y - 0.5) < 0.3, x * y]
    texture = np.random.default_rng(seed).normal(0, 6, (side, side, 3))
    pixels = np.stack(channels, -1) * 80 + (110, 90, 70) + texture
    return Image.fromarray(pixels.clip(4, 255).astype(np.uint8))


def canvas(side: int = SIDE, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.array(picture(side, seed))).permute(2, 0, 1).contiguous()


def views(policy: str, strength: float, seeds: Tensor, size: int = SIZE) -> Tensor:
    """Of one canvas."""
    canvases = canvas().expand(len(seeds), -1, -1, -1)
    return render(canvases, seeds, Augmentation(policy, strength), size, prepared=False)


# In distribution


def measures(images: Tensor) -> dict[str, Tensor]:
    """What is compared of each image, (N,) each; images (N, 3, S, S), uint8."""
    levels = images.double()
    plain = resize(canvas()[None], SIZE).double()
    red, green, blue = levels.mean((2, 3)).T
    across, down = levels.diff(dim=3), levels.diff(dim=2)
    black, grey = (images == 0).all(1).double(), (images == 128).all(1).double()
    half = SIZE // 2
    return {
        "red": red,
        "green": green,
        "blue": blue,
        "contrast": levels.std((2, 3)).mean(1),
        "colourfulness": (levels.amax(1) - levels.amin(1)).mean((1, 2)),
        "edges across": across.abs().mean((1, 2, 3)),
        "edges down": down.abs().mean((1, 2, 3)),
        "texture": across.diff(dim=3).abs().median(3).values.mean((1, 2)),
        "chroma texture": (across - across.mean(1, keepdim=True)).abs().mean((1, 2, 3)),
        "left less right": (levels[..., :half] - levels[..., half:]).mean((1, 2, 3)),
        "top less bottom": (levels[..., :half, :] - levels[..., half:, :]).mean((1, 2, 3)),
        "corners": levels[..., :4, :4].mean((1, 2, 3)),
        "from the image": (levels - plain).abs().mean((1, 2, 3)),
        "black": black.mean((1, 2)),
        "any black": (black.mean((1, 2)) > 0.01).double(),
        "grey": grey.mean((1, 2)),
        "any grey": (grey.mean((1, 2)) > 0.003).double(),
    }


COUNT = 250
ERRORS = 4.0
"""Standard errors that two samples of one distribution may lie apart."""


@pytest.mark.parametrize("policy", POLICIES)
def test_policies_are_in_distribution_what_they_were(policy: str) -> None:
    # At 1 timm's RandAugment asks Pillow 13 for 0 bits, which it refuses.
    strength = 0.8 if policy == "randaugment" else 1.0
    ours = measures(views(policy, strength, torch.arange(COUNT)))
    expected = torch.stack([show(picture(), policy, strength, SIZE, seed) for seed in range(COUNT)])
    for name, theirs in measures(expected).items():
        own = ours[name]
        # Single operations differ by up to a level; what only rounding tells apart may do so.
        of_pixels = "black" in name or "grey" in name
        slack = 0.01 * float(theirs.abs().mean()) + (1e-3 if of_pixels else 0.3)
        spread = float((own.var() + theirs.var()) / COUNT) ** 0.5
        apart = abs(float(own.mean() - theirs.mean()))
        assert apart <= ERRORS * spread + slack, (name, own.mean(), theirs.mean())
        # The error of a standard deviation follows from the fourth moment.
        squares = [(sample - sample.mean()) ** 2 for sample in (own, theirs)]
        spread = float(sum(square.var() for square in squares) / COUNT) ** 0.5
        apart = abs(float(squares[0].mean() - squares[1].mean()))
        slack = 0.1 * float(squares[1].mean()) + slack**2
        assert apart <= ERRORS * spread + slack, (name, own.std(), theirs.std())


DRAWS = 3000
DRAWN: list[tuple[str, str, int, tuple[float, float], tuple[float, ...]]] = [
    # policy, alteration, its parameter; at strengths 0 and 1 the share of views that have it, and
    # the ends of what the parameter is drawn from evenly: all as in the reference's own code
    ("flip", "mirror", 0, (0.5, 0.5), (-1, -1, -1, -1)),
    ("baseline", "mirror", 0, (0.75, 0.75), ()),
    *(("light", "jitter", k, (1, 1), (0.95, 1.05, 0.75, 1.25)) for k in range(3)),
    ("light", "jitter", 3, (1, 1), (-0.0125, 0.0125, -0.0625, 0.0625)),
    *(("light", "jitter", k, (1, 1), (-0.5, 3.5, -0.5, 3.5)) for k in range(4, 8)),
    *(("colour", "jitter", k, (1, 1), (0.9, 1.1, 0.5, 1.5)) for k in range(3)),
    ("colour", "jitter", 3, (1, 1), (-0.025, 0.025, -0.125, 0.125)),
    ("colour", "grayscale", 0, (0.02, 0.2), ()),
    ("colour", "autocontrast", 0, (0.05, 0.2), ()),
    ("colour", "equalize", 0, (0.02, 0.1), ()),
    ("geometric", "affine", 6, (0.5, 0.5), (0, 0, 0, 0)),
    ("degrade", "blur", 0, (0.2, 0.5), (0.1, 0.5, 0.1, 2.5)),
    ("degrade", "down_and_up", 0, (0.2, 0.5), ()),
    ("degrade", "down_and_up", 1, (0.2, 0.5), (0.5, 3.5, 0.5, 3.5)),
    ("degrade", "down_and_up", 2, (0.2, 0.5), (0.5, 3.5, 0.5, 3.5)),
    ("degrade", "noise", 0, (0.2, 0.5), (1, 3, 1, 20)),
    ("degrade", "noise", 1, (0.2, 0.5), ()),
    ("degrade", COMPRESS, 0, (0.5, 0.8), ()),
    ("degrade", COMPRESS, 1, (0.5, 0.8), ()),
    ("degrade", COMPRESS, 2, (0.5, 0.8), ()),
    *(("strong", name, 0, (0.2, 0.5), ()) for name in ("blur", "down_and_up", "noise")),
    ("strong", COMPRESS, 0, (0.5, 0.8), ()),
    *(("strong", "jitter", k, (1, 1), (0.9, 1.1, 0.6, 1.4)) for k in range(3)),
    ("strong", "grayscale", 0, (0.02, 0.1), ()),
    ("strong", "erase", 0, (0.1, 0.4), ()),
    ("erase", "erase", 0, (0.2, 0.8), ()),
]


@pytest.mark.parametrize(("policy", "name", "parameter", "shares", "ends"), DRAWN)
def test_alterations_are_drawn_as_often_and_as_far(
    policy: str,
    name: str,
    parameter: int,
    shares: tuple[float, float],
    ends: tuple[float, ...],
) -> None:
    for strength, share in enumerate(shares):
        found = drawn(policy, name, float(strength))
        error = (share * (1 - share) / DRAWS) ** 0.5
        assert len(found) / DRAWS == pytest.approx(share, abs=ERRORS * error + 1e-9)
        if ends:
            low, high = ends[2 * strength : 2 * strength + 2]
            assert_even([parameters[parameter] for parameters in found], low, high)


@lru_cache(maxsize=4)
def drawn_views(policy: str, strength: float) -> list[View]:
    augmentation = Augmentation(policy, strength)
    return [augmentation.draw(seed, 256) for seed in range(DRAWS)]


def drawn(policy: str, name: str, strength: float) -> list[tuple[float, ...]]:
    """The parameters of an alteration in the views that have it."""
    found = []
    for view in drawn_views(policy, strength):
        own = [parameters for step, parameters in (*view.before, *view.after) if step == name]
        found += own[:1]
    return found


def assert_even(values: list[float], low: float, high: float) -> None:
    """Uniform between the ends, by mean and deviation."""
    width, count = high - low, len(values)
    # Integers reach half of one beyond; hues are whole 256ths.
    grain = 1 / 256 + 0.05 * width
    deviation = width / 12**0.5
    assert min(values) >= low - 1e-9
    assert max(values) <= high + 1e-9
    assert abs(np.mean(values) - (low + high) / 2) <= ERRORS * deviation / count**0.5 + 1e-9
    assert abs(np.std(values) - deviation) <= ERRORS * deviation / (2 * count) ** 0.5 + grain


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_sides_of_degraded_images_follow_the_factor(strength: float) -> None:
    most = 4.0 if strength else 1.3
    factors = [256 / side for side, *_ in drawn("degrade", "down_and_up", strength)]
    assert_even([min(max(factor, 1.0), most) for factor in factors], 1.0, most)
    # A side is a whole number of pixels.
    assert max(factors) <= most * 1.01


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_compression_is_that_of_a_chain(strength: float) -> None:
    lowest, most = (30, 4) if strength else (80, 1)
    rng = random.Random(0)
    expected = []
    for _ in range(DRAWS):
        passes = rng.randint(1, most)
        worst = min(rng.randint(lowest, 95) for _ in range(passes))
        expected.append(worst - 4 * (passes - 1))
    formats, found, subsampled = zip(*drawn("degrade", COMPRESS, strength), strict=True)
    error = ERRORS * np.std(expected) * (1 / DRAWS + 1 / len(found)) ** 0.5
    assert np.mean(found) == pytest.approx(np.mean(expected), abs=error)
    assert np.std(found) == pytest.approx(np.std(expected), abs=error)
    for share in (np.mean(formats), np.mean(subsampled)):
        assert share == pytest.approx(0.5, abs=ERRORS * 0.5 / len(found) ** 0.5)


def test_half_of_the_noise_is_the_same_in_all_channels() -> None:
    channels = [parameters[1] for parameters in drawn("degrade", "noise", 1.0)]
    assert set(channels) == {1, 3}
    assert np.mean([count == 1 for count in channels]) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_turns_and_shears_reach_as_far(strength: float) -> None:
    degrees, shift, slope = (30, 0.1, 15) if strength else (5, 0.02, 2)
    turns, slopes, across, down = [], [], [], []
    for a, b, c, d, e, f, _ in drawn("geometric", "affine", strength):
        turns.append(np.degrees(np.arctan2(-d, e)))
        back = np.array([[a, b], [d, e]])  # a shear after a turn
        slopes.append(np.degrees(np.arctan((back @ [[e, d], [-d, e]])[0, 1])))
        moved = -np.linalg.inv(back) @ [c, f] / 2
        across.append(moved[0])
        down.append(moved[1])
    assert_even(turns, -degrees, degrees)
    assert_even(across, -shift, shift)
    assert_even(down, -shift, shift)
    assert_even(slopes, -slope, slope)


def test_crops_are_torchvisions() -> None:
    least = {"light": 0.5, "geometric": 0.25, "degrade": 0.7, "randaugment": 0.7, "erase": 0.8}
    for policy, area in {**least, "strong": 0.3}.items():
        torch.manual_seed(0)
        crop = v2.RandomResizedCrop((9, 9), scale=(area, 1.0), ratio=(0.8, 1.25))
        image = torch.zeros(1, 256, 256)
        params = [crop.make_params([image]) for _ in range(DRAWS // 3)]
        expected = np.array([[p[k] for k in ("top", "left", "height", "width")] for p in params])
        augmentation = Augmentation(policy, 1.0)
        found = np.array([augmentation.draw(seed, 256).box for seed in range(DRAWS)])
        error = expected.std(0) / (DRAWS / 4) ** 0.5
        assert (abs(found.mean(0) - expected.mean(0)) <= ERRORS * error).all(), policy
        assert (abs(found.std(0) - expected.std(0)) <= ERRORS * error).all(), policy


def test_erased_boxes_are_timms() -> None:
    for policy, most in (("erase", 1 / 3), ("strong", 0.2)):
        random.seed(0)
        erasing = RandomErasing(1.0, max_area=most, device="cpu")
        kept = torch.stack([erasing(torch.ones(1, 100, 100)) for _ in range(DRAWS // 3)])
        expected = 1 - kept.mean((1, 2, 3)).numpy()
        boxes = drawn(policy, "erase", 1.0)
        found = np.array([height * width for _, _, height, width in boxes])
        error = expected.std() * (3 / DRAWS + 1 / len(found)) ** 0.5
        assert abs(found.mean() - expected.mean()) <= ERRORS * error
        assert abs(found.std() - expected.std()) <= ERRORS * error


def test_randaugment_draws_each_of_timms_operations_as_often() -> None:
    augmentation = Augmentation("randaugment", 0.8)
    steps = []
    for seed in range(DRAWS):
        after = augmentation.draw(seed, 256).after
        steps += [step for step in after if step[0] != "mirror"]
    assert len(steps) / DRAWS == pytest.approx(1.0, abs=0.06)  # each of two with 0.5
    counts = Counter(name for name, _ in steps)
    assert {name: round(15 * count / len(steps)) for name, count in counts.items()} == {
        **dict.fromkeys(("autocontrast", "equalize", "invert", "posterize", "solarize"), 1),
        "solarize_add": 1,
        "sharpen": 1,
        "jitter": 3,
        "affine": 5,
    }
    # Magnitude 8, of 10, give or take 0.5.
    centres = {"posterize": 1.2, "solarize": 51.7, "solarize_add": 87.5}
    for name, centre in centres.items():
        amounts = [parameters[0] for step, parameters in steps if step == name]
        assert np.mean(amounts) == pytest.approx(centre, abs=2 if centre > 2 else 0.25)
    colours = [factor for name, p in steps if name == "jitter" for factor in p[:3] if factor != 1]
    sharpness = [p[0] for name, p in steps if name == "sharpen"]
    for factors in (colours, sharpness):
        assert np.mean(np.abs(np.array(factors) - 1)) == pytest.approx(0.72, abs=0.02)
        assert np.mean(np.array(factors) > 1) == pytest.approx(0.5, abs=0.15)
    maps = np.array([parameters[:6] for name, parameters in steps if name == "affine"])
    moved = np.abs(maps - (1, 0, 0, 0, 1, 0))
    # Turns by 24 degrees, shears by 0.24, shifts by 0.24 of the image, which is 2 wide.
    turns = maps[:, 4] != 1
    turns &= maps[:, 0] != 1
    shifts = moved[:, [1, 3]].max(1) == 0
    for chosen, share, centre in (
        (turns, 0.2, np.sin(np.radians(24))),
        (shifts, 0.4, 0.48),
        (~turns & ~shifts, 0.4, 0.24),
    ):
        assert chosen.mean() == pytest.approx(share, abs=0.06)
        assert moved[chosen].max(1).mean() == pytest.approx(centre, abs=0.02)


@pytest.mark.parametrize("policy", WITH_STRENGTH)
def test_strength_moves_views_away_from_the_image(policy: str) -> None:
    plain = resize(canvas()[None], SIZE).float()

    def distance(strength: float) -> float:
        images = views(policy, strength, torch.arange(40)).float()
        apart = [(images - p).abs().mean((1, 2, 3)) for p in (plain, plain.flip(-1))]
        return torch.minimum(*apart).mean().item()

    mildest, strongest = distance(0.0), distance(1.0)
    assert strongest > 1.2 * mildest
    assert mildest > 0.2  # of 255: the mildest form is one


@pytest.mark.parametrize("policy", WITHOUT_STRENGTH)
def test_strength_does_nothing_where_it_says_so(policy: str) -> None:
    seeds = torch.arange(6)
    assert torch.equal(views(policy, 0.0, seeds), views(policy, 1.0, seeds))


def test_flips_are_flips() -> None:
    whole = torch.tensor([[0, 0, SIDE, SIDE]])
    plain = crop_resize(canvas()[None], whole, SIZE)[0]
    seen = {image.numpy().tobytes() for image in views("baseline", 0.5, torch.arange(40))}
    assert seen == {plain.flip(dims).numpy().tobytes() for dims in ([], [-1], [-2], [-1, -2])}


@pytest.mark.parametrize("augmentation", [None, Augmentation("none", 0.5)])
def test_no_augmentation_is_a_resize(augmentation: Augmentation | None) -> None:
    canvases, seeds = torch.stack([canvas(), canvas(seed=1)]), torch.tensor([3, 4])
    for size in (SIDE, SIZE):
        assert torch.equal(render(canvases, seeds, augmentation, size), resize(canvases, size))


# A function of (image, seed)


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("policy", POLICIES)
def test_views_depend_on_no_batch(policy: str) -> None:
    augmentation = pickle.loads(pickle.dumps(Augmentation(policy, 0.7)))  # noqa: S301 - our own
    canvases = torch.stack([canvas(seed=seed % 5) for seed in range(24)])
    before = canvases.clone()
    seeds = torch.randint(0, 2**63 - 1, (24,), generator=torch.Generator().manual_seed(0))
    prepared = torch.stack(
        [augmentation.prepare(c, s) for c, s in zip(canvases, seeds.tolist(), strict=True)]
    )
    whole = render(prepared, seeds, augmentation, SIZE)
    assert torch.equal(whole, render(canvases, seeds, augmentation, SIZE, prepared=False))
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(5)
    random.seed(5)
    for part in order.split(7):
        shown = render(prepared[part], seeds[part], augmentation, SIZE)
        assert torch.equal(shown, whole[part])
    for number in range(24):
        one = slice(number, number + 1)
        assert torch.equal(render(prepared[one], seeds[one], augmentation, SIZE), whole[one])
    assert torch.equal(canvases, before)


@pytest.mark.parametrize("policy", POLICIES)
def test_seeds_give_different_views(policy: str) -> None:
    different = len(views(policy, 0.7, torch.arange(12)).flatten(1).unique(dim=0))
    assert different == {"none": 1, "flip": 2, "baseline": 4}.get(policy, 12)


@pytest.mark.parametrize("policy", POLICIES)
def test_sizes_show_the_same_view(policy: str) -> None:
    seeds = torch.arange(60)
    large, small = views(policy, 0.7, seeds, 60).float(), views(policy, 0.7, seeds, 30).float()
    shrunk = resize(large.to(torch.uint8), 30).float()
    # Sharpening and equalising see other neighbours and other histograms at another size.
    apart = (shrunk - small).abs().mean((1, 2, 3))
    assert apart.median() < 4
    others = (shrunk - small.roll(1, 0)).abs().mean((1, 2, 3))
    assert policy in WITHOUT_STRENGTH or others.median() > 2 * apart.median() + 1


@pytest.mark.parametrize("side", [1, 2, 3, 17])
@pytest.mark.parametrize("policy", POLICIES)
def test_small_canvases_have_views(policy: str, side: int) -> None:
    canvases = torch.stack([canvas(side)] * 8)
    for strength in (0.0, 1.0):
        shown = render(canvases, torch.arange(8), Augmentation(policy, strength), 9, prepared=False)
        assert (shown.shape, shown.dtype) == ((8, 3, 9, 9), torch.uint8)


def test_no_images_have_no_views() -> None:
    none = torch.empty(0, 3, SIDE, SIDE, dtype=torch.uint8)
    shown = render(none, torch.empty(0, dtype=torch.int64), Augmentation("strong", 1.0), SIZE)
    assert shown.shape == (0, 3, SIZE, SIZE)


# The parts of a view


@pytest.mark.parametrize("policy", POLICIES)
def test_only_what_compression_needs_is_prepared(policy: str) -> None:
    augmentation, image = Augmentation(policy, 1.0), canvas()
    counts = []
    for seed in range(60):
        view = augmentation.draw(seed, SIDE)
        names = [name for name, _ in view.before]
        counts.append(names.count(COMPRESS))
        prepared = augmentation.prepare(image, seed)
        assert (prepared is image) == (COMPRESS not in names)
        assert view.in_worker == (names.index(COMPRESS) + 1 if COMPRESS in names else 0)
    assert set(counts) == ({0, 1} if policy in ("degrade", "strong") else {0})


def test_a_view_is_its_alterations_box_and_alterations(monkeypatch: pytest.MonkeyPatch) -> None:
    box = (5, 7, 40, 30)
    view = View((("invert", ()), (COMPRESS, (0, 95, 0)), ("solarize", (256,))), box)
    policy = augment.Policy("fixed", "", lambda _rng, _strength, _side: view)
    monkeypatch.setitem(POLICIES, "fixed", policy)
    augmentation, image = Augmentation("fixed", 0.0), canvas()
    prepared = augmentation.prepare(image, 0)
    assert 0 < (prepared.int() - (255 - image).int()).abs().float().mean() < 4
    shown = render(prepared[None], torch.tensor([0]), augmentation, SIZE)
    assert torch.equal(shown, crop_resize(prepared[None], torch.tensor([box]), SIZE))


def test_compression_uses_both_formats_once(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    save = Image.Image.save

    def spy(image: Image.Image, stream: object, kind: str, **options: object) -> None:
        used.append((kind, options.get("subsampling")))
        save(image, stream, kind, **options)

    monkeypatch.setattr(Image.Image, "save", spy)
    augmentation, image = Augmentation("degrade", 1.0), canvas()
    for seed in range(60):
        already = len(used)
        augmentation.prepare(image, seed)
        assert len(used) <= already + 1
    assert set(used) == {("JPEG", 0), ("JPEG", 2), ("WEBP", None)}
    assert 35 < len(used) < 58  # four in five


# Bad input


@pytest.mark.parametrize("strength", [-0.01, 1.5, float("nan"), float("inf")])
def test_strength_outside_is_refused(strength: float) -> None:
    with pytest.raises(UserError, match=f"between 0 and 1, found {strength}"):
        Augmentation("light", strength)


def test_unknown_policies_are_refused_with_a_suggestion() -> None:
    with pytest.raises(UserError, match=r"found 'degarde'; did you mean 'degrade'\?"):
        Augmentation("degarde", 0.5)
    with pytest.raises(UserError, match=r"must be one of none, flip, .* found 'xyz'$"):
        Augmentation("xyz", 0.5)


def test_policies_are_described() -> None:
    assert {"none", "flip", "baseline", "degrade", "randaugment", "strong"} <= set(POLICIES)
    for name, policy in POLICIES.items():
        assert policy.name == name
        assert policy.description
        assert "\n" not in policy.description
