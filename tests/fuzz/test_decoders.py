"""Whatever bytes come, a decoder of ``decoders.py`` reads them or refuses as documented, soon and in little memory.

``NEXUS_FUZZ_EXAMPLES`` sets how many inputs each gets (`make fuzz` takes many more than `make test`).
"""

import contextlib
import os
import resource
import time
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings

from tests.fuzz.decoders import DECODERS
from tests.fuzz.mutations import inputs

EXAMPLES: Final = int(os.environ.get("NEXUS_FUZZ_EXAMPLES", "40"))
SECONDS: Final = 10.0  # for at most 64 KiB, on a machine that does other things too
MEGABYTES: Final = 200  # by which all inputs of a decoder may raise this process's highest memory


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.parametrize("name", DECODERS)
def test_something_is_read(name: str) -> None:
    decoder = DECODERS[name]
    read = []
    for seed in decoder.seeds():
        with contextlib.suppress(*decoder.refuses):
            read.append(decoder.decode(seed))
    assert read, "mutations begin at something good"


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", DECODERS)
def test_any_bytes_are_read_or_refused(name: str) -> None:
    decoder = DECODERS[name]
    seeds = decoder.seeds()
    for seed in seeds:
        decoder(seed)
    before = peak_megabytes()

    @settings(
        max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True, database=None
    )
    @given(inputs(seeds))
    def run(data: bytes) -> None:
        began = time.monotonic()
        decoder(data)
        assert time.monotonic() - began < SECONDS

    run()
    assert peak_megabytes() - before < MEGABYTES
