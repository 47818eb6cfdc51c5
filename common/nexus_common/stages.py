"""What a version of a run holds, and every form that it may take: one adapter, or in a trial several side by side.

A run begins with one adapter.  A trial sets grown ones beside it, the control first; one of them goes on.  All stages
follow from the recipe, so approving a plan approves each, and secure aggregation has one protocol plan for each
(design: "Growth in a federation", 4).
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from nexus_common.layout import MAX_DENDRITES, Layout, Vector

Float = TypeVar("Float", bound=np.floating)
Place = Literal["projection", "salience"]


@dataclass(frozen=True)
class Stage:
    """One arm outside of trials; in a trial the control and the candidates, their vectors one behind the other."""

    arms: tuple[Layout, ...]

    @cached_property
    def dim(self) -> int:
        """Length of the vector."""
        return sum(arm.dim for arm in self.arms)

    @cached_property
    def hash(self) -> bytes:
        """SHA-256; of a single arm it is the layout's own."""
        if len(self.arms) == 1:
            return self.arms[0].hash
        return hashlib.sha256(b"nexus trial 1\n" + b"".join(arm.hash for arm in self.arms)).digest()

    @property
    def is_trial(self) -> bool:
        """Whether arms are compared."""
        return len(self.arms) > 1

    @property
    def alone(self) -> "Stage":
        """The stage of the control alone: what is used where a trial is not decided."""
        return Stage(self.arms[:1])

    @property
    def names(self) -> list[str]:
        """What each arm is called: the control, and what the others have more than it."""
        first, *others = self.arms
        more = "salience" if first.salience is None else "salience dendrite"
        return ["control", *("projection dendrite" if arm.projection > first.projection else more for arm in others)]

    def split(self, vector: NDArray[Float]) -> list[NDArray[Float]]:
        """Views of the arms' vectors."""
        ends = accumulate((arm.dim for arm in self.arms), initial=0)
        return [vector[start:end] for start, end in pairwise(ends)]

    def control(self, vector: Vector) -> Vector:
        """The first arm's vector, the one for use."""
        return vector[: self.arms[0].dim]


@lru_cache
def stages_of(first: Layout, max_dendrites: int, candidates: tuple[Place, ...]) -> tuple[Stage, ...]:
    """Every stage, numbered: those of one arm by rising number of dendrites, then the trial of each."""
    singles, level = [first], [first]
    trials: list[Stage] = []
    for _ in range(max_dendrites):
        for layout in level:
            if grown := [one for place in candidates if (one := layout_grown(layout, place)) is not None]:
                trials.append(Stage((layout, *grown)))
        level = list(dict.fromkeys(arm for trial in trials for arm in trial.arms[1:] if arm not in singles))
        singles += level
    return (*(Stage((layout,)) for layout in singles), *trials)


def layout_grown(layout: Layout, place: Place) -> Layout | None:
    """The layout with one dendrite more; salience where there is none is the head itself.  None where it is full."""
    projection, salience = layout.projection, layout.salience
    if place == "projection":
        projection += 1
    else:
        salience = 0 if salience is None else salience + 1
    if max(projection, salience or 0) > MAX_DENDRITES:
        return None
    return Layout(projection, salience, layout.activation)


def moved(vector: Vector, old: Stage, new: Stage, seed: bytes) -> Vector:
    """A version's vector in another stage: the chosen arm of a trial alone, or a trial's arms from one vector.

    Newborn dendrites have the values that ``seed`` fixes and change no output.
    """
    if old == new:
        return vector
    if not new.is_trial:
        return old.split(vector)[old.arms.index(new.arms[0])]
    before = old.control(vector)
    return np.concatenate([before, *(grown(before, new.arms[0], arm, seed) for arm in new.arms[1:])])


def grown(vector: Vector, old: Layout, new: Layout, seed: bytes) -> Vector:
    """An adapter's vector in a larger layout, with the same output."""
    return new.join(new.split(new.first_vector(seed)) | old.split(vector))
