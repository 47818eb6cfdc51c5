"""The public text of a dry run, and how a proposal is rounded."""

from nexus_client.dry_run import ROWS, _rounded, public_rows


def test_every_interpreter_carries_enough_public_text() -> None:
    rows = public_rows()
    assert len(rows) == ROWS
    assert all(len(row["query"]) >= 30 and len(row["passage"]) >= 80 for row in rows)


def test_a_proposal_has_two_digits_and_is_never_below_what_was_measured() -> None:
    assert [_rounded(value) for value in (5.1001, 0.03711, 5.2, 104.2)] == [5.2, 0.038, 5.2, 110.0]
