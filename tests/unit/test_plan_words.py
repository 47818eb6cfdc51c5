"""Twelve words: the same everywhere, compared as people say them, and never given away by a refusal."""

import pytest
from nexus_common.errors import Refusal
from nexus_common.plan_words import check_words, plan_words

HASH, OTHER = bytes(range(32)), bytes(32)
WORDS = plan_words(HASH)
GOLDEN = "donkey grain rapid globe vast monster setup strike cigar round drink coin"


def refused(typed: str) -> str:
    with pytest.raises(Refusal) as problem:
        check_words(typed, HASH)
    assert problem.value.code == "words-differ"
    said = set(str(problem.value).replace("'", " ").replace(";", " ").split())
    assert not said & (set(WORDS) - set(typed.lower().split())), "no right word that was not typed"
    return str(problem.value)


def test_the_words_of_a_hash_never_change() -> None:
    assert " ".join(WORDS) == GOLDEN


def test_case_commas_and_spacing_do_not_matter() -> None:
    check_words("  " + ",  ".join(WORDS).upper() + "\n", HASH)


def test_another_plans_words_are_called_that() -> None:
    assert "the words of another plan" in refused(" ".join(plan_words(OTHER)))


def test_words_in_another_order_were_misheard() -> None:
    said = refused(" ".join([WORDS[1], WORDS[0], *WORDS[2:]]))  # the checksum finds fifteen of sixteen such faults
    assert "a word was misheard or misplaced" in said


def test_a_word_that_is_not_in_the_list_is_named_with_the_nearest() -> None:
    assert "'abandn' is not in the list of plan words; did you mean 'abandon'" in refused(
        " ".join(["abandn", *WORDS[1:]])
    )


@pytest.mark.parametrize("count", [0, 11])
def test_too_few_words_are_counted(count: int) -> None:
    assert f"{count} words, a plan has 12" in refused(" ".join(WORDS[:count]))
