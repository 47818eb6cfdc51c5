"""What a site trains on and is judged by, as indices into one table of distinct texts.

Rows (``data.py``) become tasks here: ranking tasks (questions, passages, which answers which) and scored pairs.
Labelled utterances become a ranking task too, in which every other utterance of the same label is a right answer.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


@dataclass
class Texts:
    """Distinct texts, numbered in the order in which they were first named."""

    items: list[str] = field(default_factory=list)
    number: dict[str, int] = field(default_factory=dict)

    def add(self, text: str) -> int:
        """The text's number; a new one where it was not there yet."""
        if (known := self.number.get(text)) is not None:
            return known
        self.number[text] = len(self.items)
        self.items.append(text)
        return len(self.items) - 1

    def add_all(self, texts: Iterable[str]) -> Ids:
        """``add`` for many."""
        return np.array([self.add(text) for text in texts], np.int64)


@dataclass(frozen=True)
class RankingTask:
    """Questions and the passages that answer them.

    ``queries`` [q] and ``passages`` [p] are text numbers; ``positives[i]`` holds positions in ``passages`` that are right
    for question i, ``negatives[i]`` positions that are known to be wrong although they look right (may be empty).
    """

    queries: Ids
    passages: Ids
    positives: Sequence[Ids]
    negatives: Sequence[Ids]

    def subset(self, keep: Iterable[int]) -> Self:
        """Only these questions, over the same passages."""
        keep = list(keep)
        return type(self)(self.queries[keep], self.passages, [self.positives[i] for i in keep],
                          [self.negatives[i] for i in keep])  # fmt: skip

    @classmethod
    def from_pairs(cls, texts: Texts, pairs: Iterable[tuple[str, str, str | None]],
                   further_passages: Iterable[str] = ()) -> Self:  # fmt: skip
        """Collect (query, passage, negative or None) rows; equal queries share their passages."""
        place: dict[int, int] = {}  # text number of a passage -> its position

        def position(text: str) -> int:
            return place.setdefault(texts.add(text), len(place))

        right: dict[int, list[int]] = {}
        wrong: dict[int, list[int]] = {}
        for query, passage, negative in pairs:
            number = texts.add(query)
            right.setdefault(number, []).append(position(passage))
            wrong.setdefault(number, []).extend([position(negative)] if negative else [])
        for passage in further_passages:
            position(passage)
        return cls(np.array(list(right), np.int64), np.array(list(place), np.int64),
                   [np.unique(np.array(v, np.int64)) for v in right.values()],
                   [np.setdiff1d(np.array(wrong[q], np.int64), right[q]) for q in right])  # fmt: skip

    @classmethod
    def from_labels(cls, texts: Texts, asked: Iterable[tuple[str, str]],
                    known: Iterable[tuple[str, str]]) -> Self:  # fmt: skip
        """Each asked (text, label) should find the known texts of its label, itself apart."""
        label_of = {texts.add(text): label for text, label in known}
        passages = np.array(list(label_of), np.int64)
        by_label: dict[str, list[int]] = {}
        for place, number in enumerate(label_of):
            by_label.setdefault(label_of[number], []).append(place)
        queries, positives = [], []
        for number, label in {texts.add(text): label for text, label in asked}.items():
            same = np.array([p for p in by_label.get(label, []) if passages[p] != number], np.int64)
            if len(same):
                queries.append(number)
                positives.append(same)
        return cls(np.array(queries, np.int64), passages, positives, [np.empty(0, np.int64)] * len(queries))


@dataclass(frozen=True)
class ScoredTask:
    """Pairs of texts (numbers ``a``, ``b`` [n]) and how alike they are, 0 to 1 (``score`` [n] float32)."""

    a: Ids
    b: Ids
    score: NDArray[np.float32]

    @classmethod
    def from_pairs(cls, texts: Texts, pairs: Iterable[tuple[str, str, float]]) -> Self:
        """Collect (a, b, score) rows."""
        rows = list(pairs)
        return cls(texts.add_all(a for a, _, _ in rows), texts.add_all(b for _, b, _ in rows),
                   np.array([score for _, _, score in rows], np.float32))  # fmt: skip


Task = RankingTask | ScoredTask
