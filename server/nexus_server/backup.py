"""The server's whole state in one file, taken while it runs, and made a server again from that file.

SQLite's own backup gives the database at one instant; the files of versions are named by their content and never
change.  The file holds the keys of the CA and of the server: whoever has it can pass for the server.
"""

import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from nexus_common import __version__, archive, audit
from nexus_common.account import act_as_owner, as_owner
from nexus_common.archive import Archive, Contents
from nexus_common.audit import AuditLog
from nexus_common.backup_age import BACKED_UP, RESTORED
from nexus_common.disk import make_above, sync_folder, write_durably
from nexus_common.errors import NexusError

from nexus_server.ca import CertificateAuthority, CertificateFiles
from nexus_server.database import require_known
from nexus_server.registry import Registry
from nexus_server.settings import audit_file, read_settings

KIND: Final = "nexus-server"
TRIES: Final = 20
_PARTS: Final = ("state", "keys", "audit.jsonl", "server.toml")  # as they come back; the last says that all is there
_UNFINISHED: Final = ".restoring"
_VECTORS: Final = """
    SELECT 'versions/' || hash FROM versions UNION
    SELECT 'optimiser/' || optimiser FROM runs WHERE optimiser IS NOT NULL"""


def back_up(home: Path, file: Path) -> tuple[int, str, str]:
    """Write all that a server is into ``file``; how many files, its SHA-256, the audit log's head after it.

    Root reads as the account that the folder belongs to, which could lay links in it.
    """
    with archive.new_file(file.absolute(), home) as out, as_owner(home):
        settings = read_settings(home)
        with tempfile.TemporaryDirectory(dir=home, prefix=".backup-") as folder:
            beside = Path(folder)
            state, schema = _state(home / "state", beside)
            keys = _keys(home / "keys", beside)
            audit.copy(audit_file(home), beside / "audit.jsonl")
            shutil.copyfile(home / "server.toml", beside / "server.toml")
            sources = state | keys | {name: beside / name for name in ("audit.jsonl", "server.toml")}
            contents = Contents(
                kind=KIND, of=settings.name, made=time.time(), version=__version__, schema_number=schema, files={}
            )
            digest = archive.pack(out, contents, sources)
    with as_owner(home):
        head = AuditLog(audit_file(home)).append(BACKED_UP, files=len(sources), sha256=digest)
    return len(sources), digest, head


def _state(state: Path, beside: Path) -> tuple[dict[str, Path], int]:
    """The database at one instant and the files that it names.

    Versions stay for ever; an optimiser's state goes as soon as the next round is committed, and then it is all begun
    again.
    """
    copy, missing = beside / "registry.sqlite", state
    for _ in range(TRIES):
        copy.unlink(missing_ok=True)
        files, schema = {"state/registry.sqlite": copy}, _snapshot(state / "registry.sqlite", copy)
        try:
            for name in files_named(copy):
                source = state / f"{name}.safetensors"
                if name.startswith("optimiser/"):
                    source = Path(shutil.copyfile(source, beside / source.name))
                elif not source.exists():
                    raise FileNotFoundError(source)
                files[f"state/{name}.safetensors"] = source
        except FileNotFoundError as problem:
            missing = Path(problem.filename or problem.args[0])
            continue
        check_copy(copy, state / copy.name)
        return files, schema
    raise NexusError(f"{missing} is missing, and the database names it: restore it from an earlier backup")


def _snapshot(database: Path, copy: Path) -> int:
    """Copy a database that may be in use; its schema."""
    if not database.exists():
        raise NexusError(f"{database} does not exist yet; start the server once, then back it up")
    try:
        with (
            closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=rw", uri=True)) as old,
            closing(sqlite3.connect(copy)) as new,
        ):
            old.backup(new)
            new.execute("PRAGMA journal_mode=DELETE")
            (schema,) = new.execute("PRAGMA user_version").fetchone()
    except sqlite3.Error as problem:
        raise NexusError(f"{database} cannot be backed up: {problem}") from None
    require_known(schema, database)
    return int(schema)


def files_named(database: Path) -> list[str]:
    """The files of vectors that a database names."""
    try:
        with closing(sqlite3.connect(database)) as db:
            return [row[0] for row in db.execute(_VECTORS)]
    except sqlite3.Error as problem:
        raise NexusError(f"the database cannot be read: {problem}; take an earlier backup") from None


def check_copy(database: Path, called: Path) -> None:
    """NexusError where a database is damaged."""
    try:
        with closing(sqlite3.connect(database)) as db:
            (found,) = db.execute("PRAGMA integrity_check(1)").fetchone()
    except sqlite3.Error as problem:
        found = str(problem)
    if found != "ok":
        raise NexusError(f"{called} is damaged ({found}); take an earlier backup")


def _keys(keys: Path, beside: Path) -> dict[str, Path]:
    """Copies of the keys and certificates as they were together; a rotation may be going on."""
    for _ in range(TRIES):
        read = _contents(keys)
        if read == _contents(keys):
            break
    else:
        raise NexusError(f"{keys} changes all the time; try again")
    copied = dict[str, Path]()
    for name, data in read.items():
        copied[f"keys/{name}"] = beside / name
        write_durably(beside / name, data)
    return copied


def _contents(keys: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(keys.glob("[!.]*")) if path.suffix in (".crt", ".key")}


def restore(file: Path, home: Path) -> tuple[Contents, list[str]]:
    """Make a server's folder from a backup; there must be none yet.  What is restored asks its sites for what is newer.

    With what the backup holds come the sites whose invitations were open in it, and have ended.
    Whole or not at all: ``server.toml`` comes last, and what an interrupted restore has left is cleared away.
    """
    opened = Archive.read(file, KIND)
    with closing(opened.file):
        contents = opened.contents
        require_known(contents.schema_number, file, f"a newer nexus-server ({contents.version[:20]})")
        if home.exists():
            act_as_owner(home)
        with _staging(home) as staging:
            opened.unpack(staging)
            ended = _complete(staging, contents)
            for part in _PARTS:
                (staging / part).rename(home / part)
                sync_folder(home)
    return contents, ended


def _complete(staging: Path, contents: Contents) -> list[str]:
    """Make sure that a server can run on it, and that it knows that it was restored; whose invitations ended.

    One that was open in the backup may have been used since, and whoever has its line could use it once more.
    """
    lacking = [part for part in (*_PARTS, "keys/server.key") if not (staging / part).exists()]
    if lacking:
        raise NexusError(f"the backup lacks {', '.join(lacking)}; take another")
    read_settings(staging)
    CertificateAuthority(CertificateFiles(staging / "keys"))
    database = staging / "state" / "registry.sqlite"
    check_copy(database, database)
    with closing(Registry(staging / "state")) as registry:
        registry.note_restored()
        ended = registry.end_invitations()
    if missing := [name for name in files_named(database) if not (staging / "state" / f"{name}.safetensors").is_file()]:
        raise NexusError(f"the backup lacks {missing[0]}.safetensors, which its database names; take another")
    AuditLog(audit_file(staging)).append(RESTORED, made=int(contents.made), invitations_ended=ended)
    return ended


@contextmanager
def _staging(home: Path) -> Iterator[Path]:
    """A folder to unpack into, beside where everything goes; NexusError where a server is there already."""
    staging = home / _UNFINISHED
    there = [part for part in _PARTS if (home / part).exists()]
    if there and ("server.toml" in there or not (staging / "server.toml").exists()):  # else a restore was cut short
        raise NexusError(
            f"{home} holds a server already ({', '.join(there)}), and restoring takes nothing's place; stop it, move "
            "it aside and try again, or give --home another folder"
        )
    make_above(home)
    home.mkdir(mode=0o700, exist_ok=True)
    for part in (*there, _UNFINISHED):
        _remove(home / part)
    staging.mkdir(mode=0o700)
    try:
        yield staging
    finally:
        if not (home / "server.toml").exists():
            for part in _PARTS:
                _remove(home / part)
        shutil.rmtree(staging)


def _remove(path: Path) -> None:
    """Of an interrupted restore."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
