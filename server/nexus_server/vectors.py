"""Content-named files of vectors: a file's name is the SHA-256 of its bytes, so a changed one cannot pass unseen.

Written to a temporary name, synced and renamed; nothing is ever overwritten with other bytes.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nexus_common.disk import remove_unfinished, write_durably
from nexus_common.errors import NexusError
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save


class VectorFiles:
    """A folder of safetensors files; names are hex SHA-256."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        remove_unfinished(folder)

    def store(self, vectors: Mapping[str, NDArray[Any]]) -> str:
        """Make a set of named vectors durable; its name."""
        data = save(dict(vectors))
        name = hashlib.sha256(data).hexdigest()
        write_durably(self._path(name), data)
        return name

    @staticmethod
    def name(vectors: Mapping[str, NDArray[Any]]) -> str:
        """What ``store`` would call them."""
        return hashlib.sha256(save(dict(vectors))).hexdigest()

    def load(self, name: str) -> dict[str, NDArray[Any]]:
        """What is stored under a name; NexusError where it is missing or was changed."""
        path = self._path(name)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise NexusError(f"{path} is missing; restore it from the backup") from None
        if hashlib.sha256(data).hexdigest() != name:
            raise NexusError(f"{path} was changed: it no longer has the SHA-256 it is named by; restore it")
        try:
            return load(data)
        except SafetensorError as problem:
            raise NexusError(f"{path} holds no vectors ({problem}); restore it from the backup") from None

    def delete(self, name: str) -> None:
        """Remove a file that nothing names any more."""
        self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"
