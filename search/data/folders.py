"""Where onefold keeps what it can make again: the demo set and parameter counts."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """$ONEFOLD_CACHE, else $XDG_CACHE_HOME/onefold, else ~/.cache/onefold.

    Read at each call, not on import, and not created: whoever writes there creates it.
    """
    own = os.environ.get("ONEFOLD_CACHE")
    if own:
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "onefold"
