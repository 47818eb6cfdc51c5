"""What the dendrites' benchmark reads: the evaluation sets with a split to choose on, their frozen states in memory."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import numpy as np
import torch
from nexus_client.cache import Cache
from nexus_client.embed import default_base
from nexus_client.material import ScoredTask, texts_of
from nexus_client.train import best_device
from nexus_common.adapter import DendriticAdapter
from nexus_common.base_model import base_hash
from nexus_common.layout import WIDTH
from scipy import stats
from torch import Tensor

from tests.bench.data import FOLDER, Pairs, Retrieval, lines
from tests.bench.simulate import CACHE

EMBED_TEXTS: Final = 512


def correlation(vectors: np.ndarray, task: ScoredTask) -> float:
    """Spearman's correlation of cosine and score."""
    return float(stats.spearmanr((vectors[task.a] * vectors[task.b]).sum(axis=1), task.score).statistic)


class Similarity(Pairs):
    """STS-B with its own dev split, and the nine sets of STS 2012 to 2015 without what STS-B took of them."""

    def __init__(self) -> None:
        super().__init__()
        rows = lines(FOLDER / "stsb" / "pairs.jsonl.gz")
        dev = ScoredTask.from_pairs(
            self.texts, [(row["a"], row["b"], row["score"] / 5) for row in rows if row["split"] == "dev"]
        )
        self.parts = {"dev": dev, "test": self._test}
        self.train = ScoredTask.from_pairs(self.texts, self._train)
        others: dict[str, list[tuple[str, str, float]]] = {}
        for row in lines(FOLDER / "sts12_15" / "pairs.jsonl.gz"):
            others.setdefault(row["set"], []).append((row["a"], row["b"], row["score"] / 5))
        self.general = {name: ScoredTask.from_pairs(self.texts, pairs) for name, pairs in others.items()}

    @property
    def judged_texts(self) -> np.ndarray:
        """Numbers of the texts of both judged splits."""
        return texts_of([*self.parts.values()])

    def judge(
        self, vectors: Mapping[str, np.ndarray] | np.ndarray, sites: Iterable[str] | None = None, split: str = "test"
    ) -> float:
        """Spearman's correlation on a split, for embeddings [texts, 384]."""
        if isinstance(vectors, Mapping):
            raise TypeError("one model for all sites is judged here")
        return correlation(vectors, self.parts[split])

    def general_similarity(self, embed: Callable[[np.ndarray], np.ndarray]) -> dict[str, float]:
        """The mean over the nine sets, and over all their pairs at once."""
        vectors = embed(texts_of([*self.general.values()]))
        every = [*self.general.values()]
        joined = ScoredTask(*(np.concatenate([getattr(task, name) for task in every]) for name in ("a", "b", "score")))
        mean = float(np.mean([correlation(vectors, task) for task in every]))
        return {"mean": 100 * mean, "all": 100 * correlation(vectors, joined)}


Set = Retrieval | Similarity
SETS: Final[dict[str, Callable[[], Set]]] = {
    "stsb": Similarity,
    "medquad": lambda: Retrieval("medquad", "medquad", "own", dev_by="group"),
    "banking77": lambda: Retrieval("banking77 kb10", "banking77/kb10", "all", dev_by="id"),
}


@functools.cache
def loaded(name: str) -> Set:
    """A set, once a process."""
    return SETS[name]()


class States:
    """The frozen encoder's output in memory (``train.States``); token states too."""

    def __init__(self, texts: Sequence[str]) -> None:
        cache = Cache(CACHE / base_hash(default_base())[:16])
        device = best_device()
        self._pooled = torch.from_numpy(cache.pooled(texts)).to(device)
        tokens, lengths = cache.tokens(texts)
        cache.close()
        self._tokens = torch.from_numpy(tokens).to(device)  # [all tokens, 384] float16
        self._lengths = torch.from_numpy(lengths).to(device)
        self._starts = self._lengths.cumsum(0) - self._lengths

    def pooled(self, numbers: np.ndarray) -> Tensor:
        """[n, 384]."""
        return self._pooled[torch.from_numpy(numbers)]

    def tokens(self, numbers: np.ndarray) -> tuple[Tensor, Tensor]:
        """States [tokens of all n texts, 384] and each text's length [n]."""
        wanted = torch.from_numpy(numbers)
        lengths = self._lengths[wanted]
        before = lengths.cumsum(0) - lengths
        order = torch.arange(int(lengths.sum()), device=lengths.device)
        places = order + torch.repeat_interleave(self._starts[wanted] - before, lengths)
        return self._tokens[places].float(), lengths


@functools.cache
def states_of(name: str) -> States:
    """A set's states, once a process."""
    return States(loaded(name).texts.items)


@torch.inference_mode()
def embed(adapter: DendriticAdapter, states: States, numbers: np.ndarray, total: int) -> np.ndarray:
    """Embeddings [total, 384] of the texts with these numbers; the other rows stay 0."""
    out = np.zeros((total, WIDTH), np.float32)
    for part in np.array_split(numbers, max(1, len(numbers) // EMBED_TEXTS)):
        given = states.tokens(part) if adapter.salience is not None else (states.pooled(part),)
        out[part] = adapter(*given).cpu().numpy()
    return out
