from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import timm
from hypothesis import given
from hypothesis import strategies as st

from search.catalogue.provenance import Provenance, _table, provenance
from search.errors import UserError

IN = "ImageNet-1K"

VERDICTS = {
    # Supervised on ImageNet-1K, by whatever recipe.
    "resnet18.a1_in1k": IN,
    "resnet50.ra_in1k": IN,
    "resnet50.tv2_in1k": IN,
    "resnet50.am_in1k": IN,
    "resnet50.b2k_in1k": IN,
    "resnet50.gluon_in1k": IN,
    "seresnext50_32x4d.racm_in1k": IN,
    "cs3darknet_l.c2ns_in1k": IN,
    "vit_base_patch16_224.sam_in1k": IN,
    "vit_base_patch16_224.augreg_in1k": IN,
    "tf_efficientnet_b4.aa_in1k": IN,
    "tf_efficientnet_b7.ap_in1k": IN,
    "tf_efficientnet_lite0.in1k": IN,
    "tf_efficientnetv2_l.in1k": IN,
    "maxvit_base_tf_512.in1k": IN,
    "caformer_b36.sail_in1k_384": IN,
    "efficientvit_l2.r384_in1k": IN,
    "convnext_base.fb_in1k": IN,
    "swin_base_patch4_window7_224.ms_in1k": IN,
    "hrnet_w18.ms_aug_in1k": IN,
    "regnety_160.deit_in1k": IN,
    "dm_nfnet_f2.dm_in1k": IN,
    "inception_v3.tf_adv_in1k": IN,
    "dpn98.mx_in1k": IN,
    "mobilenetv4_conv_small.e2400_r224_in1k": IN,
    "nextvit_large.bd_in1k_384": IN,
    "naflexvit_base_patch16_gap.e300_s576_in1k": IN,
    "test_vit.r160_in1k": IN,
    # Self-supervised on ImageNet-1K.
    "vit_base_patch16_224.mae": IN,
    "vit_base_patch16_224.dino": IN,
    "resmlp_12_224.fb_dino": IN,
    "hiera_base_224.mae_in1k_ft_in1k": IN,
    "convnextv2_base.fcmae": IN,
    "convnextv2_base.fcmae_ft_in1k": IN,
    # Taught by a teacher of ImageNet-1K.
    "deit_base_distilled_patch16_224.fb_in1k": IN,
    "xcit_medium_24_p8_384.fb_dist_in1k": IN,
    "fastvit_t8.apple_dist_in1k": IN,
    "repvit_m1_1.dist_450e_in1k": IN,
    "efficientformerv2_s1.snap_dist_in1k": IN,
    "flexivit_base.1200ep_in1k": IN,
    "volo_d4_448.sail_in1k": IN,
    # "in1k" in the tag proves nothing.
    "convnext_base.fb_in22k_ft_in1k": "ImageNet-22K",
    "convnextv2_base.fcmae_ft_in22k_in1k": "ImageNet-22K",
    "caformer_b36.sail_in22k_ft_in1k_384": "ImageNet-22K",
    "tiny_vit_5m_224.dist_in22k_ft_in1k": "ImageNet-22K",
    "vit_base_patch16_224.augreg2_in21k_ft_in1k": "ImageNet-21K",
    "mvitv2_base_cls.fb_inw21k": "ImageNet-21K",
    "flexivit_base.1000ep_in21k": "ImageNet-21K",
    "hiera_small_abswin_256.sbb2_e200_in12k_ft_in1k": "ImageNet-12K",
    "mobilenetv4_hybrid_medium.e200_r256_in12k_ft_in1k": "ImageNet-12K",
    "tf_efficientnet_b4.ns_jft_in1k": "JFT-300M",
    "resnext101_32x8d.fb_swsl_ig1b_ft_in1k": "Instagram images",
    "resnext101_32x8d.fb_wsl_ig1b_ft_in1k": "Instagram images",
    "regnety_160.swag_ft_in1k": "Instagram images",
    "regnety_320.seer_ft_in1k": "Instagram images",
    "resnet50.fb_ssl_yfcc100m_ft_in1k": "YFCC-100M",
    "hgnet_small.ssld_in1k": "ImageNet-22K",
    "hgnetv2_b0.ssld_stage2_ft_in1k": "ImageNet-22K",
    "nextvit_base.bd_ssld_6m_in1k": "ImageNet-22K",
    "eva_giant_patch14_224.clip_ft_in1k": "image-text pairs",
    "vit_base_patch16_clip_224.openai_ft_in1k": "image-text pairs",
    "vit_base_patch16_clip_224.laion2b_ft_in1k": "image-text pairs",
    "vit_so400m_patch14_siglip_378.webli_ft_in1k": "image-text pairs",
    # The name of the architecture tells.
    "hrnet_w18_ssld.paddle_in1k": "ImageNet-22K",
    "vit_base_patch14_dinov2.lvd142m": "LVD-142M",
    "convnext_base.dinov3_lvd1689m": "LVD-1689M",
    "samvit_base_patch16.sa1b": "SA-1B",
    "fastvit_mci0.apple_mclip": "image-text pairs",
    "resnet50_clip.cc12m": "image-text pairs",
    "vit_base_patch16_sapiens2.fb": "a private collection",
    "davit_base_fl.msft_florence2": "image-text pairs",
    # Neither the tag nor the architecture tells: ImageNet-5K.
    "dpn92.mx_in1k": "ImageNet-5K",
    "dpn68b.mx_in1k": "ImageNet-5K",
    # Grey.
    "beitv2_base_patch16_224.in1k_ft_in1k": "unknown",
    "resnetv2_50x1_bit.goog_distilled_in1k": "unknown",
    "edgenext_base.usi_in1k": "unknown",
    "beit3_base_patch16_224.pt": "unknown",
    "ghostnetv3_100.in1k": "unknown",
    "iformer_l_distilled.in1k": "unknown",
    "efficientvim_m1_dist.in1k": "unknown",
}

OUT = [
    "in12k",
    "in21k",
    "in22k",
    "inw21k",
    "jft",
    "ig1b",
    "wsl",
    "swag",
    "seer",
    "yfcc",
    "cc12m",
    "clip",
    "openai",
    "laion",
    "metaclip",
    "datacomp",
    "dfn",
    "webli",
    "merged2b",
    "m30m",
    "m38m",
    "lvd142m",
    "lvd1689m",
    "sat493m",
    "sa1b",
    "bamboo",
    "radio",
    "ssld",
    "eupe",
]

STRONG = [
    "volo_d4_448.sail_in1k",
    "maxvit_base_tf_512.in1k",
    "volo_d3_448.sail_in1k",
    "caformer_b36.sail_in1k_384",
    "caformer_m36.sail_in1k_384",
    "maxvit_small_tf_512.in1k",
    "efficientvit_l2.r384_in1k",
    "caformer_s36.sail_in1k_384",
    "maxvit_tiny_tf_512.in1k",
    "convnextv2_base.fcmae_ft_in1k",
]


@pytest.fixture(scope="module")
def verdicts() -> dict[str, Provenance]:
    """Every weight of the installed timm."""
    return {name: provenance(name) for name in timm.list_models(pretrained=True)}


@pytest.mark.parametrize(("name", "pretraining"), VERDICTS.items())
def test_verdict(name: str, pretraining: str) -> None:
    found = provenance(name)
    assert found.pretraining == pretraining
    assert found.allowed == (pretraining == IN)
    assert found.reason
    assert "\n" not in found.reason


def test_the_table_of_cases_is_about_real_tags(verdicts: dict[str, Provenance]) -> None:
    assert len(VERDICTS) >= 60
    assert set(VERDICTS) <= set(verdicts)


def test_timms_whole_list(verdicts: dict[str, Provenance]) -> None:
    counts = Counter(
        "in" if found.allowed else "unknown" if found.pretraining == "unknown" else "out"
        for found in verdicts.values()
    )
    assert counts["in"] > 900
    assert counts["out"] > 700
    assert 15 <= counts["unknown"] < 150
    assert all(found.pretraining == IN for found in verdicts.values() if found.allowed)


@pytest.mark.parametrize("word", OUT)
def test_names_of_other_data_never_pass(word: str, verdicts: dict[str, Provenance]) -> None:
    concerned = [name for name in verdicts if word in name]
    assert concerned
    assert [name for name in concerned if verdicts[name].allowed] == []


def test_bare_trainers_never_pass(verdicts: dict[str, Provenance]) -> None:
    bare = [name for name in verdicts if name.partition(".")[2] in ("fb", "pt")]
    assert bare
    assert not any(verdicts[name].allowed for name in bare)


def test_a_tag_passes_only_if_it_says_imagenet_1k_or_a_method_on_it(
    verdicts: dict[str, Provenance],
) -> None:
    tags = {name.partition(".")[2] for name, found in verdicts.items() if found.allowed}
    others = {tag for tag in tags if "in1k" not in tag.split("_")}
    assert others == {"mae", "dino", "fb_dino", "fcmae"}


@pytest.mark.parametrize("name", STRONG)
def test_the_strong_weights_pass(name: str) -> None:
    assert provenance(name) == Provenance(True, IN, provenance(name).reason)


@pytest.mark.parametrize("name", ["resnet50", "convnext_base", "vit_base_patch16_224", ""])
def test_a_bare_name_is_rejected(name: str) -> None:
    found = provenance(name)
    assert not found.allowed
    assert "pin architecture.tag" in found.reason


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("resnet50.brandnew_in1k", "brandnew: not a known word of a tag"),
        ("resnet50.a1_in1k_plus", "plus: not a known word of a tag"),
        ("resnet50.a1_in2k", "in2k: not a known word of a tag"),
        ("resnet50.a1", "a1: nothing in it says ImageNet-1K"),
        ("brandnew_small.in1k", "in1k: says neither who trained nor how"),
        ("brandnew_small.r224_in1k", "r224_in1k: says neither who trained nor how"),
        ("brandnew_small.fb_dist_in1k", "dist: distilled from a teacher that was not reviewed"),
    ],
)
def test_what_is_not_recognised_is_rejected_with_a_remedy(name: str, word: str) -> None:
    found = provenance(name)
    assert (found.allowed, found.pretraining) == (False, "unknown")
    assert found.reason.startswith(word)
    assert "take another tag, or review it in search/catalogue/pretraining.yaml" in found.reason


@given(st.from_regex(r"[a-z0-9]{1,12}", fullmatch=True))
def test_an_added_word_never_makes_a_weight_allowed(word: str) -> None:
    assert not provenance(f"convnext_base.fb_in22k_ft_in1k_{word}").allowed
    assert not provenance(f"beitv2_base_patch16_224.in1k_ft_in1k_{word}").allowed
    assert not provenance(f"resnet50.{word}_in21k").allowed


@pytest.mark.parametrize(
    ("name", "declared", "allowed", "pretraining"),
    [
        ("mobilenetv2_100.tf_in1k", "ImageNet-1K", True, "ImageNet-1K (declared)"),
        ("my_own_weights", "ImageNet-1K", True, "ImageNet-1K (declared)"),
        ("edgenext_base.usi_in1k", "ImageNet-1K", True, "ImageNet-1K (declared)"),
        ("my_own_weights", "ImageNet-22K", False, "ImageNet-22K (declared)"),
        ("my_own_weights", "imagenet-1k and more", False, "imagenet-1k and more (declared)"),
        ("my_own_weights", None, False, "unknown"),
        ("convnext_base.fb_in22k_ft_in1k", "ImageNet-1K", False, "ImageNet-22K"),
        ("dpn92.mx_in1k", "ImageNet-1K", False, "ImageNet-5K"),
    ],
)
def test_declarations(name: str, declared: str | None, allowed: bool, pretraining: str) -> None:
    found = provenance(name, declared)
    assert (found.allowed, found.pretraining) == (allowed, pretraining)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("weights: {}\n", "architecture: field required"),
        ("weights: {a.b: {verdict: maybe, reason: x}}\n", "verdict"),
        (
            "weights: {}\narchitecture: {out: {'(': x}, unknown: {}}\n"
            "tag: {in: {}, recipe: {}, detail: {}, out: {}, unknown: {}}\nreviewed: []\n",
            "rules must be regular expressions, found '('",
        ),
    ],
)
def test_a_broken_table_is_told(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "pretraining.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"pretraining\.yaml") as error:
        _table(path)
    assert message in str(error.value)
