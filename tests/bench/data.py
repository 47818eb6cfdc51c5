"""The evaluation sets of ``../shared/data`` as sites, tasks and judged questions; its README says how each is measured.

Training sees the train split alone: its questions, and of the documents only those that answer one of them and none of
the judged ones.  Where something is to be chosen, a fixed fifth of the train split becomes a dev split first.
"""

import gzip
import hashlib
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from nexus_client.evaluate import bm25_scores, spearman, vector_scores
from nexus_client.material import RankingTask, ScoredTask, Task, Texts

Ids = np.ndarray
DEV_SHARE: Final = 0.2
FOLDER = Path(__file__).resolve().parents[3] / "shared" / "data"


def require_data() -> None:
    """Leave with one clear line where the sets are not there."""
    if not FOLDER.is_dir():
        print(f"skipped: the evaluation sets are not at {FOLDER} (they are not part of the repository)")
        sys.exit(0)


def lines(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _in_dev(name: str) -> bool:
    """Whether a group or question is chosen by, a function of its name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") < DEV_SHARE * 2**64


@dataclass(frozen=True)
class Question:
    """One judged or training question: its text's number and the numbers of the documents that answer it."""

    text: int
    right: tuple[int, ...]


class Retrieval:
    """Questions and documents of named sites.  ``own``: each question searches its site's documents; ``all``: all.

    ``dev_by`` takes a dev split off the train split: whole groups, or single questions.
    """

    metric = "nDCG@10"

    def __init__(self, name: str, folder: str, scope: str, dev_by: Literal["group", "id"] | None = None) -> None:
        self.name, self.scope, self.texts = f"{name}, {scope!r}", scope, Texts()
        documents, questions = lines(FOLDER / folder / "corpus.jsonl.gz"), lines(FOLDER / folder / "queries.jsonl.gz")
        number = {document["id"]: self.texts.add(document["text"]) for document in documents}
        self.documents: dict[str, list[int]] = defaultdict(list)
        for document in documents:
            for site in document["sites"]:
                self.documents[site].append(number[document["id"]])
        right: dict[str, list[int]] = defaultdict(list)
        with gzip.open(FOLDER / folder / "qrels.tsv.gz", "rt", encoding="utf-8") as file:
            for line in file.read().splitlines()[1:]:
                question, document, _ = line.split("\t")
                right[question].append(number[document])
        self.questions: dict[str, dict[str, list[Question]]] = {
            split: defaultdict(list) for split in ("train", "dev", "test")
        }
        for q in questions:
            made = Question(self.texts.add(q["text"]), tuple(dict.fromkeys(right[q["id"]])))
            chosen_by = q["split"] == "train" and dev_by is not None and _in_dev(q[dev_by])
            self.questions["dev" if chosen_by else q["split"]][q["site"]].append(made)
        self.sites = sorted(self.documents)

    def tasks(self, site: str, rows: int | None, rng: np.random.Generator) -> list[Task]:
        """A site's training task, of at most ``rows`` questions drawn by ``rng``."""
        return [self._task([site], rows, rng)]

    def pooled_tasks(self, rows: int | None, rng: np.random.Generator) -> list[Task]:
        """All sites' rows in one place."""
        return [self._task(self.sites, rows, rng)]

    def _task(self, sites: Iterable[str], rows: int | None, rng: np.random.Generator) -> RankingTask:
        pairs = []
        for site in sites:
            questions, here = self.questions["train"][site], set(self.documents[site])
            some = rng.permutation(len(questions))[:rows]
            pairs += [
                (questions[i].text, d) for i in some for d in questions[i].right if d in here and d not in self._judged
            ]
        items = self.texts.items
        return RankingTask.from_pairs(self.texts, [(items[q], items[d], None) for q, d in pairs])

    @cached_property
    def _judged(self) -> set[int]:
        """Documents that answer judged questions alone: never trained on."""
        judged = {
            d for split in ("dev", "test") for site in self.sites for q in self.questions[split][site] for d in q.right
        }
        taught = {d for questions in self.questions["train"].values() for q in questions for d in q.right}
        return judged - taught

    @property
    def judged_texts(self) -> Ids:
        """Numbers of all texts that judging needs."""
        asked = [q.text for split in ("dev", "test") for site in self.sites for q in self.questions[split][site]]
        return np.unique([*asked, *(d for documents in self.documents.values() for d in documents)])

    def judge(
        self, vectors: Mapping[str, np.ndarray] | np.ndarray, sites: Iterable[str] | None = None, split: str = "test"
    ) -> float:
        """The figure for embeddings [texts, 384], the same for all sites or one for each site."""
        each = []
        for site in sites or self.sites:
            found = vectors[site] if isinstance(vectors, Mapping) else vectors
            asked, documents, places = self._search(site, split)
            each.append(vector_scores(found[asked], found[documents], places).ndcg10)
        return self._mean(each)

    def bm25(self) -> float:
        """Keyword search."""
        items, each = self.texts.items, []
        for site in self.sites:
            asked, documents, places = self._search(site)
            each.append(bm25_scores([items[q] for q in asked], [items[d] for d in documents], places).ndcg10)
        return self._mean(each)

    def _search(self, site: str, split: str = "test") -> tuple[Ids, Ids, list[Ids]]:
        scope = self.sites if self.scope == "all" else [site]
        documents = np.unique([d for one in scope for d in self.documents[one]])
        place = {int(d): i for i, d in enumerate(documents)}
        asked = self.questions[split][site]
        places = [np.array([place[d] for d in q.right if d in place], np.int64) for q in asked]
        return np.array([q.text for q in asked]), documents, places

    def _mean(self, each: list[np.ndarray]) -> float:
        return float(np.concatenate(each).mean() if self.scope == "all" else np.mean([one.mean() for one in each]))


class Pairs:
    """STS-B's scored pairs, split over five sites by position; Spearman on the test part."""

    metric, scope = "Spearman", "all"

    def __init__(self, sites: int = 5) -> None:
        self.name, self.texts, self.sites = f"STS-B, {sites} sites", Texts(), [f"site-{i}" for i in range(1, sites + 1)]
        rows = lines(FOLDER / "stsb" / "pairs.jsonl.gz")
        self._train = [(row["a"], row["b"], row["score"] / 5) for row in rows if row["split"] == "train"]
        test = [(row["a"], row["b"], row["score"] / 5) for row in rows if row["split"] == "test"]
        self._test = ScoredTask.from_pairs(self.texts, test)
        ScoredTask.from_pairs(self.texts, self._train)  # so that all texts are known, and encoded, from the start

    def tasks(self, site: str, rows: int | None, rng: np.random.Generator) -> list[Task]:
        """Every fifth row is a site's; at most ``rows`` of them."""
        own = self._train[self.sites.index(site) :: len(self.sites)]
        return [ScoredTask.from_pairs(self.texts, [own[i] for i in rng.permutation(len(own))[:rows]])]

    def pooled_tasks(self, rows: int | None, rng: np.random.Generator) -> list[Task]:
        """All rows, or ``rows`` of each site."""
        limit = None if rows is None else rows * len(self.sites)
        return [ScoredTask.from_pairs(self.texts, [self._train[i] for i in rng.permutation(len(self._train))[:limit]])]

    @property
    def judged_texts(self) -> Ids:
        """Numbers of all texts that judging needs."""
        return np.unique(np.concatenate([self._test.a, self._test.b]))

    def judge(self, vectors: Mapping[str, np.ndarray] | np.ndarray, sites: Iterable[str] | None = None) -> float:
        """Spearman's correlation, the mean over sites where each has embeddings of its own."""
        every = [vectors[site] for site in sites or self.sites] if isinstance(vectors, Mapping) else [vectors]
        cosines = [(found[self._test.a] * found[self._test.b]).sum(axis=1) for found in every]
        return float(np.mean([spearman(one, self._test.score).mean for one in cosines]))

    def bm25(self) -> float | None:
        """Keyword search has no cosine."""
        return None


Dataset = Retrieval | Pairs
DATASETS = {
    "medquad": lambda: Retrieval("medquad", "medquad", "own"),
    "banking77": lambda: Retrieval("banking77 kb10", "banking77/kb10", "all"),
    "stsb": Pairs,
}
