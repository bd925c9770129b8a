"""An interrupted training of a merged model: its state, and what it is a training of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from search.files import write_json_atomically

STATE, IDENTITY = "training.pt", "training.json"


class UnfinishedTraining:
    """The state that a training leaves in its folder after every epoch.

    Attributes:
        state_file: for `search.training.loop.fit`; it exists if there is something to go on with.
    """

    def __init__(
        self, folder: Path, identity: Mapping[str, Any], console: Console, what: str
    ) -> None:
        """Opens the folder, which is made if need be; the state of another training is deleted.

        Args:
            folder: of the merged model.
            identity: all that the result depends on, as plain values.
            console: is told whether the training goes on or starts anew.
            what: names the training there.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.state_file, self._identity_file = folder / STATE, folder / IDENTITY
        # As it will be read: tuples become lists.
        wanted = json.loads(json.dumps(identity))
        if self._known() == wanted:
            if self.state_file.exists():
                console.print(f"going on with the interrupted {what}", highlight=False)
            return
        if self.state_file.exists():
            console.print(
                f"the interrupted {what} had other settings or models: starting anew",
                highlight=False,
            )
            self.state_file.unlink()
        write_json_atomically(self._identity_file, wanted)

    def clear(self) -> None:
        """Removes the state of a training whose result is kept."""
        for path in (self.state_file, self._identity_file):
            path.unlink(missing_ok=True)

    def _known(self) -> Any:
        """What the state is of; None if that is absent or damaged."""
        try:
            return json.loads(self._identity_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
