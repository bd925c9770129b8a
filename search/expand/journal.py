"""unfinished.jsonl: the samples that an interrupted command has made, a line each."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import IO, Self

from pydantic import TypeAdapter, ValidationError

from search.data.generated import Head, Sample, sample_line
from search.errors import UserError
from search.machine.files import whole_lines


class SampleJournal:
    """The journal of one command at a time; open inside `with`.

    Attributes:
        head: what its samples have in common, None before there is a journal.
        samples: those that were made, by name.
    """

    def __init__(self, path: Path) -> None:
        """Reads the journal, if there is one; a line that a kill left unfinished counts for
        nothing.

        Raises:
            UserError: if it is none that onefold wrote.
        """
        self.path = path
        self.head: Head | None = None
        self.samples: dict[str, Sample] = {}
        self._file: IO[bytes] | None = None
        self._size = 0
        if path.exists():
            self._read()

    def _read(self) -> None:
        try:
            content = whole_lines(self.path.read_bytes())
            # `splitlines` would also cut a name in two at a separator such as U+2028.
            lines = content.decode("utf-8").split("\n")[:-1]
            if lines:
                self.head = TypeAdapter(Head).validate_json(lines[0])
            samples = map(TypeAdapter(Sample).validate_json, lines[1:])
            self.samples = {sample.img_name: sample for sample in samples}
        except (OSError, UnicodeDecodeError, ValidationError) as error:
            raise UserError(
                f"{self.path} must be the journal of `search expand`, found: "
                f"{' '.join(str(error).split())[:200]}; delete its folder, or choose another --out"
            ) from None
        self._size = len(content)

    def begin(self, head: Head, kept: Iterable[str]) -> None:
        """Opens it for what is made from now on.

        Args:
            head: written first, if nothing was.
            kept: names of the samples that need not be made again.
        """
        kept = set(kept)
        self.samples = {name: one for name, one in self.samples.items() if name in kept}
        self._file = self.path.open("ab")
        self._file.truncate(self._size)
        if self.head is None:
            self.head = head
            self._write(json.dumps(asdict(head), ensure_ascii=False))

    def add(self, sample: Sample) -> None:
        """Records a sample whose file is written."""
        self.samples[sample.img_name] = sample
        self._write(sample_line(sample))

    def _write(self, line: str) -> None:
        assert self._file is not None
        self._file.write(line.encode("utf-8") + b"\n")
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
