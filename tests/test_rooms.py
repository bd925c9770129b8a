"""What pyproject.toml says of the rooms: the import contracts' lists, to which `lint-imports` holds
the code, and the files that are installed with it."""

from __future__ import annotations

import tomllib
from pathlib import Path

from search.catalogue import backbones

ROOT = Path(__file__).parents[1]

PYPROJECT = ROOT / "pyproject.toml"


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


def test_whatever_lies_in_a_room_is_installed_with_it() -> None:
    """A template or a table that is not named would be missing from a wheel alone."""
    content = tomllib.loads(PYPROJECT.read_text("utf-8"))
    patterns = content["tool"]["setuptools"]["package-data"]
    found = {
        path.relative_to(ROOT)
        for package in ("search", "ensemble")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    installed = {
        path.relative_to(ROOT)
        for room, globs in patterns.items()
        for glob in globs
        for path in ROOT.joinpath(*room.split(".")).glob(glob)
    }
    assert found == installed


def test_an_installed_catalogue_finds_its_backbones() -> None:
    """Without a checkout around it, the file beside the module is the only one."""
    beside = Path(backbones.__file__).with_name("backbones.yaml")
    assert beside.read_bytes() == (ROOT / "backbones.yaml").read_bytes()
