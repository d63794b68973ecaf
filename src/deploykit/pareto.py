"""The variants worth discussing: those that no other beats in everything that counts.

This file needs nothing else of deploykit: copy it into a project and it works.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def pareto_front(
    table: pd.DataFrame, *, largest: Collection[str] = ("accuracy",), smallest: Collection[str] = ("latency_ms",)
) -> pd.Series:
    """Tell for each row whether it is on the Pareto front.

    A row is dominated if another is at least as good in every column and better in one. Rows that are equal in all of
    them stay together, on the front or behind it. A number is taken as exact: two variants whose intervals overlap may
    both deserve to be kept.

    Args:
        table: one variant a row.
        largest: columns in which more is better.
        smallest: columns in which less is better.

    Returns:
        True for those on the front, with the table's index.

    Raises:
        ValueError: no column, one that the table lacks, or NaN in one: what was not measured cannot be compared.
    """
    import numpy as np
    import pandas as pd

    columns = [*largest, *smallest]
    if missing := [column for column in columns if column not in table]:
        raise ValueError(f"the table has no column {', '.join(missing)}; it has {', '.join(map(str, table))}")
    if not columns:
        raise ValueError("no column is given to compare by; give at least one as largest or smallest")
    if table[columns].isna().to_numpy().any():
        holes = table.index[table[columns].isna().any(axis=1)]
        raise ValueError(f"{holes[0]} has a value that was not measured; leave such rows out")
    values = table[columns].to_numpy(float) * np.array([1] * len(largest) + [-1] * len(smallest))
    at_least = (values[:, None, :] >= values[None, :, :]).all(axis=2)  # [i, j]: i is at least as good as j
    better = (values[:, None, :] > values[None, :, :]).any(axis=2)
    return pd.Series(~(at_least & better).any(axis=0), index=table.index, name="on the front")
