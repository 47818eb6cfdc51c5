"""server.toml: what init writes is read back, and addresses beyond loopback are refused."""

import os
from pathlib import Path

import pytest
from nexus_common import notify
from nexus_common.errors import NexusError
from nexus_server.asking import DEFAULT_HOME, start
from nexus_server.cli import main
from nexus_server.settings import TEMPLATE, ServerSettingsFile, admin_socket, read_settings

MAIN, ENROL = '"127.0.0.1:8443"', '"[::1]:8444"'
GOOD = TEMPLATE.format(name='"n"', contact='"Kim"', address=MAIN, listen=MAIN, enrol_address=ENROL, enrol_listen=ENROL)


def read(home: Path, text: str) -> ServerSettingsFile:
    (home / "server.toml").write_text(text)
    return read_settings(home)


def test_the_template_is_read_as_it_is_written(tmp_path: Path) -> None:
    assert read(tmp_path, GOOD) == ServerSettingsFile(
        name="n",
        contact="Kim",
        address="127.0.0.1:8443",
        listen="127.0.0.1:8443",
        enrol_address="[::1]:8444",
        enrol_listen="[::1]:8444",
    )


def test_a_server_that_was_not_made_names_init(tmp_path: Path) -> None:
    with pytest.raises(NexusError, match=r"server\.toml does not exist; run `nexus-server init` first"):
        read_settings(tmp_path)


@pytest.mark.parametrize("key", ["address", "listen", "enrol_address", "enrol_listen"])
@pytest.mark.parametrize("host", ["[::]", "server.example"])
def test_a_server_may_listen_everywhere_but_not_be_dialled_there(tmp_path: Path, key: str, host: str) -> None:
    text = "".join(f'{key} = "{host}:1"\n' if line.startswith(f"{key} ") else line for line in GOOD.splitlines(True))
    if host == "[::]" and "address" in key:
        with pytest.raises(NexusError, match="cannot be dialled"):
            read(tmp_path, text)
    else:
        assert getattr(read(tmp_path, text), key) == f"{host}:1"


@pytest.mark.parametrize("address", ["", "127.0.0.1", "127.0.0.1:0"])
def test_an_address_that_is_none_is_told_with_its_key(tmp_path: Path, address: str) -> None:
    with pytest.raises(NexusError, match=r"\n  listen: .*is not HOST:PORT"):
        read(tmp_path, GOOD.replace('listen = "127.0.0.1:8443"', f'listen = "{address}"', 1))


def test_a_misspelt_key_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(NexusError, match="did you mean 'contact'"):
        read(tmp_path, GOOD.replace("contact", "contct"))


def test_administration_is_a_socket_in_the_servers_folder(tmp_path: Path) -> None:
    assert admin_socket(tmp_path) == tmp_path / "admin.sock"


def init(home: Path, *argv: str) -> int:
    return main(["init", "--home", str(home), *argv])


@pytest.mark.parametrize("name", ["demo", 'the "north" group', "Größe", "it's", "back\\slash", "two\nlines"])
def test_init_writes_settings_that_are_read(tmp_path: Path, name: str) -> None:
    assert init(tmp_path, "--name", name) == 0
    assert read_settings(tmp_path).name == name


@pytest.mark.parametrize("contact", ["north\\unit", "Kim\next. 12", "x\\"])
def test_init_takes_every_text(tmp_path: Path, contact: str) -> None:
    assert init(tmp_path, "--contact", contact) == 0
    assert read_settings(tmp_path).contact == contact


@pytest.mark.parametrize(
    ("dialled", "listens"),
    [
        ("127.0.0.1:8443", "127.0.0.1:8443"),
        ("127.0.0.2:8443", "127.0.0.2:8443"),
        ("localhost:8443", "localhost:8443"),
        ("nexus.example.org:8443", "0.0.0.0:8443"),  # of which /etc/hosts may say 127.0.1.1
        ("192.0.2.7:8443", "0.0.0.0:8443"),  # a router's, which passes the port on
        ("[2001:db8::7]:8443", "[::]:8443"),
    ],
)
def test_init_listens_where_what_sites_dial_can_arrive(tmp_path: Path, dialled: str, listens: str) -> None:
    assert init(tmp_path, "--address", dialled, "--enrol-address", dialled.replace("8443", "8444")) == 0
    made = read_settings(tmp_path)
    assert (made.address, made.listen) == (dialled, listens)
    assert made.enrol_listen == listens.replace("8443", "8444")


def test_an_init_that_fails_can_be_repeated(tmp_path: Path) -> None:
    assert init(tmp_path, "--address", "[::]:8443") == 1
    assert init(tmp_path, "--name", "x") == 0


def test_init_at_an_address_that_nobody_can_dial_makes_nothing(tmp_path: Path) -> None:
    assert init(tmp_path / "new", "--address", "0.0.0.0:8443") == 1
    assert not (tmp_path / "new").exists()


def test_a_second_init_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    init(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert init(tmp_path, "--name", "other") == 1
    assert "already initialised" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_everything_secret_is_its_owners_alone(tmp_path: Path) -> None:
    init(tmp_path / "home")
    private = [tmp_path / "home", *(tmp_path / "home" / "keys").glob("*.key")]
    assert {path.name: path.stat().st_mode & 0o077 for path in private} == {"home": 0, "ca.key": 0, "server.key": 0}


def test_what_is_missing_above_the_folder_lets_the_service_s_account_through(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        init(tmp_path / "var" / "nexus" / "server")
    finally:
        os.umask(old)
    modes = [path.stat().st_mode & 0o777 for path in (tmp_path / "var", tmp_path / "var/nexus")]
    assert modes == [0o755] * 2


def test_systemd_starts_the_server_of_the_systems_folder_where_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "SYSTEMD", tmp_path)
    assert start(DEFAULT_HOME) == "systemctl start nexus-server"
    assert start(tmp_path) == f"nexus-server --home {tmp_path}"
    monkeypatch.setattr(notify, "SYSTEMD", tmp_path / "none")
    assert start(DEFAULT_HOME) == f"nexus-server --home {DEFAULT_HOME}"


def test_metrics_are_on_loopback_unless_somebody_says_otherwise_and_can_be_off(tmp_path: Path) -> None:
    assert read(tmp_path, GOOD).metrics == "127.0.0.1:9464"
    line = 'metrics = "127.0.0.1:9464"\n'
    assert read(tmp_path, GOOD.replace(line, "")).metrics == "127.0.0.1:9464", (
        "of a file that is older than the setting"
    )
    assert read(tmp_path, GOOD.replace(line, 'metrics = "off"\n')).metrics == "off"
    with pytest.raises(NexusError, match=r"metrics: 'yes' is not HOST:PORT"):
        read(tmp_path, GOOD.replace(line, 'metrics = "yes"\n'))
