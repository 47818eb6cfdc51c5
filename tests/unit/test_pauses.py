"""Pauses double up to a bound, and end when the site comes anew."""

from nexus_server.pauses import FIRST_SECONDS, LONGEST_SECONDS, Pauses


def test_each_pause_is_twice_the_one_before_up_to_a_bound() -> None:
    pauses, lengths = Pauses(), []
    for _ in range(8):
        pauses.begin("a")
        lengths.append(pauses.length("a"))
    assert lengths == [min(FIRST_SECONDS * 2**i, LONGEST_SECONDS) for i in range(8)]
    assert not pauses.over("a")
    assert pauses.over("b")


def test_a_forgotten_pause_is_over() -> None:
    pauses = Pauses()
    pauses.begin("a")
    pauses.forget("a")
    assert (pauses.over("a"), pauses.length("a")) == (True, 0)
