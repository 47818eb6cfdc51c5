"""What a real server process holds while it aggregates: no site's vector, unless the site sends it bare."""

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nexus_common import certs, wire
from nexus_common.secagg import codec
from nexus_common.secagg.keys import signed

from tests.federation.sim import SimSite
from tests.federation.test_masked_search import Notes
from tests.processes.harness import Federation, until

pytestmark = pytest.mark.processes
SITES = ("bank-a", "bank-b", "hospital-a")


@pytest.fixture(scope="module")
def federation() -> Iterator[Federation]:
    with Federation() as made:
        made.found(*SITES)
        made.end("server")
        yield made


@pytest.mark.parametrize("masked", [True, False])
def test_no_single_vector_is_in_memory_flowers_messages_files_or_log(
    federation: Federation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, masked: bool
) -> None:
    notes, path, one_by_one = Notes(), tmp_path / "notes", threading.Lock()

    def encode(*args: Any) -> codec.Integers:
        with one_by_one:  # of three sites' threads: the file has all that was encoded before
            found = notes.encode(*args)
            path.write_text("\n".join(note.hex() for note in list(notes)))
        return found

    class Bare(SimSite):
        """Masks nothing."""

        def say(self, message: wire.Ask) -> wire.Message:
            made = super().say(message)
            if masked or not isinstance(made, wire.Masked):
                return made
            return wire.Masked(signed(self.key, made.vector[:50] + notes.newest))

    path.write_text("")
    program = [sys.executable, "-m", "tests.processes.searching_server", str(path)]
    federation.start("server", program=program)
    monkeypatch.setattr(codec, "encode", encode)
    plan = federation.plan("masked" if masked else "bare", SITES, rounds=1, adapter={"salience": False})
    for site in SITES:
        kind = Bare if site == "bank-b" else SimSite
        federation.link(site, kind(site, plan, certs.load_identity(federation.keys(site) / "identity.key")))
    federation.train(plan, approved_by=())
    until("a round was searched", lambda: "searched at open" in federation.own_log("server"))
    federation.rest()
    for site in SITES:
        federation.unlink(site)
    federation.end("server")
    lines = [line for line in federation.own_log("server").splitlines() if line.startswith("searched at ")]
    assert any(line.endswith("found: True") for line in lines) != masked
    sought = [note[::-1] for note in notes]
    files = [file for file in (federation.home / "server").rglob("*") if file.is_file()]
    assert len(sought) >= 27
    assert not any(note in data for data in map(Path.read_bytes, files) for note in sought)
    assert "registry.sqlite" in {file.name for file in files}
