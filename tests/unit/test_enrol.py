"""What joining makes on this machine, before a server is asked: for whom, and where root does not write."""

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from nexus_client import site
from nexus_client.enrol import join
from nexus_client.site import SiteHome
from nexus_common.enrolment import Invite
from nexus_common.errors import NexusError

SERVICE = 65534
LINE = Invite("127.0.0.1:1", "a", bytes(32), bytes(16)).line  # where nobody listens

root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can work in another account's folder")


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[SiteHome]:
    """The system's folders of a site, below one that every account may enter."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        monkeypatch.setattr(site, "ETC", Path(folder) / "etc" / "nexus")
        monkeypatch.setattr(site, "VAR", Path(folder) / "var" / "nexus")
        yield SiteHome.of(None, "a")


def test_the_service_s_account_may_go_to_its_folders_whatever_the_umask(place: SiteHome) -> None:
    old = os.umask(0o077)
    try:
        with pytest.raises(NexusError, match="no enrolment listener answers"):
            join(None, LINE, None, [])
    finally:
        os.umask(old)
    above = (*place.settings_folder.parents[:2], *place.state.parents[:2])
    assert [stat.S_IMODE(path.stat().st_mode) for path in above] == [0o755] * 4
    own = (place.settings_folder, place.state, place.keys)
    assert [stat.S_IMODE(path.stat().st_mode) for path in own] == [0o700] * 3


@root
def test_what_root_makes_in_the_service_s_folder_is_the_service_s(place: SiteHome) -> None:
    place.state.mkdir(parents=True)
    os.chown(place.state, SERVICE, SERVICE)
    with pytest.raises(NexusError, match="no enrolment listener answers"):
        join(None, LINE, None, [])
    made = {path.name: path.stat().st_uid for path in place.state.rglob("*")}
    assert made == dict.fromkeys(("audit.jsonl", "keys", "identity.key", "transport.key"), SERVICE)
    assert (os.geteuid(), place.settings_folder.stat().st_uid) == (0, 0)


@root
def test_root_writes_nothing_where_a_hijacked_agent_has_led_the_keys(place: SiteHome) -> None:
    place.state.mkdir(parents=True)
    os.chown(place.state, SERVICE, SERVICE)
    (elsewhere := place.state.parent / "roots").mkdir(mode=0o755)
    place.keys.symlink_to(elsewhere)
    with pytest.raises(PermissionError):
        join(None, LINE, None, [])
    assert list(elsewhere.iterdir()) == []
