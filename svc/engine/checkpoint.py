"""Files of a checkpoint, in a folder or in the hub's cache: finding, reading, fingerprinting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import xxhash
from transformers.utils.hub import cached_file

from svc.engine.errors import NotAModelError

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
_ENCODING_FILES = (
    "config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "preprocessor_config.json",
)
_READ_BYTES = 1 << 24


class Checkpoint:
    """One checkpoint: `path` is a folder or a hub repository's name.

    The hub is asked only as transformers would ask it, so HF_HUB_OFFLINE holds here too.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        if self.file("config.json") is None:
            raise NotAModelError(path, "config.json")
        if self.file(WEIGHTS) is None and self.file(WEIGHTS_INDEX) is None:
            raise NotAModelError(path, f"{WEIGHTS} or {WEIGHTS_INDEX}")

    def file(self, name: str) -> Path | None:
        """Return the local path of a file of the checkpoint, or None when it has none."""
        folder = Path(self.path).expanduser()
        if folder.is_dir():
            return folder / name if (folder / name).is_file() else None
        try:
            found = cached_file(self.path, name, _raise_exceptions_for_missing_entries=False)
        except OSError as error:  # transformers' way to say: no such repository, or no way there
            raise NotAModelError(self.path, f"a folder, or {name} on the hub ({error})") from error
        return None if found is None else Path(found)

    def json(self, name: str) -> dict[str, Any] | None:
        """Return the content of a JSON file of the checkpoint, or None when it has none."""
        path = self.file(name)
        if path is None:
            return None
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return content

    def text(self, name: str) -> str | None:
        """Return the content of a text file of the checkpoint, or None when it has none."""
        path = self.file(name)
        return None if path is None else path.read_text(encoding="utf-8")

    def digest(self) -> str:
        """Return the XXH3-128 of the weights and of every file that decides how frames encode."""
        hasher = xxhash.xxh3_128()
        for name in (*_ENCODING_FILES, *self._weight_names()):
            path = self.file(name)
            if path is None:
                continue
            hasher.update(f"{name}:{path.stat().st_size}:".encode())
            with path.open("rb") as stream:
                while chunk := stream.read(_READ_BYTES):
                    hasher.update(chunk)
        return f"xxh3-128:{hasher.hexdigest()}"

    def _weight_names(self) -> list[str]:
        index = self.json(WEIGHTS_INDEX)
        if index is None:
            return [WEIGHTS]
        return sorted(set(index["weight_map"].values()))
