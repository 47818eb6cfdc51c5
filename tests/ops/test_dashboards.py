"""The dashboards as files: made from their program, and every panel says what it asks, in which unit, and of what."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.ops.shipped import DASHBOARDS, METRIC, NOT_YET, asked, dashboard, panels
from tests.ops.tools import DEPLOY
from tests.processes.metrics_table import TABLE, Row, rows

GRAFANA = DEPLOY / "grafana"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
OF_PROMETHEUS = {"up", "ALERTS"}
PANELS = [pytest.param(panel, id=f"{name}: {panel['title']}") for name in DASHBOARDS for panel in panels(name)]
QUERIES = [pytest.param(query.text, id=query.place) for query in asked()]


def test_the_committed_dashboards_are_what_their_program_writes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, GRAFANA / "generate.py", tmp_path], check=True, capture_output=True)
    for name in DASHBOARDS:
        committed = (GRAFANA / "dashboards" / f"{name}.json").read_text()
        assert (tmp_path / f"{name}.json").read_text() == committed, "run `make dashboards`"
    assert {path.stem for path in (GRAFANA / "dashboards").iterdir()} == set(DASHBOARDS)


@pytest.mark.parametrize("name", DASHBOARDS)
def test_titles_and_numbers_of_panels_are_their_own_and_none_lies_on_another(name: str) -> None:
    found = panels(name)
    assert max(Counter(panel["title"] for panel in found).values()) == 1
    assert max(Counter(panel["description"] for panel in found).values()) == 1
    numbers = [panel["id"] for panel in dashboard(name)["panels"]]
    assert sorted(set(numbers)) == numbers
    taken = Counter(
        (x, y)
        for place in (panel["gridPos"] for panel in dashboard(name)["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    )
    assert max(taken.values()) == 1
    assert {x for x, _ in taken} == set(range(24))


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_asks_a_question_explains_it_and_has_a_unit_and_words_for_nothing(panel: dict[str, Any]) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    assert panel["title"].endswith("?")
    assert re.fullmatch(r"[A-Z].{30,}\.", panel["description"])
    assert defaults["unit"]
    assert defaults["noValue"]
    assert panel["datasource"] == SOURCE
    assert panel["targets"]
    for target in panel["targets"]:
        assert target["datasource"] == SOURCE
        assert target.get("instant", False) != target.get("range", False)
        for label in re.findall(r"{{(\w+)}}", target["legendFormat"]):
            known = any(label in _row(metric).labels for metric in METRIC.findall(target["expr"]))
            assert known or label in target["expr"], "the legend names a label that the query does not have"


def _row(metric: str) -> Row:
    return rows(metric.split("_")[1])[metric.removesuffix("_bucket")]


@pytest.mark.parametrize("text", QUERIES)
def test_a_query_asks_for_metrics_that_exist_and_for_counters_as_rates(text: str) -> None:
    assert "$" not in text
    names = set(METRIC.findall(text))
    assert names - NOT_YET or any(re.search(rf"\b{name}\b", text) for name in OF_PROMETHEUS | NOT_YET)
    kept = re.findall(r"`(\w+)` \| counter .*\*kept\*", TABLE.read_text())
    for name in names - NOT_YET:
        row = _row(name)
        if (row.kind == "counter" and name not in kept) or name.endswith("_bucket"):
            assert re.search(rf"\b(rate|increase)\({name}{{", text), f"{name} begins at 0 with the program"
        for label, value in re.findall(r'(\w+)="(\w+)"', text):
            assert value in (row.labels[label] or {value}), f"{name} never has {label}={value}"


def test_what_does_not_exist_yet_is_in_no_table() -> None:
    assert not NOT_YET & (rows("server").keys() | rows("client").keys()), "it exists now: take it off NOT_YET"


def test_grafana_is_told_where_its_datasource_and_its_dashboards_are() -> None:
    (source,) = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert (source["type"], source["access"], source["isDefault"]) == ("prometheus", "proxy", True)
    assert source["url"] == "http://127.0.0.1:9090"
    (provider,) = yaml.safe_load((GRAFANA / "provisioning" / "dashboards" / "nexus.yml").read_text())["providers"]
    assert provider["type"] == "file"
    assert provider["allowUiUpdates"] is False
    assert provider["options"]["path"] in (GRAFANA.parent / "README.md").read_text()
