"""The Pareto front: against every pair looked at by hand, ties, and what cannot be compared."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest

from deploykit.pareto import pareto_front

VARIANTS = pd.DataFrame(
    {"accuracy": [0.92, 0.92, 0.91, 0.90, 0.93], "latency_ms": [2.0, 1.0, 0.5, 0.7, 5.0], "size_kib": [9, 9, 3, 1, 40]},
    index=["float32", "fused", "int8", "tiny", "large"],
)


class TestFront:
    def test_only_those_that_nobody_beats_are_on_it(self):
        """The fused network beats the plain one, int8 beats the tiny one; with sizes the tiny one has a merit."""
        assert list(VARIANTS.index[pareto_front(VARIANTS)]) == ["fused", "int8", "large"]
        with_sizes = pareto_front(VARIANTS, smallest=("latency_ms", "size_kib"))
        assert list(VARIANTS.index[with_sizes]) == ["fused", "int8", "tiny", "large"]

    def test_it_is_what_looking_at_every_pair_says(self):
        """Reference: the definition, written out over all pairs of 40 random variants with many ties."""
        draw = np.random.default_rng(0)
        table = pd.DataFrame(draw.integers(0, 6, (40, 3)), columns=["accuracy", "latency_ms", "size_kib"])

        def beats(one, other):
            good = [one.accuracy - other.accuracy, other.latency_ms - one.latency_ms, other.size_kib - one.size_kib]
            return min(good) >= 0 and max(good) > 0

        dominated = {j for i, j in itertools.permutations(table.index, 2) if beats(table.loc[i], table.loc[j])}
        found = pareto_front(table, smallest=("latency_ms", "size_kib"))
        assert set(table.index[~found]) == dominated

    def test_equals_stay_together(self):
        """Neither of two equal variants drives the other out."""
        twice = pd.concat([VARIANTS, VARIANTS.loc[["int8"]].rename({"int8": "again"})])

        assert pareto_front(twice)[["int8", "again"]].all()


class TestRefusals:
    def test_what_was_not_measured(self):
        """NaN compares with nothing; the row is named."""
        with pytest.raises(ValueError, match="int8 has a value that was not measured; leave such rows out"):
            pareto_front(VARIANTS.astype(float).replace({0.5: np.nan}))

    def test_unknown_and_no_columns(self):
        """Those that the table has are listed."""
        with pytest.raises(ValueError, match="the table has no column watts; it has accuracy, latency_ms, size_kib"):
            pareto_front(VARIANTS, smallest=("watts",))
        with pytest.raises(ValueError, match="no column is given to compare by"):
            pareto_front(VARIANTS, largest=(), smallest=())
