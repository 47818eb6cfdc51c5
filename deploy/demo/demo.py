"""`make demo`: a real federation on this machine, in four processes, each site with its own folder, keys and text.

Everything it shows comes from the programs themselves (`--json`); it starts, asks, prints, and stops them.
"""

import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
HOME = ROOT / ".demo"
BIN = Path(sys.executable).parent
SITES = {
    "hospital-a": HERE / "hospital-a" / "questions.jsonl",
    "hospital-b": HERE / "hospital-b" / "faq.csv",
    "bank-a": HERE / "bank-a" / "handbook",
}
console = Console(highlight=False, width=110)


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def command(program: str, *args: str) -> list[str]:
    """A command line on the demo's folders."""
    home = HOME / "server" if program == "nexus-server" else HOME / "sites"
    return [str(BIN / program), "--home", str(home), *args]


def ask(program: str, *args: str, stdin: str | None = None) -> dict:
    """Run a command with --json and return what it printed; stop the demo with its error where it fails."""
    done = subprocess.run(command(program, "--json", *args), capture_output=True, text=True, input=stdin, check=False)
    if done.returncode:
        sys.exit(done.stderr.strip() or f"{program} {' '.join(args)} failed ({done.returncode})")
    return json.loads(done.stdout)


def start(program: str, log: Path, *args: str) -> subprocess.Popen:
    """Start a program that runs until it is stopped."""
    with log.open("w") as file:
        return subprocess.Popen(
            command(program, *args), stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )


class Elsewhere:
    """Remote addresses other than loopback that the demo's processes were seen connected to (looked at often)."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def look(self, processes: list[subprocess.Popen]) -> None:
        """Add what is connected now."""
        for process in processes:
            try:
                found = psutil.Process(process.pid).net_connections(kind="inet")
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            self.seen |= {c.raddr.ip for c in found if c.raddr and c.raddr.ip not in ("127.0.0.1", "::1")}


def step(text: str) -> None:
    """One line of what happens now."""
    console.print(f"[bold]-[/bold] {text}")


def enrol(processes: list[subprocess.Popen]) -> None:
    """Server up, three sites enrolled by one pasted line each, three agents up."""
    step("nexus-server init: state folder, keys and the consortium's certificate authority")
    port, enrol_port = free_ports(2)
    ask(
        "nexus-server",
        "init",
        "--name",
        "demo",
        "--address",
        f"127.0.0.1:{port}",
        "--enrol-address",
        f"127.0.0.1:{enrol_port}",
    )
    processes.append(start("nexus-server", HOME / "server.log"))
    until("the server is up", (HOME / "server" / "admin.sock").exists, processes)
    for site, data in SITES.items():
        line = ask("nexus-server", "invite", site)["line"]
        ask("nexus-client", "join", "--data", str(data), stdin=line + "\n")
        step(f"{site} joined with one pasted line; its text: {data.relative_to(ROOT)}")
    share_processors()
    processes += [start("nexus-client", HOME / f"{site}.log", "--site", site) for site in SITES]


def share_processors() -> None:
    """Three sites on one machine: fewer threads each than a site of its own would use."""
    threads = max(1, (os.cpu_count() or 1) // 2)
    for site in SITES:
        settings = HOME / "sites" / site / "site.toml"
        text = settings.read_text().replace(f"cpu_threads = {os.cpu_count()}", f"cpu_threads = {threads}")
        settings.write_text(text)


def until(what: str, good, processes: list[subprocess.Popen], seconds: float = 60) -> None:
    """Wait; stop the demo with the log of a process that ended."""
    end = time.monotonic() + seconds
    while not good():
        for process in processes:
            if process.poll() is not None:
                sys.exit(f"{' '.join(process.args)} ended with {process.returncode}; see {HOME}/*.log")
        if time.monotonic() > end:
            sys.exit(f"timed out: {what}; see {HOME}/*.log")
        time.sleep(0.1)


def train(processes: list[subprocess.Popen], elsewhere: Elsewhere) -> dict:
    """Start the run and show its rounds as they are made."""
    step("nexus-server train deploy/demo/plan.toml: each site embeds its own text once, then ten rounds")
    status = ask("nexus-server", "train", "--detach", str(HERE / "plan.toml"))
    shown, end = -1, time.monotonic() + 900
    while status["state"] == "running":
        if status["round"] != shown and status["round"] > 0:
            shown = status["round"]
            console.print(
                f"    round {shown:2} of {status['rounds']}: {len(status['cohort'])} sites, "
                f"{status['round_seconds'][-1]:.1f} s"
            )
        elsewhere.look(processes)
        until("the round", lambda: True, processes)
        if time.monotonic() > end:
            sys.exit(f"the run did not end within 15 minutes; see {HOME}/*.log")
        time.sleep(0.2)
        status = ask("nexus-server", "status")
    until(
        "every site has the last version",
        lambda: all(ask("nexus-client", "status", "--site", site)["version"] == status["round"] for site in SITES),
        processes,
    )
    return status


def mean_of(report: dict, model: str) -> float:
    """nDCG@10 of one model, from a site's own evaluation."""
    return next(line["mean"] for line in report["lines"] if line["model"] == model and line["metric"] == "nDCG@10")


def quality_table(reports: list[dict]) -> Table:
    """All sites and models on one screen."""
    table = Table(title="nDCG@10 x 100 on questions no training saw, with 95 % interval", title_justify="left")
    for name in ("site", "questions", "keyword (BM25)", "base", "alone", "federated", "federated against base"):
        table.add_column(name, justify="left" if name == "site" else "right")
    for report in reports:
        lines = {line["model"]: line for line in report["lines"] if line["metric"] == "nDCG@10"}
        cells = [
            f"{100 * lines[m]['mean']:.1f} ({100 * lines[m]['low']:.0f}-{100 * lines[m]['high']:.0f})"
            for m in ("keyword", "base", "alone", "federated")
        ]
        table.add_row(report["site"], str(lines["base"]["questions"]), *cells, lines["federated"]["against_base"] or "")
    return table


def examples(reports: list[dict]) -> None:
    """Two questions that the federated model finds better, as each site's own evaluation names them."""
    console.print("\nTwo of the questions that improved most, and where the right passage stood before and after:")
    found = [dict(example, site=report["site"]) for report in reports for example in report["examples"]]
    for example in sorted(found, key=lambda e: e["rank_after"] - e["rank_before"])[:2]:
        console.print(f'  {example["site"]}: "{example["question"]}"', markup=False)
        console.print(f"    {example['passage'][:160]}", markup=False)
        console.print(f"    rank {example['rank_before']} with the base model, rank {example['rank_after']} federated")


def summary(reports: list[dict], status: dict, seconds: float) -> dict:
    """What is written to .demo/summary.json."""
    sites = [
        {
            "site": report["site"],
            "rows": report["rows"],
            "questions": next(line["questions"] for line in report["lines"] if line["metric"] == "nDCG@10"),
            "ndcg10_before": mean_of(report, "base"),
            "ndcg10_after": mean_of(report, "federated"),
            "ndcg10_alone": mean_of(report, "alone"),
            "ndcg10_bm25": mean_of(report, "keyword"),
        }
        for report in reports
    ]
    return {
        "sites": sites,
        "rounds": status["round"],
        "seconds_install_excluded": round(seconds, 1),
        "round_seconds_median": round(statistics.median(status["round_seconds"]), 3),
        "bytes_up_per_site_round": status["bytes_up_per_site_round"],
    }


def main() -> None:
    """The whole demonstration."""
    began = time.monotonic()
    if HOME.exists():
        shutil.rmtree(HOME)
    (HOME / "sites").mkdir(parents=True)
    processes: list[subprocess.Popen] = []
    elsewhere = Elsewhere()
    console.print("[bold]NEXUS demo[/bold]: two hospitals and a bank improve one search model; no text leaves a site\n")
    try:
        enrol(processes)
        status = train(processes, elsewhere)
        step("each site judges on its own hold-out: keyword search, base, alone, federated")
        reports = [ask("nexus-client", "evaluate", "--site", site) for site in SITES]
        elsewhere.look(processes)
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in reversed(processes):
            process.wait(20)
    result = summary(reports, status, time.monotonic() - began)
    (HOME / "summary.json").write_text(json.dumps(result, indent=2) + "\n")
    console.print()
    console.print(quality_table(reports))
    for note in sorted({warning for report in reports for warning in report["warnings"]}):
        console.print(f"note: {note}", markup=False)
    examples(reports)
    console.print(
        f"\nsent by each site a round: {result['bytes_up_per_site_round']:,} bytes, the change of the adapter's numbers"
    )
    console.print(f"connections elsewhere, looked at five times a second: {len(elsewhere.seen)}")
    console.print(
        f"{result['rounds']} rounds, median {result['round_seconds_median']} s; the whole demo "
        f"{result['seconds_install_excluded']} s; figures in .demo/summary.json"
    )
    console.print(
        "[bold]Not protected yet:[/bold] the server can read each site's update; both programs therefore stay on "
        "loopback until secure aggregation is in."
    )
    console.print(
        "\nTry next (in two terminals):\n"
        f"  {BIN}/nexus-server --home .demo/server\n"
        f"  {BIN}/nexus-server --home .demo/server models\n"
        f"  {BIN}/nexus-client --home .demo/sites --site hospital-a check\n"
        f"  {BIN}/nexus-client --home .demo/sites --site hospital-a evaluate",
        markup=False,
    )


if __name__ == "__main__":
    main()
