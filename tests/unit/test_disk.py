"""Files that are there whole or not at all, one process a folder, and errors that carry a code of the table."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from nexus_common.certs import new_transport_key, save_key
from nexus_common.disk import remove_unfinished, shortage, single_process, write_durably
from nexus_common.errors import REFUSALS, NexusError, Refusal


def test_what_is_written_is_there_and_nothing_else(tmp_path: Path) -> None:
    write_durably(tmp_path / "x", b"one")
    write_durably(tmp_path / "x", b"two")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"x": b"two"}


def test_threads_that_write_one_file_leave_one_of_their_texts_whole(tmp_path: Path) -> None:
    texts = [bytes([i]) * 10_000 for i in range(40)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda text: write_durably(tmp_path / "x", text), texts))
    assert (tmp_path / "x").read_bytes() in texts
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_what_a_killed_process_had_begun_is_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (".x.0123abcd.tmp", "x", ".hidden"):
        (tmp_path / name).write_bytes(b"")
    remove_unfinished(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"x", ".hidden"}


def test_a_process_killed_while_it_writes_leaves_the_old_file(tmp_path: Path) -> None:
    write_durably(tmp_path / "x", b"old")
    script = (
        "import os, pathlib, sys\n"
        "from nexus_common import disk\n"
        "os.fsync = lambda _: os.kill(os.getpid(), 9)\n"
        "disk.write_durably(pathlib.Path(sys.argv[1]), b'new')\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, tmp_path / "x"], check=False)
    assert killed.returncode == -9
    assert (tmp_path / "x").read_bytes() == b"old"


def test_a_reader_of_the_old_file_is_not_disturbed(tmp_path: Path) -> None:
    write_durably(tmp_path / "x", b"old")
    with (tmp_path / "x").open("rb", buffering=0) as reader:
        write_durably(tmp_path / "x", b"new")
        assert reader.read() == b"old"


def test_a_file_that_takes_the_place_of_another_has_its_mode(tmp_path: Path) -> None:
    for mode in (0o600, 0o640):
        (tmp_path / "x").touch()
        (tmp_path / "x").chmod(mode)
        write_durably(tmp_path / "x", b"new")
        assert (tmp_path / "x").stat().st_mode & 0o777 == mode


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    write_durably(tmp_path / "x", b"old")
    with pytest.raises(TypeError):
        write_durably(tmp_path / "x", "no bytes")  # type: ignore[arg-type]
    assert (tmp_path / "x").read_bytes() == b"old"


def test_a_second_holder_of_a_folder_is_told_who_holds_it(tmp_path: Path) -> None:
    held = single_process(tmp_path / "state" / "server.lock", "nexus-server")
    with pytest.raises(NexusError, match=f"another nexus-server already runs on {tmp_path}/state; stop it first"):
        single_process(tmp_path / "state" / "server.lock", "nexus-server")
    held.close()


def test_the_lock_ends_with_its_process(tmp_path: Path) -> None:
    script = (
        "import os, pathlib, sys\n"
        "from nexus_common import disk\n"
        "held = disk.single_process(pathlib.Path(sys.argv[1]), 'nexus-server')\n"
        "os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, tmp_path / "lock"], check=False).returncode == -9
    assert (tmp_path / "lock").exists()
    single_process(tmp_path / "lock", "nexus-server").close()


def test_a_folder_made_for_a_lock_is_its_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        single_process(tmp_path / "state" / "lock", "nexus-server").close()
    finally:
        os.umask(before)
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("code", REFUSALS)
def test_a_refusal_says_its_code_and_what_the_code_means(code: str) -> None:
    refusal = Refusal(code)
    assert (refusal.code, str(refusal)) == (code, f"{code}: {REFUSALS[code]}")


def test_a_refusal_says_its_own_text_where_it_has_one() -> None:
    assert str(Refusal("no-data", "0 of 3 rows")) == "no-data: 0 of 3 rows"


def test_a_refusal_cannot_have_a_code_outside_of_the_table() -> None:
    with pytest.raises(ValueError, match="unknown refusal code 'no-idea'"):
        Refusal("no-idea")


def test_a_full_disk_is_said_with_numbers_and_nothing_is_left_of_what_was_begun(tmp_path: Path) -> None:
    write_durably(tmp_path / "x", b"old")
    script = (
        "import pathlib, resource, signal, sys\n"
        "from nexus_common import disk, errors\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "disk.FULL |= {27}\n"  # EFBIG, which is what this limit gives in place of ENOSPC
        "try:\n"
        "    disk.write_durably(pathlib.Path(sys.argv[1]), bytes(200_000))\n"
        "except errors.NexusError as problem:\n"
        "    sys.exit(str(problem))\n"
    )
    tried = subprocess.run([sys.executable, "-c", script, tmp_path / "x"], capture_output=True, text=True, check=False)
    assert re.search(
        r"x cannot be written \(File too large\): 200000 bytes, and [0-9.]+ MB are free there", tried.stderr
    )
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"x": b"old"}


def test_too_little_space_is_said_with_numbers_and_the_remedy(tmp_path: Path) -> None:
    assert shortage(tmp_path, 0) is None
    found = shortage(tmp_path, 10**18)
    assert found is not None
    assert re.match(rf"[0-9.]+ MB free in {tmp_path}, and 1000000000000.0 MB are needed; free some space there", found)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root writes where another account has the folder")
def test_what_root_writes_belongs_to_the_account_that_works_in_the_folder(tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, 65533)
    write_durably(tmp_path / "x", b"new")
    save_key(tmp_path / "key", new_transport_key())
    for name in ("x", "key"):
        assert ((tmp_path / name).stat().st_uid, (tmp_path / name).stat().st_gid) == (65534, 65533)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
