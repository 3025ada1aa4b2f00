"""Does the reference's table replicate? Its kd grid and ours, compared over the same cells.

Both are best epochs, as the reference shows. Only plain kd and the model's default width count.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from reporting import stats
from reporting.compare import Results
from reporting.rows import ALONE
from reporting.tables import KEY, fixed, over_seeds, percent, plain_kd, plural, points

FEWEST = 5  # cells in common, below which a rank correlation is meaningless


@dataclass(frozen=True)
class Replication:
    """The cells that both have; accuracies of best epochs, fractions of 1.

    `ours` is (seeds, cells), for the seeds that have every cell, and `alone` by seed the student
    alone; `reference` is by cell, and a cell is (alpha, temperature). `added`, by seed, for
    what its columns name: best minus last epoch, mean over its cells.
    """

    ours: pd.DataFrame
    alone: pd.Series
    reference: pd.Series
    added: pd.DataFrame


def replication(results: Results, reference: pd.DataFrame) -> Replication | None:
    """None where fewer than FEWEST cells are in common, or several teachers taught one of them."""
    rows = results.protocol.rows
    known = rows.best_test_acc.notna() & rows.test_acc.notna()
    rows = rows[known & (rows.student == "cnn")]
    grid, alone = rows[plain_kd(rows)], rows[rows.kind == ALONE]
    theirs = reference[(reference.role == "distill") & (reference.model == "cnn")]
    theirs = theirs.set_index(KEY[2:]).test_acc
    if grid.empty or grid.duplicated([*KEY[2:], "seed"]).any():
        return None
    figures = {"ours": grid.best_test_acc, "added": grid.best_test_acc - grid.test_acc}
    wide = grid[[*KEY[2:], "seed"]].assign(**figures)
    wide = wide.pivot(index="seed", columns=KEY[2:], values=list(figures))
    # The cells that lost no seed to divergence, then the seeds that have them all.
    counts = wide.ours.count()
    cells = [c for c in wide.ours if c in theirs.index and counts[c] >= counts.mode().max()]
    ours = wide.ours[cells].dropna()
    if ours.shape[1] < FEWEST or ours.empty:
        return None
    alone = alone.set_index("seed").reindex(ours.index)
    added = {
        "these cells": wide.added.loc[ours.index, cells].mean(axis=1),
        "the student alone": alone.best_test_acc - alone.test_acc,
    }
    reference = theirs.reindex(ours.columns)
    return Replication(ours, alone.best_test_acc, reference, pd.DataFrame(added))


def sentences(found: Replication) -> list[str]:
    """Four sentences, each with a bold keyword and its figures."""
    return [pattern(found), inside(found), best_cells(found), best_epoch(found)]


def pattern(found: Replication) -> str:
    """Spearman's rank correlation with the reference, and of our seeds with one another."""
    own = [rho(row, found.reference) for _, row in found.ours.iterrows()]
    pairs = combinations(found.ours.index, 2)
    among = [rho(found.ours.loc[a], found.ours.loc[b]) for a, b in pairs]
    text = (
        f"**Pattern**: Spearman's ρ of the two tables over {plural(len(found.reference), 'cell')} "
        f"is {fixed(rho(found.ours.mean(), found.reference))} for the means of our "
        f"{plural(len(own), 'seed')}, and for a single seed's table "
        f"{over_seeds(own, lambda value: fixed(np.clip(value, -1, 1)))}"
    )
    if among:
        between = fixed(pd.Series(among).mean())
        text += f"; two of our seeds agree with each other by {between} in the mean"
    return text + "."


def rho(one: pd.Series, other: pd.Series) -> float:
    """Spearman's rank correlation; NaN where one of them is constant."""
    return one.corr(other, method="spearman")


def inside(found: Replication) -> str:
    """In how many cells the reference could be one more seed of ours."""
    seeds = len(found.ours)
    if seeds < 2:
        return "**Level**: one seed, so whether the reference could be another stays open."
    noise = np.sqrt(found.ours.var().mean())  # of a run, pooled over cells
    # A seed moves all cells together, so the degrees of freedom are about those of one cell.
    half = stats.quantile(seeds - 1) * noise * np.sqrt(1 + 1 / seeds)
    away = found.ours.mean() - found.reference
    return (
        f"**Level**: our means are {points(away.mean())} points from the reference in the mean; "
        f"in {int((away.abs() <= half).sum())} of {plural(len(away), 'cell')} it could be one more "
        f"seed of ours (95 % prediction interval, ± {percent(half)})."
    )


def best_cells(found: Replication) -> str:
    """Which cell a table of one seed names the best, and where the reference's best is here."""
    named = found.ours.idxmax(axis=1).value_counts(sort=False)
    named = named.sort_index().sort_values(ascending=False, kind="stable")
    told = [f"{cell_name(cell)} ({count} of {len(found.ours)})" for cell, count in named.items()]
    theirs = found.reference.idxmax()  # of the cells in common
    rank = int(found.ours.mean().rank(ascending=False, method="min")[theirs])
    gain = (found.ours[theirs] - found.alone).dropna()
    text = (
        f"**Best cell**: by a single seed's table it is {'; '.join(told)}. The reference's of "
        f"these, {cell_name(theirs)}, is number {rank} of our {len(found.reference)}"
    )
    if len(gain):
        # Without an interval: the tables have it, moderated.
        text += f", with {points(gain.mean())} over the student alone"
    return text + "."


def best_epoch(found: Replication) -> str:
    """What choosing the epoch on the test set adds to the last one."""
    told = found.added.dropna(axis=1, how="all").items()
    parts = [f"{over_seeds(added.dropna())} to {name}" for name, added in told]
    return (
        f"**Best epoch**: choosing it on the test set adds {' and '.join(parts)}, in points "
        "over the last epoch."
    )


def cell_name(cell: tuple[float, float]) -> str:
    return f"α {cell[0]:g}, T {cell[1]:g}"
