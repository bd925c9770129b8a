from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from search.errors import UserError
from search.files import write_atomically
from search.training.candidate import (
    copy_state,
    load_state,
    load_weights,
    save_state,
    save_weights,
)


def test_weights_survive_the_disk(tmp_path: Path) -> None:
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    save_weights(tmp_path / "model.safetensors", copy_state(source))
    load_weights(tmp_path / "model.safetensors", target)
    assert torch.equal(source.weight, target.weight)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_copies_do_not_follow_the_module() -> None:
    module = nn.Linear(2, 2)
    state = copy_state(module)
    before = state["weight"].clone()
    with torch.no_grad():
        module.weight.add_(1)
    assert torch.equal(state["weight"], before)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_weights(tmp_path / "model.safetensors", copy_state(nn.Linear(3, 2)))
    with pytest.raises(UserError, match="very network"):
        load_weights(tmp_path / "model.safetensors", nn.Linear(4, 2))
    with pytest.raises(UserError, match="very network"):
        load_weights(tmp_path / "model.safetensors", nn.Linear(3, 2, bias=False))


@pytest.mark.parametrize("content", [b"", b"not weights", b"\x00" * 64])
def test_damaged_weights_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="very network"):
        load_weights(tmp_path / "model.safetensors", nn.Linear(3, 2))


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_training_states_survive_and_code_in_them_does_not_run(tmp_path: Path) -> None:
    save_state(tmp_path / "state.pt", {"step": 3, "tensor": torch.ones(2), "rows": [{"a": 1.5}]})
    state = load_state(tmp_path / "state.pt")
    assert state["step"] == 3
    assert state["rows"] == [{"a": 1.5}]
    torch.save({"function": print}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match="delete it"):
        load_state(tmp_path / "evil.pt")


def test_weights_may_be_read_by_whom_other_files_may(tmp_path: Path) -> None:
    save_weights(tmp_path / "model.safetensors", {"weight": torch.zeros(2)})
    (tmp_path / "other").touch()
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1
