"""A short run of chaos; ``make chaos SECONDS=1800`` is the long one."""

import pytest

from tests.chaos.chaos import Chaos
from tests.processes.harness import Federation

pytestmark = pytest.mark.processes


@pytest.mark.timeout(400)
def test_half_a_minute_of_chaos_loses_nothing() -> None:
    with Federation() as federation:
        chaos = Chaos(federation, seed=11)
        try:
            chaos.run(30)
        finally:
            chaos.close()
    assert sum(chaos.counts[event] for event in chaos.counts if event.startswith(("kill", "cut"))) >= 5
