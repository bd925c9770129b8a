"""Starting weights are fetched before anything is trained; the network is a fake."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

import search.catalogue.downloads
from search.catalogue.backbones import load_backbones
from search.catalogue.downloads import fetch_weights, is_cached
from search.catalogue.weights import check_weights
from search.errors import Interrupted, UserError
from tests.hub import Hub

CATALOGUE = load_backbones()
VIT = CATALOGUE.get("test_vit.r160_in1k")
RESNET = CATALOGUE.get("test_resnet.r160_in1k")
NAMES = [VIT.name, RESNET.name, "resnet18.a1_in1k"]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(NAMES)
    hub.stand_in(monkeypatch)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    return hub


def test_every_weight_of_the_pool_is_fetched_and_told(hub: Hub) -> None:
    hub.cache.add((f"timm/{RESNET.name}", "model.safetensors"))
    text = io.StringIO()
    fetch_weights(NAMES, Console(file=text, width=200))
    assert hub.fetched == [f"timm/{name}/model.safetensors" for name in (NAMES[0], NAMES[2])]
    assert text.getvalue().splitlines() == [
        "fetching weights 1/2: test_vit.r160_in1k, 3 MB",
        "fetching weights 2/2: resnet18.a1_in1k, 3 MB",
    ]


def test_a_terminal_shows_a_bar_that_fills(hub: Hub) -> None:
    text = io.StringIO()
    fetch_weights(NAMES, Console(file=text, width=200, force_terminal=True))
    assert "weights 3/3: resnet18.a1_in1k" in text.getvalue()
    assert "3.0/3.0 MB" in text.getvalue()
    assert "fetching" not in text.getvalue()


def test_the_quiet_default_prints_nothing(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    check_weights((VIT, RESNET), weights="hub", weights_dir=None)
    assert len(hub.fetched) == 2
    assert capsys.readouterr() == ("", "")


def test_a_repository_without_safetensors_gives_its_other_file(hub: Hub) -> None:
    hub.files = {(f"timm/{VIT.name}", "pytorch_model.bin")}
    fetch_weights([VIT.name])
    assert hub.fetched == [f"timm/{VIT.name}/pytorch_model.bin"]
    assert is_cached(VIT.name)


def test_cached_weights_ask_nobody(hub: Hub) -> None:
    hub.cache = set(hub.files)
    fetch_weights(NAMES)
    assert not hub.asked
    assert not hub.fetched


def test_the_hub_switched_off_is_told_with_the_remedy(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search.catalogue.downloads, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as error:
        fetch_weights([VIT.name, RESNET.name])
    message = str(error.value)
    assert "switched off (HF_HUB_OFFLINE) and 2 of 2 are not in its cache" in message
    assert "--weights none, or --weights-dir DIR with test_vit.r160_in1k.safetensors, " in message
    assert not hub.asked


def test_a_hub_that_does_not_answer_is_asked_once(hub: Hub) -> None:
    hub.answers = False
    with pytest.raises(UserError, match="timm's hub, but it does not answer and 3 of 3"):
        fetch_weights(NAMES)
    assert len(hub.asked) == 1
    assert "timm/test_vit.r160_in1k/resolve/main/model.safetensors" in hub.asked[0]


def test_a_later_download_that_fails_names_what_is_missing(hub: Hub) -> None:
    """It used to be found out in the middle of the search, as a failed trial."""
    hub.failing[f"timm/{RESNET.name}"] = OSError("503 Service Unavailable")
    with pytest.raises(UserError) as error:
        check_weights((VIT, RESNET), weights="hub", weights_dir=None)
    message = str(error.value)
    assert "failed at test_resnet.r160_in1k (503 Service Unavailable) and 1 of 2" in message
    assert message.endswith("--weights-dir DIR with test_resnet.r160_in1k.safetensors")
    assert is_cached(VIT.name)
    hub.failing.clear()
    check_weights((VIT, RESNET), weights="hub", weights_dir=None)
    assert len(hub.fetched) == 2  # the first was not fetched again


def test_the_others_are_not_waited_for_when_the_network_is_gone(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.failing[f"timm/{VIT.name}"] = OSError("connection reset")
    answers = iter([True, False])
    monkeypatch.setattr(search.catalogue.downloads, "_hub_answers", lambda _: next(answers))
    with pytest.raises(UserError, match=r"failed at test_vit.* and 3 of 3"):
        fetch_weights(NAMES)
    assert not hub.fetched


def test_ctrl_c_ends_it_and_the_next_time_goes_on(hub: Hub) -> None:
    hub.failing[f"timm/{RESNET.name}"] = KeyboardInterrupt()
    console = Console(file=io.StringIO(), force_terminal=True)
    with pytest.raises(KeyboardInterrupt):
        fetch_weights(NAMES, console)
    assert not console._live_stack  # the bar is gone from the terminal
    hub.failing.clear()
    fetch_weights(NAMES, console)
    assert len(hub.fetched) == len(NAMES)


def test_weights_of_another_server_go_where_timm_looks(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SimpleNamespace(hf_hub_id=None, hf_hub_filename=None, url="https://x.org/a/b-01.pth")
    monkeypatch.setattr("timm.get_pretrained_cfg", lambda name: config)

    content = b"weights" * 500_000  # a few pieces

    def answer(url: str, timeout: float) -> io.BytesIO:
        assert url == config.url
        assert timeout <= 60
        return io.BytesIO(content)

    monkeypatch.setattr(search.catalogue.downloads, "urlopen", answer)
    with pytest.raises(Interrupted):
        fetch_weights(["vit.x"], on_progress=Until(2))
    assert list((tmp_path / "checkpoints").iterdir()) == []
    fetch_weights(["vit.x"])
    assert (tmp_path / "checkpoints" / "b-01.pth").read_bytes() == content
    assert is_cached("vit.x")
    assert not hub.asked


class Until:
    """Asks for the end when it is called for the so-manieth time."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def __call__(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Interrupted("the time limit was reached")


@pytest.mark.parametrize(
    ("calls", "fetched"),
    # Before each file, when its bar begins, and twice as its bytes arrive; and at the very end.
    [(1, 0), (2, 0), (3, 0), (4, 0), (5, 1), (8, 1), (12, 2), (13, 3)],
)
def test_a_stop_reaches_a_download_between_its_bytes(hub: Hub, calls: int, fetched: int) -> None:
    """The first signal only asks for the end: nobody asked until all was fetched."""
    console = Console(file=io.StringIO(), force_terminal=True)
    with pytest.raises(Interrupted):
        fetch_weights(NAMES, console, Until(calls))
    assert not console._live_stack
    assert len(hub.fetched) == fetched
    fetch_weights(NAMES, console)
    assert len(hub.fetched) == len(NAMES)


def test_a_check_of_weights_can_be_stopped(hub: Hub) -> None:
    with pytest.raises(Interrupted):
        check_weights((VIT,), weights="hub", weights_dir=None, on_progress=Until(3))
    assert not hub.fetched
