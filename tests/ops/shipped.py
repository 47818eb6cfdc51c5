"""What ``deploy/`` ships for Prometheus and Grafana, as data."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from tests.ops.tools import DEPLOY

DASHBOARDS = ("nexus-consortium", "nexus-site")
RULES = ("server", "site")
METRIC = re.compile(r"\bnexus_(?:server|client)_\w+")  # not what rules record: that has a colon
NOT_YET = {"nexus_server_privacy_epsilon_spent"}
"""What a panel asks for, and this release does not expose: without training with differential privacy there is none."""

HERE = {'{phase="opening"}': '{phase="waiting"}'}
"""A phase that a federation that is well is not seen in, and one that it is."""


@dataclass(frozen=True)
class Query:
    """One question to Prometheus, and where it is asked."""

    place: str
    text: str


def dashboard(name: str) -> dict[str, Any]:
    """The committed JSON."""
    found: dict[str, Any] = json.loads((DEPLOY / "grafana" / "dashboards" / f"{name}.json").read_text())
    return found


def panels(name: str) -> list[dict[str, Any]]:
    """All but the rows' titles."""
    return [panel for panel in dashboard(name)["panels"] if panel["type"] != "row"]


def asked() -> Iterator[Query]:
    """Every query of every panel, with Grafana's variables filled in as Grafana does."""
    filled = {"$__rate_interval": "1m", "$__range": "1h", "$instance": ".*", "$site": ".*"}
    for name in DASHBOARDS:
        for panel in panels(name):
            for target in panel["targets"]:
                text = target["expr"]
                for variable, value in filled.items():
                    text = text.replace(variable, value)
                yield Query(f"{name}: {panel['title']} {target['refId']}", text)


def prometheus(name: str) -> dict[str, Any]:
    """A YAML file of ``deploy/prometheus``."""
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "prometheus" / f"{name}.yml").read_text())
    return found


def rules(name: str) -> list[dict[str, Any]]:
    """The rules of ``server`` or ``site``."""
    return [rule for group in prometheus(f"{name}.rules")["groups"] for rule in group["rules"]]


def alerts(name: str) -> dict[str, dict[str, Any]]:
    """Of them the alerts, by name."""
    return {rule["alert"]: rule for rule in rules(name) if "alert" in rule}


def measured() -> Iterator[Query]:
    """What every rule looks at, whether it fires or not.

    Each part between ``and``, ``or`` and ``unless`` on its own, with comparisons that answer 0 or 1 in place of
    nothing, a series in place of its absence, and a phase that is seen in place of one that is not.
    """
    for name in RULES:
        for rule in rules(name):
            expression = re.sub(r"^absent\((.*)\)$", r"\1", rule["expr"])
            for never, seen in HERE.items():
                expression = expression.replace(never, seen)
            parts = re.split(r"\s+(?:and|or|unless)\b(?:\s+on \([\w, ]+\))?\s+", expression)
            for number, part in enumerate(parts):
                told = f"{rule.get('alert') or rule['record']} {number}"
                yield Query(told, re.sub(r"(?<=\s)(==|<=|>=|<|>)(?=\s)", r"\1 bool", part))
