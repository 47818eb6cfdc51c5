"""``check`` asks the agent what it can read: what it cannot has a line, the place where reading ends, and a remedy."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from nexus_client import agent_api
from nexus_client.agent_api import DataAccess, UnreadPath
from nexus_client.check_service import check_service
from nexus_client.data_access import data_access
from nexus_client.site import SiteHome
from nexus_common import rpc
from nexus_common.checks import CheckLine

NOBODY = 65534


@pytest.fixture
def place() -> Iterator[SiteHome]:
    with tempfile.TemporaryDirectory(prefix="nx") as folder:  # a short path, which every account may enter
        Path(folder).chmod(0o755)
        place = SiteHome.of(Path(folder).resolve(), "a")
        place.state.mkdir(parents=True)
        place.settings_file.write_text(
            'site = "a"\nserver = "127.0.0.1:1"\nbase_model = "model"\n[[data]]\npath = "rows.csv"\n'
            '[[data]]\npath = "docs"\n'
        )
        for name in ("docs/deep", "model"):
            (place.settings_folder / name).mkdir(parents=True)
        for name in ("rows.csv", "docs/deep/a.md", "docs/.hidden.md", "model/config.json"):
            (place.settings_folder / name).write_text("x")
        yield place


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def unread(place: SiteHome) -> list[tuple[str, str, bool]]:
    """What nobody cannot read, below the settings: path, where it ends, whether it is missing."""
    data_access(place)  # what Python loads at first use may lie where nobody may go
    with as_nobody():
        found = data_access(place)
    assert (found.account, found.paths) == ("nobody", 3)
    below = place.settings_folder
    return [(*(os.path.relpath(path, below) for path in (one.path, one.at)), one.missing) for one in found.unread]


root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can try another account")


@root
def test_all_can_be_read(place: SiteHome) -> None:
    (place.settings_folder / "docs/.hidden.md").chmod(0)  # which nobody reads
    assert unread(place) == []


@root
@pytest.mark.parametrize(
    ("closed", "path"),
    [("rows.csv", "rows.csv"), ("docs", "docs"), ("docs/deep", "docs"), ("docs/deep/a.md", "docs"),
     ("model", "model"), ("model/config.json", "model")],
)  # fmt: skip
def test_what_may_not_be_read_is_found_where_reading_ends(place: SiteHome, closed: str, path: str) -> None:
    (place.settings_folder / closed).chmod(0)
    assert unread(place) == [(path, closed, False)]


@root
def test_a_folder_above_that_may_not_be_entered_is_named(place: SiteHome) -> None:
    (above := place.settings_folder / "above").mkdir(mode=0o700)
    (place.settings_folder / "rows.csv").rename(above / "rows.csv")
    place.settings_file.write_text(place.settings_file.read_text().replace("rows.csv", "above/rows.csv"))
    assert unread(place) == [("above/rows.csv", "above", False)]


@root
def test_what_is_not_there_is_missing(place: SiteHome) -> None:
    (place.settings_folder / "rows.csv").unlink()
    assert unread(place) == [("rows.csv", "rows.csv", True)]


@contextlib.contextmanager
def agent(place: SiteHome, answer: DataAccess | None) -> Iterator[None]:
    """A real socket; without an answer one that does not know the question, as an agent of an earlier release."""
    method = rpc.Method(rpc.Nothing, DataAccess, lambda _: answer)
    server = rpc.start_local({"data_access": method} if answer else {}, agent_api.SERVICE, place.socket)
    try:
        yield
    finally:
        server.stop(0).wait(5)


def asked(place: SiteHome, *unread: UnreadPath) -> list[CheckLine]:
    with agent(place, DataAccess(account="nexus", paths=2, unread=unread)):
        return list(check_service(place))


def test_an_agent_that_reads_everything_is_said_to(place: SiteHome) -> None:
    (line,) = asked(place)
    assert (line.state, line.found) == ("ok", "the agent, as nexus, can read all 2 paths of site.toml")


@pytest.mark.parametrize(
    ("at", "missing", "remedy"),
    [
        (
            "/etc/passwd",
            True,
            "run `nexus-client --site a unit --write`; then ",
        ),  # it is there, and the agent sees it not
        ("/etc/passwd", False, "run `setfacl -R -m u:nexus:rX /etc/passwd` (package acl); then "),
        ("/etc/passwd/x", False, "run `setfacl -R -m u:nexus:rX /etc/passwd` (package acl); then "),
        ("/etc", False, "run `setfacl -m u:nexus:x /etc` (package acl); then "),
    ],
)
def test_each_path_has_its_remedy(place: SiteHome, at: str, missing: bool, remedy: str) -> None:
    (line,) = asked(place, UnreadPath(path="/etc/passwd", at=at, missing=missing))
    assert line.state == "fault"
    assert line.found.startswith("the agent, as nexus, cannot read /etc/passwd")
    assert line.remedy == remedy + "restart the agent"


def test_what_is_nowhere_is_not_the_service_s_fault(place: SiteHome) -> None:
    (line,) = asked(place, UnreadPath(path="/nowhere/x", at="/nowhere/x", missing=True))
    assert line.remedy == "bring it back, or correct site.toml; then restart the agent"


def test_an_installed_service_is_restarted_by_systemd(place: SiteHome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SiteHome, "is_the_systems", True)
    (line,) = asked(place, UnreadPath(path="/srv/a b", at="/srv/a b", missing=False))
    assert line.remedy == (
        "run `setfacl -R -m u:nexus:rX '/srv/a b'` (package acl); then `systemctl daemon-reload && "
        "systemctl restart nexus-client@a`"
    )


def test_an_earlier_release_s_agent_is_to_be_restarted(place: SiteHome) -> None:
    with agent(place, None):
        (line,) = check_service(place)
    assert (line.state, line.remedy) == ("warning", "restart the agent")


@root
def test_without_an_agent_another_account_s_reading_is_not_vouched_for(place: SiteHome) -> None:
    assert list(check_service(place)) == []
    os.chown(place.state, NOBODY, NOBODY)
    (line,) = check_service(place)
    assert line.state == "warning" and "no agent runs" in line.found
