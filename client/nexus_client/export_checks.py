"""Whether what was written gives what the model gives here: texts through the live model and through each written file.

The live model is the frozen encoder and ``adapter.py``, in float32 on the processor.  A graph with 8-bit weights cannot
be equal; what counts is how well it finds, so it is judged on the choosing part of the hold-out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from nexus_common.adapter import DendriticAdapter
from nexus_common.errors import NexusError
from nexus_common.layout import WIDTH, Layout, Vector
from numpy.typing import NDArray

from nexus_client.embed import loaded
from nexus_client.judge import figure_of
from nexus_client.material import size, texts_of
from nexus_client.onnx_graph import Runner
from nexus_client.workspace import Workspace

Embeddings = NDArray[np.float32]
TOLERANCE: Final = 1e-5  # of a value of a vector of length 1
BATCH: Final = 4  # of which the longest is as long as the model reads
PROBES: Final[tuple[str, ...]] = (
    "chest pain",
    "How long may a cannula stay in?",
    "Card declined abroad although the account is in credit: what do I tell the customer on the telephone?",
    "",
    " ",
    ".",
    "0.5 mg/kg q8h, max. 40 mg; eGFR < 30: halve",
    "Überweisung in Fremdwährung: Gebühren, Fristen, Rückfragen",
    "où trouver l'ordonnance de la patiente",
    "心電図と胸の痛み",
    "боль в груди",
    "naïve café 🏥💊 ½ ≤ ±",
    "a\tb\nc  d",
    "antidisestablishmentarianism-pneumonoultramicroscopicsilicovolcanoconiosis",
    "The leaflet says when to call. " * 20,
    "A ward round, a blood count, a discharge letter, and what the next doctor has to know. " * 40,  # is cut at 256
)


@dataclass(frozen=True)
class Judged:
    """What 8-bit weights cost on the choosing part: both scores, over how many questions and pairs."""

    fp32: float
    int8: float
    questions: int

    @property
    def lost(self) -> float:
        """Of the score, from 0 to 1; below 0 where the 8-bit graph found better."""
        return self.fp32 - self.int8


def live_vectors(base: Any, adapter: tuple[Layout, Vector] | None, texts: Sequence[str] = PROBES) -> Embeddings:
    """[n, 384]: texts through a loaded base model and an adapter, each text for itself."""
    found = base.encode(list(texts), output_value=None, batch_size=BATCH, show_progress_bar=False)
    pooled = torch.stack([one["sentence_embedding"] for one in found]).float()
    with torch.inference_mode():
        if adapter is None:
            out = pooled
        elif adapter[0].salience is None:
            out = _adapted(adapter)(pooled)
        else:
            states = [one["token_embeddings"][one["attention_mask"].bool()] for one in found]
            out = torch.cat([_adapted(adapter)(one, torch.tensor([len(one)])) for one in states])
    vectors: Embeddings = out.numpy()
    return vectors


def _adapted(adapter: tuple[Layout, Vector]) -> DendriticAdapter:
    layout, vector = adapter
    return DendriticAdapter(layout).load_vector(vector).eval()


def check_folder(folder: Path, right: Embeddings) -> None:
    """NexusError where sentence-transformers finds other vectors in the folder than the live model's."""
    _compare(
        "the folder, as sentence-transformers reads it,",
        lambda: loaded(folder, "cpu").encode(list(PROBES), batch_size=BATCH, show_progress_bar=False),
        right,
    )


def check_graph(runner: Runner, right: Embeddings) -> None:
    """NexusError where the float32 graph gives other vectors than the live model."""
    _compare("the float32 ONNX graph", lambda: runner.embed(PROBES), right)


def check_loads(runner: Runner) -> None:
    """NexusError where the 8-bit graph does not give finite vectors of length 1."""
    found = runner.embed(PROBES)
    if not np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-3):
        raise NexusError(f"the 8-bit ONNX graph gives vectors that are not of length 1{_REPORT}")


def judge_int8(workspace: Workspace, fp32: Runner, int8: Runner) -> Judged | str:
    """Both graphs' scores on the choosing part, or why they cannot be had."""
    try:
        texts, tasks = workspace.material.texts.items, workspace.choosing_part
    except NexusError as problem:
        return f"this site's text cannot be read ({problem})"
    if not tasks:
        return "this site has no hold-out to choose by"
    numbers = texts_of(tasks)
    asked = [texts[number] for number in numbers]
    scores = [figure_of(tasks, numbers, runner.embed(asked)) for runner in (fp32, int8)]
    return Judged(scores[0], scores[1], sum(map(size, tasks)))


_REPORT: Final = ": a fault of NEXUS or of an installed package, please report it; nothing was written"


def _compare(what: str, embed: Callable[[], Any], right: Embeddings) -> None:
    try:
        found = np.asarray(embed())
    except (RuntimeError, ValueError, TypeError, ImportError, KeyError, OSError) as problem:
        raise NexusError(f"{what} cannot be loaded ({type(problem).__name__}: {problem}){_REPORT}") from problem
    apart = float(np.abs(found - right).max()) if found.shape == (len(PROBES), WIDTH) else np.inf
    if not apart <= TOLERANCE:
        raise NexusError(f"{what} differs from the live model by {apart:.1e}, at most {TOLERANCE} may be{_REPORT}")
