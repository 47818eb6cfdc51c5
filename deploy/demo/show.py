"""What the demo prints, and the summary that it writes."""

import os
import statistics
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

MODELS = {"keyword": "BM25", **{name: name for name in ("base", "alone", "federated", "personal", "in use")}}
PAGE = "report.html"
console = Console(highlight=False, width=110)


def title() -> None:
    """The first line."""
    console.print("[bold]NEXUS demo[/bold]: two hospitals and a bank improve one search model; no text leaves a site\n")


def step(text: str) -> None:
    """One line of what happens now."""
    console.print(f"- {text}")


def words(of_sites: list[list[str]]) -> None:
    """The plan's words, as the sites read them out."""
    same = all(one == of_sites[0] for one in of_sites)
    console.print(f"    {' '.join(of_sites[0])}")
    console.print(f"    {len(of_sites)} of {len(of_sites)} sites read these" if same else "    the sites' words DIFFER")


def round_done(status: dict[str, Any], number: int) -> None:
    """A round's line."""
    seconds = status["round_seconds"][number - 1]
    console.print(f"    round {number:2} of {status['rounds']}: {len(status['cohort'])} sites, {seconds:.1f} s")


def _line(report: dict[str, Any], model: str) -> dict[str, Any]:
    """nDCG@10 of one model, from a site's own evaluation."""
    return next(line for line in report["lines"] if (line["model"], line["metric"]) == (model, "nDCG@10"))


def summary(reports: list[dict[str, Any]], status: dict[str, Any], seconds: float) -> dict[str, Any]:
    """What is written to summary.json."""
    names = {"ndcg10_before": "base", "ndcg10_after": "federated", "ndcg10_alone": "alone", "ndcg10_bm25": "keyword"}
    names |= {"ndcg10_personal": "personal", "ndcg10_in_use": "in use"}
    sites = [
        {
            "site": report["site"],
            "rows": report["rows"],
            "in_use": report["in_use"],
            "questions": _line(report, "base")["questions"],
        }
        | {key: _line(report, model)["mean"] for key, model in names.items()}
        for report in reports
    ]
    return {
        "sites": sites,
        "rounds": status["round"],
        "seconds_install_excluded": round(seconds, 1),
        "round_seconds_median": round(statistics.median(status["round_seconds"]), 3),
        "bytes_up_per_site_round": status["bytes_up_per_site_round"],
    }


def quality_table(reports: list[dict[str, Any]]) -> Table:
    """All sites and models on one screen."""
    table = Table(title="nDCG@10 x 100 on questions no training saw, with 95 % interval", title_justify="left")
    table.add_column("site")
    for name in ("questions", *MODELS.values()):
        table.add_column(name, justify="right")
    for report in reports:
        found = [_line(report, model) for model in MODELS]
        cells = [f"{100 * one['mean']:.1f} ({100 * one['low']:.0f}-{100 * one['high']:.0f})" for one in found]
        table.add_row(report["site"], str(found[1]["questions"]), *cells)
    return table


def used(reports: list[dict[str, Any]]) -> None:
    """What each site uses, and what it is worth there."""
    for report in reports:
        verdict = f": {report['verdict']}" if report["verdict"] else ""
        console.print(f"{report['site']} uses {report['in_use']}{verdict}", markup=False)


def attacked(found: dict[str, Any]) -> None:
    """What the re-identification attack found, in three lines."""
    plain, sent, total = found["plain_update"], found["sent"], found["sum"]
    members, site = plain["members"], found["site"]
    console.print(
        f"\nOf {members} questions that {site} trained on, among {members} others of its own, an attack that knows "
        f"all\nof them and their passages finds (a guess {members / 2:.0f}, in 99 of 100 guesses {plain['low']} to "
        f"{plain['high']}):\n"
        f"  from a plain update, as without masking   {plain['found']:4}\n"
        f"  from what {site} sends, masked        {sent['found']:4}\n"
        f"  from the sum of {found['sites']} sites                   {total['found']:4}   "
        "(the sum is what the server learns)"
    )


def examples(reports: list[dict[str, Any]]) -> None:
    """The question that each of two sites finds better by most, as its own evaluation names it."""
    console.print("\nTwo questions, and where the right passage stood before and after:")
    found = [dict(report["examples"][0], site=report["site"]) for report in reports if report["examples"]]
    for example in sorted(found, key=lambda one: one["rank_after"] / one["rank_before"])[:2]:
        passage = example["passage"] if len(example["passage"]) <= 160 else example["passage"][:160] + "…"
        console.print(f'  {example["site"]}: "{example["question"]}"', markup=False)
        console.print(f"    {passage}", markup=False)
        console.print(f"    rank {example['rank_before']} with the base model, rank {example['rank_after']} federated")


def everything(
    reports: list[dict[str, Any]], result: dict[str, Any], elsewhere: set[str], home: Path, programs: Path
) -> None:
    """The screen at the end."""
    console.print()
    console.print(quality_table(reports))
    used(reports)
    for report in reports:
        for warning in report["warnings"]:
            console.print(f"note, {report['site']}: {warning}", markup=False)
    attacked(result["attack"])
    examples(reports)
    console.print(
        f"\nsent by each site a round: {result['bytes_up_per_site_round']:,} bytes: a masked update\n"
        f"{_accounted(result['audit'])}\n"
        f"connections elsewhere: {len(elsewhere)}\n"
        f"{result['rounds']} rounds, median {result['round_seconds_median']} s; the whole demo "
        f"{result['seconds_install_excluded']} s; figures in {_near(home)}/summary.json\n"
        f"the run as a page for a browser: {_near(home)}/{PAGE}"
    )
    console.print(
        "\n[bold]Protected:[/bold] the server can read only the sum over a round's sites, even if it lies, as long as "
        "fewer than a third of the sites help it.\n[bold]Not protected:[/bold] the sum itself, which leaks what was "
        "learnt; epsilon: none (records are not protected)."
    )
    server, client = f"{_near(programs)}/nexus-server --home {_near(home)}/server", f"{_near(programs)}/nexus-client"
    console.print(
        f"\nTry next:\n  {client} --home {_near(home)}/sites --site hospital-a preview\n"
        f"  {client} --home {_near(home)}/sites --site hospital-a evaluate\n"
        f"  {client} --home {_near(home)}/sites --site hospital-a search 'blood clot test' -k 3\n"
        f"  {client} --home {_near(home)}/sites --site hospital-a export ./model\n"
        f"  {server} &\n  {server} models\n"
        f"  {client} --home {_near(home)}/sites --site hospital-a check\n"
        f"  {client} --home {_near(home)}/sites --site hospital-a plan show --html plan.html\n"
        f"  {client} --home {_near(home)}/sites --site hospital-a audit\n"
        f"  {client} --home {_near(home)}/sites --site hospital-a report",
        markup=False,
    )


def _accounted(logs: list[dict[str, Any]]) -> str:
    """Whether the sites' audit logs name every byte that the server received."""
    logged, counted = (sum(log[key] for log in logs) for key in ("bytes_logged", "bytes_counted"))
    lines = sum(log["lines"] for log in logs)
    return f"audit logs of the sites: {lines} lines, {logged:,} bytes logged as sent, {counted:,} counted at the server"


def _near(path: Path) -> str:
    """Relative to where the reader stands, if that is shorter."""
    return min(str(path), os.path.relpath(path), key=len)
