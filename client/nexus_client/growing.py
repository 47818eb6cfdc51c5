"""Dendrites in somebody's own training loop: an adapter on a sentence-transformers model, and a trainer's callback.

    attach(model)  # the base model's output at birth; only the adapter trains
    trainer = SentenceTransformerTrainer(model, ..., callbacks=[DendriteGrowth()])

A dendrite has to earn its place.  Where the score has stopped to improve, two arms train one after the other from the
best weights so far, for as many evaluations each, on the same stretch of the learning rate's schedule: one as it is,
one with a new dendrite.  The better one goes on; at a tie it is the smaller one.
"""

import copy
import logging
from dataclasses import dataclass
from typing import Any, Final, Literal

from nexus_common.adapter import DendriticLayer, DendriticProjection, SaliencePooling, StoredModule
from nexus_common.errors import NexusError
from nexus_common.layout import MAX_DENDRITES, WIDTH, Activation, first_dendrite_values
from torch import Tensor, from_numpy, no_grad
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

log = logging.getLogger(__name__)
Place = Literal["projection", "salience"]
_MODULES: Final = {"projection": DendriticProjection, "salience": SaliencePooling}


def attach(model: Any, *, salience: bool = True, activation: Activation = "tanh") -> None:
    """Put a dendritic adapter on a ``SentenceTransformer`` whose encoder pools by the mean, and freeze that encoder.

    NexusError for a model of another width or pooling, for then the output would change.
    """
    encoder, pooling, *_ = model
    width = getattr(model, "get_embedding_dimension", model.get_sentence_embedding_dimension)  # from 6 on, before
    if getattr(pooling, "pooling_mode", "mean") != "mean" or width() != WIDTH:
        raise NexusError(f"the adapter takes the mean of {WIDTH} numbers a token; this model is another: {model}")
    encoder.requires_grad_(False)
    for module in encoder.modules():
        if hasattr(module, "p") and type(module).__name__ == "Dropout":
            module.p = 0.0  # a frozen encoder says the same of a text at each step
    modules = [encoder, SaliencePooling(activation=activation) if salience else pooling]
    modules.append(DendriticProjection(activation=activation).to(model.device))
    model._modules.clear()
    for number, module in enumerate(modules):
        model.add_module(str(number), module.to(model.device))


@dataclass
class Checkpoint:
    """Weights of the adapter and what the optimiser remembers of them, with the score they had."""

    score: float
    weights: list[Tensor]
    memory: list[dict[str, Any]]
    dendrites: int


@dataclass(frozen=True)
class Trial:
    """Two arms and their best scores; ``kept`` where the dendrite beat its control, for a tie is the smaller's."""

    step: int
    dendrites: int
    control: float
    dendrite: float
    kept: bool


class DendriteGrowth(TrainerCallback):
    """Grows dendrites while they win against their own control, then stops, with the best weights loaded.

    ``metric`` is one of an evaluation's; ``patience`` evaluations without ``min_gain`` are a plateau, each arm of a
    trial has ``trial_evaluations``.  ``trials`` keeps the evidence.
    """

    def __init__(
        self,
        metric: str = "eval_loss",
        *,
        greater_is_better: bool = False,
        patience: int = 3,
        trial_evaluations: int = 3,
        max_dendrites: int = 2,
        min_gain: float = 0.0,
        place: Place = "projection",
        seed: bytes = b"",
    ) -> None:
        if not 0 <= max_dendrites <= MAX_DENDRITES:
            raise NexusError(f"max_dendrites = {max_dendrites}: a layer takes 0 to {MAX_DENDRITES}")
        self.metric, self.sign = metric, 1.0 if greater_is_better else -1.0
        self.patience, self.trial_evaluations, self.min_gain = patience, trial_evaluations, min_gain
        self.max_dendrites, self.place, self.seed = max_dendrites, place, seed
        self.trials: list[Trial] = []
        self._best: Checkpoint | None = None  # of the run so far
        self._start: Checkpoint | None = None  # of the arms, while a trial runs
        self._arms: list[Checkpoint] = []  # the best of each arm of the trial in progress
        self._schedule: dict[str, Any] = {}
        self._looked = 0  # evaluations since the last gain, or in this arm

    def on_evaluate(
        self,
        args: TrainingArguments,  # noqa: ARG002  the trainer's signature
        state: TrainerState,
        control: TrainerControl,
        **found: Any,
    ) -> None:
        """One evaluation: go on, begin a trial, change its arm, or decide it."""
        metrics, model, optimiser = found["metrics"], found["model"], found["optimizer"]
        if self.metric not in metrics:
            raise NexusError(f"an evaluation has no {self.metric!r}, only {', '.join(sorted(metrics))}")
        here = self._checkpoint(model, optimiser, self.sign * metrics[self.metric])
        if self._start is None:
            if self._best is None or here.score > self._best.score + self.min_gain:
                self._best, self._looked = here, 0
                return
            self._looked += 1
            if self._looked < self.patience:
                return
            if here.dendrites >= self.max_dendrites:
                control.should_training_stop = True
                return
            self._start, self._schedule = self._best, copy.deepcopy(found["lr_scheduler"].state_dict())
            self._next_arm(model, optimiser, found["lr_scheduler"])
            return
        if here.score > self._arms[-1].score:
            self._arms[-1] = here
        self._looked += 1
        if self._looked == self.trial_evaluations:
            if len(self._arms) == 1:
                self._next_arm(model, optimiser, found["lr_scheduler"])
            else:
                self._decide(state, control, model, optimiser)

    def on_train_end(self, *_: Any, **found: Any) -> None:
        """The best weights there were are the result; of a trial that was cut short, nothing."""
        if self._best is not None:
            self._restore(self._best, found["model"], found["optimizer"])

    def _next_arm(self, model: Any, optimiser: Optimizer, schedule: Any) -> None:
        """The control first, then the dendrite, from the same weights, memory and place in the schedule."""
        assert self._start is not None  # noqa: S101  for the type checker
        self._restore(self._start, model, optimiser)
        schedule.load_state_dict(copy.deepcopy(self._schedule))
        for group, rate in zip(optimiser.param_groups, schedule.get_last_lr(), strict=True):
            group["lr"] = rate
        if self._arms:
            layer, number = self._layer(model), self._start.dendrites
            name = f"{self.place}.dendrites.{number}"
            weight = first_dendrite_values(self.seed, f"{name}.weight", layer.weight.numel())
            bias = layer.bias
            first = from_numpy(weight).reshape(layer.weight.shape)
            shift = None if bias is None else from_numpy(first_dendrite_values(self.seed, f"{name}.bias", len(bias)))
            optimiser.param_groups[0]["params"] += layer.grow(first, shift)
        self._arms.append(Checkpoint(float("-inf"), [], [], 0))
        self._looked = 0
        log.info("trial: %s", "control" if len(self._arms) == 1 else "with a new dendrite")

    def _decide(self, state: TrainerState, control: TrainerControl, model: Any, optimiser: Optimizer) -> None:
        without, with_it = self._arms
        kept = with_it.score > without.score
        scores = self.sign * without.score, self.sign * with_it.score
        trial, won = Trial(state.global_step, with_it.dendrites, *scores, kept), with_it if kept else without
        self.trials.append(trial)
        log.info("trial at step %d: control %.5f, dendrite %.5f", trial.step, trial.control, trial.dendrite)
        self._restore(won, model, optimiser)
        if self._best is None or won.score > self._best.score:
            self._best = won
        self._start, self._arms, self._looked = None, [], 0
        if not kept:
            control.should_training_stop = True

    def _layer(self, model: Any) -> DendriticLayer:
        inner = getattr(model, "module", model)
        found = [module.layer for module in inner if isinstance(module, _MODULES[self.place])]
        if len(found) != 1 or not isinstance(found[0], DendriticLayer):
            raise NexusError(f"the model has no {self.place} to grow; call attach(model) first")
        return found[0]

    def _parameters(self, model: Any) -> list[Tensor]:
        inner = getattr(model, "module", model)
        return [p for module in inner if isinstance(module, StoredModule) for p in module.parameters()]

    def _checkpoint(self, model: Any, optimiser: Optimizer, score: float) -> Checkpoint:
        parameters = self._parameters(model)
        weights = [parameter.detach().clone() for parameter in parameters]
        memory = [copy.deepcopy(dict(optimiser.state.get(parameter, {}))) for parameter in parameters]
        return Checkpoint(score, weights, memory, len(self._layer(model).dendrites))

    def _restore(self, wanted: Checkpoint, model: Any, optimiser: Optimizer) -> None:
        """Weights, structure and the optimiser's memory as they were; dendrites are only ever taken away here."""
        layer = self._layer(model)
        while len(layer.dendrites) > wanted.dendrites:
            layer.shrink()
        parameters = self._parameters(model)
        there = {id(parameter) for parameter in parameters}
        for group in optimiser.param_groups:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) in there]
        optimiser.state.clear()
        with no_grad():
            for parameter, weight, memory in zip(parameters, wanted.weights, wanted.memory, strict=True):
                parameter.copy_(weight)
                if memory:
                    optimiser.state[parameter] = copy.deepcopy(memory)
