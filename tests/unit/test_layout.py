"""The flat vector: lengths as the specification counts them, places that fit, the same first values everywhere."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nexus_common.errors import Refusal
from nexus_common.layout import MAX_DENDRITES, Layout, first_dendrite_values

LAYOUTS = [Layout(d, s) for d in (0, 1, 2) for s in (None, 0, 1, 2)]
layouts = st.builds(Layout, st.integers(0, 3), st.none() | st.integers(0, 3), st.sampled_from(["tanh", "sigmoid"]))


@pytest.mark.parametrize("dendrites", range(4))
def test_the_projection_has_as_many_parameters_as_the_design_counts(dendrites: int) -> None:
    assert Layout(dendrites).dim == 147_840 * (dendrites + 1) + 384 * dendrites * (dendrites + 1) // 2


def test_a_salience_head_costs_384_parameters() -> None:
    assert Layout(0, 0).dim - Layout(0).dim == 384


@given(layouts)
def test_entries_fill_the_vector_without_gap_or_overlap(layout: Layout) -> None:
    ends = [entry.span for entry in layout.entries]
    assert [span.start for span in ends] == [0, *(span.stop for span in ends)][:-1]
    assert ends[-1].stop == layout.dim


@given(layouts, layouts)
def test_two_layouts_have_the_same_hash_only_if_they_are_the_same(one: Layout, other: Layout) -> None:
    same = [(e.name, e.shape) for e in one.entries] == [(e.name, e.shape) for e in other.entries]
    assert (one.hash == other.hash) == (same and one.activation == other.activation)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_join_is_the_inverse_of_split(layout: Layout) -> None:
    vector = np.random.default_rng(0).normal(size=layout.dim).astype("f4")
    np.testing.assert_array_equal(layout.join(layout.split(vector)), vector)


@pytest.mark.parametrize("change", [lambda v: v[:-1], lambda v: np.append(v, v[:1]), lambda v: v.astype("f8")])
def test_a_vector_of_another_length_or_type_is_refused(change) -> None:
    with pytest.raises(Refusal, match="layout"):
        Layout().split(change(np.zeros(Layout().dim, np.float32)))


@pytest.mark.parametrize("bad", [{"projection": -1}, {"salience": MAX_DENDRITES + 1}, {"activation": "relu"}])
def test_an_impossible_layout_is_refused(bad: dict) -> None:
    with pytest.raises(Refusal, match="layout"):
        Layout(**bad)


def test_first_dendrite_values_are_the_same_bits_on_every_cpu() -> None:
    values = first_dendrite_values(b"seed", "projection.dendrites.0.weight", 1000)
    digest = hashlib.sha256(values.astype("<f4").tobytes()).hexdigest()
    assert digest == "09c2f3c9cc3c6ba849795fd125ca3a8518a3e58334caffb44230c1bd87c98417"


def test_first_dendrite_values_are_nearly_normal_and_differ_by_seed_and_name() -> None:
    values = first_dendrite_values(b"seed", "a", 100_000)
    assert abs(values.mean()) < 2e-4
    assert abs(values.std() - 0.01) < 2e-4
    assert not np.array_equal(values[:10], first_dendrite_values(b"other", "a", 10))
    assert not np.array_equal(values[:10], first_dendrite_values(b"seed", "b", 10))
