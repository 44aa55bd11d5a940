"""What is told of candidate sets before a training begins."""

import numpy as np
import pytest

from fer_pll.labels import confidence_table as confidence_module
from fer_pll.labels.candidate_summary import CandidateSummary
from fer_pll.labels.confidence_table import ConfidenceTable

CANDIDATES = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 1], [1, 1, 1], [1, 0, 0]], dtype=bool)
VOTES = np.array([[9, 1, 0], [7, 3, 0], [0, 6, 4], [4, 3, 3], [5, 0, 0]])


@pytest.mark.parametrize("chunk", [2, 100])
def test_by_hand(monkeypatch, chunk):
    monkeypatch.setattr(confidence_module, "_CHUNK_ROWS", chunk)
    table = ConfidenceTable.from_candidates(CANDIDATES, ("a", "b", "c"), "f", "votes", VOTES)
    summary = CandidateSummary.from_table(table, max_candidates=2)
    assert summary.rows.tolist() == [0, 2, 2, 1]
    np.testing.assert_allclose(summary.margins, [np.nan, 1, 0.7, 0.4], rtol=1e-6)
    assert summary.alone.tolist() == [2, 0, 0] and summary.among.tolist() == [2, 3, 2]
    np.testing.assert_allclose(summary.share, np.array([1 + 0.7 + 0 + 0.4 + 1, 0.3 + 0.6 + 0.3, 0.4 + 0.3]) / 5)
    assert summary.ties == 1
    lines = str(summary).splitlines()
    assert lines[0] == (
        "5 candidate sets of 1.80 labels on average; 40.0% have one label only, 1 are larger because of ties"
    )
    assert [line.split() for line in lines[2:5]] == [
        ["1", "2", "40.0%"],
        ["2", "2", "40.0%", "0.700"],
        ["3", "1", "20.0%", "0.400"],
    ]
    assert [line.split() for line in lines[6:]] == [
        ["a", "2", "2", "62.0%"],
        ["b", "0", "3", "24.0%"],
        ["c", "0", "2", "14.0%"],
    ]


def test_sets_that_no_votes_made_have_no_ties():
    table = ConfidenceTable.from_candidates(CANDIDATES, ("a", "b", "c"), "f")
    summary = CandidateSummary.from_table(table)
    assert summary.ties is None and "ties" not in str(summary)
    np.testing.assert_allclose(summary.margins, [np.nan, 1, 1 / 2, 1 / 3], rtol=1e-6)


def test_a_rule_without_a_bound_has_no_margins_to_tell():
    table = ConfidenceTable.from_candidates(CANDIDATES, ("a", "b", "c"), "f")
    assert "margin stays below" in str(CandidateSummary.from_table(table))
    summary = CandidateSummary.from_table(table, rule="soft")
    assert np.isnan(summary.margins).all()
    text = str(summary)
    assert "margin" not in text and [line.split() for line in text.splitlines()[2:5]] == [
        ["1", "2", "40.0%"],
        ["2", "2", "40.0%"],
        ["3", "1", "20.0%"],
    ]
