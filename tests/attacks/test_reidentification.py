"""Which sentences did a site train on?  A plain update tells, and a sum does; the masked input does not.

The demo's text through the real encoder, one local update a site, sent through the shipped state machines.  The recipe
is the attacker's best case: few rows, no dropout.  The attack on the plain update is the control.
"""

import hashlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from nexus_client.site import SiteHome, SiteSettings
from nexus_client.train import local_update
from nexus_client.workspace import Workspace
from nexus_common.layout import Layout

from tests.plans import make_plan
from tests.protocol.vectors import Tape

DEMO = Path(__file__).resolve().parent.parent.parent / "deploy" / "demo"
ROUNDS = 20  # of the same updates under other keys


@dataclass(frozen=True)
class Seen:
    """Findings of the attack in what hospital-a trained, in what it sent in each round, in the mean of three sites."""

    plain: Any
    sent: list[Any]
    total: Any
    error: float  # of the mean, in units of the codec


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    """``deploy/demo/reidentify.py``, which is in no package."""
    spec = importlib.util.spec_from_file_location("reidentify", DEMO / "reidentify.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["reidentify"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def workspace(name: str, folder: Path, holdout_share: float) -> Workspace:
    """A site of the demo with some of its text: a part of ``hospital-a``'s is held out."""
    if name == "bank-a":
        data = DEMO / name / "handbook" / "cards.md"
    else:
        source, lines = ("questions.jsonl", 240) if name == "hospital-a" else ("faq.csv", 91)
        data = folder / source
        data.write_text("".join((DEMO / name / source).read_text().splitlines(keepends=True)[:lines]))
    fields = {"site": name, "server": "127.0.0.1:1", "data": [{"path": str(data)}], "holdout_share": holdout_share}
    settings = SiteSettings.model_validate(fields, strict=False)
    return Workspace(SiteHome(name, folder, folder / "state"), settings)


@pytest.fixture(scope="module")
def seen(demo: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """Three sites train on the first model and are summed; an attack on all that was to be seen."""
    names, layout = ("bank-a", "hospital-a", "hospital-b"), Layout()
    local = {"steps": 30, "dropout": 0.0, "batch_rows": 32, "corpus_negatives": 16}
    plan = make_plan(names, adapter={"salience": False}, local=local)
    assert plan.adapter.layout == layout
    first, (protocol,) = layout.first_vector(plan.adapter.seed_bytes), plan.protocol_plans
    updates, vectors = [], []
    for number, name in enumerate(names):
        site = workspace(name, tmp_path_factory.mktemp(name), 0.5 if name == "hospital-a" else 0)
        readied, rng = site.ready(plan), np.random.default_rng(number)
        updates.append(local_update(layout, first, readied.tasks, readied.states, plan.local, rng))
        vectors.append(np.append(updates[-1], np.zeros(protocol.dim - layout.dim)))  # behind it no figures
        if name == "hospital-a":
            sides = site.material.train, site.material.choose + site.material.judge
            both, pick = [demo.rows_of(site, side) for side in sides], np.random.default_rng(0)
            members, others = (pick.permutation(rows)[: min(map(len, both))] for rows in both)
    sent, mean = list[np.ndarray](), np.empty(0)
    for number in range(ROUNDS):
        tape = Tape(hashlib.sha256(b"re-identification %d" % number).digest())
        inputs, mean = demo.masked_round(protocol, vectors, tape)
        sent.append(inputs[names.index("hospital-a")][: layout.dim])
    assert len({one.tobytes() for one in sent}) == ROUNDS
    error = float(np.abs(mean - np.stack(vectors).mean(axis=0)).max()) * protocol.q / protocol.range
    all_seen = [updates[names.index("hospital-a")], mean[: layout.dim], *sent]
    plain, total, *masked = demo.attack(layout, first, all_seen, members, others, plan.local.temperature)
    return Seen(plain, masked, total, error)


def test_a_plain_update_gives_the_trained_sentences_away(seen: Seen) -> None:
    assert seen.plain.members >= 90
    assert seen.plain.found > max(seen.plain.high, 0.8 * seen.plain.members), seen.plain


def test_what_a_site_sends_tells_no_more_than_a_guess(seen: Seen) -> None:
    one, found = seen.sent[0], [each.found for each in seen.sent]
    assert one.low <= one.found <= one.high, one
    width = (one.high - one.low) / 2 / np.sqrt(ROUNDS)  # the masks are independent, so the mean is known better
    assert abs(np.mean(found) - one.chance) <= width, (one, found)


def test_the_sum_is_exact_and_leaks(seen: Seen) -> None:
    assert seen.error <= 1, "rounding alone"
    assert seen.total.found > seen.total.high, (
        f"{seen.total}: a leak less? then the specification's limits say too much"
    )
