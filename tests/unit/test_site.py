"""A site's folders and site.toml: which site is meant, what join writes, and what is refused."""

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nexus_client.cli_unit import next_steps
from nexus_client.site import SiteHome, SiteSettings
from nexus_common import notify
from nexus_common.errors import NexusError

SERVER = "127.0.0.1:8443"
NAMES = st.text(st.characters(codec="utf-8", max_codepoint=0xFFFF, exclude_characters="/\0"), min_size=1)


def make(home: Path, *sites: str) -> None:
    for site in sites:
        place = SiteHome.of(home, site)
        place.settings_folder.mkdir(parents=True)
        place.write_settings(SERVER, [])


def settings(home: Path, text: str) -> SiteSettings:
    place = SiteHome.of(home, "a")
    place.settings_folder.mkdir(parents=True, exist_ok=True)
    place.settings_file.write_text(text)
    return place.settings()


def test_a_home_holds_settings_and_state_of_its_sites() -> None:
    place = SiteHome.of(Path("/h"), "a")
    assert (place.settings_file, place.keys) == (Path("/h/a/site.toml"), Path("/h/a/state/keys"))


def test_without_a_home_the_systems_folders_are_meant() -> None:
    place = SiteHome.of(None, "a")
    assert (place.settings_file, place.socket) == (Path("/etc/nexus/a/site.toml"), Path("/var/lib/nexus/a/agent.sock"))


def test_systemd_starts_the_agent_of_the_systems_folders_where_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "SYSTEMD", tmp_path)
    assert SiteHome.of(None, "a").start() == "systemctl start nexus-client@a"
    steps = "  nexus-client --site a unit --write && systemctl daemon-reload\n  systemctl enable --now nexus-client@a"
    assert next_steps(SiteHome.of(None, "a")) == steps
    assert SiteHome.of(Path("/h"), "a").start() == "nexus-client --home /h --site a"
    monkeypatch.setattr(notify, "SYSTEMD", tmp_path / "none")
    assert SiteHome.of(None, "a").start() == "nexus-client --site a"
    assert next_steps(SiteHome.of(None, "a")) == "  nexus-client --site a            (the agent)"


def test_the_only_site_need_not_be_named(tmp_path: Path) -> None:
    make(tmp_path, "hospital-a")
    assert SiteHome.find(tmp_path, None) == SiteHome.of(tmp_path, "hospital-a")


def test_one_of_several_sites_is_named(tmp_path: Path) -> None:
    make(tmp_path, "b", "a")
    assert SiteHome.find(tmp_path, "b").site == "b"
    with pytest.raises(NexusError, match=r"which site\? --site NAME; under .* there is a, b"):
        SiteHome.find(tmp_path, None)


@pytest.mark.parametrize("site", ["c", "", "../a", "/etc"])
def test_a_site_that_is_not_there_is_told_with_those_that_are(tmp_path: Path, site: str) -> None:
    make(tmp_path, "a", "b")
    with pytest.raises(NexusError, match="there is a, b"):
        SiteHome.find(tmp_path, site)


def test_a_machine_without_any_site_is_told_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(NexusError, match=r"none yet \(`nexus-client join` sets one up"):
        SiteHome.find(tmp_path / "none", None)


@given(names=st.lists(NAMES, max_size=3))
def test_written_settings_name_the_data_that_was_given(tmp_path_factory: pytest.TempPathFactory, names: list) -> None:
    place = SiteHome("a", tmp_path_factory.mktemp("site"), Path("state"))
    place.write_settings(SERVER, [place.settings_folder / name for name in names])
    found = place.settings()
    assert (found.site, found.server) == ("a", SERVER)
    assert [source.path for source in found.data] == [str(place.settings_folder / name) for name in names]


def test_a_path_beyond_the_basic_plane_is_written_so_that_it_is_read(tmp_path: Path) -> None:
    place = SiteHome("a", tmp_path, tmp_path)
    place.write_settings(SERVER, [tmp_path / "\N{FILE FOLDER}.csv"])
    assert place.settings().data[0].path.endswith("\N{FILE FOLDER}.csv")


def test_the_commented_example_is_right_too(tmp_path: Path) -> None:
    make(tmp_path, "a")
    text = SiteHome.of(tmp_path, "a").settings_file.read_text()
    lines = [line.removeprefix("# ") for line in text.splitlines() if line.startswith(("# [[", "# path"))]
    assert tomllib.loads("\n".join(lines)) == {"data": [{"path": "/srv/handbook"}]}


def test_settings_that_are_there_are_never_overwritten(tmp_path: Path) -> None:
    make(tmp_path, "a")
    place = SiteHome.of(tmp_path, "a")
    before = place.settings_file.read_bytes()
    place.write_settings("127.0.0.1:1", [])
    assert place.settings_file.read_bytes() == before


def test_the_template_states_the_defaults(tmp_path: Path) -> None:
    make(tmp_path, "a")
    found = SiteHome.of(tmp_path, "a").settings()
    assert found.model_copy(update={"cpu_threads": 2}) == SiteSettings(site="a", server=SERVER)


def test_settings_of_another_site_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NexusError, match="is of site 'b', but lies in the folder of 'a'"):
        settings(tmp_path, f'site = "b"\nserver = "{SERVER}"')


@pytest.mark.parametrize("server", ["192.0.2.1:1", "server.example:8443"])
def test_a_server_may_be_anywhere(tmp_path: Path, server: str) -> None:
    assert settings(tmp_path, f'site = "a"\nserver = "{server}"').server == server


@pytest.mark.parametrize(
    "line", ["holdout_share = 0.95", "holdout_share = nan", "cpu_threads = 0", "salience_rows = -1", "base_model = 1"]
)
def test_a_setting_out_of_range_is_refused_by_name(tmp_path: Path, line: str) -> None:
    with pytest.raises(NexusError, match=rf"\n  {line.split(maxsplit=1)[0]}: "):
        settings(tmp_path, f'site = "a"\nserver = "{SERVER}"\n{line}')


def test_a_site_without_settings_names_join(tmp_path: Path) -> None:
    with pytest.raises(NexusError, match="`nexus-client join` writes it"):
        SiteHome.of(tmp_path, "a").settings()


def test_each_site_of_a_machine_has_a_port_of_its_own_for_its_metrics(tmp_path: Path) -> None:
    make(tmp_path, "a", "b")
    assert [SiteHome.of(tmp_path, site).settings().metrics for site in ("a", "b")] == [
        "127.0.0.1:9465",
        "127.0.0.1:9466",
    ]


def test_a_relative_base_model_lies_where_relative_data_does(tmp_path: Path) -> None:
    found = settings(tmp_path, 'site = "a"\nserver = "127.0.0.1:1"\nbase_model = "models/ours"\n')
    assert found.base_folder == tmp_path / "a" / "models" / "ours"
