"""Files that are replaced as a whole."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


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
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text_atomically(path: Path, text: str, *, private: bool = False) -> None:
    """The same for a text, in UTF-8."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    write_atomically(path, write, private=private)


def write_json_atomically(path: Path, content: Any) -> None:
    """The same for plain values, as indented JSON."""
    write_text_atomically(path, json.dumps(content, indent=2) + "\n")
