"""Rows of Markdown, and how far predictions are off."""

import pytest
from reported import harness

tables = harness("tables")


def test_a_table_has_a_rule_of_as_many_cells_as_its_head():
    assert tables.head("a", "b") == "| a | b |\n|---|---|"
    assert tables.head("a", "b", rule=" --- ") == "| a | b |\n| --- | --- |"
    assert tables.row("x", 1, None) == "| x | 1 | None |"


def test_errors_are_taken_without_their_sign_but_for_the_worst_that_is_too_low():
    off = tables.spread([0.1, -0.3, 0.2])
    assert (off.count, off.worst, off.under) == (3, 0.3, -0.3)
    assert off.mean == pytest.approx(0.2)
    assert off.p95 == pytest.approx(0.29)


def test_one_error_is_its_own_mean_and_percentile():
    off = tables.spread([-0.1])
    assert (off.mean, off.p95, off.worst, off.under) == (0.1, 0.1, 0.1, -0.1)


def test_no_errors_have_no_spread():
    with pytest.raises(ValueError, match="no errors"):
        tables.spread([])
