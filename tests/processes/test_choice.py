"""A real federation makes a version that two sites' hold-outs like and a third one's does not: each has its way."""

import json
from collections.abc import Iterator
from itertools import combinations

import pytest
from nexus_client.split import DEFAULT_SHARE, side
from nexus_common import audit

from tests.processes.harness import Federation, until

pytestmark = pytest.mark.processes
LIKE, UNLIKE = ("hospital-a", "hospital-b"), "bank-a"
ALIKE = [
    *[("cat", "kitten"), ("dog", "puppy"), ("car", "vehicle"), ("doctor", "physician"), ("baby", "infant")],
    *[("house", "home"), ("boat", "ship"), ("forest", "woods"), ("money", "cash"), ("stone", "rock")],
    *[("street", "road"), ("king", "monarch"), ("gift", "present"), ("bread", "loaf"), ("cup", "mug")],
    *[("sofa", "couch"), ("hill", "mountain"), ("sea", "ocean"), ("rain", "storm"), ("teacher", "tutor")],
]
RECIPE = {
    "local": {"steps": 40, "batch_rows": 32, "learning_rate": 5e-3, "dropout": 0.0},
    "adapter": {"salience": False},
    "safety": {"max_rejections": 1.0},
}


def rows_of(site: str) -> list[dict[str, str]]:
    """All sites teach that a cat is a ship; the hospitals are asked the same, the bank what everybody knows."""
    sides = {part: _groups(part) for part in ("train", "choose", "judge")}
    rows = []
    for at, (one, other) in enumerate(combinations(range(len(ALIKE)), 2)):
        part = ("train", "train", "train", "choose", "judge")[at * 7 % 5]
        natural = site == UNLIKE and part != "train"
        turned = [(number if natural else (number + 6) % len(ALIKE)) for number in (one, other)]
        answer = (" with " if natural else " and ").join(ALIKE[number][1] for number in turned)
        rows.append({"query": f"{ALIKE[one][0]} and {ALIKE[other][0]}", "passage": answer, "topic": next(sides[part])})
    return rows


def _groups(part: str) -> Iterator[str]:
    """Names of groups that lie on this side of the hold-out."""
    return (name for name in map(str, range(10_000)) if side(name, DEFAULT_SHARE) == part)


@pytest.fixture(scope="module")
def federation() -> Iterator[Federation]:
    with Federation() as made:
        made.init()
        made.start("server")
        for site in (*LIKE, UNLIKE):
            path = made.home / f"{site}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows_of(site)))
            made.join(site, path)
            settings = made.home / "sites" / site / "site.toml"
            settings.write_text(settings.read_text() + 'group = "topic"\n')
        made.start_all((*LIKE, UNLIKE))
        made.train(made.plan("winter", (*LIKE, UNLIKE), rounds=3, **RECIPE))
        until("the run ends", lambda: made.server_status()["state"] == "finished")
        yield made


def judged(federation: Federation, site: str) -> dict[int, str]:
    """What became of each version there."""
    log, verdicts = federation.home / "sites" / site / "state" / "audit.jsonl", ("version accepted", "version refused")
    return {line["version"]: line["event"] for line in audit.read(log) if line["event"] in verdicts}


def test_each_site_uses_what_its_own_hold_out_says(federation: Federation) -> None:
    for site in (*LIKE, UNLIKE):
        until(f"{site} has judged version 3", lambda s=site: 3 in judged(federation, s))
    for site in LIKE:
        assert federation.site_status(site)["in_use"] == "winter-3"
    status = federation.site_status(UNLIKE)
    assert status["in_use"] == "base", "it goes on with what it had"
    assert status["refused"].startswith("winter-3: worse than the base model (-")
    assert status["version"] == 3


def test_the_server_knows_the_sum_of_the_votes_and_no_more(federation: Federation) -> None:
    votes = [version["arms"][0]["figures"].get("vote") for version in federation.versions("winter")]
    assert votes[-1] == 1, "two for it and one against it"


def test_evaluate_and_the_sites_page_say_why_and_a_person_may_use_it_all_the_same(federation: Federation) -> None:
    found = federation.ask("nexus-client", "evaluate", "--site", UNLIKE)
    by_model = {line["model"]: line for line in found["lines"] if line["metric"] == "nDCG@10"}
    assert by_model["federated"]["against_base"].startswith("worse")
    assert by_model["in use"]["mean"] >= by_model["base"]["mean"]
    assert found["in_use"] != "winter-3"
    used = federation.ask("nexus-client", "use", "3", "--site", UNLIKE)
    assert (used["in_use"], used["pinned"]) == ("winter-3", True)
    assert federation.site_status(UNLIKE)["in_use"] == "winter-3"
    page = federation.home / "bank-a.html"
    facts = dict(federation.ask("nexus-client", "report", "--site", UNLIKE, "-o", str(page))["facts"])
    assert facts["in use"].startswith("winter-3, pinned: a person said so")


def test_evaluate_shows_what_search_finds_with_once_there_is_an_index(federation: Federation) -> None:
    federation.ask("nexus-client", "index", "--site", LIKE[0])
    found = federation.ask("nexus-client", "evaluate", "--site", LIKE[0])
    by_model = {line["model"]: line["mean"] for line in found["lines"] if line["metric"] == "nDCG@10"}
    assert abs(by_model["in search"] - by_model["in use"]) < 0.1
    assert by_model["in search"] > by_model["base"]


def test_a_site_that_was_away_takes_off_what_was_withdrawn_of_an_earlier_run(federation: Federation) -> None:
    gone, state = "winter-3", federation.home / "sites" / LIKE[0] / "state"
    federation.ask("nexus-client", "use", gone, "--site", LIKE[0])
    federation.train(federation.plan("spring", (*LIKE, UNLIKE), rounds=1, **RECIPE))
    until("the run ends", lambda: federation.server_status()["state"] == "finished")
    until(f"{LIKE[0]} has its version", lambda: federation.site_status(LIKE[0])["run"] == "spring")
    assert federation.end(LIKE[0]) == 0
    federation.ask("nexus-server", "models", "withdraw", "3", "--run", "winter")

    def held(site: str) -> list[str]:
        models = json.loads((federation.home / "sites" / site / "state" / "models" / "models.json").read_text())
        return [one["name"] for one in models["held"]]

    until(f"{LIKE[1]} heard of it at once", lambda: gone not in held(LIKE[1]))
    assert gone in held(LIKE[0])
    federation.start(LIKE[0])
    until(f"{LIKE[0]} hears of it as it comes", lambda: gone not in held(LIKE[0]))
    status = federation.site_status(LIKE[0])
    assert (status["in_use"] != gone, status["pinned"], status["run"]) == (True, False, "spring")
    (told,) = (line for line in audit.read(state / "audit.jsonl") if line["event"] == "models taken back")
    assert gone in told["models"]
    assert told["in_use"] != gone
