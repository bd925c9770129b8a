"""The import contract's lists; `lint-imports` holds the code to them."""

from __future__ import annotations

import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def test_what_merging_may_import_is_told_of_every_room_of_the_search() -> None:
    """A room that is in the first list alone would be open to merging unasked."""
    content = tomllib.loads(PYPROJECT.read_text("utf-8"))
    rooms, around_merging = (
        contract["layers"]
        for contract in content["tool"]["importlinter"]["contracts"]
        if contract["type"] == "layers" and contract.get("containers") in (["search"], None)
    )
    assert [f"search.{room}" for room in rooms] == [
        room for room in around_merging if room != "ensemble"
    ]
