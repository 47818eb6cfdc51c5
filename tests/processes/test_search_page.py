"""The search page of ``serve`` in a real browser: finds, shows text as text, asks for the token, light and dark."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chromium import CHROMIUM, Browser
from tests.processes.harness import until
from tests.processes.serving import Serving
from tests.sites import make_site

pytestmark = [pytest.mark.processes, pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")]
TOKEN = "0123456789abcdef0123"
MARKUP = "<img src=x onerror=\"document.title='taken'\"><b>fever</b> & <script>document.title='taken'</script>"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, graphs: Path) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("page")
    (folder / "token").write_text(TOKEN)
    (folder / "token").chmod(0o600)
    rows = [{"text": text, "label": "x"} for text in (MARKUP, "a lost card", "long" + "word" * 200)]
    with Serving(make_site(folder, graphs, rows=rows), "--token-file", str(folder / "token"), token=TOKEN) as made:
        until("there is an index", made.has_index)
        yield made


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as made:
        yield made


def ask(browser: Browser, query: str) -> None:
    browser.value(f"document.getElementById('q').value = {query!r}; document.querySelector('button').click()")


def said(browser: Browser) -> str:
    return str(browser.value("document.getElementById('said').textContent"))


def test_it_asks_for_the_token_and_shows_what_was_found_as_text(served: Serving, browser: Browser) -> None:
    browser.open(served.url + "/", 700)
    assert browser.value("document.getElementById('token-line').checkVisibility()") is False
    ask(browser, "fever")
    until("it is refused", lambda: "token is needed" in said(browser))
    assert browser.value("document.getElementById('token-line').checkVisibility()") is True
    browser.value(f"document.getElementById('token').value = '{TOKEN}'")
    ask(browser, "fever")
    until("it has found", lambda: said(browser) == "3 passages of 3, found by nexus@base")
    assert browser.value("document.querySelectorAll('#hits p')[0].textContent") == MARKUP
    assert "rows.jsonl line 1" in browser.value("document.querySelectorAll('#hits .where')[0].textContent")
    assert browser.value("document.querySelectorAll('#hits img, #hits b, #hits script').length") == 0
    assert browser.value("document.title") == "NEXUS search"
    browser.open(served.url + "/", 700)
    ask(browser, "card")
    until("the tab still has the token", lambda: "found by" in said(browser))


def test_its_policy_lets_no_other_script_run_and_no_other_place_be_asked(served: Serving, browser: Browser) -> None:
    browser.open(served.url + "/", 700)
    browser.value(
        "const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.body.append(s)"
    )
    assert browser.value("window.ran === undefined") is True
    browser.value(f"window.asked = 'no answer'; fetch('http://localhost:{served.port}/healthz', {{mode: 'no-cors'}})"
                  ".then(() => window.asked = 'went out', () => window.asked = 'refused')")  # fmt: skip
    until("it is refused", lambda: browser.value("window.asked") == "refused")


@pytest.mark.parametrize("width", [320, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_telephone_and_is_readable_light_and_dark(
    served: Serving, browser: Browser, width: int, scheme: str
) -> None:
    browser.open(served.url + "/", width, scheme)  # type: ignore[arg-type]
    browser.value(f"sessionStorage.setItem('token', '{TOKEN}')")
    ask(browser, "word")
    until("it has found", lambda: "found by" in said(browser))
    assert browser.value("document.documentElement.scrollWidth <= innerWidth")
    style = "getComputedStyle(document.body)"
    ink, back = (browser.value(f"{style}.{what}.match(/\\d+/g).slice(0, 3).map(Number)") for what in
                 ("color", "backgroundColor"))  # fmt: skip
    assert contrast(ink, back) > 7
    assert (sum(back) > 380) == (scheme == "light")


def contrast(first: list[int], second: list[int]) -> float:
    """Of two colours (WCAG 2)."""

    def luminance(colour: list[int]) -> float:
        parts = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
