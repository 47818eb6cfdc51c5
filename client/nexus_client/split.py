"""The hold-out: which rows train, which are there to choose by, and which only to judge by.

A group's side follows from SHA-256 of the group alone, so it stays for ever, whatever else the site's files
hold; a larger share only moves groups out of training.  No held-out answer and no judged question is seen in
training.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Final, Literal, TypeVar

from nexus_client.data import SiteRows
from nexus_client.material import RankingTask, ScoredTask, Task, Texts, size
from nexus_client.rows import Pair, Scored, Utterance

Side = Literal["train", "choose", "judge"]
R = TypeVar("R", Pair, Scored, Utterance)
SIDES: Final[tuple[Side, ...]] = ("train", "choose", "judge")
DEFAULT_SHARE: Final = 1 / 3
FEW_QUESTIONS: Final = 100
QUESTION_DEVIATION: Final = 0.4
"""A usual standard deviation of nDCG@10 over questions."""


@dataclass(frozen=True)
class Counts:
    """One number for each side."""

    train: int
    choose: int
    judge: int


@dataclass(frozen=True)
class Material:
    """A site's rows as tasks.  A side without any question or pair has no tasks.

    ``questions`` counts ranking questions and scored pairs, ``headings`` those judged questions that are
    headings of documents, ``left_out`` held-out ones that are asked elsewhere too, ``unanswerable`` held-out
    utterances of a label that no training row has, ``withdrawn`` training rows whose answer is held out in
    another row.
    """

    texts: Texts
    train: list[Task]
    choose: list[Task]
    judge: list[Task]
    share: float
    rows: Counts
    groups: Counts
    questions: Counts
    headings: int
    left_out: int
    unanswerable: int
    withdrawn: int


def side(group: str, share: float) -> Side:
    """The side of a group: held out with probability ``share``, then to choose or to judge by with equal
    odds."""
    digest = hashlib.sha256(group.encode()).digest()
    if int.from_bytes(digest[:8], "big") >= share * 2**64:
        return "train"
    return "choose" if digest[8] % 2 == 0 else "judge"


def build_material(rows: SiteRows, share: float = DEFAULT_SHARE) -> Material:
    """Rows as tasks, the hold-out apart, whatever kinds of rows a site mixes.

    Held-out questions search all passages of the site; held-out utterances search the training utterances.  A training
    row that holds a held-out passage is withdrawn; a held-out question, utterance or pair that stands in a training row
    is left out of choosing and judging.
    """
    pairs, scored, utterances = (
        _by_side(rows.pairs, share),
        _by_side(rows.scored, share),
        _by_side(rows.utterances, share),
    )
    texts = Texts()
    tasks: dict[Side, list[Task]] = {one: [] for one in SIDES}
    held = {row.passage for one in SIDES[1:] for row in pairs[one]}
    answered = [row for row in pairs["train"] if not held & {row.query, row.passage}]
    taught = [(row.query, row.passage, None if row.negative in held else row.negative) for row in answered]
    told = [(row.text, row.label) for row in utterances["train"] if row.text not in held]
    likened = [row for row in scored["train"] if not held & {row.a, row.b}]
    tasks["train"] += [
        RankingTask.from_pairs(texts, taught),
        RankingTask.from_labels(texts, told, told),
        _scored_task(texts, likened),
    ]

    corpus = dict.fromkeys(text for row in rows.pairs for text in (row.passage, row.negative) if text)
    asked = {text for row in taught for text in row if text} | {text for text, _ in told}
    asked |= {text for row in likened for text in (row.a, row.b)}
    learnt = {row.query for row in rows.pairs if row.passage in asked}  # a right answer of theirs is trained on
    compared = {frozenset((row.a, row.b)) for row in likened} | {frozenset(row[:2]) for row in taught}
    left_out = unanswerable = 0
    for part in SIDES[1:]:
        wanted = dict.fromkeys([row.query for row in pairs[part]])
        queries = wanted.keys() - asked - learnt
        spoken = {row.text: row.label for row in utterances[part]}
        open_labels = {text: label for text, label in spoken.items() if text not in asked}
        two = [row for row in scored[part] if frozenset((row.a, row.b)) not in compared]
        right = [(row.query, row.passage, row.negative) for row in rows.pairs if row.query in queries]
        labelled = RankingTask.from_labels(texts, open_labels.items(), told)
        tasks[part] += [RankingTask.from_pairs(texts, right, corpus), labelled, _scored_task(texts, two)]
        left_out += len(wanted) - len(queries) + len(spoken) - len(open_labels) + len(scored[part]) - len(two)
        unanswerable += len(open_labels) - len(labelled.queries)
        asked |= queries | open_labels.keys()  # what is chosen by is not judged by
        compared |= {frozenset((row.a, row.b)) for row in two}
    heading = {row.query for row in rows.pairs if row.heading}
    kept = {one: [task for task in tasks[one] if size(task)] for one in SIDES}
    judged = [query for task in kept["judge"] if isinstance(task, RankingTask) for query in task.queries]
    return Material(
        texts=texts,
        train=kept["train"],
        choose=kept["choose"],
        judge=kept["judge"],
        share=share,
        rows=_counts({one: len(pairs[one]) + len(scored[one]) + len(utterances[one]) for one in SIDES}),
        groups=_counts(Counter(side(group, share) for group in {row.group for row in rows.every})),
        questions=_counts({one: sum(map(size, kept[one])) for one in SIDES}),
        headings=sum(texts.items[query] in heading for query in judged),
        left_out=left_out,
        unanswerable=unanswerable,
        withdrawn=sum(len(part["train"]) for part in (pairs, utterances, scored))
        - len(answered)
        - len(told)
        - len(likened),
    )


def hold_out_warnings(material: Material) -> list[str]:
    """What a reader of this site's figures must know: sentences with numbers and remedy."""
    groups, questions, found = material.groups, material.questions, list[str]()
    total = groups.train + groups.choose + groups.judge
    shape = (
        f"{total} groups: {groups.train} to train on, {groups.choose} to choose by, "
        f"{groups.judge} to judge by (holdout_share = {material.share:.4g})"
    )
    more = "raise holdout_share or add rows"
    for number, lost, remedy in (
        (questions.train, "nothing to train on", "lower holdout_share or add rows"),
        (questions.judge, "the hold-out is empty: no model of this site can be judged", more),
        (questions.choose, "nothing to choose by: no model can be preferred for this site", more),
    ):
        if not number:
            found.append(f"{lost}; {shape}; {remedy}")
    if 0 < questions.judge < FEW_QUESTIONS:
        points = round(100 * 1.96 * QUESTION_DEVIATION / sqrt(questions.judge))
        found.append(
            f"{questions.judge} questions to judge by: too few to tell small differences (expect "
            f"intervals of about +-{points} points); have {FEW_QUESTIONS} or more"
        )
    for number, text in (
        (
            material.headings,
            f"of {questions.judge} questions to judge by are headings of documents: the "
            "figures say how headings find their sections, not how people's questions do",
        ),
        (material.left_out, "held-out questions or pairs stand in another part too and are left out"),
        (material.unanswerable, "held-out utterances have a label that no training row has and are left out"),
        (
            material.withdrawn,
            "training rows are left out because their passage is held out in another group; "
            "choose a group column that keeps equal passages together",
        ),
    ):
        if number:
            found.append(f"{number} {text}")
    return found


def _by_side(rows: Sequence[R], share: float) -> dict[Side, list[R]]:
    parts: dict[Side, list[R]] = {one: [] for one in SIDES}
    for row in rows:
        parts[side(row.group, share)].append(row)
    return parts


def _scored_task(texts: Texts, rows: Sequence[Scored]) -> ScoredTask:
    return ScoredTask.from_pairs(texts, ((row.a, row.b, row.score) for row in rows))


def _counts(numbers: dict[Side, int]) -> Counts:
    return Counts(*(numbers.get(one, 0) for one in SIDES))
