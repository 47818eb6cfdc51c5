"""A backup in one file: a plain tar whose first member names all others, each with its size and SHA-256.

Whoever has it has the keys in it, so it is its owner's alone (mode 0600).  Reading believes nothing: every header is of
a plain file with a name of a few safe characters, all of them are those of the list, in its order, and nothing leaves
the file or the folder that it is unpacked into.  Uncompressed, so it takes no more room than it has itself.  (Python's
own extraction filter would do, but Debian 12's Python does not have it.)
"""

import hashlib
import io
import os
import re
import secrets
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Final

from pydantic import Field, ValidationError

from nexus_common.config import Settings
from nexus_common.disk import FULL, LEAST_FREE_BYTES, room, shortage, sync_folder
from nexus_common.errors import NexusError

LIST: Final = "contents.json"
MOST_FILES: Final = 100_000
MOST_LIST_BYTES: Final = 32 << 20
PIECE: Final = 1 << 20
_BLOCK: Final = tarfile.BLOCKSIZE
_NAME: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}(/[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}){0,2}")
_NAMED_BY_CONTENT: Final = re.compile(r"/([0-9a-f]{64})\.safetensors$")


class Member(Settings):
    """A file's size and SHA-256 (hex)."""

    size: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Contents(Settings):
    """The list: whose backup it is (``kind`` and ``of``), when it was made, its database's schema, and its files."""

    kind: str
    of: str
    made: Annotated[float, Field(ge=0, le=1e11)]  # Unix seconds
    version: str
    schema_number: Annotated[int, Field(ge=0)]
    files: dict[str, Member]


@contextmanager
def new_file(path: Path, copies: Path) -> Iterator[io.BufferedRandom]:
    """A file for ``pack``, its owner's alone, that is there whole or not at all; there must be none yet.

    ``copies`` is the folder that what goes into it may be copied to first: its disk may be the one that is full.
    """
    if path.exists():
        raise NexusError(f"{path} exists, and a backup takes no other file's place; give another name")
    if not path.parent.is_dir():
        raise NexusError(f"{path.parent} is no folder")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with os.fdopen(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as problem:
        if problem.errno not in FULL:
            raise
        told = "; ".join(f"{folder}: {room(folder)}" for folder in dict.fromkeys((path.parent, copies)))
        raise NexusError(f"{path} cannot be written ({problem.strerror}): {told}; free some") from None
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def pack(file: io.BufferedRandom | io.BytesIO, contents: Contents, sources: Mapping[str, Path]) -> str:
    """Write an archive of files that do not change meanwhile; the SHA-256 of all of it."""
    files = {name: Member(size=source.stat().st_size, sha256=_digest(source)) for name, source in sources.items()}
    for name, member in files.items():
        if (named := _NAMED_BY_CONTENT.search(name)) and named[1] != member.sha256:
            raise NexusError(
                f"{sources[name]} was changed: it no longer has the SHA-256 it is named by; put it back from an "
                f"earlier backup (`tar -xf FILE {name}`)"
            )
    listed = contents.model_copy(update={"files": files}).model_dump_json().encode()
    if not all(_NAME.fullmatch(name) for name in files) or len(files) > MOST_FILES or len(listed) > MOST_LIST_BYTES:
        raise NexusError(f"{len(files)} files cannot be backed up together: too many, or names that are not ours")
    with tarfile.open(fileobj=file, mode="w:", format=tarfile.USTAR_FORMAT) as tar:
        _add(tar, LIST, len(listed), io.BytesIO(listed))
        for name, source in sources.items():
            with source.open("rb") as data:
                _add(tar, name, files[name].size, data)
    file.flush()
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()


def _add(tar: tarfile.TarFile, name: str, size: int, data: IO[bytes]) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o600
    tar.addfile(info, data)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Archive:
    """An open backup whose list and headers were checked, and where in the file each member's bytes begin."""

    name: str
    file: IO[bytes]
    contents: Contents
    places: Mapping[str, int]

    @classmethod
    def read(cls, path: Path, kind: str) -> "Archive":
        """Open one; NexusError where it is not whole, or not of this kind.  The bytes are checked by ``unpack``."""
        try:
            file = path.open("rb")
        except OSError as problem:
            raise NexusError(f"{path} cannot be read: {problem.strerror}") from None
        try:
            size = file.seek(0, os.SEEK_END)
            members = _members(file, size)
            first, place = next(members)
            if first.name != LIST or first.size > MOST_LIST_BYTES:
                raise ValueError(f"it does not begin with {LIST}")
            file.seek(place)
            contents = Contents.model_validate_json(file.read(first.size))
            places = dict[str, int]()
            for (name, member), (info, place) in zip(contents.files.items(), members, strict=True):
                if (info.name, info.size) != (name, member.size) or not _NAME.fullmatch(name):
                    raise ValueError("its files are not those of its list")
                places[name] = place
            parts = (name.split("/") for name in places)
            if {"/".join(part[:n]) for part in parts for n in range(1, len(part))} & places.keys():
                raise ValueError("a file of its list is a folder too")
        except (ValueError, StopIteration, tarfile.HeaderError) as problem:
            file.close()
            told = "its list cannot be read" if isinstance(problem, ValidationError) else str(problem)
            raise _altered(str(path), told or type(problem).__name__) from None
        if contents.kind != kind:
            file.close()
            raise NexusError(f"{path} is a backup of {contents.kind[:40]!r}, not of {kind}")
        return cls(str(path), file, contents, places)

    def unpack(self, folder: Path) -> None:
        """Write all files below a new folder, synced; NexusError at the first whose bytes are not those of the list."""
        need = sum(member.size for member in self.contents.files.values()) + LEAST_FREE_BYTES
        if (lacking := shortage(folder, need)) is not None:
            raise NexusError(lacking)
        for name, member in self.contents.files.items():
            target = folder / name
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.file.seek(self.places[name])
            digest, left = hashlib.sha256(), member.size
            with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
                while left and (piece := self.file.read(min(left, PIECE))):
                    digest.update(piece)
                    out.write(piece)
                    left -= len(piece)
                out.flush()
                os.fsync(out.fileno())
            if left or digest.hexdigest() != member.sha256:
                raise _altered(self.name, f"{name} has not the bytes of its list")
        for inner in {folder / name for name in self.contents.files}:
            sync_folder(inner.parent)


def _members(file: IO[bytes], size: int) -> Iterator[tuple[tarfile.TarInfo, int]]:
    """Each header with the place of its bytes, up to the end that a whole tar has; ValueError where it is no such."""
    at = 0
    for _ in range(MOST_FILES + 2):
        file.seek(at)
        block = file.read(_BLOCK)
        if block == bytes(_BLOCK):
            if size - at < 2 * _BLOCK or size - at > tarfile.RECORDSIZE + _BLOCK or any(file.read()):
                raise ValueError("it does not end as it should")
            return
        info = tarfile.TarInfo.frombuf(block, "ascii", "strict")
        if info.type != tarfile.REGTYPE or info.size < 0:
            raise ValueError("it holds what is no plain file")
        at += _BLOCK
        yield info, at
        at += -(-info.size // _BLOCK) * _BLOCK
        if at > size:
            raise ValueError("it was cut off")
    raise ValueError(f"it holds more than {MOST_FILES} files")


def _altered(name: str, what: str) -> NexusError:
    return NexusError(f"{name} is no whole backup ({what}): it was cut off or altered; take another")
