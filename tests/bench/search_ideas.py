"""The ideas of the search, a bounded list: one change to the shipped recipe each, its reason before its numbers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal

from tests.bench import search_models as models
from tests.bench.search_models import Maker

NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})
Rows = Literal["", "mined", "bank"]


@dataclass(frozen=True)
class Pulls:
    """Weights of terms of a step's loss; squares of parameters are summed over all of them."""

    birth: float = 0.0  # |w - w at birth|^2
    version: float = 0.0  # |w - w at the round's start|^2 (FedProx, Li et al. 2020)
    further: float = 0.0  # |w|^2 of a branch that reads earlier layers
    relations: float = 0.0  # how far cosines between the site's texts move from the base model's
    back: float = 0.0  # InfoNCE from passages to questions, beside the one from questions to passages


@dataclass(frozen=True)
class Idea:
    """One way to train.  ``local`` and ``server`` change the plan's settings, ``rows`` the site's tasks; ``averaged``
    versions at the end are judged as their mean; ``sharpness`` is SAM's radius; ``cascade`` trains a dendrite on the
    residual error before it is wired in.  ``falling`` rates fall to 0 within a round; salience is ``held`` after so
    many rounds; ``scored`` pairs are distilled too.
    """

    name: str
    why: str
    model: Maker = models.shipped
    local: Mapping[str, Any] = field(default_factory=dict)
    server: Mapping[str, Any] = field(default_factory=dict)
    rounds: int = 10
    rows: Rows = ""
    pulls: Pulls = Pulls()
    averaged: int = 1
    sharpness: float = 0.0
    cascade: bool = False
    falling: bool = False
    held: int | None = None
    scored: bool = True

    @property
    def described(self) -> dict[str, Any]:
        """All of it but the reason, which changes no result."""
        told = {name: value for name, value in vars(self).items() if name not in ("why", "model")}
        return told | {"pulls": vars(self.pulls)}


SHIPPED: Final = "shipped"
IDEAS: Final = {
    idea.name: idea
    for idea in (
        Idea("without distillation", "salience and a linear projection alone: what was shipped before",
             local={"distillation": 0.0}),
        Idea(SHIPPED, "salience and a linear projection, distillation 1, server momentum 0.8 and step 0.7: what "
             "every gain is counted from"),
        Idea("projection alone", "what salience is worth", models.projection_alone),
        Idea("salience alone", "384 parameters: little to win, and little that noise could spoil",
             models.salience_alone),
        Idea("two salience heads", "titles and details may want different tokens", models.heads(2)),
        Idea("four salience heads", "the same, with more of them", models.heads(4)),
        Idea("salience over positions", "what stands first in an answer often says what it is about",
             models.featured("positions")),
        Idea("salience over kinds of pieces", "marks, digits and frequent words seldom say what a text is about",
             models.featured("kinds")),
        Idea("a candidate trained first", "Cascade-Correlation: a dendrite that follows the residual error before it "
             "is wired in has a reason to stay", models.dendritic, cascade=True),
        Idea("diagonal", "768 parameters can only weigh what is there, so they forget little", models.diagonal),
        Idea("rank 32", "24,576 parameters: fewer to overfit with and to protect", models.low_rank(32)),
        Idea("rank 128", "98,304 of them", models.low_rank(128)),
        Idea("layers 0 and 3", "earlier layers know words; held strongly, for without it they lost on an unseen "
             "hospital", models.layered, pulls=Pulls(further=0.1)),
        Idea("pull to birth 0.01", "what is not needed stays the base model's", pulls=Pulls(birth=0.01)),
        Idea("pull to birth 0.1", "more so", pulls=Pulls(birth=0.1)),
        Idea("pull to the version 0.01", "sites that stay near the version average better (FedProx)",
             pulls=Pulls(version=0.01)),
        Idea("pull to the version 0.1", "more so", pulls=Pulls(version=0.1)),
        Idea("mined negatives", "passages that the base model takes for right teach more than random ones",
             rows="mined"),
        Idea("a public bank of negatives", "a site never sees what other sites' passages look like; public ones may "
             "stand for them", rows="bank", local={"corpus_negatives": 128}),
        Idea("both ways", "a passage should find its question too", pulls=Pulls(back=0.5)),
        Idea("temperature 0.03", "sharper: the nearest wrong passages count more", local={"temperature": 0.03}),
        Idea("temperature 0.1", "softer: all wrong passages count", local={"temperature": 0.1}),
        Idea("distillation 0.3", "less of what holds the base model's vectors", local={"distillation": 0.3}),
        Idea("distillation 1.5", "more of it", local={"distillation": 1.5}),
        Idea("distillation 3", "much more", local={"distillation": 3.0}),
        Idea("relations 3", "general similarity is cosines, not vectors: hold those alone and let all turn",
             local={"distillation": 0.0}, pulls=Pulls(relations=3.0)),
        Idea("relations 10", "more so", local={"distillation": 0.0}, pulls=Pulls(relations=10.0)),
        Idea("scored pairs not distilled", "their loss is small, and their texts are general already", scored=False),
        Idea("rates that fall in a round", "Adam begins anew in every round, and its last steps are as large as its "
             "first", falling=True),
        Idea("salience held after three rounds", "a site's index is then encoded anew once, not for each version",
             held=3),
        Idea("plain mean, step 1", "the mean as it is", server={"optimiser": "fedavg", "step": 1.0}),
        Idea("plain mean, step 2", "what was shipped before: it doubles what distillation pulls back, and overshoots",
             server={"optimiser": "fedavg", "step": 2.0}),
        Idea("plain mean, step 4", "sites without common intents pull in different directions, so their mean is a "
             "sixth of each", server={"optimiser": "fedavg", "step": 4.0}),
        Idea("server momentum 0.5, step 1", "what rounds agree on adds up, and what swings does not (FedAvgM, Hsu et "
             "al. 2019): less of it", server={"momentum": 0.5, "step": 1.0}),
        Idea("server momentum 0.7, step 1", "nearly as far", server={"momentum": 0.7, "step": 1.0}),
        Idea("server momentum 0.8, step 1", "further", server={"step": 1.0}),
        Idea("server momentum 0.9, step 0.35", "as far, and slower", server={"momentum": 0.9, "step": 0.35}),
        Idea("FedAdam 0.003", "each parameter a step of its own size (Reddi et al. 2021)",
             server={"optimiser": "fedadam", "step": 0.003, "momentum": 0.9}),
        Idea("FedAdam 0.01", "a larger one", server={"optimiser": "fedadam", "step": 0.01, "momentum": 0.9}),
        Idea("20 rounds", "is ten enough?", rounds=20),
        Idea("60 local steps", "twice the work a round", local={"steps": 60}),
        Idea("SAM 0.05", "flat minima may carry over to other sites (Foret et al. 2021)", sharpness=0.05),
        Idea("mean of the last three", "averaged versions are flatter, and forget less (Izmailov et al. 2018)",
             averaged=3),
        Idea("mean of the last five", "more of them", averaged=5),
    )
}  # fmt: skip
