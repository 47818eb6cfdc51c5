"""TOML to settings: what is right is taken as it stands, and every fault is told with its key and the nearest name."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nexus_client.site import SiteSettings
from nexus_common.config import Settings, SiteName, nearest, parse_toml, read_toml
from nexus_common.errors import NexusError


class Inner(Settings):
    """A table."""

    width: int = 3


class Outer(Settings):
    """A file."""

    name: SiteName
    ratio: float = 0.5
    sites: tuple[str, ...] = ()
    inner: Inner = Inner()


def parse(text: str) -> Outer:
    return parse_toml(Outer, text, "x.toml")


def test_arrays_become_tuples_and_tables_become_settings() -> None:
    assert parse('name = "a"\nsites = ["b", "c"]\n[inner]\nwidth = 4\n') == Outer(
        name="a", sites=("b", "c"), inner=Inner(width=4)
    )


def test_a_whole_number_may_stand_for_a_fraction() -> None:
    assert parse('name = "a"\nratio = 2\n').ratio == 2.0


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse('name = "a"').name = "b"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name", "x.toml: not valid TOML"),
        ("", "1 setting(s) to correct:\n  name: missing"),
        ('name = "a"\nratoi = 1', "\n  ratoi: unknown key; did you mean 'ratio'?"),
        ('name = "a"\nzzzzzzz = 1', "\n  zzzzzzz: unknown key; known: name, ratio, sites, inner"),
        ('name = "a"\n[inner]\nwidht = 1', "\n  inner.widht: unknown key; did you mean 'width'?"),
        ('name = "a"\n[inner]\nwidth = "1"', "\n  inner.width: Input should be a valid integer (found '1')"),
        ('name = "a"\n[inner]\nwidth = 1.0', "\n  inner.width: Input should be a valid integer (found 1.0)"),
        ('name = "a"\n[inner]\nwidth = true', "\n  inner.width: Input should be a valid integer (found True)"),
        ('name = "a"\nsites = [1]', "\n  sites.0: Input should be a valid string (found 1)"),
        ('name = "a"\nratio = 2026-01-01', "x.toml: "),
    ],
)
def test_a_fault_is_told_with_its_key(text: str, said: str) -> None:
    with pytest.raises(NexusError) as problem:
        parse(text)
    assert said in str(problem.value)


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(NexusError, match=r"2 setting\(s\) to correct:\n  name: missing\n  ratio: "):
        parse('ratio = "x"')


def test_a_long_value_is_cut_short_in_the_message() -> None:
    with pytest.raises(NexusError) as problem:
        parse(f'name = "{"x" * 500}"')
    assert "x" * 79 in str(problem.value)
    assert "x" * 80 not in str(problem.value)


def test_an_unknown_key_of_an_array_of_tables_names_that_tables_keys() -> None:
    with pytest.raises(NexusError, match=r"data\.0\.pth: unknown key; did you mean 'path'"):
        parse_toml(SiteSettings, 'site = "a"\nserver = "127.0.0.1:1"\n[[data]]\npth = "x"\n', "site.toml")


@given(st.text())
def test_no_text_raises_anything_but_nexus_error(text: str) -> None:
    try:
        parse(text)
    except NexusError as problem:
        assert str(problem).startswith("x.toml: ")


@pytest.mark.parametrize("text", ["a = " + "[" * 5000, "a = " + "9" * 5000], ids=["deep", "long"])
def test_a_file_beyond_the_parsers_limits_is_told_too(text: str) -> None:
    with pytest.raises(NexusError, match="not valid TOML"):
        parse(text)


@pytest.mark.parametrize("text", ["a." * 1000 + "a = 1", "x = 0x" + "f" * 5000, "x = [" * 2])
def test_values_beyond_json_are_told_too(text: str) -> None:
    with pytest.raises(NexusError):
        parse_toml(Settings, text, "file")


def test_a_missing_file_is_told_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(NexusError, match=r"none\.toml does not exist; make one"):
        read_toml(Outer, tmp_path / "none.toml", "make one")


@pytest.mark.parametrize("content", [b"\xff\xfe", None], ids=["not UTF-8", "a folder"])
def test_what_cannot_be_read_is_told(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.toml"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(NexusError, match="cannot be read"):
        read_toml(Outer, path, "make one")


@pytest.mark.parametrize("name", ["a", "0", "hospital-a", "a" * 63])
def test_these_are_site_names(name: str) -> None:
    assert parse(f'name = "{name}"').name == name


@pytest.mark.parametrize(
    "name", ["", "A", "-a", "a-", "a_b", "a.b", "a/b", "..", "a b", "ä", "a" * 64, "a\\n", "a\\u0000"]
)
def test_these_are_no_site_names(name: str) -> None:
    with pytest.raises(NexusError, match=r"\n  name: "):
        parse(f'name = "{name}"')


def test_nothing_is_near_to_a_name_that_is_far_from_all() -> None:
    assert nearest("passage", ["query", "label"]) == ""
