"""All comparisons of a protocol as one tidy table: every statistic of the report is made here.

A comparison is a cell minus another of the same student, paired by seed. Its family are the
comparisons that could have been reported in its place; Holm's correction is over the family.
"""

from dataclasses import dataclass
from itertools import combinations

import pandas as pd

from reporting import stats
from reporting.rows import ALONE, CELL, CONTROL, NO_TEMPERATURE, T2, Protocol, short_ids

BEST, PLAIN, KD = "best", "plain", "kd"
METHODS = "methods"  # against the student alone, corrected over all methods
LEARNED = ["agreement", "teacher_kl", "ece"]
TESTS = [*CELL, "against", "family", "n", "difference", "half", "p", "p_holm", "sign", "visible"]
Grid = tuple[str, str]  # (student, variant)
Column = tuple[str, float, float]  # (variant, alpha, temperature) of a student
Pair = tuple[Column, Column]
# (against, pairs, shown): Holm's correction is over all pairs; those shown are rows of the table.
Family = tuple[str, list[Pair], list[Pair]]


@dataclass(frozen=True, eq=False)  # frames have no ==
class Results:
    """The cells of a protocol and their comparisons; accuracies and differences are fractions of 1.

    `cells`, by CELL: n, mean, std (of the accuracy over seeds), val, LEARNED (means), kind,
    run_ids, teacher_sha; and whether it is the `best` of its grid on test, the one `picked` on
    validation, the `choice` that represents the grid. `tests`, columns TESTS: `family` is the
    number of p in Holm's correction, `half` half the 95 % interval, `sign` 1 above, -1 below and 0
    not significant, `visible` the smallest difference that would be significant.
    """

    protocol: Protocol
    cells: pd.DataFrame
    tests: pd.DataFrame
    grids: list[Grid]  # with a teacher, the main one first

    def against(self, grid: Grid, other: str) -> pd.DataFrame:
        """The comparisons of a grid's cells with another by (alpha, temperature); may be empty."""
        student, variant = grid
        tests = self.tests[self.tests.against == other].set_index(CELL[2:])
        return tests[(tests.student == student) & (tests.variant == variant)]

    def where(self, grid: Grid, what: str) -> tuple | None:
        """The CELL that is the grid's `best`, `picked` or `choice`."""
        cells = of(self.cells, grid)
        return next(iter(cells.index[cells[what]]), None)


def of(frame: pd.DataFrame, grid: Grid) -> pd.DataFrame:
    """The rows of a grid of a frame (or series) by CELL; none if there are none."""
    return frame[frame.index.droplevel(CELL[2:]).isin([grid])]


def compare(protocol: Protocol) -> Results:
    """All cells of a protocol and all comparisons of them."""
    cells = describe(protocol.rows)
    tests = [
        of_student(part, cells.loc[student]).assign(student=student)
        for student, part in protocol.rows.groupby("student")
    ]
    sizes = cells[~cells.kind.isin([ALONE, CONTROL])].groupby(CELL[:2]).size()
    grids = sorted(sizes.index, key=lambda g: (-sizes[g], g[0], not g[1].startswith(KD)))
    grids = sorted(grids, key=lambda grid: grid[0] != grids[0][0])  # one student's together
    found = [part for part in tests if len(part)] or tests[:1]  # pandas 2 warns of empty ones
    return Results(protocol, cells, pd.concat(found, ignore_index=True)[TESTS], grids)


def describe(rows: pd.DataFrame) -> pd.DataFrame:
    """Results.cells of Protocol.rows."""
    found = {}
    for cell, part in rows.groupby(CELL):
        n, mean, std = part.value.agg(["count", "mean", "std"])
        found[cell] = {"n": int(n), "mean": mean, "std": std, **part[["val", *LEARNED]].mean()}
        found[cell]["taught"] = (part.role == "distill").all()
        found[cell]["shortened"] = part.hard_weight.isna().all()  # the hard loss is x (1 - alpha)
        found[cell] |= {"kind": part.kind.iloc[0], "run_ids": short_ids(part)}
        found[cell]["teacher_sha"] = ", ".join(sorted(set(part.teacher_sha.dropna())))
    index = pd.MultiIndex.from_tuples(found, names=CELL)
    cells = pd.DataFrame(list(found.values()), index=index).assign(best=False, picked=False)
    for _, grid in cells[~cells.kind.isin([ALONE, CONTROL])].groupby(CELL[:2]):
        # A cell with fewer seeds than most lost some to divergence and cannot win; one with more,
        # as while a further seed is being trained, does not exclude the others.
        able = grid[grid.n >= max(1, grid.n.mode().max())]
        for what, figure in (("best", able["mean"]), ("picked", able.val)):
            if figure.notna().any():
                cells.loc[figure.idxmax(), what] = True
    has_picked = cells.groupby(CELL[:2]).picked.transform("any")
    return cells.assign(choice=cells.picked.where(has_picked, cells.best))


def of_student(rows: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """Results.tests of one student without its name; `cells` are by Column."""
    values = rows.pivot(index="seed", columns=CELL[1:], values="value")
    values.columns = values.columns.to_flat_index()
    families = [family for family in [*of_grids(cells), *of_methods(cells)] if family[2]]
    number = {pair: i for i, pair in enumerate(dict.fromkeys(p for f in families for p in f[1]))}
    # All in one call: the noise is estimated over all cells of the student. Those of one alpha
    # count as one network, with and without T^2, since they move together.
    alike = [(cells.kind[column].removesuffix(T2), column[1]) for column in values]
    found = stats.contrasts(values, list(number), alike)
    parts = [pd.DataFrame(columns=TESTS)]
    for against, pairs, shown in families:
        table = found.loc[[number[pair] for pair in pairs]]
        table = table.assign(p_holm=stats.holm(table.p), family=table.p.notna().sum())
        table["visible"] = stats.visible(table)
        table = table.loc[[number[pair] for pair in shown]].assign(against=against)
        table["sign"] = stats.signs(table)
        table[CELL[1:]] = [first for first, _ in shown]
        parts.append(table)
    return pd.concat(parts[1:] or parts)


def of_grids(cells: pd.DataFrame) -> list[Family]:
    """The student alone, the control, the cell without T² and the best, grid by grid."""
    known, families = set(cells.index), []
    for variant, grid in cells.groupby("variant"):
        others = {}
        if variant != ALONE:
            others[ALONE] = [(ALONE, 0.0, NO_TEMPERATURE) for _ in grid.index]
        if variant not in (ALONE, CONTROL):
            others[CONTROL] = [
                (CONTROL, alpha, NO_TEMPERATURE) if shortened else None
                for (_, alpha, _), shortened in grid.shortened.items()
            ]
        if T2 in variant:
            others[PLAIN] = [(variant.replace(T2, ""), *place) for _, *place in grid.index]
        for against, columns in others.items():
            pairs = [p for p in zip(grid.index, columns, strict=True) if p[1] in known]
            families.append((against, pairs, pairs))
        if grid.best.any():
            # The best was picked by the figures it is compared by, so Holm is over all pairs of
            # cells: these are among them, whichever is best.
            best = grid.best.idxmax()
            pairs = [(b, a) if a == best else (a, b) for a, b in combinations(grid.index, 2)]
            families.append((BEST, pairs, [pair for pair in pairs if pair[1] == best]))
    return families


def of_methods(cells: pd.DataFrame) -> list[Family]:
    """One cell a method against the student alone and against kd, where there are several methods.

    kd is that with T^2 where there is no other. Where validation chose, its choices are the family;
    else every cell that could have been picked.
    """
    chosen = stand_ins(cells)
    if chosen.kind.str.removesuffix(T2).nunique() < 2:
        return []
    family = chosen if chosen.picked.all() else cells[cells.kind.isin(chosen.kind)]
    kd = family.kind == KD
    kd = kd if kd.any() else family.kind == KD + T2
    alone = (ALONE, 0.0, NO_TEMPERATURE)
    over_alone = [(me, alone) for me in family.index if alone in cells.index]
    over_kd = [(me, other) for me in family.index[~kd] for other in family.index[kd]]
    stand = {*chosen.index, alone}
    return [
        (against, pairs, [pair for pair in pairs if stand.issuperset(pair)])
        for against, pairs in ((METHODS, over_alone), (KD, over_kd))
    ]


def stand_ins(cells: pd.DataFrame) -> pd.DataFrame:
    """The cell that represents each `kind` of a student, among all its grids.

    Those with the most seeds come first: a beta that lost some to divergence does not win.
    """
    chosen = cells[cells.choice]
    merit = chosen.val if chosen.picked.all() else chosen["mean"]
    ranked = chosen.assign(merit=merit).sort_values(["n", "merit"], ascending=False, kind="stable")
    return chosen[~ranked.duplicated("kind").reindex(chosen.index)]
