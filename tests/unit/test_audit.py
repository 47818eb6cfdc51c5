"""The audit log: a chain that any number of writers keep, that no change escapes, written before all else."""

import fcntl
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nexus_common.audit import MAX_LINE_BYTES, ZEROS, AuditLog, Head, read, verify
from nexus_common.errors import NexusError
from nexus_common.syslog import announce


def run(script: str, path: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """A real process that has ``log`` and runs the script."""
    prelude = (
        "import pathlib, sys\nfrom nexus_common.audit import AuditLog\nlog = AuditLog(pathlib.Path(sys.argv[1]))\n"
    )
    return subprocess.Popen([sys.executable, "-c", prelude + script, path, *arguments], stdout=subprocess.PIPE)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


@pytest.fixture
def six(path: Path) -> list[bytes]:
    """A log of six lines; they are returned with their newlines."""
    for i in range(6):
        AuditLog(path).append("sent", purpose="update", bytes=i)
    return path.read_bytes().splitlines(keepends=True)


def test_a_line_is_compact_json_in_the_order_number_time_event_facts_previous(path: Path) -> None:
    AuditLog(path).append("sent", purpose="Änderung", bytes=7, ratio=0.5, code=None, sites=["a", "b"])
    pattern = (
        r'\{"n":1,"at":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z","event":"sent",'
        r'"purpose":"Änderung","bytes":7,"ratio":0\.5,"sites":\["a","b"\],"previous":"0{64}"\}\n'
    )
    assert re.fullmatch(pattern, path.read_text(encoding="utf-8"))


def test_each_head_is_the_hash_of_its_line_and_the_next_line_names_it(path: Path) -> None:
    heads = [AuditLog(path).append("sent", bytes=i) for i in range(3)]
    lines = path.read_bytes().splitlines()
    assert heads == [hashlib.sha256(b"nexus audit 1\n" + line).hexdigest() for line in lines]
    assert [json.loads(line)["previous"] for line in lines] == [ZEROS, *heads[:2]]
    assert verify(path) == Head(3, heads[2])


def test_the_file_is_its_owners_alone(path: Path) -> None:
    AuditLog(path).append("started")
    assert path.stat().st_mode & 0o777 == 0o600


def test_line_and_folder_are_synced_before_append_returns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[int, int]] = []

    def fsync(fd: int, real: Callable[[int], None] = os.fsync) -> None:
        real(fd)
        synced.append((os.fstat(fd).st_ino, path.stat().st_size))

    monkeypatch.setattr(os, "fsync", fsync)
    AuditLog(path).append("started")
    file, folder, size = path.stat().st_ino, path.parent.stat().st_ino, path.stat().st_size
    assert synced == [(folder, 0), (file, size)]


def test_a_long_text_is_cut_to_500_characters(path: Path) -> None:
    AuditLog(path).append("sent", note="x" * 501, exact="y" * 500, sites=["z" * 1000])
    (line,) = read(path)
    assert (line["note"], line["exact"], line["sites"]) == ("x" * 499 + "…", "y" * 500, ["z" * 499 + "…"])


@given(st.text(), st.lists(st.text()), st.one_of(st.floats(), st.integers(-(2**70), 2**70)))
def test_any_facts_make_one_valid_line(
    tmp_path_factory: pytest.TempPathFactory, text: str, texts: list[str], number: int | float
) -> None:
    path = tmp_path_factory.mktemp("audit") / "log"
    head = AuditLog(path).append(text, text=text + "\ud800\n\0", texts=texts, number=number)
    assert verify(path) == Head(1, head)


@pytest.mark.parametrize("facts", [{"n": 5}, {"previous": ZEROS}, {"x": b"bytes"}, {"x": ["y" * 500] * 200}])
def test_facts_that_do_not_fit_a_line_are_refused_and_nothing_is_written(path: Path, facts: dict[str, int]) -> None:
    with pytest.raises(NexusError, match="event 'sent' does not fit a line"):
        AuditLog(path).append("sent", **facts)
    assert path.read_bytes() == b""


def test_the_longest_line_is_as_good_as_any_other(path: Path) -> None:
    many = [*["y" * 500] * 129, "y" * 100]
    AuditLog(path).append("sent", x=many, note="")
    room = MAX_LINE_BYTES - path.stat().st_size
    path.unlink()
    with pytest.raises(NexusError, match=f"{MAX_LINE_BYTES} bytes, at most {MAX_LINE_BYTES - 1}"):
        AuditLog(path).append("sent", x=many, note="z" * (room + 1))
    AuditLog(path).append("sent", x=many, note="z" * room)
    assert path.stat().st_size == MAX_LINE_BYTES
    assert AuditLog(path).append("sent") == verify(path).hash


def test_several_processes_append_to_one_valid_chain(path: Path) -> None:
    writers = [run("for i in range(50): log.append('sent', bytes=i)", path) for _ in range(4)]
    assert [writer.wait() for writer in writers] == [0] * 4
    assert verify(path).lines == 200


def test_threads_of_one_process_append_to_one_valid_chain(path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        heads = set(pool.map(lambda i: AuditLog(path).append("sent", bytes=i), range(200)))
    assert (verify(path).lines, len(heads)) == (200, 200)


def test_a_check_during_appends_sees_whole_lines_only(path: Path) -> None:
    writer = run("for i in range(300): log.append('sent', bytes=i)", path)
    while writer.poll() is None:
        verify(path)
    assert verify(path).lines == 300


def test_a_check_waits_for_the_append_under_way(path: Path, six: list[bytes]) -> None:
    with path.open("ab", buffering=0) as held, ThreadPoolExecutor(1) as pool:
        fcntl.flock(held, fcntl.LOCK_EX)
        held.truncate(held.tell() - 1)  # the last line is written but for its newline
        waiting = pool.submit(verify, path)
        time.sleep(0.2)
        held.write(b"\n")
        fcntl.flock(held, fcntl.LOCK_UN)
        assert waiting.result().lines == 6


def test_a_reader_that_has_begun_holds_up_no_append(path: Path, six: list[bytes]) -> None:
    lines = read(path)
    next(lines)
    assert AuditLog(path).append("sent") == verify(path).hash
    assert len(list(lines)) == 5


def test_an_append_waits_for_the_one_under_way(path: Path, six: list[bytes]) -> None:
    with path.open("rb") as held, ThreadPoolExecutor(1) as pool:
        fcntl.flock(held, fcntl.LOCK_EX)
        waiting = pool.submit(AuditLog(path).append, "sent")
        time.sleep(0.2)
        assert (waiting.done(), path.read_bytes()) == (False, b"".join(six))
        fcntl.flock(held, fcntl.LOCK_UN)
        assert waiting.result() == verify(path).hash


TAMPERED: dict[str, tuple[Callable[[list[bytes]], list[bytes]], str]] = {
    "changed": (
        lambda x: [*x[:2], x[2].replace(b"update", b"nothing"), *x[3:]],
        "line 3 or the one after it was changed",
    ),
    "missing": (lambda x: [*x[:2], *x[3:]], "line 3 has number 4, expected 3: a line is missing"),
    "first missing": (lambda x: x[1:], "line 1 has number 2, expected 1: a line is missing"),
    "inserted twice": (lambda x: [*x[:3], *x[2:]], "line 4 has number 3, expected 4: a line is missing, inserted"),
    "reordered": (lambda x: [x[1], x[0], *x[2:]], "line 1 has number 2, expected 1: .* out of order"),
    "renumbered": (
        lambda x: [*x[:2], *(line.replace(b'"n":%d' % (i + 1), b'"n":%d' % i) for i, line in enumerate(x[3:], 3))],
        "line 2 or the one after it was changed",
    ),
    "other start": (lambda x: [x[0].replace(b"0" * 64, b"1" * 64), *x[1:]], "line 1 was changed"),
    "no JSON": (lambda x: [*x[:5], b"{'n':6}\n"], "line 6 is not JSON"),
    "NUL bytes": (lambda x: [*x, bytes(500) + b"\n"], "line 7 is not JSON"),
    "deep nesting": (lambda x: [*x, b"[" * 60_000 + b"\n"], "line 7 is not JSON"),
    "list": (lambda x: [*x, b"[7]\n"], "line 7 is not an object with n, at, event, previous"),
    "field missing": (lambda x: [x[0].replace(b'"event"', b'"ever"')], "line 1 is not an object with n, at, event"),
    "true for 1": (lambda x: [x[0].replace(b'"n":1', b'"n":true')], "line 1 is not an object with n, at, event"),
    "number too large": (
        lambda x: [x[0].replace(b'"n":1', b'"n":1' + b"0" * 4000)],
        "line 1 has a number out of range",
    ),
    "line too long": (lambda x: [*x, b"x" * MAX_LINE_BYTES + b"x\n"], f"line 7 is longer than {MAX_LINE_BYTES} bytes"),
    "partial": (lambda x: [*x[:5], x[5][:-1]], r"line 6 is unfinished \(\d+ bytes, .*; the next append cuts it off"),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_a_tampered_log_is_found_with_file_line_and_cause(path: Path, six: list[bytes], what: str) -> None:
    change, found = TAMPERED[what]
    path.write_bytes(b"".join(change(six)))
    with pytest.raises(NexusError, match=f"audit log {path}: {found}"):
        verify(path)


def test_a_changed_last_line_is_found_only_with_an_earlier_head(path: Path, six: list[bytes]) -> None:
    head = verify(path).hash
    path.write_bytes(b"".join(six).replace(b'"bytes":5', b'"bytes":6'))
    assert verify(path).lines == 6
    with pytest.raises(NexusError, match=f"the log of 6 lines no longer has the head {head}: it was cut or rewritten"):
        verify(path, head)


def test_a_cut_log_is_found_only_with_an_earlier_head(path: Path, six: list[bytes]) -> None:
    head = verify(path).hash
    path.write_bytes(b"".join(six[:4]))
    assert verify(path).lines == 4
    with pytest.raises(NexusError, match=f"the log of 4 lines no longer has the head {head}: it was cut or rewritten"):
        verify(path, head)


def test_a_log_written_anew_is_found_with_an_earlier_head(path: Path, six: list[bytes]) -> None:
    head = verify(path).hash
    path.unlink()
    for _ in range(9):
        AuditLog(path).append("sent")
    with pytest.raises(NexusError, match="cut or rewritten"):
        verify(path, head)


def test_every_earlier_head_and_the_empty_one_are_found_as_noted(path: Path) -> None:
    heads = [AuditLog(path).append("sent") for _ in range(3)]
    assert {verify(path, since) for since in (None, ZEROS, *heads, f" {heads[1].upper()}\n")} == {Head(3, heads[2])}


@pytest.mark.parametrize("since", ["", "12ab", "x" * 64])
def test_a_head_copied_wrongly_is_no_false_alarm(path: Path, six: list[bytes], since: str) -> None:
    with pytest.raises(NexusError, match="is no head of an audit log: 64 hexadecimal digits; copy it whole"):
        verify(path, since)


def test_a_missing_file_is_an_empty_log(path: Path) -> None:
    assert (verify(path), verify(path, ZEROS), list(read(path))) == (Head(0, ZEROS), Head(0, ZEROS), [])


def test_a_missing_file_that_once_had_lines_is_found(path: Path) -> None:
    with pytest.raises(NexusError, match="the log of 0 lines no longer has the head 1111"):
        verify(path, "1" * 64)


def test_a_file_that_cannot_be_read_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(NexusError, match=r"cannot be read \(Is a directory\); read it as its owner"):
        verify(tmp_path)


def test_reading_gives_the_lines_up_to_one_that_is_none(path: Path, six: list[bytes]) -> None:
    path.write_bytes(b"".join([*six, b"{}\n"]))
    lines = read(path)
    assert [next(lines)["bytes"] for _ in six] == list(range(6))
    with pytest.raises(NexusError, match="line 7 is not an object"):
        next(lines)


@given(st.data())
def test_a_flipped_byte_is_found_but_in_the_last_line_only_with_the_head(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("audit") / "log"
    head = [AuditLog(path).append("sent", purpose="update", note="é\n", bytes=i) for i in range(3)][-1]
    content = bytearray(path.read_bytes())
    last = content.rindex(b"\n", 0, -1) + 1
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    with pytest.raises(NexusError):
        verify(path, None if position < last else head)


@given(st.lists(st.one_of(st.binary(), st.sampled_from([b"\n", b"{", b'"n":1', b"[" * 99, b"\xff\xfe", b"9" * 5000]))))
def test_arbitrary_bytes_are_an_empty_log_or_a_nexus_error(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]
) -> None:
    path = tmp_path_factory.mktemp("audit") / "log"
    path.write_bytes(b"".join(pieces))
    for use in (verify, lambda path: list(read(path)), lambda path: AuditLog(path).append("sent")):
        try:
            use(path)
        except NexusError:
            assert path.stat().st_size


@pytest.mark.parametrize("kept", [0, 1, 6])
@pytest.mark.parametrize("torn", [b"{", b'{"n":7,"at":"2026-', bytes(4096), b"x" * (MAX_LINE_BYTES - 1)])
def test_an_unfinished_line_is_cut_off_and_the_log_says_so(
    path: Path, six: list[bytes], kept: int, torn: bytes
) -> None:
    whole = b"".join(six[:kept])
    path.write_bytes(whole + torn)
    head = AuditLog(path).append("sent")
    assert path.read_bytes().startswith(whole)
    *_, recovered, sent = read(path)
    assert (recovered["event"], recovered["bytes_cut"], sent["event"]) == ("recovered", len(torn), "sent")
    assert verify(path) == Head(kept + 2, head)


@pytest.mark.parametrize(
    ("end", "cause"),
    [
        (b"no JSON\n", "the last line is not JSON"),
        (b"\n", "the last line is not JSON"),
        (b"no JSON\n{", "the last line is not JSON"),
        (b"x" * MAX_LINE_BYTES, "the last line is longer than"),
        (b"x" * MAX_LINE_BYTES + b"\n", "the last line is longer than"),
        (b"x" * 5 * MAX_LINE_BYTES, "the last line is longer than"),
    ],
)
def test_a_damaged_last_line_stops_every_append(path: Path, six: list[bytes], end: bytes, cause: str) -> None:
    path.write_bytes(b"".join(six) + end)
    with pytest.raises(NexusError, match=f"{path}: {cause}.*; move the file aside, as it is"):
        AuditLog(path).append("sent")
    assert path.read_bytes() == b"".join(six) + end


FULL_DISK = """
import resource
from nexus_common.errors import NexusError
limit = log.path.stat().st_size + 20
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    log.append('sent', note='x' * 400)
except NexusError as error:
    print(error)
"""


@pytest.mark.parametrize("torn", [b"", b'{"n":7,'])
def test_a_disk_that_fills_up_during_a_write_raises_and_leaves_the_file_as_it_was(
    path: Path, six: list[bytes], torn: bytes
) -> None:
    path.write_bytes(b"".join(six) + torn)
    said, _ = run(FULL_DISK, path).communicate()
    assert re.match(
        rf"the audit log {path} cannot be written \(File too large\).*not sent; free disk space", said.decode()
    )
    assert path.read_bytes() == b"".join(six) + torn


def test_a_line_that_cannot_be_synced_raises_and_is_taken_back(
    path: Path, six: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(NexusError, match=r"cannot be written \(No space left on device\)"):
        AuditLog(path).append("sent")
    assert path.read_bytes() == b"".join(six)


def test_a_part_that_cannot_be_taken_back_is_cut_off_by_the_next_append(
    path: Path, six: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, _: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(os, "write", lambda fd, data, real=os.write: real(fd, data[:9]) and refuse(fd, data))
        broken.setattr(os, "ftruncate", refuse)
        with pytest.raises(NexusError, match="Input/output error"):
            AuditLog(path).append("sent")
    AuditLog(path).append("sent")
    assert [line["event"] for line in read(path)][6:] == ["recovered", "sent"]


def test_a_missing_folder_raises_with_a_remedy(path: Path) -> None:
    with pytest.raises(
        NexusError, match=r"cannot be written \(No such file or directory\).* give the file and its folder"
    ):
        AuditLog(path.parent / "no" / "log").append("sent")


def test_killed_writers_leave_every_head_they_reported_and_a_log_that_goes_on(path: Path) -> None:
    reported: set[str] = set()
    for i in range(8):
        writer = run("while True: print(log.append('sent', sites=['x' * 500] * 100), flush=True)", path)
        assert writer.stdout
        reported.add(writer.stdout.readline().decode().strip())
        time.sleep(i / 150)
        writer.kill()
        reported.update(writer.communicate()[0].decode().split())
        reported.add(AuditLog(path).append("went on"))
    assert reported <= {line["previous"] for line in read(path)} | {verify(path).hash}
    assert len(reported) >= 16


def test_a_writer_killed_in_the_middle_of_a_line_leaves_a_log_that_goes_on(path: Path, six: list[bytes]) -> None:
    script = (
        "import os\nwrite = os.write\nos.write = lambda fd, data: (write(fd, data[:30]), os.kill(os.getpid(), 9))\n"
    )
    assert run(script + "log.append('sent')", path).wait() == -9
    AuditLog(path).append("sent")
    assert [line.get("bytes_cut") for line in read(path)][6:] == [30, None]


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    monkeypatch.setattr("nexus_common.syslog.SYSLOG", str(tmp_path / "log"))
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    made.bind(str(tmp_path / "log"))
    return made


def test_a_head_is_announced_to_syslog(daemon: socket.socket) -> None:
    with daemon:
        assert announce("nexus-client", Head(12, "ab" * 32))
        text = "nexus-client: audit log of nexus-client: 12 lines, head " + "ab" * 32
        assert daemon.recv(1000) == b"<85>" + text.encode()  # authpriv.notice


def test_a_syslog_that_reads_nothing_blocks_nobody(daemon: socket.socket) -> None:
    with daemon:
        sent = [announce("nexus-client", Head(12, "ab" * 32)) for _ in range(5000)]
    assert not sent[-1]


def test_where_no_syslog_runs_the_announcement_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nexus_common.syslog.SYSLOG", str(tmp_path / "none"))
    assert not announce("nexus-client", Head(12, "ab" * 32))
