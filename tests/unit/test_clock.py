"""The server's clock is believed only as far as a time can be written down."""

import time

import httpx
import pytest
from nexus_client.clock import ServerClock


@pytest.mark.parametrize(
    "date", ["Fri, 31 Dec 9999 23:59:59 -0100", "Fri, 31 Dec 9999 23:59:59 -0000", "Mon, 1 Jan 1900 00:00:00 GMT", "x"]
)
def test_no_date_line_ends_the_signing_of_times(date: str) -> None:
    clock = ServerClock()
    clock.measure(httpx.Response(200, headers={"date": date}))
    assert abs(clock.now().timestamp() - time.time()) < 60
