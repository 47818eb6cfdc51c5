"""A real Prometheus on loopback, with the shipped configuration at other ports and at shorter intervals."""

import math
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.ops.shipped import RULES, prometheus
from tests.ops.tools import DEPLOY
from tests.processes.harness import free_ports, until

EVERY = "500ms"


class Scraper:
    """A context manager; ``targets`` are the ports by job name, then by the site's name."""

    def __init__(self, program: str, folder: Path, targets: Mapping[str, Mapping[str, int]]) -> None:
        self._program, self._folder = program, folder
        (self._port,) = free_ports(1)
        shipped = [prometheus(name) for name in RULES]
        jobs = [job for one in shipped for job in one["scrape_configs"]]
        for job in jobs:
            (labelled,) = job["static_configs"]
            job["static_configs"] = [
                labelled
                | {"targets": [f"127.0.0.1:{port}"]}
                | ({"labels": {"site": site}} if "labels" in labelled else {})
                for site, port in targets[job["job_name"]].items()
            ]
        rules = [str(DEPLOY / "prometheus" / file) for one in shipped for file in one["rule_files"]]
        every = {"scrape_interval": EVERY, "evaluation_interval": EVERY}
        self._configuration = folder / "prometheus.yml"
        self._configuration.write_text(yaml.safe_dump({"global": every, "rule_files": rules, "scrape_configs": jobs}))

    def __enter__(self) -> "Scraper":
        log = (self._folder / "prometheus.log").open("wb")
        command = [
            self._program,
            f"--config.file={self._configuration}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self._port}",
        ]
        with log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        self.since = time.time()
        until("Prometheus is ready", self._ready)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(30)

    def _ready(self) -> bool:
        assert self._process.poll() is None, (self._folder / "prometheus.log").read_text()
        try:
            return httpx.get(self._url("/-/ready"), trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def _url(self, path: str) -> str:
        return f"http://127.0.0.1:{self._port}{path}"

    def ask(self, path: str, **query: str | float) -> Any:
        """The data of an answer of its interface."""
        answer = httpx.get(self._url(f"/api/v1/{path}"), params=query, trust_env=False, timeout=30).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def samples(self, query: str) -> list[float]:
        """What a query has told at any time since Prometheus's start, once a second; finite numbers alone."""
        found = self.ask("query_range", query=query, start=self.since, end=time.time(), step=1)["result"]
        values = (float(value) for series in found for _, value in series["values"])
        return [value for value in values if math.isfinite(value)]

    def alerts(self, state: str) -> set[str]:
        """Names of the alerts that are ``pending`` or ``firing``."""
        return {alert["labels"]["alertname"] for alert in self.ask("alerts")["alerts"] if alert["state"] == state}
