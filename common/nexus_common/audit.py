"""The audit log: one JSON object a line, each bound to the line before it by SHA-256, on either side.

What cannot be logged is not sent: ``append`` returns once its line is on the disk, or raises.  ``verify`` finds a
changed, missing, inserted or reordered line; a log changed at its end, cut, or written anew as a whole is told apart
only by a head noted elsewhere, which is what ``syslog.py`` is for.  The file is its owner's alone (mode 0600),
who is the folder's owner where root begins it.
"""

import fcntl
import hashlib
import json
import math
import os
import shutil
import string
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from nexus_common.disk import give_away, sync_folder
from nexus_common.errors import NexusError, Unreadable

Fact = str | int | float | list[str] | None
Record = dict[str, Any]
"""A line: ``n``, ``at``, ``event``, the facts, ``previous``."""
MAX_LINE_BYTES: Final = 1 << 16  # with its newline
MAX_TEXT: Final = 500  # characters of one text
ZEROS: Final = "0" * 64
_FIELDS: Final[dict[str, type]] = {"n": int, "at": str, "event": str, "previous": str}


@dataclass(frozen=True)
class Head:
    """Where a log stands: its number of lines, and the hash of the last one (64 zeros for an empty log)."""

    lines: int
    hash: str


class Unfinished(NexusError):
    """All lines up to ``head`` are whole; after them is a part of one, which the next append cuts off."""

    head = Head(0, ZEROS)


@dataclass(frozen=True)
class AuditLog:
    """The log in one file, to which any number of processes and threads append."""

    path: Path

    def append(self, event: str, **facts: Fact) -> str:
        """Write one line durably and return its hash, the new head; facts that are None are left out.

        Texts are cut at 500 characters, and numbers that are not finite become texts.  What a crash or a full disk
        left of an unfinished line is cut off first, and a line ``recovered`` says how many bytes.  NexusError if the
        line is not on the disk, for whatever reason: nothing may be sent then.
        """
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)  # of this one open file: it keeps out threads as well as processes
                return self._append_locked(fd, event, facts)
            finally:
                os.close(fd)
        except OSError as error:
            raise NexusError(
                f"the audit log {self.path} cannot be written ({error.strerror}), and what cannot be logged is not"
                " sent; free disk space, or give the file and its folder back to the user the service runs as"
            ) from error

    def _append_locked(self, fd: int, event: str, facts: dict[str, Fact]) -> str:
        size = os.fstat(fd).st_size
        if size == 0:
            sync_folder(self.path.parent)  # before the first line, so that no line is ever in a file that can vanish
            give_away(fd, self.path.parent)  # or the service could write no line, and send nothing
        head, torn = self._end(fd, size)
        lines = []
        if torn:
            lines.append(self._line(head, "recovered", {"bytes_cut": len(torn)}))
            head = Head(head.lines + 1, _hash(lines[0]))
        lines.append(self._line(head, event, facts))
        _replace_end(fd, size - len(torn), torn, b"".join(line + b"\n" for line in lines))
        return _hash(lines[-1])

    def _end(self, fd: int, size: int) -> tuple[Head, bytes]:
        """The head to chain from, and the bytes of an unfinished line after it; reads two lines' length at most."""
        tail = os.pread(fd, 2 * MAX_LINE_BYTES, max(0, size - 2 * MAX_LINE_BYTES))
        *_, last, torn = [b"", *tail.split(b"\n")]
        if max(len(last), len(torn)) >= MAX_LINE_BYTES:
            raise _damaged(self.path, "the last line", f"is longer than {MAX_LINE_BYTES} bytes")
        if len(torn) == size:
            return Head(0, ZEROS), torn
        return Head(_parse(self.path, "the last line", last)["n"], _hash(last)), torn

    def _line(self, head: Head, event: str, facts: dict[str, Fact]) -> bytes:
        """The line after ``head``, without its newline."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        given = {name: _bounded(value) for name, value in facts.items() if value is not None}
        record = {"n": head.lines + 1, "at": now, "event": _bounded(event), **given, "previous": head.hash}
        try:
            if len(record) != len(_FIELDS) + len(given):
                raise ValueError(f"a fact is named as one of {', '.join(_FIELDS)}")
            line = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()
            if len(line) >= MAX_LINE_BYTES:
                raise ValueError(f"{len(line)} bytes, at most {MAX_LINE_BYTES - 1}")
        except (TypeError, ValueError) as error:
            raise NexusError(f"event {event[:40]!r} does not fit a line of {self.path} ({error}); log less") from error
        return line


def verify(path: Path, since: str | None = None, look: Callable[[Record], object] = lambda _: None) -> Head:
    """Check every line against the one before, and that the log once ended at ``since``; return the head.

    A changed *last* line has no successor to disagree with it: only ``since``, a head noted on paper or in syslog,
    finds that, a cut end, and a log written anew by somebody who may write the file.  NexusError names file, line and
    what is wrong: Unreadable where nothing is known of the chain, Unfinished where all but a part of a last line is
    whole.  A missing file is an empty log.  ``look`` is shown each line that follows from the one before.
    """
    since = ZEROS if since is None else since.strip().lower()
    if len(since) != 64 or not set(since) <= set(string.hexdigits):
        raise NexusError(f"{since[:80]!r} is no head of an audit log: 64 hexadecimal digits; copy it whole")
    head, found, unfinished = Head(0, ZEROS), since == ZEROS, None
    try:
        for number, line in _lines(path):
            head, record = _follow(path, head, number, line)
            look(record)
            found = found or head.hash == since
    except Unfinished as problem:
        unfinished = problem
    if not found:
        what = f"no longer has the head {since}: it was cut or rewritten since that was noted"
        raise _damaged(path, f"the log of {head.lines} lines", what)
    if unfinished is not None:
        unfinished.head = head
        raise unfinished
    return head


def _follow(path: Path, head: Head, number: int, line: bytes) -> tuple[Head, Record]:
    """The head after one more line, and what that says."""
    record = _parse(path, f"line {number}", line)
    if record["n"] != number:
        what = f"has number {record['n']}, expected {number}: a line is missing, inserted or out of order"
        raise _damaged(path, f"line {number}", what)
    if record["previous"] != head.hash:
        where = f"line {number - 1} or the one after it" if head.lines else "line 1"
        raise _damaged(path, where, f"was changed: line {number} does not follow from what is before it")
    return Head(number, _hash(line)), record


def read(path: Path) -> Iterator[Record]:
    """The lines, unverified.

    NexusError at a line that is none.  Nothing for a missing file.  Texts may hold control characters.
    """
    for number, line in _lines(path):
        yield _parse(path, f"line {number}", line)


def copy(path: Path, target: Path) -> None:
    """All lines as they stand between two appends, as another file; an empty one where there is no log."""
    with target.open("xb") as out:
        try:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH)  # appends wait meanwhile: a second for some hundred megabytes
                shutil.copyfileobj(file, out)
        except FileNotFoundError:
            return


def _replace_end(fd: int, start: int, torn: bytes, data: bytes) -> None:
    """Durably put ``data`` in the place of ``torn``, the file's bytes from ``start``; or leave it as it was."""
    try:
        if torn:  # never without: a file that its owner made append-only (chattr +a) cannot be cut
            os.ftruncate(fd, start)
        rest = memoryview(data)
        while rest:  # a disk that fills up takes a part first
            rest = rest[os.write(fd, rest) :]
        os.fsync(fd)
    except OSError:
        with suppress(OSError):  # a part that stays is an unfinished line, for the next append to cut off
            os.ftruncate(fd, start)
            os.write(fd, torn)
            os.fsync(fd)
        raise


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines without newline, up to the length that the file had between two appends; holds none of them up."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            left = os.fstat(file.fileno()).st_size
            fcntl.flock(file, fcntl.LOCK_UN)
            number = 0
            while left:
                line = file.readline(min(left, MAX_LINE_BYTES))
                number, left = number + 1, left - len(line)
                if not line.endswith(b"\n"):
                    if left and line:
                        raise _damaged(path, f"line {number}", f"is longer than {MAX_LINE_BYTES} bytes")
                    raise Unfinished(
                        f"audit log {path}: line {number} is unfinished ({len(line)} bytes, after a crash"
                        " or a full disk); the next append cuts it off and says so in the log"
                    )
                yield number, line[:-1]
    except FileNotFoundError:
        return
    except OSError as error:
        raise Unreadable(f"the audit log {path} cannot be read ({error.strerror}); read it as its owner") from error


def _parse(path: Path, where: str, line: bytes) -> Record:
    try:
        record = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        raise _damaged(path, where, "is not JSON") from error
    if not isinstance(record, dict) or any(type(record.get(name)) is not kind for name, kind in _FIELDS.items()):
        raise _damaged(path, where, f"is not an object with {', '.join(_FIELDS)}")
    if not 0 < record["n"] < 2**53:
        raise _damaged(path, where, "has a number out of range")
    return record


def _bounded(value: Fact) -> Fact:
    """Texts of at most 500 characters that UTF-8 and JSON can carry; a lone surrogate becomes its escape."""
    if isinstance(value, list):
        return [str(_bounded(item)) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if not isinstance(value, str):
        return value
    text = value.encode(errors="backslashreplace").decode()
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def _hash(line: bytes) -> str:
    return hashlib.sha256(b"nexus audit 1\n" + line).hexdigest()


def _damaged(path: Path, where: str, what: str) -> NexusError:
    remedy = "move the file aside, as it is, for whoever looks into it; the next append begins a new one"
    return NexusError(f"audit log {path}: {where} {what}; {remedy}")
