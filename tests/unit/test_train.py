"""The losses against numbers worked out by hand, and what a site's local steps promise."""

import numpy as np
import pytest
import torch
from nexus_client.material import RankingTask, ScoredTask, Texts
from nexus_client.train import Learner, clipped, local_update, moved, ranking_loss, scored_loss
from nexus_common.adapter import DendriticAdapter, unpadded
from nexus_common.errors import NexusError
from nexus_common.layout import WIDTH, Layout
from nexus_common.recipe import LocalSettings

CPU = torch.device("cpu")


class RandomStates:
    """Token states of made-up texts; pooled vectors are their normalised means, as the base model pools."""

    def __init__(self, count: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.lengths = torch.randint(1, 9, (count,), generator=generator)
        self.states = torch.randn(count, 8, WIDTH, generator=generator)
        self.mask = (torch.arange(8) < self.lengths[:, None]).float()

    def pooled(self, numbers: np.ndarray) -> torch.Tensor:
        states, mask = self.states[torch.from_numpy(numbers)], self.mask[torch.from_numpy(numbers)]
        return torch.nn.functional.normalize((states * mask[..., None]).sum(1), dim=-1)

    def tokens(self, numbers: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        return unpadded(self.states[torch.from_numpy(numbers)], self.mask[torch.from_numpy(numbers)])


def pairs(count: int = 12) -> tuple[Texts, RankingTask]:
    texts = Texts()
    return texts, RankingTask.from_pairs(texts, [(f"q{i}", f"p{i // 2}", None) for i in range(count)])


def learner(layout: Layout, states: RandomStates) -> Learner:
    return Learner(DendriticAdapter(layout).load_vector(layout.first_vector(b"s")), states, CPU)


@pytest.mark.parametrize("layout", [Layout(), Layout(0, 0), Layout(1, 2)], ids=str)
@pytest.mark.parametrize("corpus", [0, 100])
def test_ranking_loss_is_infonce_with_other_right_answers_masked(layout: Layout, corpus: int) -> None:
    texts, task = pairs()
    states = RandomStates(len(texts.items))
    settings = LocalSettings(batch_rows=12, temperature=0.1, corpus_negatives=corpus)
    found = ranking_loss(learner(layout, states), task, settings, np.random.default_rng(0)).item()
    q = states.pooled(task.queries).numpy()
    p = states.pooled(task.passages).numpy()
    logits = q @ p.T / 0.1  # the whole batch: all passages are candidates, with or without a corpus
    expected = np.mean([np.log(np.exp(logits[i]).sum()) - logits[i, i // 2] for i in range(12)])
    assert found == pytest.approx(expected, abs=1e-5)


def test_a_labelled_utterance_is_never_its_own_answer() -> None:
    texts = Texts()
    rows = [("a", "x"), ("b", "x"), ("c", "y"), ("d", "y"), ("alone", "z")]
    task = RankingTask.from_labels(texts, rows, rows)
    assert [texts.items[q] for q in task.queries] == ["a", "b", "c", "d"]
    states = RandomStates(5)
    settings = LocalSettings(batch_rows=4, temperature=1.0, corpus_negatives=10)
    found = ranking_loss(learner(Layout(), states), task, settings, np.random.default_rng(0)).item()
    v = states.pooled(np.arange(5)).numpy()
    cosine = v @ v.T
    other = [1, 0, 3, 2]
    expected = np.mean(
        [np.log(sum(np.exp(cosine[i, j]) for j in range(5) if j != i)) - cosine[i, other[i]] for i in range(4)]
    )
    assert found == pytest.approx(expected, abs=1e-5)


def test_a_named_negative_is_always_among_the_candidates() -> None:
    texts = Texts()
    task = RankingTask.from_pairs(texts, [("q", "right", "wrong"), ("r", "other", None)])
    states = RandomStates(len(texts.items))
    settings = LocalSettings(batch_rows=2, temperature=1.0, corpus_negatives=0)
    found = ranking_loss(learner(Layout(), states), task, settings, np.random.default_rng(0)).item()
    q, p = states.pooled(task.queries).numpy(), states.pooled(task.passages).numpy()
    cosine = q @ p.T
    expected = np.mean([np.log(np.exp(cosine[i]).sum()) - cosine[i, task.positives[i][0]] for i in range(2)])
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("loss", ["cosine-mse", "cosent"])
def test_scored_losses_are_as_defined(loss: str) -> None:
    task = ScoredTask(np.array([0, 1, 2]), np.array([3, 4, 5]), np.array([0.0, 0.5, 1.0], np.float32))
    states = RandomStates(6)
    made = Learner(DendriticAdapter(Layout()).load_vector(Layout().first_vector(b"")), states, CPU)
    found = scored_loss(made, task, np.arange(3), LocalSettings(scored_loss=loss)).item()
    v = states.pooled(np.arange(6)).numpy().astype("f8")
    cosine = (v[:3] * v[3:]).sum(1)
    wrong = sum(
        np.exp(20 * (cosine[i] - cosine[j])) for i in range(3) for j in range(3) if task.score[i] < task.score[j]
    )
    expected = {"cosine-mse": np.mean((cosine - task.score) ** 2), "cosent": np.log(1 + wrong)}[loss]
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("layout", [Layout(d, s) for d in (0, 2) for s in (None, 0, 2)], ids=str)
def test_local_steps_are_as_many_as_asked_reproducible_and_bounded(layout: Layout) -> None:
    texts, task = pairs()
    states, settings = RandomStates(len(texts.items)), LocalSettings(steps=4, batch_rows=6, clip_norm=0.5)
    first, steps = layout.first_vector(b"s"), list[int]()
    one, other = (
        local_update(
            layout, first, [task], states, settings, np.random.default_rng(3), lambda done, _: steps.append(done)
        )
        for _ in range(2)
    )
    np.testing.assert_array_equal(one, other)
    assert steps == [1, 2, 3, 4, 1, 2, 3, 4]
    assert 0.1 < np.linalg.norm(one) <= 0.5 * 1.0001
    assert one.dtype == np.float32


def test_training_finds_what_it_is_taught() -> None:
    texts, task = pairs(40)
    states, settings = RandomStates(len(texts.items)), LocalSettings(steps=60, batch_rows=40, learning_rate=1e-2)
    before = learner(Layout(), states)
    update = local_update(Layout(), Layout().first_vector(b""), [task], states, settings, np.random.default_rng(0))
    after = learner(Layout(), states)
    after.adapter.load_vector(Layout().first_vector(b"") + update)
    rng = np.random.default_rng(1)
    assert ranking_loss(after, task, settings, rng).item() < 0.5 * ranking_loss(before, task, settings, rng).item()


@pytest.mark.parametrize("layout", [Layout(), Layout(0, 0)], ids=str)
def test_distillation_holds_the_site_s_texts_where_the_base_model_has_them(layout: Layout) -> None:
    texts, task = pairs(40)
    states, first = RandomStates(len(texts.items)), layout.first_vector(b"")
    every, rng = np.arange(len(texts.items)), np.random.default_rng(0)
    born = learner(layout, states)
    assert moved(born, every, rng).item() == pytest.approx(0.0, abs=1e-6)

    def after(weight: float) -> Learner:
        settings = LocalSettings(steps=40, batch_rows=40, learning_rate=1e-2, distillation=weight)
        trained = learner(layout, states)
        update = local_update(layout, first, [task], states, settings, np.random.default_rng(0))
        trained.adapter.load_vector(first + update)
        return trained

    free, held = after(0.0), after(10.0)
    assert moved(held, every, rng).item() < 0.5 * moved(free, every, rng).item()
    cosine = (held.embed(every) * states.pooled(every)).sum(dim=-1)
    assert moved(held, every, rng).item() == pytest.approx(1 - cosine.mean().item(), abs=0.05)  # over 64 of them
    assert ranking_loss(held, task, LocalSettings(), np.random.default_rng(1)).item() < (
        ranking_loss(born, task, LocalSettings(), np.random.default_rng(1)).item()
    )


def test_a_short_update_is_not_clipped() -> None:
    update = np.array([3, 4], np.float32)
    np.testing.assert_array_equal(clipped(update, 5.0), update)
    np.testing.assert_allclose(clipped(update, 1.0), [0.6, 0.8])


def test_nothing_to_train_on_and_divergence_are_said() -> None:
    texts, task = pairs()
    states = RandomStates(len(texts.items))
    first, rng = Layout().first_vector(b""), np.random.default_rng(0)
    with pytest.raises(NexusError, match="no training rows"):
        local_update(Layout(), first, [], states, LocalSettings(), rng)
    with pytest.raises(NexusError, match=r"lower local\.learning_rate"):
        local_update(Layout(), first + np.float32("inf"), [task], states, LocalSettings(steps=3), rng)
