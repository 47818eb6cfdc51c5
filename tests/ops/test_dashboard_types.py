"""The dashboards against Grafana's own types: the TypeScript that Grafana is written with, and its SDK for Python."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from tests.ops.shipped import DASHBOARDS, dashboard
from tests.ops.tools import only_test_ops, told, tool

SCHEMA = Path(__file__).parent / "schema"
COMPILE = ("--noEmit", "--strict", "--skipLibCheck", "--module", "esnext", "--moduleResolution", "bundler")


@pytest.fixture(scope="module")
def types(pytestconfig: pytest.Config) -> Path:
    """A folder with @grafana/schema and a compiler, as the lock file names them by hash; made once."""
    npm = tool("npm", "npm")
    tool("node", "nodejs")
    assert pytestconfig.cache is not None
    folder = pytestconfig.cache.mkdir("grafana-schema")
    lock = (SCHEMA / "package-lock.json").read_text()
    made_of = folder / "made-of.json"
    for file in SCHEMA.iterdir():
        shutil.copy(file, folder)
    if not made_of.exists() or made_of.read_text() != lock:
        told(npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", cwd=folder)
        made_of.write_text(lock)
    return folder


def compiled(folder: Path, made: dict[str, Any]) -> str:
    """What the compiler says of a dashboard."""
    file = folder / "made.ts"
    file.write_text(
        f"import type {{ Written }} from './dashboard';\nexport const made: Written = {json.dumps(made)};\n"
    )
    return told("node_modules/.bin/tsc", *COMPILE, file.name, cwd=folder)


@only_test_ops
@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_is_one_by_grafanas_types(name: str, types: Path) -> None:
    assert compiled(types, dashboard(name)) == ""


@only_test_ops
def test_the_types_are_looked_at(types: Path) -> None:
    made = dashboard(DASHBOARDS[0])
    made["panels"][1]["gridPos"]["w"] = "wide"
    with pytest.raises(AssertionError, match=r"'string' is not assignable to type 'number'"):
        compiled(types, made)


@pytest.mark.parametrize("name", DASHBOARDS)
def test_grafanas_sdk_reads_a_dashboard_and_loses_none_of_it(name: str) -> None:
    made = dashboard(name)
    again = json.loads(JSONEncoder().encode(Dashboard.from_json(made)))
    assert lost(made, again) == []


def lost(made: Any, again: Any, path: str = "") -> list[str]:
    """Where ``again`` lacks something of ``made``, or has something else."""
    if isinstance(made, dict) and isinstance(again, dict):
        return [place for key, value in made.items() for place in lost(value, again.get(key), f"{path}.{key}")]
    if isinstance(made, list) and isinstance(again, list) and len(made) == len(again):
        return [place for at, value in enumerate(made) for place in lost(value, again[at], f"{path}[{at}]")]
    return [] if made == again else [path]
