"""The state of a run in words: what it waits for, and that nothing is lost."""

import time

import pytest
from nexus_server.admin_api import Status
from nexus_server.words import sentence

RUNNING = {"run": "first", "state": "running", "round": 4, "rounds": 9, "quorum": 3, "sites": 4}
JUST = time.time() + 86_400  # not long ago, whenever these tests run


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ({}, "no run yet: nexus-server plan new, plan propose, train"),
        ({"wanted": "first", "approvals_missing": ("a", "b")}, "plan first waits for the approval of a, b"),
        (RUNNING, "run first: running, 4 of 9 rounds done"),
        (RUNNING | {"state": "finished", "round": 9}, "run first: finished, 9 of 9 rounds done"),
        (RUNNING | {"phase": "waiting", "missing": ("a", "b")}, "waiting for a, b since "),
        (RUNNING | {"phase": "waiting", "missing": ("a",)}, "with 4 sites 3 are needed; nothing is lost"),
        (RUNNING | {"phase": "waiting", "sites": 3}, "with 3 sites nobody can be spared; nothing is lost"),
        (RUNNING | {"phase": "gathering", "missing": ("b",)}, "enough sites are ready, giving b a moment to come"),
        (RUNNING | {"phase": "recalling", "missing": ("b",)}, " to hear from b which versions the sites hold"),
        (RUNNING | {"phase": "recalling", "state": "finished"}, "finished, 4 of 9 rounds done; restored from a backup"),
        (RUNNING | {"phase": "resting"}, "resting until the plan's hours begin"),
        (
            RUNNING | {"phase": "opening", "missing": ("b",)},
            "for what b can give to open the round's sum; nothing",
        ),
        (
            RUNNING | {"state": "stopped", "spent": True},
            "all masked inputs that its plan allows are spent: nexus",
        ),
        (RUNNING | {"failures": {"a": "refused: paused"}}, "; the last try: a refused: paused (the site has paused"),
        (RUNNING | {"state": "stopped", "failures": {"": "x", "b": "y"}}, "4 of 9 rounds done; the last try: x; b y"),
        (RUNNING | {"cohort": ("a", "b", "c"), "round_seconds": (9.0, 1.25)}, "last round with a, b, c, 1.2 s"),
        (RUNNING | {"phase": "training", "missing": ("d",), "phase_since": JUST}, "done; goes on without d"),
        (RUNNING | {"phase": "training", "missing": ("d",)}, "; round 5: its sites train since "),
        (RUNNING | {"phase": "adding"}, "4 of 9 rounds done; round 5: its masked updates are collected since "),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_status_reads_as_a_sentence(status: dict[str, object], said: str) -> None:
    assert said in sentence(Status.model_validate(status))


def test_a_plan_that_waits_is_told_beside_the_run_that_goes_on() -> None:
    run, waits = sentence(Status.model_validate(RUNNING | {"wanted": "second", "approvals_missing": ("b",)})).split(
        "\n"
    )
    assert run.startswith("run first: running")
    assert waits.startswith("plan second waits for the approval of b")
