"""``deploy/METRICS.md`` as data, and what differs between it and what a program exposes."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

TABLE = Path(__file__).resolve().parents[2] / "deploy" / "METRICS.md"
ROW = re.compile(r"^\| `(nexus_(?:server|client)_\w+)` \| (\w+) \|(.*?)\| (.*?) \| (.+?) \|$", re.MULTILINE)
LABEL = re.compile(r"`(\w+)`(?: \(([^)]*)\))?")


@dataclass(frozen=True)
class Row:
    """A metric: its labels with the values that each may have, None where the table leaves them open."""

    kind: str
    labels: Mapping[str, frozenset[str] | None]
    always: bool


def rows(program: str) -> dict[str, Row]:
    """The metrics of ``server`` or ``client`` by name."""
    found = {}
    for name, kind, labels, there, _ in ROW.findall(TABLE.read_text()):
        values = {label: frozenset(some.split(", ")) if some else None for label, some in LABEL.findall(labels)}
        found[name] = Row(kind, values, not there.startswith("where"))
    return {name: row for name, row in found.items() if name.startswith(f"nexus_{program}_")}


def differences(program: str, text: str, known: Mapping[str, Collection[str]]) -> list[str]:
    """What is exposed otherwise than the table says; ``known`` has the values of open labels in this run."""
    table, seen, wrong = rows(program), set[str](), list[str]()
    for family in text_string_to_metric_families(text):
        name = family.name + "_total" * (family.type == "counter")
        row = table.get(name)
        if row is None or row.kind != family.type or not family.documentation:
            wrong.append(f"{name} ({family.type}: {family.documentation}) is not in the table as such")
            continue
        for sample in family.samples:
            seen.add(name)
            labels = {label: value for label, value in sample.labels.items() if label != "le"}
            if labels.keys() != row.labels.keys():
                wrong.append(f"{sample.name} has labels {sorted(labels)}, not {sorted(row.labels)}")
            for label, value in labels.items():
                if value not in (row.labels.get(label) or known[label]):
                    wrong.append(f"{sample.name} has {label}={value!r}")
    return wrong + [f"{name} is missing" for name, row in table.items() if row.always and name not in seen]
