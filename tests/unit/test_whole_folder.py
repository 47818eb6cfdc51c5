"""A folder appears whole or not at all, takes only the place of its like, and leaves nothing half-made."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from nexus_client.whole_folder import whole_folder
from nexus_common.errors import NexusError

from tests.processes.volume import needs_root, volume

DIES = """
import os, shutil, signal, sys
from pathlib import Path
from nexus_client import whole_folder

def dies(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

with whole_folder.whole_folder(Path(sys.argv[1]), "marker", force=True) as made:
    (made / "marker").write_text("new")
    if sys.argv[2] == "filling":
        dies()
    elif sys.argv[2] == "filled":
        whole_folder._sync = dies
    else:  # in its place, and the old one not yet deleted
        shutil.rmtree = dies
"""


def fill(target: Path, text: str, *, force: bool = False) -> None:
    with whole_folder(target, "marker", force=force) as made:
        assert made.parent == target.parent
        (made / "marker").write_text(text)


def there(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("before", ["missing", "empty"])
def test_it_appears_at_the_end(tmp_path: Path, before: str) -> None:
    target = tmp_path / "out"
    if before == "empty":
        target.mkdir()
    with whole_folder(target, "marker", force=False) as made:
        (made / "marker").write_text("whole")
        assert not (target / "marker").exists()
    assert (target / "marker").read_text() == "whole"
    assert there(tmp_path) == ["out"]
    assert target.stat().st_mode & 0o077 == 0, "a model is confidential: others may not read it"


def test_a_fault_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "out", "marker", force=False) as made:
        (made / "marker").write_text("half")
        raise ZeroDivisionError
    assert there(tmp_path) == []


def test_what_is_there_stays_without_force(tmp_path: Path) -> None:
    fill(tmp_path / "out", "old")
    with pytest.raises(NexusError, match="not empty; --force replaces"):
        fill(tmp_path / "out", "new")
    fill(tmp_path / "out", "new", force=True)
    assert (tmp_path / "out" / "marker").read_text() == "new"
    assert there(tmp_path) == ["out"]


def test_force_deletes_nothing_that_is_no_export(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("years")
    with pytest.raises(NexusError, match="something else than an export"):
        fill(tmp_path / "thesis", "new", force=True)
    assert (tmp_path / "thesis" / "chapter").read_text() == "years"


def test_a_place_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    with pytest.raises(NexusError, match="is no folder"):
        fill(tmp_path / "file", "new", force=True)
    with pytest.raises(NexusError, match="there is no folder"):
        fill(tmp_path / "none" / "out", "new")


@pytest.mark.parametrize(("when", "left"), [("filling", "old"), ("filled", "old"), ("placed", "new")])
def test_kill_9_leaves_the_old_or_the_new_and_the_next_one_clears_up(tmp_path: Path, when: str, left: str) -> None:
    target = tmp_path / "out[1]"
    fill(target, "old")
    done = subprocess.run([sys.executable, "-c", DIES, str(target), when], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert (target / "marker").read_text() == left
    assert len(there(tmp_path)) == 2, "what is left is hidden beside it"
    with whole_folder(tmp_path / "out", "marker", force=False), pytest.raises(NexusError):
        fill(target, "new")  # refused before anything is cleared
    fill(target, "newer", force=True)
    assert there(tmp_path) == ["out", "out[1]"]


def test_what_a_living_process_writes_is_left_alone(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "out", "marker", force=False) as made:
        (made / "marker").write_text("first")
        fill(tmp_path / "out", "second")
        assert (made / "marker").read_text() == "first"
        (tmp_path / "out").rename(tmp_path / "second")
    assert (tmp_path / "out" / "marker").read_text() == "first"


@needs_root
def test_a_full_disk_is_said_and_nothing_is_left(tmp_path: Path) -> None:
    with volume(tmp_path / "disk", 1) as disk:
        with (
            pytest.raises(NexusError, match=r"cannot be written.*MB are free"),
            whole_folder(disk.path / "out", "marker", force=False) as made,
        ):
            (made / "big").write_bytes(bytes(4_000_000))
        assert there(disk.path) == []
