"""What a site trains on and is judged by, as indices into one table of distinct texts.

Rows (``data.py``) become tasks here: ranking tasks (questions, passages, which answers which) and scored pairs.
Labelled utterances become a ranking task too, in which every other utterance of the same label is a right answer.
"""

from collections.abc import Iterable, Sequence, Set
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

    ``queries`` [q] and ``passages`` [p] are text numbers; ``positives[i]`` holds positions in ``passages`` that are
    right for question i (of labelled utterances the question itself may be among them), ``negatives[i]`` positions that
    are known to be wrong although they look right (may be empty).
    """

    queries: Ids
    passages: Ids
    positives: Sequence[Ids]
    negatives: Sequence[Ids]

    def only(self, texts: Set[int]) -> Self:
        """Only questions and passages among these texts; a question none of whose answers is left goes too."""
        place = np.full(len(self.passages), -1, np.int64)
        kept = [i for i, number in enumerate(self.passages) if number in texts]
        place[kept] = np.arange(len(kept))

        numbers, shared = self.passages[kept], dict[int, Ids]()

        def moved(places: Ids) -> Ids:
            """New places of those that are left; arrays that questions share stay shared."""
            if id(places) not in shared:
                shared[id(places)] = place[places][place[places] >= 0]
            return shared[id(places)]

        rows = [i for i, q in enumerate(self.queries) if q in texts and (numbers[moved(self.positives[i])] != q).any()]
        return type(self)(
            self.queries[rows],
            numbers,
            [moved(self.positives[i]) for i in rows],
            [moved(self.negatives[i]) for i in rows],
        )

    @classmethod
    def from_pairs(
        cls, texts: Texts, pairs: Iterable[tuple[str, str, str | None]], further_passages: Iterable[str] = ()
    ) -> Self:
        """Collect (query, passage, negative or None) rows; equal queries share their passages."""
        place: dict[int, int] = {}  # text number of a passage -> its position

        def position(text: str) -> int:
            return place.setdefault(texts.add(text), len(place))

        right: dict[int, list[int]] = {}
        wrong: dict[int, list[int]] = {}
        for query, passage, negative in pairs:
            number = texts.add(query)
            if passage == query:
                continue  # a text does not teach to find itself
            right.setdefault(number, []).append(position(passage))
            wrong.setdefault(number, []).extend([position(negative)] if negative else [])
        for passage in further_passages:
            position(passage)
        return cls(
            np.array(list(right), np.int64),
            np.array(list(place), np.int64),
            [np.unique(np.array(v, np.int64)) for v in right.values()],
            [np.setdiff1d(np.array(wrong[q], np.int64), right[q]) for q in right],
        )

    @classmethod
    def from_labels(cls, texts: Texts, asked: Iterable[tuple[str, str]], known: Iterable[tuple[str, str]]) -> Self:
        """Each asked (text, label) should find the known texts of its label.

        All questions of a label share one array of answers, in which an asked text may stand itself: memory stays
        linear in the rows.
        """
        label_of = {texts.add(text): label for text, label in known}
        by_label: dict[str, list[int]] = {}
        for place, label in enumerate(label_of.values()):
            by_label.setdefault(label, []).append(place)
        answers = {label: np.array(places, np.int64) for label, places in by_label.items()}
        asked_as = {texts.add(text): label for text, label in asked}
        fewest = {number: 2 if label_of.get(number) == label else 1 for number, label in asked_as.items()}
        kept = [n for n, label in asked_as.items() if len(answers.get(label, ())) >= fewest[n]]
        return cls(
            np.array(kept, np.int64),
            np.array(list(label_of), np.int64),
            [answers[asked_as[number]] for number in kept],
            [np.empty(0, np.int64)] * len(kept),
        )


@dataclass(frozen=True)
class ScoredTask:
    """Pairs of texts (numbers ``a``, ``b`` [n]) and how alike they are, 0 to 1 (``score`` [n] float32)."""

    a: Ids
    b: Ids
    score: NDArray[np.float32]

    def only(self, texts: Set[int]) -> Self:
        """Only pairs of these texts."""
        rows = [i for i, (a, b) in enumerate(zip(self.a, self.b, strict=True)) if a in texts and b in texts]
        return type(self)(self.a[rows], self.b[rows], self.score[rows])

    @classmethod
    def from_pairs(cls, texts: Texts, pairs: Iterable[tuple[str, str, float]]) -> Self:
        """Collect (a, b, score) rows."""
        rows = list(pairs)
        return cls(
            texts.add_all(a for a, _, _ in rows),
            texts.add_all(b for _, b, _ in rows),
            np.array([score for _, _, score in rows], np.float32),
        )


Task = RankingTask | ScoredTask


def size(task: Task) -> int:
    """How many questions or scored pairs a task has."""
    return len(parts_of(task)[0])


def parts_of(task: Task) -> tuple[Ids, Ids]:
    """The numbers of a task's texts: questions and passages, or both sides of its pairs."""
    return (task.queries, task.passages) if isinstance(task, RankingTask) else (task.a, task.b)


def texts_of(tasks: Sequence[Task]) -> Ids:
    """Numbers of all texts that tasks name, each once, ascending."""
    return np.unique(np.concatenate([np.empty(0, np.int64), *(part for task in tasks for part in parts_of(task))]))
