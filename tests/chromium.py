"""A real Chromium without a window: how a page looks, as pixels and as boxes, over its DevTools pipe."""

import base64
import fcntl
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final, Literal

CHROMIUM: Final = shutil.which("chromium")
_OPTIONS: Final = (
    "--headless=new",
    "--no-sandbox",  # tests run as root where they run in a container
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",  # as on a phone
    "--remote-debugging-pipe",
)


class Browser:
    """One tab; a context manager that ends the process."""

    def __init__(self, profile: Path) -> None:
        (read, ours), (answers, write) = os.pipe(), os.pipe()
        theirs, tells = (fcntl.fcntl(one, fcntl.F_DUPFD, 10) for one in (read, write))  # chromium has them as 3 and 4
        command = ["bash", "-c", f'exec "$@" 3<&{theirs} 4>&{tells}', "bash", str(CHROMIUM), *_OPTIONS]
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen([*command, f"--user-data-dir={profile}"], pass_fds=(theirs, tells), **quiet)
        for one in (read, write, theirs, tells):
            os.close(one)
        self._to, self._from, self._number = os.fdopen(ours, "wb"), os.fdopen(answers, "rb"), 0
        self._session: str | None = None
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.ask("Page.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self._to.close()
        self._from.close()
        self._process.kill()
        self._process.wait()

    def ask(self, method: str, **parameters: Any) -> Any:
        """A command of the DevTools protocol, and its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._to.write(json.dumps(message).encode() + b"\0")
        self._to.flush()
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def _next(self) -> Any:
        data = bytearray()
        while (byte := self._from.read1(1)) != b"\0":
            assert byte, "chromium ended"
            data += byte
        return json.loads(data)

    def open(self, page: Path | str, width: int, scheme: Literal["light", "dark"] = "light") -> None:
        """Show a file, or what an address gives, in a window of this width."""
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        self.ask("Emulation.setDeviceMetricsOverride", **size)
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.ask("Page.navigate", url=page if isinstance(page, str) else page.absolute().as_uri())
        while self._next().get("method") != "Page.loadEventFired":
            pass

    def value(self, script: str) -> Any:
        """What an expression is in the page."""
        found = self.ask("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")  # none of undefined

    def picture(self, path: Path) -> Path:
        """The whole page as a PNG."""
        data = self.ask("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))
        return path
