"""``make bench``: how long nexus-server takes to start, and what it holds in memory, in real processes."""

import statistics
import time

import psutil
from nexus_common import rpc
from nexus_server.admin_api import SERVICE, Status
from nexus_server.settings import admin_socket

from tests.processes.harness import Federation

STARTS = 5


def answers(federation: Federation) -> bool:
    """Whether the server answers a command."""
    with rpc.channel(rpc.local_address(admin_socket(federation.home / "server"))) as channel:
        try:
            return rpc.call(channel, SERVICE, "status", rpc.Nothing(), Status, 1.0).run is None
        except ConnectionError:
            return False


def main() -> None:
    """Measure and print."""
    seconds, megabytes = list[float](), list[float]()
    with Federation() as federation:
        federation.init()
        for _ in range(STARTS):
            began = time.monotonic()
            process = federation.start("server", wait=False)
            while not answers(federation):
                time.sleep(0.01)
            seconds.append(time.monotonic() - began)
            megabytes.append(psutil.Process(process.pid).memory_info().rss / 1e6)
            federation.end("server")
    print(f"nexus-server, {STARTS} starts: median {statistics.median(seconds):.2f} s until it answers a command "
          f"(goal: under 2), {max(megabytes):.0f} MB resident (goal: under 200)")  # fmt: skip


if __name__ == "__main__":
    main()
