"""``plan new`` proposes clip and range from a dry run on public text, made by the client's program beside this one.

The server has no torch and no model, so where the client is not installed the shipped values stand.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from nexus_common.errors import NexusError

DRY_RUN_SECONDS: Final = 600
NO_DRY_RUN: Final = (
    "no nexus-client is installed beside this program for a dry run (`nexus-client dry-run PLAN` measures)"
)


def dry_run(plan: str, base: Path | None) -> dict[str, float] | None:
    """``clip_norm`` and ``range`` for a plan's text, None without a client; NexusError where its dry run fails."""
    program = Path(sys.executable).parent / "nexus-client"
    if not program.exists():
        return None
    with tempfile.TemporaryDirectory(prefix="nexus-plan-") as folder:
        file = Path(folder) / "plan.toml"
        file.write_text(plan, encoding="utf-8")
        command = [str(program), "dry-run", str(file), "--json", *(["--base", str(base)] if base else [])]
        done = subprocess.run(command, capture_output=True, text=True, timeout=DRY_RUN_SECONDS, check=False)
    if done.returncode:
        raise NexusError(f"the dry run failed: {done.stderr.strip()[-500:]}; give --clip to go without")
    found = json.loads(done.stdout)
    return {name: float(found[name]) for name in ("clip_norm", "range")}
