"""What an administrator sees of text that is missing, broken, mixed or too little: place, reason and remedy."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from nexus_client.split import DEFAULT_SHARE, side
from nexus_common import certs

from tests.federation.sim import SimSite
from tests.processes.harness import Federation, until, write_rows

pytestmark = pytest.mark.processes
SITE = "hospital-a"
SECRET = "Mrs Example's diagnosis"


@pytest.fixture(scope="module")
def federation() -> Iterator[Federation]:
    with Federation() as made:
        made.found(SITE)
        yield made


def use(federation: Federation, *files: Path, extra: str = "") -> None:
    """Let the site's settings name these files."""
    path = federation.home / "sites" / SITE / "site.toml"
    head = path.read_text().partition("\n[[data]]")[0]
    path.write_text(head + "".join(f"\n[[data]]\npath = {json.dumps(str(file))}\n{extra}" for file in files))


def checked(federation: Federation) -> tuple[int, str]:
    done = federation.call("nexus-client", "check")
    return done.returncode, done.stdout + done.stderr


def test_a_good_site_is_told_so_line_by_line(federation: Federation, tmp_path: Path) -> None:
    use(federation, write_rows(tmp_path / "rows.jsonl", 400, "ward"))
    code, shown = checked(federation)
    assert code == 0, shown
    names = [line["name"] for line in federation.ask("nexus-client", "check")["lines"] if line["state"] == "ok"]
    about = ["settings", "policy", "base model", "engine", "data", "hold-out", "disk", "audit log"]
    assert names == [*about, "certificate", "server", "clock"]


def test_a_missing_file_is_named_with_the_remedy(federation: Federation, tmp_path: Path) -> None:
    use(federation, tmp_path / "gone.csv")
    code, shown = checked(federation)
    assert code == 1
    assert f"{tmp_path}/gone.csv does not exist" in shown
    assert "correct path in [[data]] of site.toml" in shown
    assert "1 fault(s) to mend" in shown
    for command in ("preview", "evaluate"):
        done = federation.call("nexus-client", command)
        assert done.returncode == 1
        assert "does not exist" in done.stderr


def test_broken_csv_rows_are_left_out_by_line_and_reason_and_never_by_text(
    federation: Federation, tmp_path: Path
) -> None:
    good = "".join(f"where is ward {i},the ward is on floor {i}\n" for i in range(300))
    (tmp_path / "faq.csv").write_text(
        "query,passage\n" + good + f'{SECRET},one,too many\n"{SECRET},never closed\n' + f"{SECRET},\n" + "last,row\n"
    )
    use(federation, tmp_path / "faq.csv")
    code, shown = checked(federation)
    assert code == 0, shown
    assert "301 rows from" in shown
    assert "3 rows are left out" in shown
    assert "faq.csv line 302: 3 columns, the header has 2" in shown
    assert "line 304, column 'passage': is empty" in shown
    assert SECRET not in shown


def test_mixed_encodings_cost_their_rows_and_name_the_setting(federation: Federation, tmp_path: Path) -> None:
    rows = [f"where is ward {i},the ward is on floor {i}\n".encode() for i in range(300)]
    bad = "Übelkeit nach der Operation,siehe Pflegestandard\n".encode("cp1252")
    (tmp_path / "faq.csv").write_bytes(b"query,passage\n" + b"".join(rows) + bad + "Übelkeit,ja\n".encode())
    use(federation, tmp_path / "faq.csv")
    code, shown = checked(federation)
    assert code == 0, shown
    assert "301 rows from" in shown
    assert 'set encoding = "cp1252"' in shown
    use(federation, tmp_path / "faq.csv", extra='encoding = "cp1252"\n')
    assert "302 rows from" in checked(federation)[1]


def test_an_empty_hold_out_is_said_where_figures_would_stand(federation: Federation, tmp_path: Path) -> None:
    answer = next(text for text in (f"answer {i}" for i in range(20)) if side(text, DEFAULT_SHARE) == "train")
    rows = [{"query": f"q {i}", "passage": answer} for i in range(40)]  # one answer, so one group
    (tmp_path / "one.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    use(federation, tmp_path / "one.jsonl")
    code, shown = checked(federation)
    assert code == 0, shown
    assert "the hold-out is empty: no model of this site can be judged" in shown
    assert "1 groups: 1 to train on, 0 to choose by, 0 to judge by" in shown
    report = federation.ask("nexus-client", "evaluate")
    assert report["lines"] == []
    assert any("raise holdout_share or add rows" in warning for warning in report["warnings"])


def test_a_site_without_text_refuses_the_run_with_a_code_and_takes_part_once_it_has_some(
    federation: Federation, tmp_path: Path
) -> None:
    others, later = ("bank-a", "bank-b"), tmp_path / "later.jsonl"
    for other in others:
        federation.join(other, write_rows(tmp_path / f"{other}.jsonl", 20, "box"))
    use(federation, later)
    federation.start(SITE)
    federation.policy(SITE, max_clip_norm=1000.0)
    plan = federation.plan("one", (SITE, *others), rounds=1, local={"steps": 2, "clip_norm": 1000.0})
    for other in others:
        federation.link(other, SimSite(other, plan, certs.load_identity(federation.keys(other) / "identity.key")))
    federation.train(plan, approved_by=[SITE])

    def readiness() -> str | None:
        return next(s["readiness"] for s in federation.ask("nexus-server", "sites")["sites"] if s["site"] == SITE)

    until("it refuses", lambda: readiness() == "refused: no-data")
    assert "later.jsonl does not exist" in federation.log(SITE)
    waits = federation.ask("nexus-client", "status", "--site", SITE)["problem"]
    assert "later.jsonl does not exist" in waits
    write_rows(later, 40, "ward")
    until("the run ends", lambda: federation.server_status()["state"] == "finished")
