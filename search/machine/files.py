"""Files: replaced as a whole when written, read strictly; and where caches lie."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Hashable
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import yaml
from pydantic import ValidationError

from search.errors import UserError

CANDIDATES, REFITS, MERGED = "candidates", "refits", "merged"
BACKBONES, QUARANTINE = "backbones.yaml", "quarantine.csv"
LEADERBOARD, COMPARISON = "leaderboard.csv", "comparison.csv"
ELSEWHERE = "elsewhere"
"""What lies in a run folder, for all rooms that read or write it; a file of one room alone has its
name there."""


class _StrictLoader(yaml.SafeLoader):
    """A SafeLoader to which a repeated key is an error, not a silent overwrite."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue  # SafeLoader refuses what cannot be a key, and merges what "<<" refers to.
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"a key must not be repeated, found '{key_node.value}' twice",
                    problem_mark=key_node.start_mark,
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def load_yaml(path: Path) -> Any:
    """Reads one YAML document.

    Raises:
        UserError: if the file cannot be read, is no YAML, or repeats a key in one mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UserError(f"{path} must be a readable file: {reason}") from error
    try:
        return yaml.load(text, _StrictLoader)  # noqa: S506 - it derives from SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} must be YAML: {' '.join(str(error).split())}") from error


def suggestion(word: object, known: Collection[str]) -> str:
    """ "; did you mean 'X'?" for the known word that is nearest, or nothing."""
    nearest = get_close_matches(str(word), known, n=1)
    return f"; did you mean '{nearest[0]}'?" if nearest else ""


def check_keys(content: dict[Any, Any], known: Collection[str], where: str) -> None:
    """
    Raises:
        UserError: "unknown key 'X' in WHERE; did you mean 'Y'?" for the first key not in `known`.
    """
    for key in content:
        if key not in known:
            hint = suggestion(key, known) or f"; known are {', '.join(known)}"
            raise UserError(f"unknown key '{key}' in {where}{hint}")


def first_problem(error: ValidationError) -> str:
    """The first problem of a failed validation, in one line: "image_sizes: ..., found 'x'"."""
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return message if not where else f"{where} {message}"
    message = message[0].lower() + message[1:]
    return f"{where}: {message}, found {problem['input']!r}"


def write_atomically(path: Path, write: Callable[[Path], None], *, private: bool = False) -> None:
    """Lets `write` fill a temporary file in the same folder, then renames it to `path`.

    A reader sees the old content or the new, never a part.

    Args:
        path: the file; its folder must be there.
        write: given the temporary path.
        private: let nobody else read the file, from its first byte on.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.touch(mode=0o600 if private else 0o666)
        mode = temporary.stat().st_mode
        write(temporary)
        # Some writers replace the file by one that only its owner may read.
        temporary.chmod(mode)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # else a power cut may leave the new name with no content
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def copy_atomically(source: Path, target: Path) -> None:
    """The same for the content of another file."""

    def write(temporary: Path) -> None:
        shutil.copyfile(source, temporary)

    write_atomically(target, write)


def check_writable(folder: Path) -> None:
    """Before anything is computed for files that could not be written.

    Raises:
        UserError: if no file can be made in the folder.
    """
    try:
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"{folder} must be a folder that can be written to, found: {error.strerror}; copy it "
            "to where it can"
        ) from None


def drop_unfinished_writes(folder: Path, names: str = "*") -> None:
    """Deletes what killed writers left in a folder; only for whoever knows that none is at work.

    Args:
        folder: not its sub-folders.
        names: pattern of the files that were to be written.
    """
    for path in folder.glob(f".{names}.part"):
        if path.is_file():
            path.unlink(missing_ok=True)


def write_text_atomically(path: Path, text: str, *, private: bool = False) -> None:
    """The same for a text, in UTF-8."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    write_atomically(path, write, private=private)


def write_json_atomically(path: Path, content: Any) -> None:
    """The same for plain values, as indented JSON."""
    write_text_atomically(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_yaml_atomically(path: Path, content: Any, *, private: bool = False) -> None:
    """The same for plain values, as YAML in their order."""
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    write_text_atomically(path, text, private=private)


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is no JSON, no UTF-8 or no mapping.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"it is no mapping but {content!r:.40}")
    return content


def whole_lines(content: bytes) -> bytes:
    """Without a last line that a kill or a full disk left unfinished."""
    return content[: content.rfind(b"\n") + 1]


def append_lines(path: Path, text: str, header: str) -> None:
    """Appends lines in one write, flushed, after cutting off a last line that was left unfinished.

    A kill in the middle leaves part of these lines, and all that were there before.

    Args:
        path: the file; made with its folder if it is absent.
        text: whole lines.
        header: the first line of a new file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        file.seek(0)
        size = len(whole_lines(file.read()))
        file.truncate(size)
        file.write((text if size else header + text).encode("utf-8"))


def cache_folder() -> Path:
    """$ONEFOLD_CACHE, else $XDG_CACHE_HOME/onefold, else ~/.cache/onefold.

    Read at each call, not on import, and not created: whoever writes there creates it.
    """
    own = os.environ.get("ONEFOLD_CACHE")
    if own:
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "onefold"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content in hex, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def short_path(path: Path) -> str:
    """The path as seen from the working folder, where that is shorter."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
