"""Root's commands in a site's folder work as the account that it belongs to: the service can read what they leave."""

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from nexus_client.site import SiteHome, default_base
from nexus_common.account import act_as_owner
from nexus_common.audit import AuditLog
from nexus_common.base_model import base_hash
from nexus_common.errors import NexusError

from tests.sites import make_site

SERVICE = 65534


def reaches(path: Path) -> bool:
    """Whether every account may go there."""
    return all(one.stat().st_mode & stat.S_IXOTH for one in (path, *path.parents))


def interpreter() -> str | None:
    """This Python, or one like it that every account may run."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return sys.executable if reaches(Path(sys.base_prefix)) else shutil.which(version, path="/usr/bin:/usr/local/bin")


pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can work in another account's folder"),
    pytest.mark.skipif(
        not interpreter() or not all(reaches(path) for path in (Path(sys.prefix), Path(__file__).parent)),
        reason="every account must reach the program",
    ),
]


@pytest.fixture
def place(graphs: Path) -> Iterator[SiteHome]:
    """A site whose state folder belongs to a service's account."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        home.chmod(0o755)
        place = make_site(home, graphs)
        (place.state / "onnx").unlink()
        made = place.graphs(base_hash(default_base()))
        made.mkdir(parents=True)
        shutil.copy(graphs / "encoder-int8.onnx", made)
        for path in (place.state, *place.state.rglob("*")):
            os.chown(path, SERVICE, SERVICE)
        yield place


def python(code: str, *argv: str, ends_with: int = 0) -> "subprocess.CompletedProcess[str]":
    """What a program of ours does in a process that any account may go on with."""
    code_of_all = [path for path in sys.path if Path(path).is_dir() and reaches(Path(path))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(code_of_all)}
    command = [str(interpreter()), "-c", code, *argv]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == ends_with, done.stderr
    return done


def run(place: SiteHome, *argv: str) -> dict[str, object]:
    code = "import sys; from nexus_client.cli import main; sys.exit(main(sys.argv[1:]))"
    done = python(code, "--home", str(place.settings_folder.parent), "--json", *argv)
    assert f"{place.state} belongs to " in done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def owners(place: SiteHome) -> set[int]:
    return owners_below(place.state)


def owners_below(folder: Path) -> set[int]:
    return {path.lstat().st_uid for path in folder.rglob("*")}


def test_root_follows_no_link_in_the_place_of_the_folder(place: SiteHome) -> None:
    place.state.rename(elsewhere := place.state.with_name("elsewhere"))
    place.state.symlink_to(elsewhere)
    with pytest.raises(NexusError, match="is a link"):
        act_as_owner(place.state)
    assert os.geteuid() == 0


def test_a_person_s_choice_is_written_by_the_service(place: SiteHome) -> None:
    assert run(place, "use", "base")["in_use"] == "base"
    assert (place.state / "models").stat().st_uid == SERVICE
    assert owners(place) == {SERVICE}


def test_what_root_indexes_and_searches_belongs_to_the_service(place: SiteHome) -> None:
    assert run(place, "index")["rows"] == 6
    assert run(place, "search", "thorax hurts", "-k", "1")["model"] == "base"
    assert (place.index_folder / "CURRENT").exists()
    assert owners(place) == {SERVICE}


def test_root_s_preview_and_check_read_the_text_as_the_service(place: SiteHome) -> None:
    assert run(place, "preview")["files"] == {"rows.jsonl": 6}
    text = place.settings_folder / "rows.jsonl"
    text.chmod(0o600)  # root's alone: who parses it shows in who may read it
    code = "import sys; from nexus_client.cli import main; sys.exit(main(sys.argv[1:]))"
    for command, told in (("preview", "stderr"), ("check", "stdout")):
        done = python(code, "--home", str(place.settings_folder.parent), command, ends_with=1)
        assert f"{place.state} belongs to " in done.stderr
        assert "rows.jsonl cannot be read: Permission denied" in getattr(done, told), command
    assert owners(place) == {SERVICE}


def test_a_graph_that_root_asks_for_is_made_by_the_service_and_so_is_its_folder(place: SiteHome) -> None:
    shutil.rmtree(place.state / "onnx")
    folder = place.graphs(base_hash(default_base()))
    code = "import sys; from pathlib import Path; from nexus_client.encoder_file import encoder_file; "
    python(code + "encoder_file(*map(Path, sys.argv[1:3]), 'int8')", str(default_base()), str(folder))
    assert (folder / "encoder-int8.onnx").exists()
    assert owners(place) == {SERVICE}


def test_an_agent_that_root_starts_by_hand_leaves_nothing_of_roots(place: SiteHome) -> None:
    place.keys.mkdir()
    (place.keys / "site.crt").touch()  # it ends where it finds no key, after it has begun to write
    for path in (place.keys, place.keys / "site.crt"):
        os.chown(path, SERVICE, SERVICE)
    code = "import sys; from nexus_client.cli import main; sys.exit(main(sys.argv[1:]))"
    done = python(code, "--home", str(place.settings_folder.parent), ends_with=1)
    assert "identity.key" in done.stderr
    assert (place.state / "agent.lock").exists()
    assert owners(place) == {SERVICE}


def test_a_server_that_root_starts_by_hand_leaves_nothing_of_roots() -> None:
    code = "import sys; from nexus_server.cli import main; sys.exit(main(sys.argv[1:]))"
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "server"
        home.parent.chmod(0o755)
        python(code, "--home", str(home), "init")
        (home / "keys" / "ca.crt").unlink()  # it ends there, after it has begun to write
        for path in (home, *home.rglob("*")):
            os.chown(path, SERVICE, SERVICE)
        assert "ca.crt" in python(code, "--home", str(home), ends_with=1).stderr
        assert (home / "server.lock").exists()
        assert owners_below(home) == {SERVICE}


def test_a_log_that_root_begins_is_the_services(place: SiteHome) -> None:
    place.audit_file.unlink(missing_ok=True)
    AuditLog(place.audit_file).append("exported")
    assert place.audit_file.stat().st_uid == SERVICE
