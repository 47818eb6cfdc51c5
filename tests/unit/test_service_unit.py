"""What `nexus-client unit` prints and writes: each path of site.toml, and nothing that opens more."""

import grp
import os
import stat
from pathlib import Path

import pytest
from nexus_client import service_unit
from nexus_client.cli import main
from nexus_client.service_unit import drop_in, install, quoted
from nexus_client.site import SiteHome
from nexus_common.config import toml_string
from nexus_common.errors import NexusError


@pytest.fixture
def place(tmp_path: Path) -> SiteHome:
    place = SiteHome.of(tmp_path.resolve() / "etc", "a")
    place.state.mkdir(parents=True)
    return place


def write(place: SiteHome, *paths: str | Path, base: str | None = None) -> None:
    head = 'site = "a"\nserver = "127.0.0.1:1"\n' + (f"base_model = {toml_string(base)}\n" if base else "")
    place.settings_file.write_text(head + "".join(f"[[data]]\npath = {toml_string(str(one))}\n" for one in paths))


def opened(place: SiteHome) -> list[str]:
    return [line for line in drop_in(place).splitlines() if line.startswith("Bind")]


def test_each_path_is_opened_once_and_what_lies_beside_the_settings_is_seen_anyhow(place: SiteHome) -> None:
    write(place, "/srv/x.csv", "rows.jsonl", "/srv/docs/", "/srv/x.csv", base="/opt/models/mini")
    assert opened(place) == [f'BindReadOnlyPaths="-{path}"' for path in ("/srv/x.csv", "/srv/docs", "/opt/models/mini")]


def test_a_path_beside_the_settings_folder_is_opened(place: SiteHome) -> None:
    write(place, "../x.csv")
    assert opened(place) == [f'BindReadOnlyPaths="-{place.settings_folder.parent / "x.csv"}"']


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("/srv/a b", '"-/srv/a b"'),
        ("/srv/100%", '"-/srv/100%%"'),
        ("/srv/%i", '"-/srv/%%i"'),
        ("/srv/12:30", r'"-/srv/12\:30"'),
        ("/srv/Kim's", r'''"-/srv/Kim\'s"'''),
        ('/srv/"x"', r'"-/srv/\"x\""'),
        (r"/srv/a\b", r'"-/srv/a\\b"'),
        ("/srv/größe", '"-/srv/größe"'),
    ],
)
def test_odd_paths_are_quoted_as_systemd_takes_them_apart(path: str, value: str) -> None:
    """tests/ops/test_services_live.py has a real systemd read such a value."""
    assert quoted(Path(path)) == value


@pytest.mark.parametrize("name", ["a\nExecStart=/bin/sh", "a\tb", "a\x7f", os.fsdecode(b"a\xff")])
def test_a_path_that_would_break_the_line_is_refused(name: str) -> None:
    with pytest.raises(NexusError, match="rename it"):
        quoted(Path("/srv") / name)


@pytest.mark.parametrize("path", ["/", "/srv", "/home", "/root", "/mnt"])
def test_a_whole_folder_of_people_is_refused(path: str) -> None:
    with pytest.raises(NexusError, match="name the folder of the text in it"):
        quoted(Path(path))


def test_a_link_is_refused_with_what_it_leads_to(place: SiteHome, tmp_path: Path) -> None:
    (there := tmp_path.resolve() / "there").mkdir()
    (place.settings_folder / "link").symlink_to(there)
    write(place, "link/x.csv")
    with pytest.raises(NexusError, match=f"name {there}/x.csv in its place"):
        drop_in(place)


def test_the_command_prints_it(place: SiteHome, capsys: pytest.CaptureFixture[str]) -> None:
    write(place, "/srv/x.csv")
    assert main(["--home", str(place.settings_folder.parent), "unit"]) == 0
    assert capsys.readouterr().out.endswith('[Service]\nBindReadOnlyPaths="-/srv/x.csv"\n')


def test_a_site_of_another_home_has_no_service(place: SiteHome, capsys: pytest.CaptureFixture[str]) -> None:
    write(place)
    assert main(["--home", str(place.settings_folder.parent), "unit", "--write"]) == 1
    assert "the service reads its settings in /etc/nexus/a" in capsys.readouterr().err


def test_without_the_group_nothing_is_written(place: SiteHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(place)
    monkeypatch.setattr(service_unit, "SYSTEMD", tmp_path / "systemd")
    monkeypatch.setattr(service_unit, "GROUP", "nobody-has-this-group")
    with pytest.raises(NexusError, match="systemd-sysusers"):
        install(place)
    assert not (tmp_path / "systemd").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to a group")
def test_root_writes_the_drop_in_of_both_services_and_lets_their_group_read_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = SiteHome.of(etc := tmp_path / "etc", "a")
    place.settings_folder.mkdir(parents=True, mode=0o700)
    place.policy_file.touch()
    write(place, "/srv/x.csv")
    monkeypatch.setattr(service_unit, "SYSTEMD", tmp_path / "systemd")
    monkeypatch.setattr(service_unit, "GROUP", "daemon")
    monkeypatch.setattr(SiteHome, "is_the_systems", True)
    for _ in range(2):  # the second time as well
        assert main(["--home", str(etc), "unit", "--write"]) == 0
    for service in ("nexus-client", "nexus-serve"):
        assert (tmp_path / f"systemd/{service}@a.service.d/data.conf").read_text() == drop_in(place)
    for path, mode in ((place.settings_folder, 0o750), (place.settings_file, 0o640), (place.policy_file, 0o640)):
        found = path.stat()
        assert (stat.S_IMODE(found.st_mode), found.st_uid, grp.getgrgid(found.st_gid).gr_name) == (mode, 0, "daemon")
    assert "systemctl restart nexus-client@a" in capsys.readouterr().out
