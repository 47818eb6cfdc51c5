"""A server in one file: taken while its database is written, and refused where a byte of it is not as it was."""

import hashlib
import io
import os
import shutil
import sqlite3
import stat
import tarfile
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from nexus_common import archive, audit
from nexus_common.errors import NexusError
from nexus_server import database
from nexus_server.backup import back_up, restore
from nexus_server.ca import CertificateAuthority, CertificateFiles
from nexus_server.cli import main
from nexus_server.records import JOIN, REPLACE, Invitation
from nexus_server.registry import Registry

from tests.plans import make_plan

PLAN = make_plan(("bank-a", "bank-b", "hospital-a"))
VECTOR = PLAN.adapter.layout.first_vector(PLAN.adapter.seed_bytes)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A server with a run of two versions."""
    home = tmp_path / "server"
    assert main(["init", "--home", str(home)]) == 0
    registry = Registry(home / "state")
    registry.propose(PLAN)
    registry.create_run(PLAN, VECTOR)
    commit(registry, 1)
    registry.close()
    return home


def commit(registry: Registry, count: int) -> None:
    for _ in range(count):
        run = registry.run(PLAN.name)
        assert run is not None
        vector = VECTOR + np.float32(run.round + 1)
        assert registry.commit_round(run, vector, {"velocity": np.full(4, run.round + 1.0)}, ["bank-a"], 1.0, 1, [], 0)


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "sqlite" not in path.name and path.name != "audit.jsonl"
    }


def test_a_restored_server_is_the_one_that_was_backed_up(home: Path, tmp_path: Path) -> None:
    audit.AuditLog(home / "audit.jsonl").append("something")
    *_, head = back_up(home, tmp_path / "backup.tar")
    assert audit.verify(home / "audit.jsonl").hash == head
    restore(tmp_path / "backup.tar", tmp_path / "again")
    assert files(tmp_path / "again") == files(home)
    old, new = Registry(home / "state"), Registry(tmp_path / "again" / "state")
    assert new.run(PLAN.name) == old.run(PLAN.name)
    np.testing.assert_array_equal(new.vector(PLAN.name, 1), old.vector(PLAN.name, 1))
    assert (old.recall_due(PLAN.name), new.recall_due(PLAN.name)) == (False, True)
    events = [line["event"] for line in audit.read(tmp_path / "again" / "audit.jsonl")]
    assert events == ["something", "restored"]
    assert [line["event"] for line in audit.read(home / "audit.jsonl")] == ["something", "backed up"]
    audit.verify(tmp_path / "again" / "audit.jsonl")


@pytest.mark.parametrize("kind", [JOIN, REPLACE])
def test_an_invitation_that_was_open_in_the_backup_is_not_open_again(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    with closing(Registry(home / "state")) as registry:
        registry.invite(Invitation(bytes(32), "bank-a", time.time(), time.time() + 3600, None, kind=kind))
        back_up(home, tmp_path / "backup.tar")
        assert registry.open_invitations() == ["bank-a"], "the control: the server that was backed up keeps it"
    assert main(["restore", str(tmp_path / "backup.tar"), "--home", str(tmp_path / "again")]) == 0
    assert "1 open invitation of the backup ended (bank-a)" in capsys.readouterr().out
    with closing(Registry(tmp_path / "again" / "state")) as again:
        assert (again.open_invitations(), again.invitations()) == ([], [])
    *_, line = audit.read(tmp_path / "again" / "audit.jsonl")
    assert (line["event"], line["invitations_ended"]) == ("restored", ["bank-a"])


def test_only_its_owner_can_read_a_backup_and_what_is_made_of_it(home: Path, tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        back_up(home, tmp_path / "backup.tar")
        restore(tmp_path / "backup.tar", tmp_path / "again")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "backup.tar").stat().st_mode) == 0o600
    for path in ((tmp_path / "again"), *(tmp_path / "again").rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 or "sqlite" in path.name, path
    assert stat.S_IMODE((tmp_path / "again" / "state").stat().st_mode) == 0o700
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_a_backup_while_rounds_are_committed_holds_one_instant(home: Path, tmp_path: Path) -> None:
    registry = Registry(home / "state")
    done = threading.Event()

    def work() -> None:
        while not done.wait(0.1):  # a real round takes longer
            commit(registry, 1)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for number in range(4):
            back_up(home, tmp_path / f"{number}.tar")
    finally:
        done.set()
        thread.join()
    for number in range(4):
        restore(tmp_path / f"{number}.tar", tmp_path / str(number))
        again = Registry(tmp_path / str(number) / "state")
        run = again.run(PLAN.name)
        assert run is not None
        assert again.vector(PLAN.name, run.round)[0] == np.float32(VECTOR[0] + np.float32(run.round))
        assert again.optimiser_state(run)["velocity"][0] == run.round


def test_a_folder_with_a_server_is_left_as_it_is(home: Path, tmp_path: Path) -> None:
    back_up(home, tmp_path / "backup.tar")
    before = files(home)
    with pytest.raises(NexusError, match="holds a server already"):
        restore(tmp_path / "backup.tar", home)
    assert files(home) == before
    (home / "server.toml").unlink()
    with pytest.raises(NexusError, match=r"holds a server already \(state, keys, audit"):
        restore(tmp_path / "backup.tar", home)


def test_a_backup_takes_no_files_place(home: Path, tmp_path: Path) -> None:
    (tmp_path / "backup.tar").write_text("mine")
    with pytest.raises(NexusError, match="takes no other file's place"):
        back_up(home, tmp_path / "backup.tar")
    assert (tmp_path / "backup.tar").read_text() == "mine"


def test_a_backup_that_was_cut_anywhere_makes_nothing(home: Path, tmp_path: Path) -> None:
    back_up(home, tmp_path / "backup.tar")
    data = (tmp_path / "backup.tar").read_bytes()
    for length in (
        0,
        1,
        511,
        512,
        700,
        len(data) // 2,
        len(data) - archive._BLOCK * 21,
        len(data) - 10240,
        len(data) - 1,
    ):
        (tmp_path / "cut.tar").write_bytes(data[:length])
        with pytest.raises(NexusError, match="no whole backup"):
            restore(tmp_path / "cut.tar", tmp_path / "again")
        assert not list((tmp_path / "again").glob("*"))


def test_a_backup_with_a_changed_byte_is_refused_or_gives_the_same(home: Path, tmp_path: Path) -> None:
    back_up(home, tmp_path / "backup.tar")
    data, expected = (tmp_path / "backup.tar").read_bytes(), files(home)
    rng, refused = np.random.default_rng(1), 0
    for number in range(60):
        at = int(rng.integers(len(data))) if number % 2 else int(rng.integers(3000))
        (tmp_path / "changed.tar").write_bytes(data[:at] + bytes([data[at] ^ 1 << number % 8]) + data[at + 1 :])
        again = tmp_path / f"again-{number}"
        try:
            restore(tmp_path / "changed.tar", again)
        except NexusError:
            refused += 1
            assert not list(again.glob("*"))
        else:
            assert files(again) == expected, "a header's date, say"
    assert refused > 40


def made(path: Path, *members: tuple[tarfile.TarInfo, bytes], listed: dict[str, bytes]) -> Path:
    """An archive as somebody else would make it."""
    entries = {
        name: archive.Member(size=len(data), sha256=hashlib.sha256(data).hexdigest()) for name, data in listed.items()
    }
    contents = archive.Contents(kind="nexus-server", of="x", made=1.0, version="1", schema_number=1, files=entries)
    with tarfile.open(path, "w:", format=tarfile.GNU_FORMAT) as tar:
        first = tarfile.TarInfo(archive.LIST)
        data = contents.model_dump_json().encode()
        first.size = len(data)
        tar.addfile(first, io.BytesIO(data))
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return path


def info(name: str, size: int = 1, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.size, found.type, found.linkname = size, kind, link
    return found


@pytest.mark.parametrize(
    ("member", "listed"),
    [
        (info("../outside"), "../outside"),
        (info("state/../../outside"), "state/../../outside"),
        (info("/tmp/outside"), "/tmp/outside"),
        (info(".ssh"), ".ssh"),
        (info("state", 0, tarfile.SYMTYPE, "/etc"), "state"),
        (info("state", 0, tarfile.LNKTYPE, "/etc/passwd"), "state"),
        (info("state", 0, tarfile.DIRTYPE), "state"),
        (info("pipe", 0, tarfile.FIFOTYPE), "pipe"),
        (info("unlisted"), "other"),
        (info("a" * 200), "a" * 200),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_plain_listed_file_is_refused_before_anything_is_written(
    tmp_path: Path, member: tarfile.TarInfo, listed: str
) -> None:
    data = b"x" * member.size
    path = made(tmp_path / "hostile.tar", (member, data), listed={listed: data})
    with pytest.raises(NexusError, match="no whole backup"):
        restore(path, tmp_path / "again")
    assert not (tmp_path / "again").exists()
    assert not (tmp_path.parent / "outside").exists()


def test_a_file_that_is_listed_twice_or_left_out_is_refused(tmp_path: Path) -> None:
    twice = made(tmp_path / "twice.tar", (info("a"), b"x"), (info("a"), b"x"), listed={"a": b"x"})
    fewer = made(tmp_path / "fewer.tar", (info("a"), b"x"), listed={"a": b"x", "b": b"x"})
    for path in (twice, fewer):
        with pytest.raises(NexusError, match="no whole backup"):
            restore(path, tmp_path / "again")


def test_a_whole_archive_that_is_no_server_makes_nothing(tmp_path: Path) -> None:
    path = made(tmp_path / "empty.tar", (info("server.toml"), b"x"), listed={"server.toml": b"x"})
    with pytest.raises(NexusError, match=r"lacks state, keys, audit\.jsonl"):
        restore(path, tmp_path / "again")
    assert not list((tmp_path / "again").iterdir())


def test_a_backup_of_a_newer_program_is_refused(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    back_up(home, tmp_path / "backup.tar")
    monkeypatch.setattr(database, "MIGRATIONS", database.MIGRATIONS[:-1])
    with pytest.raises(NexusError, match=r"has schema \d+, this program knows \d+: it was written by a newer"):
        restore(tmp_path / "backup.tar", tmp_path / "again")
    with pytest.raises(NexusError, match="install that one"):
        back_up(home, tmp_path / "other.tar")


def test_a_damaged_database_gives_no_backup(home: Path, tmp_path: Path) -> None:
    database = home / "state" / "registry.sqlite"
    with sqlite3.connect(database) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (pages,) = db.execute("PRAGMA page_count").fetchone()
    data = bytearray(database.read_bytes())
    for page in range(2, pages):
        data[page * 4096 : page * 4096 + 16] = b"\xff" * 16
    database.write_bytes(data)
    with pytest.raises(NexusError, match=r"damaged|malformed"):
        back_up(home, tmp_path / "backup.tar")
    assert not (tmp_path / "backup.tar").exists()


def test_a_version_that_is_gone_is_named(home: Path, tmp_path: Path) -> None:
    shutil.rmtree(home / "state" / "versions")
    with pytest.raises(NexusError, match=r"safetensors is missing, and the database names it"):
        back_up(home, tmp_path / "backup.tar")


@pytest.mark.parametrize("folder", ["versions", "optimiser"])
def test_a_file_that_is_not_what_it_is_named_by_is_not_backed_up_as_good(
    home: Path, tmp_path: Path, folder: str
) -> None:
    rotten = next((home / "state" / folder).iterdir())
    data = bytearray(rotten.read_bytes())
    data[-1] ^= 1
    rotten.write_bytes(data)
    with pytest.raises(
        NexusError, match=rf"was changed: .* earlier backup \(`tar -xf FILE state/{folder}/{rotten.name}`"
    ):
        back_up(home, tmp_path / "backup.tar")
    assert not (tmp_path / "backup.tar").exists()


def test_an_interrupted_restore_is_cleared_away_by_the_next(home: Path, tmp_path: Path) -> None:
    back_up(home, tmp_path / "backup.tar")
    again = tmp_path / "again"
    (again / ".restoring").mkdir(parents=True)
    (again / ".restoring" / "server.toml").write_text("half")
    (again / "keys").mkdir()
    (again / "keys" / "ca.key").write_text("half")
    restore(tmp_path / "backup.tar", again)
    assert files(again) == files(home)


def test_what_an_old_restore_left_in_a_servers_folder_is_no_leave_to_delete_it(home: Path, tmp_path: Path) -> None:
    back_up(home, tmp_path / "backup.tar")
    (home / ".restoring").mkdir()  # killed when all was in its place
    (home / "server.toml").rename(tmp_path / "server.toml")
    before = files(home)
    with pytest.raises(NexusError, match="holds a server already"):
        restore(tmp_path / "backup.tar", home)
    assert files(home) == before


def test_keys_of_two_backups_are_not_mixed(home: Path, tmp_path: Path) -> None:
    back_up(home, tmp_path / "before.tar")
    CertificateAuthority(CertificateFiles(home / "keys")).rotate(["127.0.0.1"])
    back_up(home, tmp_path / "after.tar")
    for name in ("before", "after"):
        restore(tmp_path / f"{name}.tar", tmp_path / name)
    assert files(tmp_path / "after") == files(home)
    assert files(tmp_path / "before") != files(home)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can work in another account's folder")
def test_root_reads_as_the_folders_account_and_follows_no_link_of_its(home: Path) -> None:
    service = 65534
    with tempfile.TemporaryDirectory() as folder:
        reached, secret = Path(folder) / "server", Path(folder) / "root" / "secret"
        Path(folder).chmod(0o755)
        shutil.copytree(home, reached)
        for path in (reached, *reached.rglob("*")):
            os.chown(path, service, service)
        secret.parent.mkdir(mode=0o700)
        secret.write_text("root's alone")
        secret.chmod(0o600)
        back_up(reached, secret.parent / "backup.tar")  # where only root can write
        assert (secret.parent / "backup.tar").stat().st_uid == 0
        assert {path.stat().st_uid for path in (reached, *reached.rglob("*"))} == {service}
        assert os.geteuid() == 0
        version = next((reached / "state" / "versions").iterdir())
        version.unlink()
        version.symlink_to(secret)
        with pytest.raises(PermissionError):
            back_up(reached, secret.parent / "other.tar")
        assert sorted(path.name for path in secret.parent.iterdir()) == ["backup.tar", "secret"]
        assert os.geteuid() == 0
