"""A dendrite has to beat its own control: the trial's arms begin alike, the better stays, a tie is the smaller's."""

import difflib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nexus_client.embed import default_base
from nexus_common.adapter import DendriticProjection, SaliencePooling
from nexus_common.errors import NexusError
from nexus_common.layout import WIDTH, first_dendrite_values

from tests.processes.harness import write_rows

os.environ["HF_HUB_OFFLINE"] = "1"
pytest.importorskip("transformers")
from nexus_client.growing import DendriteGrowth, attach

SCRIPTS = Path(__file__).resolve().parent.parent.parent / "deploy" / "training"


class Loop:
    """As much of a trainer as the callback meets: a model, Adam, a schedule, and evaluations with given scores."""

    def __init__(self, growth: DendriteGrowth) -> None:
        self.model = torch.nn.Sequential(SaliencePooling(), DendriticProjection())
        self.optimiser = torch.optim.Adam(self.model.parameters(), 1e-2)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, lambda step: 1 / (1 + step))
        self.growth, self.step, self.stopped = growth, 0, False
        self.inputs = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(0))

    @property
    def layer(self) -> torch.nn.Module:
        return self.model[1].layer

    @property
    def dendrites(self) -> int:
        return len(self.layer.dendrites)

    def weights(self) -> np.ndarray:
        return np.concatenate([p.detach().numpy().ravel() for p in self.model.parameters()])

    def evaluate(self, score: float) -> "Loop":
        """Train one step, then hear a score."""
        self.optimiser.zero_grad()
        self.layer(self.inputs).square().sum().backward()
        self.optimiser.step()
        self.schedule.step()
        self.step += 1
        control = SimpleNamespace(should_training_stop=False)
        self.growth.on_evaluate(
            SimpleNamespace(),
            SimpleNamespace(global_step=self.step),
            control,
            metrics={"score": score},
            model=self.model,
            optimizer=self.optimiser,
            lr_scheduler=self.schedule,
        )
        self.stopped |= control.should_training_stop
        return self

    def end(self) -> "Loop":
        self.growth.on_train_end(None, None, None, model=self.model, optimizer=self.optimiser)
        return self


def loop(**settings: object) -> Loop:
    usual = {"greater_is_better": True, "patience": 2, "trial_evaluations": 2, "max_dendrites": 1}
    return Loop(DendriteGrowth("score", **usual | settings))  # type: ignore[arg-type]


def plateau(made: Loop) -> np.ndarray:
    """Its best weights, from which both arms begin."""
    made.evaluate(0.5).evaluate(0.7)
    best = made.weights()
    made.evaluate(0.6).evaluate(0.7)
    np.testing.assert_array_equal(made.weights(), best, "the control begins at the best weights")
    assert made.dendrites == 0
    return best


def test_a_dendrite_that_beats_its_control_stays() -> None:
    made = loop()
    best = plateau(made)
    lr = made.optimiser.param_groups[0]["lr"]
    made.evaluate(0.71).evaluate(0.70)
    assert made.dendrites == 1
    shared = [p.detach().numpy().ravel() for n, p in made.model.named_parameters() if "dendrites" not in n]
    np.testing.assert_array_equal(np.concatenate(shared)[: len(best)], best)
    assert made.optimiser.param_groups[0]["lr"] == lr, "both arms see the same stretch of the schedule"
    np.testing.assert_array_equal(
        made.layer.dendrites[0].weight.detach().numpy().ravel(),
        first_dendrite_values(b"", "projection.dendrites.0.weight", WIDTH * WIDTH),
    )
    made.evaluate(0.70).evaluate(0.72)
    won = made.weights()
    (trial,) = made.growth.trials
    assert (trial.kept, trial.control, trial.dendrite, made.stopped) == (True, 0.71, 0.72, False)
    assert made.layer.tops[0].detach().any(), "the new parameters train"
    made.evaluate(0.6).evaluate(0.6)
    assert made.stopped, "another plateau, and no dendrite more is allowed"
    np.testing.assert_array_equal(made.end().weights(), won)


@pytest.mark.parametrize("score", [0.70, 0.71], ids=["worse", "a tie"])
def test_a_dendrite_that_does_not_is_taken_away(score: float) -> None:
    made = loop()
    plateau(made)
    control = made.evaluate(0.71).weights()
    made.evaluate(0.69).evaluate(score).evaluate(0.1)
    assert not made.growth.trials[0].kept
    assert (made.dendrites, made.stopped) == (0, True)
    np.testing.assert_array_equal(made.weights(), control)
    assert {id(p) for p in made.optimiser.param_groups[0]["params"]} == {id(p) for p in made.model.parameters()}
    made.evaluate(0.2)  # and training could go on


def test_a_trial_that_is_cut_short_leaves_the_best_weights_before_it() -> None:
    made = loop()
    best = plateau(made)
    made.evaluate(0.71).evaluate(0.5).evaluate(0.9)
    assert made.dendrites == 1
    np.testing.assert_array_equal(made.end().weights(), best)


def test_a_loss_is_better_when_smaller_and_a_metric_that_is_not_there_is_named() -> None:
    made = Loop(DendriteGrowth("score", patience=1, trial_evaluations=1))
    made.evaluate(0.5).evaluate(0.6)
    made.evaluate(0.4).evaluate(0.3)
    assert made.growth.trials[0].kept
    with pytest.raises(NexusError, match="no 'eval_ndcg', only score"):
        Loop(DendriteGrowth("eval_ndcg")).evaluate(1.0)


def test_attached_the_model_says_what_it_said_and_only_the_adapter_trains() -> None:
    from sentence_transformers import SentenceTransformer

    model, base = (SentenceTransformer(str(default_base()), device="cpu") for _ in range(2))
    attach(model)
    texts = ["DOAC held 24 h pre-op", "x"]
    np.testing.assert_allclose(model.encode(texts), base.encode(texts), atol=1e-6)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == WIDTH + WIDTH * WIDTH + WIDTH
    base[1].pooling_mode = "cls"
    with pytest.raises(NexusError, match="another"):
        attach(base)


@pytest.mark.long
def test_the_standard_script_changes_by_fewer_than_ten_lines_and_both_run(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="needs datasets and accelerate, as any trainer does")
    scripts = [SCRIPTS / "standard.py", SCRIPTS / "dendritic.py"]
    before, after = ([line for line in path.read_text().splitlines() if line] for path in scripts)
    changed = [line for line in difflib.ndiff(before[1:], after[1:]) if line[0] in "+-"]
    assert 0 < len(changed) < 10, changed
    readme = (SCRIPTS.parent.parent / "README.md").read_text()
    assert all(line[2:].strip() in readme for line in changed if line[0] == "+")
    rows = write_rows(tmp_path / "rows.jsonl", 12, "box")
    for path in scripts:
        out = tmp_path / path.stem
        command = [sys.executable, str(path), str(default_base()), str(rows), str(out)]
        environment = os.environ | {
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HOME": str(tmp_path / "cache"),
            "HF_DATASETS_OFFLINE": "1",
        }
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        from sentence_transformers import SentenceTransformer

        made = SentenceTransformer(str(out), device="cpu", trust_remote_code=path.stem == "dendritic")
        assert made.encode(["a box"]).shape == (1, WIDTH)
