"""``make screenshots``: what people see of the demo that ran last, by a real Chromium, as deploy/screenshots/*.png."""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from nexus_client.site import SiteHome

from tests.chromium import CHROMIUM, Browser
from tests.processes.harness import until
from tests.processes.serving import BIN, Serving

ROOT: Final = Path(__file__).resolve().parents[1]
DEMO: Final = ROOT / ".demo"
PICTURES: Final = ROOT / "deploy" / "screenshots"
SITE: Final = "hospital-a"
WIDTH: Final = 1000
QUERY: Final = "blood clot test"


def main() -> None:
    """Take them all."""
    if CHROMIUM is None:
        sys.exit("chromium is not installed (apt-get install chromium)")
    if not (DEMO / "summary.json").exists():
        sys.exit(f"there is no demo in {DEMO}: make demo")
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, Browser(Path(folder) / "profile") as browser:
        browser.open(DEMO / "report.html", WIDTH)
        browser.picture(PICTURES / "report.png")
        plan = Path(folder) / "plan.html"
        command = [BIN / "nexus-client", "--home", DEMO / "sites", "--site", SITE, "plan", "show", "--html", plan]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        browser.open(plan, WIDTH)
        browser.picture(PICTURES / "plan.png")
        with Serving(SiteHome.find(DEMO / "sites", SITE)) as served:
            until("there is an index", served.has_index)
            browser.open(served.url + "/", WIDTH)
            browser.value(f"document.getElementById('q').value = {QUERY!r}; document.querySelector('button').click()")
            found = "document.getElementById('said').textContent.includes('found by')"
            until("it has found", lambda: browser.value(found) is True)
            browser.picture(PICTURES / "search.png")
    for picture in sorted(PICTURES.glob("*.png")):
        print(f"{picture.relative_to(ROOT)}: {picture.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
