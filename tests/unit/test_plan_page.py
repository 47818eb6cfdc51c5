"""The page that people approve: every fact of the plan stands in it, and no text of the plan is ever more than text."""

import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from nexus_common.plan import Plan
from nexus_common.plan_page import as_html, as_markdown

from tests.plans import identity_of, make_plan, member, plan_fields

WORDS = ["vital", "destroy", "wall", "educate", "ride", "length", "knock", "dream", "slow", "wisdom", "rude", "mom"]
THREE = ("bank-a", "hospital-a", "hospital-b")
FIVE = (*THREE, "hospital-c", "hospital-d")
SIX = (*FIVE, "hospital-e")
COMPARED = "the server can compare before and after; without differential privacy that estimates"
NOISE = {"privacy": {"noise": 1.1, "sampling": 0.01, "honest": 3}, "aggregation": {"value_bits": 16, "mod_bits": 32}}
HEAD = ["html", "head", "meta", "meta", "meta", "title", "style", "body", "main"]
TABLE = ["table", "thead", "tbody", "tr", "th", "td"]
KNOWN = {*HEAD, *TABLE, "h1", "h2", "p", "em", "strong", "code", "ul", "ol", "li", "blockquote", "footer"}
CHROMIUM = shutil.which("chromium")
FONT = subprocess.run(["sh", "-c", "fc-match Arial || true"], check=True, capture_output=True, text=True).stdout


class Read(HTMLParser):
    """A document as a reader meets it: its elements in order, each with its attributes and the text inside it."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None], list[str]]] = []
        self._open: list[tuple[str, list[str]]] = []
        self.feed(document)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs), []))
        if tag != "meta":
            self._open.append((tag, self.found[-1][2]))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for _, inside in self._open:
            inside.append(data)

    @property
    def elements(self) -> list[str]:
        return [tag for tag, _, _ in self.found]

    def texts(self, wanted: str) -> list[str]:
        return ["".join(inside) for tag, _, inside in self.found if tag == wanted]


def read(plan: Plan, words: Sequence[str] | None = WORDS, **more: Any) -> Read:
    return Read(as_html(as_markdown(plan, words, **more), "a title"))


def said(plan: Plan, words: Sequence[str] | None = WORDS, **more: Any) -> str:
    """The page's text in one line."""
    return " ".join(read(plan, words, **more).texts("main")[0].split())


def row(plan: Plan, first: str) -> list[str]:
    """The cells of the row that begins so."""
    found = (part.split("\n") for part in read(plan).texts("tr"))
    return next(cells[2:-1] for cells in found if cells[1] == first)


def changes(plan: Plan, before: Plan) -> tuple[list[str], str]:
    """The lines of what is different, and the remarks below them."""
    document = as_markdown(plan, None, before).partition("approved before\n")[2].partition("## ")[0]
    lines = Read(MarkdownIt("zero").enable(["list", "escape", "backticks"]).render(document)).texts("li")
    return lines, " ".join(document.rpartition("- ")[2].split())


def leaves(value: object) -> Iterator[object]:
    """Every value that settings hold."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from leaves(inner)
    else:
        yield value


def test_the_sections_stand_in_the_order_in_which_people_read_them() -> None:
    assert read(make_plan(FIVE, name="second"), before=make_plan(THREE)).texts("h2") == [
        "What is different from the plan approved before",
        "The twelve words",
        "Purpose, end and sites",
        "What leaves each site, and what comes back",
        "Who could learn what",
        "What a version gives away",
        "How many sites a round needs",
        "Who controls each setting",
        "What remains",
        "Approval",
    ]


def test_the_page_opens_with_name_hash_and_the_protocol_plans_that_are_approved_too() -> None:
    plan = make_plan(THREE)
    (derived,) = (one.hash.hex()[:16] for one in plan.protocol_plans)
    assert read(plan).texts("h1") == ["Plan sim"]
    assert f"hash is {plan.hash.hex()[:16]} (the first 16 of 64 digits)" in said(plan)
    assert f"Approving this plan approves its 1 derived protocol plan: {derived}." in said(plan)


def test_the_words_are_numbered_with_what_to_do_if_one_differs() -> None:
    assert [f"{i}. {word}" in as_markdown(make_plan(THREE), WORDS) for i, word in enumerate(WORDS, 1)] == [True] * 12
    shown = read(make_plan(THREE))
    assert shown.texts("ol")[0].split() == WORDS
    assert "in one call of all sites, on numbers from your own directory" in said(make_plan(THREE))
    assert "If one word differs, do not approve." in shown.texts("strong")


def test_without_words_there_is_no_section_for_them() -> None:
    assert "The twelve words" not in said(make_plan(THREE), None)
    assert "ol" not in read(make_plan(THREE), None).elements


def test_each_site_stands_with_who_answers_for_it_and_the_beginning_of_its_key() -> None:
    plan = make_plan(THREE)
    for one in plan.sites:
        assert row(plan, one.name) == [one.controller, one.contact, one.key[:16]]


def test_every_setting_of_a_plan_is_on_its_page() -> None:
    local = {"steps": 31, "batch_rows": 77, "learning_rate": 0.0123, "temperature": 0.071, "corpus_negatives": 65}
    local |= {
        "salience_learning_rate": 0.0321,
        "dropout": 0.41,
        "distillation": 1.7,
        "scored_loss": "cosent",
        "clip_norm": 9.5,
    }
    server = {"optimiser": "fedadam", "step": 1.75, "momentum": 0.81, "second_moment": 0.93, "epsilon": 0.0007}
    plan = make_plan(
        FIVE,
        **{"local": local, "server": server, "rounds": 13, "min_cohort": 4, "base_model": "cd" * 32},
        **{"adapter": {"salience_dendrites": 2, "projection_dendrites": 3, "activation": "sigmoid", "seed": 987654}},
        **{"start": "quorum", "hours_utc": "20:15-05:45", "round_deadline_seconds": 123.0, "gather_seconds": 45.0},
        **{"origin": {"plan": "ef" * 32, "version": 14, "vector": "ab" * 32}, **NOISE},
    )
    shown = said(plan, epsilon=2.871)
    for value in set(leaves(plan.model_dump(mode="json"))) - {True, False, "quorum"}:
        text = f"{value}"
        assert (text[:16] if re.fullmatch("[0-9a-f]{64}", text) else text) in shown
    assert "a quorum (here 4 sites) has approved" in shown
    assert "aggregation.strict false" in shown
    assert "salience (2 dendrites), projection (3 dendrites)" in shown


def test_what_leaves_is_counted_and_said_plainly() -> None:
    shown = said(make_plan(THREE))
    assert "one update, masked and signed by the site: 148,224 numbers of 3 bytes (0.44 MB)" in shown
    assert "the server can read only the sum over at least 3 sites" in shown
    assert "the number of questions behind both, a vote for or against the base model" in shown
    assert "At most 40 masked updates of a site under this plan" in shown
    assert "Never leaves: text, embeddings, and any update, count or score that can be read by itself." in shown
    assert "nothing else" in said(make_plan(THREE, aggregation={"figures": ()}))
    assert "99.7 to 100 % of cases" in shown
    assert "it is still 99.7 %" in shown


@pytest.mark.parametrize(
    ("names", "server", "others"),
    [
        (THREE, "the sum of at least 3 sites and nothing of a single one, unless a site helped it", "here 2, can"),
        (
            FIVE,
            "the sum of at least 4 sites and nothing of a single one, unless more than 1 site helped it",
            "here 3 or more, can",
        ),
    ],
)
def test_who_could_learn_what_follows_from_the_number_of_sites(names: list[str], server: str, others: str) -> None:
    assert row(make_plan(names), "the server and its operator")[1] == server
    assert f"All others of a round together, {others} always compute the last one's update" in said(make_plan(names))


def test_with_three_sites_nobody_can_be_spared_and_five_are_advised() -> None:
    shown = said(make_plan(THREE))
    assert "names 3 sites. The threshold of secure aggregation is floor(2n/3) + 1 = 3" in shown
    assert "Nobody can be spared: if one site is away, the run waits and nothing is lost. Five sites or more" in shown
    assert "two almost equal rounds" not in shown, "no round goes without a site"


def test_with_five_sites_one_can_be_missing_unless_the_plan_wants_all() -> None:
    shown = said(make_plan(FIVE))
    assert "4 sites make a version, fewer never do. 1 site can be missing" in shown
    assert "two almost equal rounds" in shown
    assert "advised" not in shown
    assert "5 sites make a version, fewer never do. Nobody can be spared" in said(make_plan(FIVE, min_cohort=5))


def test_without_noise_epsilon_is_none_and_never_a_number() -> None:
    shown = said(make_plan(THREE), epsilon=0.0)
    assert "Privacy of records: epsilon: none (records are not protected)." in shown
    assert len(re.findall(r"epsilon: ", shown)) == 1


def test_with_noise_the_page_says_epsilon_delta_and_unit_and_that_this_release_cannot_do_it() -> None:
    plan = make_plan(FIVE, **NOISE)
    assert "epsilon: 2.87 at delta 1e-05 over all 40 updates, for one training row" in said(plan, epsilon=2.871)
    assert "noise 1.1, sampling 0.01" in said(plan)
    assert "honest 3" in said(plan)
    assert "This release cannot train with noise yet: every site refuses to approve such a plan." in said(plan)
    assert "epsilon: computed at each site, not here at delta" in said(plan)
    assert "epsilon: none" not in said(plan)


def test_the_table_of_settings_says_who_sets_each() -> None:
    plan = make_plan(THREE, rounds=12, hours_utc="20:00-06:00")
    assert row(plan, "rounds") == ["12", "the plan"]
    assert row(plan, "hours of rounds") == ["20:00-06:00 UTC", "the plan"]
    assert row(plan, "pause, leave, withdraw, at any time")[1] == "each site alone"
    assert row(plan, "updates of a site") == ["at most 44: twice the rounds plus 20", "nobody"]


def test_a_site_that_joins_is_named_with_what_the_server_could_compare() -> None:
    lines, remarks = changes(make_plan(FIVE, name="second"), make_plan((*THREE, "hospital-c")))
    assert lines[0] == "site added: hospital-d"
    assert not [line for line in lines if "Dr hospital-d" in line]
    assert f"{COMPARED} the newcomer's part." in remarks
    assert "Approving this plan ends the approval of plan sim" in remarks


def test_a_site_that_leaves_is_named_with_what_the_server_could_compare() -> None:
    lines, remarks = changes(make_plan(THREE), make_plan((*THREE, "hospital-c")))
    assert lines == ["site removed: hospital-c"]
    assert f"{COMPARED} the part of the one that left." in remarks


def test_a_changed_key_is_shown_with_the_advice_to_ask() -> None:
    fields = plan_fields(THREE)
    fields["sites"][1] = new = member("hospital-a", identity_of("another"))
    old = make_plan(THREE)
    lines, remarks = changes(Plan.model_validate(fields, strict=False), old)
    assert lines == [f"key of hospital-a: {new['key'][:16]}, before {old.sites[1].key[:16]}"]
    assert "ask that site why, on a number from your own directory" in remarks


def test_changed_settings_are_listed_one_a_line_with_the_value_before() -> None:
    plan = make_plan(FIVE, purpose="a|b", local={"steps": 30}, **NOISE)
    lines, remarks = changes(plan, make_plan(FIVE, purpose="*c*", local={"steps": 20}))
    assert {"local.steps: 30, before 20", "purpose: a|b, before *c*", "privacy.noise: 1.1, before none"} <= set(lines)
    assert "Nothing but" not in remarks


def test_a_plan_that_only_goes_on_under_another_name_says_so() -> None:
    origin = {"plan": "ab" * 32, "version": 3}
    lines, remarks = changes(make_plan(THREE, name="second", origin=origin), make_plan(THREE))
    assert lines[0] == "name: second, before sim"
    assert "Nothing but the name and where training begins differs" in remarks


def test_where_training_begins_is_said_with_whether_sites_can_check_it() -> None:
    fixed = make_plan(THREE, origin={"plan": "ab" * 32, "version": 3, "vector": "cd" * 32})
    newest = make_plan(THREE, origin={"plan": "ab" * 32})
    assert f"Training begins at version 3 of plan {'ab' * 8}, which each site compares" in said(fixed)
    assert f"Training begins at the newest version of plan {'ab' * 8}, which no site can check" in said(newest)
    assert "Training begins" not in said(make_plan(THREE))


MARKUP = st.text(st.sampled_from("\\`*_[](){}<>|&~#!+-=:;/.\"' 1a"), min_size=1, max_size=40)
OTHER = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=20)
LINES = st.builds("".join, st.lists(MARKUP | OTHER, min_size=1, max_size=3)).filter(str.strip)


@given(LINES, LINES, LINES)
@example("<script>alert(1)</script>", "![x](http://x.example/y.png)", "| a | b |")
@example("<http://x.example>", "[a][b]", "a\\")
@example("\\*a\\*", "a\\(b", "\\\\")
@example("&lt;b&gt; &#35;", "**a** `b` __c__", "\\|")
@example("# a", "- b", "1. c")
@example("*", "`", "|")
@example("{name} {0} %s", "---", "> a")
def test_text_of_a_plan_is_shown_as_it_is_and_adds_no_element(purpose: str, controller: str, contact: str) -> None:
    def written(*texts: str) -> tuple[Plan, Plan]:
        fields = plan_fields(THREE, purpose=texts[0])
        fields["sites"][0] |= {"controller": texts[1], "contact": texts[2]}
        return Plan.model_validate(fields, strict=False), make_plan(THREE, purpose="before")

    plan, before = written(purpose, controller, contact)
    plain = written("x", "x", "x")[0]
    shown = read(plan, before=before)
    assert shown.elements == read(plain, before=before).elements
    assert plan.purpose in shown.texts("em")
    assert shown.texts("td")[1:3] == [plan.sites[0].controller, plan.sites[0].contact]
    assert f"purpose: {plan.purpose}, before before" in shown.texts("li")
    any_reader = MarkdownIt("commonmark").enable("table")
    documents = [Read(any_reader.render(as_markdown(one, WORDS, before))) for one in (plan, plain)]
    assert documents[0].elements == documents[1].elements, "nor does it where another reader shows the Markdown"
    assert plan.purpose in documents[0].texts("em")


def test_the_document_is_closed_in_itself() -> None:
    shown = read(make_plan(FIVE, **NOISE), before=make_plan(THREE))
    assert set(shown.elements) <= KNOWN
    assert {name for _, attributes, _ in shown.found for name in attributes} == set(
        ["lang", "charset", "http-equiv", "content", "name", "style"]
    )
    policy = next(attributes for _, attributes, _ in shown.found if "http-equiv" in attributes)
    assert policy == {
        "http-equiv": "Content-Security-Policy",
        "content": "default-src 'none'; style-src 'unsafe-inline'",
    }
    assert not re.search("url|@import|https?:", "".join(shown.texts("style")))


def test_html_and_links_in_markdown_and_markup_in_a_title_stay_text() -> None:
    shown = Read(as_html("a <b>b</b> [c](http://c) ![d](e) <http://f> &amp;", "</title><script>"))
    assert shown.elements == [*HEAD, "p", "footer", *["p"] * 5]
    assert shown.texts("p")[0] == "a <b>b</b> [c](http://c) ![d](e) <http://f> &amp;"
    assert shown.texts("title") == ["</title><script>"]


def test_the_page_ends_with_lines_to_sign_on() -> None:
    assert read(make_plan(THREE)).texts("p")[-5:] == ["site", "name and office", "date", "reference", "signature"]


def wordy(names: Sequence[str], length: int, text: str, **settings: Any) -> Plan:
    """A plan whose free text has this length everywhere."""
    fields = plan_fields(names, purpose=(text * length)[:length], **settings)
    for site in fields["sites"]:
        site |= {"controller": (text * length)[:length], "contact": (text * length)[:length]}
    return Plan.model_validate(fields, strict=False)


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.skipif(not re.match("Liberation|Arial", FONT), reason="needs Arial or fonts-liberation: others are wider")
@pytest.mark.parametrize("length", [60, 300])
@pytest.mark.parametrize(("names", "earlier"), [(THREE, None), (THREE, FIVE), (SIX, None), (SIX, THREE), (SIX, SIX)])
def test_it_prints_on_two_sheets(tmp_path: Path, names: Sequence[str], earlier: Sequence[str], length: int) -> None:
    quick = {"steps": 5, "batch_rows": 8, "learning_rate": 1e-4, "temperature": 0.06, "dropout": 0.1}
    before = wordy(earlier, length, "Data protection ", local=quick, hours_utc="20:00-06:00") if earlier else None
    plan = wordy(names, length, "Datenschutz und Recht, ", name="a" * 48, origin={"plan": "ab" * 32})
    source, printed = tmp_path / "plan.html", tmp_path / "plan.pdf"
    source.write_text(as_html(as_markdown(plan, ["mushroom"] * 12, before), "Plan"), encoding="utf-8")
    quiet = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-pdf-header-footer"]
    where = [f"--user-data-dir={tmp_path / 'profile'}", f"--print-to-pdf={printed}", source.as_uri()]
    subprocess.run([str(CHROMIUM), *quiet, *where], check=True, capture_output=True, timeout=120)
    assert 1 <= len(re.findall(rb"/Type\s*/Page\b", printed.read_bytes())) <= 2


def test_a_plan_that_may_grow_says_how_often_where_and_what_that_costs_in_a_trial() -> None:
    plan = make_plan(("a", "b", "c"), growth={"max_dendrites": 2, "candidates": ("projection", "salience")})
    page, fixed = as_markdown(plan, None), as_markdown(make_plan(("a", "b", "c")), None)
    most = max(one.packed_bytes for one in plan.protocol_plans) / 1e6
    assert f"in a trial 3 updates side by side ({most:.2f} MB at most)" in " ".join(page.split())
    assert "at most 2 dendrites by projection or salience" in page
    assert "9 derived protocol plans" in page
    assert "and 5 more" in page
    assert re.search(r"growth of the adapter +\| none", fixed)
    assert "in a trial" not in fixed
