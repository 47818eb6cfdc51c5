"""The README of an exported model: what it learnt from, how good it is here, who may have it, how to load it.

No text, no path but the export's own, no site's name: what the plan's people approved is named by the plan's hash.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nexus_common.cli import moment
from nexus_common.layout import Layout, Vector
from nexus_common.plan import Plan
from nexus_common.recipe import PACKAGED_BASE
from nexus_common.report import QualityLine
from nexus_common.versions import StoredAdapter

from nexus_client.agent_api import EvaluateReport
from nexus_client.model_list import BASE, Held, Models
from nexus_client.privacy import epsilon
from nexus_client.site import SiteHome

ONNX: Final = "onnx"
NONE: Final = "epsilon: none (records are not protected)"
LOADS: Final = {
    "keys": "sentence-transformers 3.4 or later (tried: 3.4.1, 5.1.2, 5.4.0, 5.7.0, 6.2.0)",
    "tokens": "sentence-transformers 5.4 or later, since it weighs tokens (tried: 5.4.0, 5.7.0, 6.2.0)",
}
TOLD: Final = {
    BASE: "This is the untouched base model: it has learnt nothing from any site.",
    "alone": "It was trained on this site's text alone, without record-level privacy: it can reveal that text. "
    "It belongs inside this site.",
    "personal": "It was trained on this site's text alone, from a version of all sites, without record-level privacy: "
    "it can reveal that text. It belongs inside this site.",
    "federated": "It learnt from the text of all sites of its plan, and whoever has it can ask whether a known "
    "sentence was among it. It is confidential among these sites: not to be published. Copies cannot be called back, "
    "also where the sites withdraw this version.",
}


@dataclass(frozen=True)
class Subject:
    """The model that is exported: its name on the shelf, what the shelf says of it, and its numbers (None: base)."""

    name: str
    held: Held | None
    adapter: StoredAdapter | None
    base_hash: str

    @property
    def kind(self) -> str:
        """base, alone, federated or personal."""
        return self.held.kind if self.held else BASE

    @property
    def layout(self) -> Layout | None:
        """The adapter's."""
        return self.adapter.layout if self.adapter else None

    @property
    def weights(self) -> tuple[Layout, Vector] | None:
        """The adapter as layout and vector; None for the base model."""
        return (self.adapter.layout, self.adapter.vector) if self.adapter else None

    @property
    def confidential(self) -> str:
        """What it can reveal, in a sentence or two."""
        return TOLD[self.kind]

    @property
    def privacy(self) -> str:
        """Epsilon, or that there is none."""
        if self.adapter is None:
            return "nothing to protect: no site's text was learnt from"
        recipe = self.adapter.recipe
        if self.kind == "federated" and isinstance(recipe, Plan) and recipe.privacy:
            return f"epsilon: {epsilon(recipe):.2f} at delta {recipe.privacy.delta:g}, for each row"
        return NONE


def usage(folder: Path, *, onnx: bool) -> dict[str, str]:
    """Lines of Python that embed texts, for each library; they are run as they stand in the tests."""
    path = repr(str(folder))
    lines: dict[str, tuple[str, ...]] = {
        "sentence-transformers": (
            "from sentence_transformers import SentenceTransformer",
            f"model = SentenceTransformer({path})",
            'vectors = model.encode(["chest pain"])',
        ),
        "LangChain": (
            "from langchain_huggingface import HuggingFaceEmbeddings",
            f"embeddings = HuggingFaceEmbeddings(model_name={path})",
            'vectors = embeddings.embed_documents(["chest pain"])',
        ),
        "LlamaIndex": (
            "from llama_index.embeddings.huggingface import HuggingFaceEmbedding",
            f"embed_model = HuggingFaceEmbedding(model_name={path})",
            'vectors = embed_model.get_text_embedding_batch(["chest pain"])',
        ),
        "Chroma": (
            "from chromadb.utils.embedding_functions import SentenceTransformerEmbeddingFunction",
            f"embed = SentenceTransformerEmbeddingFunction(model_name={path})",
            'vectors = embed(["chest pain"])',
        ),
    }
    if onnx:
        lines["ONNX"] = (
            "import numpy, onnxruntime, tokenizers",
            f"tokenizer = tokenizers.Tokenizer.from_file({str(folder / ONNX / 'tokenizer.json')!r})",
            f"session = onnxruntime.InferenceSession({str(folder / ONNX / 'fp32.onnx')!r})",
            "def embed(texts):",
            "    found = tokenizer.encode_batch(texts)",
            "    ids = numpy.array([one.ids for one in found])",
            "    mask = numpy.array([one.attention_mask for one in found])",
            '    return session.run(["sentence_embedding"], {"input_ids": ids, "attention_mask": mask})[0]',
            'vectors = embed(["chest pain"])',
        )
    return {library: "\n".join(each) for library, each in lines.items()}


def loads(layout: Layout | None) -> str:
    """Which versions of sentence-transformers load the folder."""
    return LOADS["keys" if layout is None or layout.salience is None else "tokens"]


def judged(place: SiteHome, subject: Subject, models: Models) -> tuple[float, Sequence[QualityLine]] | None:
    """When ``evaluate`` last judged this very model, and its lines beside keyword search and base; None where never."""
    try:
        found = EvaluateReport.model_validate_json(place.evaluation_file.read_bytes())
        at = place.evaluation_file.stat().st_mtime
    except (OSError, ValueError):
        return None
    if subject.held is not None and subject.adapter is not None:
        newest = next((one for one in reversed(models.held) if one.kind == subject.kind), None)
        this_version = (found.run, found.version) == (subject.held.run, subject.held.number)
        if not (this_version if subject.kind == "federated" else newest == subject.held and at >= subject.held.at):
            return None
    lines = [line for line in found.lines if line.model in ("keyword", BASE, subject.kind)]
    return (at, lines) if any(line.model == subject.kind for line in lines) else None


def card(
    subject: Subject,
    folder: Path,
    judged: tuple[float, Sequence[QualityLine]] | None,
    most_tokens: int,
    onnx: Sequence[str],
) -> str:
    """The README; ``onnx`` are sentences on the graphs that were written, none where there is no graph."""
    parts = [
        f"# {subject.name}",
        f"Sentence embeddings: 384 numbers of length 1 for each text; a text is cut at {most_tokens} word pieces. "
        "Exported by NEXUS; neither NEXUS nor code of this folder's own is needed to load it.",
        "## Confidential" if subject.adapter else "## What it knows",
        f"{subject.confidential}\n\n{subject.privacy}",
        "## How it was trained",
        "\n".join(f"- {line}" for line in _training(subject)),
        "## How well it finds, at the site that exported it",
        "\n".join(_quality(judged)),
        "## How to load it",
        f"Needs {loads(subject.layout)}. LangChain, LlamaIndex and Chroma load it through that, with their defaults.",
    ]
    for library, lines in usage(folder, onnx=bool(onnx)).items():
        parts += [f"**{library}**", f"```python\n{lines}\n```"]
        if library == "ONNX":
            parts.append("\n".join(f"- {line}" for line in onnx))
    return "\n\n".join(parts) + "\n"


def _training(subject: Subject) -> Iterator[str]:
    licence = "Apache-2.0" if subject.base_hash == PACKAGED_BASE else "see the base model"
    name = "all-MiniLM-L6-v2" if subject.base_hash == PACKAGED_BASE else "another model"
    yield f"base model: {name}, never changed; content hash `{subject.base_hash}`; its licence: {licence}"
    if subject.adapter is None:
        return
    adapter, recipe = subject.adapter, subject.adapter.recipe
    yield f"adapter: {adapter.layout}, {adapter.layout.dim:,} numbers, activation {adapter.layout.activation}"
    if isinstance(recipe, Plan):
        part = "version" if subject.kind == "federated" else "round"
        yield f"run {recipe.name}: {part} {adapter.number} of {recipe.rounds} rounds; {len(recipe.sites)} sites"
        yield f"plan `{recipe.hash.hex()}`; its purpose: {recipe.purpose}"
    else:
        yield f"round {adapter.number} of {recipe.rounds}, at one site"
    if subject.held:
        yield f"this site {'takes' if subject.held.accepted else 'does not take'} it: {subject.held.reason}"


def _quality(judged: tuple[float, Sequence[QualityLine]] | None) -> Iterator[str]:
    if judged is None:
        yield "Not evaluated (`nexus-client evaluate`, then `export` again)."
        return
    at, lines = judged
    yield f"On questions and pairs of the hold-out that are only there to judge by, {moment(at)}:\n"
    yield "| model | metric (x 100) | mean | 95 % interval | questions | against base |"
    yield "| --- | --- | --: | --- | --: | --- |"
    for line in lines:
        yield f"| {' | '.join(line.cells)} |"
