"""The rules for Prometheus: valid, each alert explained, and each shown to fire and not to."""

import re
from pathlib import Path

import pytest
import yaml
from nexus_common.errors import REFUSALS

from tests.ops.alert_cases import OF_SERVER, OF_SITE, Fires, Not
from tests.ops.shipped import METRIC, RULES, alerts, prometheus, rules
from tests.ops.tools import DEPLOY, told, tool
from tests.processes.metrics_table import rows

LONG_EVERY = 5
CASES = {"server": OF_SERVER, "site": OF_SITE}
ALERTS = [pytest.param(alert, id=name) for file in RULES for name, alert in alerts(file).items()]


@pytest.mark.parametrize("name", RULES)
def test_promtool_takes_configuration_and_rules(name: str) -> None:
    promtool = tool("promtool", "prometheus")
    told(promtool, "check", "config", DEPLOY / "prometheus" / f"{name}.yml")
    told(promtool, "check", "rules", "--lint=all", "--lint-fatal", DEPLOY / "prometheus" / f"{name}.rules.yml")


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("every_minutes", [1, LONG_EVERY])
def test_each_alert_fires_and_does_not(name: str, every_minutes: int, tmp_path: Path) -> None:
    promtool = tool("promtool", "prometheus")
    shipped = alerts(name)
    groups = [
        {
            "name": f"{alert}: {case.told}",
            "interval": "1m",
            "input_series": [{"series": one, "values": values} for one, values in case.series.items()],
            "alert_rule_test": [
                {"eval_time": f"{case.minutes}m", "alertname": alert, "exp_alerts": _expected(shipped[alert], case)}
            ],
        }
        for alert, cases in CASES[name].items()
        for case in cases
        if every_minutes == _every(case)
    ]
    assert groups
    file = tmp_path / "cases.yml"
    rule_file = str(DEPLOY / "prometheus" / f"{name}.rules.yml")
    tests = {"rule_files": [rule_file], "evaluation_interval": f"{every_minutes}m", "tests": groups}
    file.write_text(yaml.safe_dump(tests))
    told(promtool, "test", "rules", file)


def _every(case: Fires | Not) -> int:
    """Rules are evaluated seldom in the longest cases, to save time."""
    return LONG_EVERY if case.minutes > 600 else 1


def _expected(alert: dict[str, dict[str, str]], case: Fires | Not) -> list[dict[str, dict[str, str]]]:
    if isinstance(case, Not):
        return []
    annotations = alert["annotations"] | {"summary": case.summary}
    return [{"exp_labels": alert["labels"] | case.labels, "exp_annotations": annotations}]


@pytest.mark.parametrize("name", RULES)
def test_no_alert_is_without_a_case_of_both_kinds(name: str) -> None:
    kinds = {alert: {type(case) for case in cases} for alert, cases in CASES[name].items()}
    assert kinds == {alert: {Fires, Not} for alert in alerts(name)}


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_has_a_severity_a_summary_a_description_and_its_section(alert: dict[str, dict[str, str]]) -> None:
    assert alert["labels"].keys() == {"severity"}
    assert alert["labels"]["severity"] in ("warning", "critical")
    told_of = alert["annotations"]
    assert told_of.keys() == {"summary", "description", "runbook"}
    assert re.fullmatch(r"[A-Z][^{]{30,}\.", told_of["description"])
    assert told_of["runbook"] == f"deploy/README.md#{str(alert['alert']).lower()}"


@pytest.mark.parametrize("name", RULES)
def test_rules_ask_for_metrics_and_labels_that_exist_and_for_jobs_that_are_scraped(name: str) -> None:
    table = rows("server") | rows("client")
    (job,) = [job["job_name"] for job in prometheus(name)["scrape_configs"]]
    recorded = {rule["record"] for rule in rules(name) if "record" in rule}
    for rule in rules(name):
        names = METRIC.findall(rule["expr"])
        assert all(one.removesuffix("_bucket") in table for one in names)
        assert set(re.findall(r"\w+:[\w:]+", rule["expr"])) <= recorded
        assert set(re.findall('job="(.*?)"', rule["expr"])) <= {job}
        values = {
            value
            for one in names
            for some in table[one.removesuffix("_bucket")].labels.values()
            for value in some or ()
        }
        for label, told_values in re.findall(r'(\w+)(?:=~?|!~)"(.*?)"', rule["expr"]):
            if names and label != "job":
                known = REFUSALS.keys() if label == "code" else values
                assert set(told_values.split("|")) <= known, f"{label} is never that"


def test_debians_prometheus_is_kept_on_loopback_before_it_starts() -> None:
    commands = (DEPLOY / "README.md").read_text()
    before, _, after = commands.partition("apt-get install --no-install-recommends prometheus\n")
    assert after
    assert "deploy/prometheus/loopback.conf /etc/systemd/system/prometheus.service.d/" in before
    dropped_in = (DEPLOY / "prometheus" / "loopback.conf").read_text()
    assert "\nExecStart=\nExecStart=/usr/bin/prometheus --web.listen-address=127.0.0.1:9090 $ARGS\n" in dropped_in
