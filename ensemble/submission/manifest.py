"""manifest.json: the SHA-256 of every file of a folder, so that a changed byte shows."""

from __future__ import annotations

from pathlib import Path

from search.errors import UserError
from search.machine.files import file_sha256, read_json, write_json_atomically

MANIFEST = "manifest.json"


def write_manifest(folder: Path) -> str:
    """Writes manifest.json, the last file of a folder.

    Returns:
        The manifest's own SHA-256, which it cannot hold itself.
    """
    files = {name: file_sha256(folder / name) for name in list_files(folder)}
    write_json_atomically(folder / MANIFEST, {"algorithm": "sha256", "files": files})
    return file_sha256(folder / MANIFEST)


def read_manifest(folder: Path) -> dict[str, str]:
    """SHA-256 of every file by its name, folders separated by slashes.

    Raises:
        UserError: if the file is absent or is no manifest.
    """
    path = folder / MANIFEST
    try:
        content = read_json(path)
        files = content["files"]
        if content["algorithm"] != "sha256" or not all(
            isinstance(value, str) for value in files.values()
        ):
            raise ValueError("no SHA-256 of files")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} must be a manifest that onefold wrote, found: {error}") from None
    return dict(files)


def list_files(folder: Path) -> list[str]:
    """All files of a folder but the manifest, by name.

    Raises:
        UserError: if something in it is a link or neither file nor folder: what it shows could lie
            outside, and change.
    """
    names = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise UserError(f"{folder} must hold plain files only, found the link {name}")
        if path.is_file() and name != MANIFEST:
            names.append(name)
    return names


def find_changes(folder: Path) -> list[str]:
    """How a folder differs from its manifest; nothing if it does not.

    Only files that lie in the folder are opened, whatever names the manifest holds.

    Raises:
        UserError: if there is no manifest, or something is no plain file.
    """
    recorded, found = read_manifest(folder), list_files(folder)
    changes = [f"{name} is absent" for name in sorted(recorded.keys() - set(found))]
    changes += [f"{name} is not in the manifest" for name in sorted(set(found) - recorded.keys())]
    changes += [
        f"{name} has changed"
        for name in found
        if name in recorded and file_sha256(folder / name) != recorded[name]
    ]
    return changes
