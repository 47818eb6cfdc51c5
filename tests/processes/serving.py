"""A real ``nexus-client serve`` on a port of its own, and what tests ask of it."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
from nexus_client.site import SiteHome

from tests.processes.harness import until

OUTSIDE = Path(__file__).resolve().parents[2] / ".venv-outside" / "bin" / "python"
BIN = Path(sys.executable).parent


class Serving:
    """The process; a context manager that ends it."""

    def __init__(self, place: SiteHome, *options: str, token: str | None = None) -> None:
        self.place, self._log = place, place.settings_folder / "serve.log"
        command = [str(BIN / "nexus-client"), "--home", str(place.settings_folder.parent), "--site", place.site]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "serve", "--port", "0", *options],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=os.environ,
            )
        self.port = int(until("serve is up", self._port))
        head = {"Authorization": f"Bearer {token}"} if token else {}
        self.http = httpx.Client(base_url=self.url, headers=head, timeout=60, trust_env=False)
        until("it answers", self._healthy)

    def __enter__(self) -> "Serving":
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        self.process.kill()
        self.process.wait()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def _port(self) -> str | None:
        assert self.process.poll() is None, self.log
        found = re.search(r"is served at http://\S+:(\d+),", self.log)
        return found[1] if found else None

    def _healthy(self) -> bool:
        try:
            return self.http.get("/healthz").status_code == 200
        except httpx.TransportError:
            return False

    def embed(self, texts: Any, model: str = "nexus", **more: Any) -> Any:
        """The JSON of a good answer."""
        done = self.http.post("/v1/embeddings", json={"input": texts, "model": model} | more)
        assert done.status_code == 200, done.text
        return done.json()

    def search(self, query: str, k: int = 5) -> Any:
        """The JSON of a good answer."""
        done = self.http.get("/search", params={"q": query, "k": k})
        assert done.status_code == 200, done.text
        return done.json()

    def has_index(self) -> bool:
        """Whether search answers yet."""
        return self.http.get("/search", params={"q": "x"}).status_code == 200

    def outside(self, script: str) -> str:
        """What a program without NEXUS prints; it has the address in ``URL``."""
        done = subprocess.run(
            [str(OUTSIDE), "-c", script],
            env=os.environ | {"URL": f"{self.url}/v1", "NO_PROXY": "127.0.0.1"},
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout
