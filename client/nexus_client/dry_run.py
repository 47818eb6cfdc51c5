"""How far a plan's recipe moves the adapter, measured on public text: what clip and range to put into the plan.

The public text is Python's own language reference as every interpreter carries it, so nothing is shipped or downloaded,
and no site's text is touched.
"""

import json
import re
import tempfile
from pathlib import Path
from typing import Final

import numpy as np
from nexus_common.errors import NexusError
from nexus_common.recipe import Recipe

from nexus_client.data import DataSource
from nexus_client.site import SiteHome, SiteSettings
from nexus_client.train import local_update
from nexus_client.workspace import Workspace

ROWS: Final = 256
ROUNDS: Final = 3
HEADROOM: Final = 1.5  # a site's own text may move the adapter further than this one
UNBOUNDED: Final = 1e9


def public_rows() -> list[dict[str, str]]:
    """The first sentence of a paragraph as the question, the rest of it as the passage."""
    try:
        from pydoc_data.topics import topics  # noqa: PLC0415  a megabyte, needed nowhere else
    except ImportError:
        raise NexusError("this Python has no pydoc_data.topics, the public text of the dry run; give --clip") from None
    paragraphs = (" ".join(part.split()) for text in topics.values() for part in re.split(r"\n\s*\n", text))
    cut = (re.match(r"([A-Z][^.:|+]{30,160})\. (\w.{80,600})$", paragraph) for paragraph in paragraphs)
    return [{"query": found[1], "passage": found[2]} for found in cut if found][:ROWS]


def dry_run(recipe: Recipe, base: str | None) -> dict[str, float]:
    """Propose ``clip_norm`` and ``range`` (the largest value of one parameter), with what was measured."""
    layout, vector = recipe.adapter.layout, recipe.adapter.layout.first_vector(recipe.adapter.seed_bytes)
    settings = recipe.local.model_copy(update={"clip_norm": UNBOUNDED})
    norms, largest = [], []
    with tempfile.TemporaryDirectory(prefix="nexus-dry-run-") as folder:
        rows = Path(folder) / "public.jsonl"
        rows.write_text("".join(json.dumps(row) + "\n" for row in public_rows()), encoding="utf-8")
        place = SiteHome.of(Path(folder), "dry-run")
        site = SiteSettings(site="dry-run", server="127.0.0.1:1", base_model=base, data=(DataSource(path=str(rows)),))
        workspace = Workspace(place, site)
        workspace.check_base(recipe)
        readied = workspace.ready(recipe)
        rng = np.random.default_rng(0)
        for _ in range(ROUNDS):
            update = local_update(layout, vector, readied.tasks, readied.states, settings, rng)
            norms.append(float(np.linalg.norm(update.astype(np.float64))))
            largest.append(float(np.abs(update).max()))
            vector = vector + update
    proposed = {"clip_norm": _rounded(HEADROOM * max(norms)), "range": _rounded(HEADROOM * max(largest))}
    return proposed | {"measured_norm": max(norms), "measured_largest": max(largest)}


def _rounded(value: float) -> float:
    """Two digits, upwards."""
    digits = 1 - int(np.floor(np.log10(value)))
    return float(round(np.ceil(value * 10.0**digits) / 10.0**digits, digits))
