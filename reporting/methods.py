"""The method table: the best cell of each method, against the student alone and against kd."""

import pandas as pd

from reporting import stats
from reporting.evidence import gain
from reporting.groups import Cell, Grid, Group, pair, values_by_cell
from reporting.tables import NONE, cell_name, markdown, mean_std, p_value

Candidate = tuple[str, str, Cell]  # a cell that a method's best was picked among

TEXT = (
    "One cell stands for each method, the best by mean on {where}. Differences are paired by seed, "
    "in points with their 95 % intervals. "
)
ON_VALIDATION = TEXT.format(where="validation") + "p has Holm's correction over the methods."
ON_TEST = TEXT.format(where="the **test** set") + (
    "A method with more cells had more to choose from, which flatters its figures; p has Holm's "
    "correction over every cell that could have been picked: all cells of all methods against the "
    "student alone, and all their pairs with a cell of kd."
)


def methods_part(group: Group) -> str:
    """A table for every student that several methods taught."""
    blocks = []
    for student in group.students():
        mine = [grid for grid in group.grids if grid.student == student and grid.choice]
        if len({grid.method for grid in mine}) < 2:
            continue
        on_validation = all(grid.picked for grid in mine)
        text = ON_VALIDATION if on_validation else ON_TEST
        blocks += [f"**Student {student}**", text, table(mine, on_validation)]
    return "\n\n".join(blocks)


def table(grids: list[Grid], on_validation: bool) -> str:
    """One line a method; its grids (several beta, several teachers) are searched together."""
    named: dict[str, list[Grid]] = {}
    for grid in grids:
        named.setdefault(grid.method + (" × T²" if grid.scale_t2 else ""), []).append(grid)
    best = {name: max(mine, key=merit) for name, mine in named.items()}
    chosen = {name: (name, grid.variant, grid.choice) for name, grid in best.items()}
    values = {
        (name, grid.variant, cell): accuracies
        for name, mine in named.items()
        for grid in mine
        for cell, accuracies in values_by_cell(grid.rows).items()
    }
    # What the choice was made by decides which comparisons it could have led to.
    family = list(chosen.values()) if on_validation else list(values)
    alone = {(name, g.variant, c): g.cells.p[c] for name, mine in named.items() for g in mine
             for c in g.cells.index}  # fmt: skip
    p_alone = dict(zip(family, stats.holm([alone[c] for c in family]), strict=True))
    p_kd = against_kd(values, family)
    lines = []
    for name, grid in best.items():
        me, cell = chosen[name], grid.cells.loc[grid.choice]
        where = cell_name(grid.choice) + grid.variant.removeprefix(name)
        tried = sum(len(mine.cells) for mine in named[name])
        row = [name, where, str(tried), mean_std(cell["mean"], cell["std"]), str(cell.n)]
        row += [gain(cell.difference, cell.difference_half), p_value(p_alone[me])]
        if "kd" in best and name != "kd":
            versus = pair(values[me], values[chosen["kd"]])
            row += [gain(versus.mean, versus.half), p_value(p_kd[me, chosen["kd"]])]
        else:
            row += [NONE, NONE]
        lines.append([*row, cell.run_ids])
    header = ["method", "cell", "cells tried", "accuracy", "seeds", "− alone", "p", "− kd", "p"]
    return markdown([*header, "run ids"], lines, left=2)


def against_kd(
    values: dict[Candidate, pd.Series], family: list[Candidate]
) -> dict[tuple[Candidate, Candidate], float]:
    """Corrected p of every candidate of another method against every one of kd."""
    ours = [me for me in family if me[0] == "kd"]
    pairs = [(me, kd) for me in family if me[0] != "kd" for kd in ours]
    p = stats.holm([pair(values[me], values[kd]).p for me, kd in pairs])
    return dict(zip(pairs, p, strict=True))


def merit(grid: Grid) -> tuple[int, float]:
    """What the choice among a method's grids goes by.

    The seeds come first: a beta that lost some to divergence does not win by its lucky ones.
    """
    cell = grid.cells.loc[grid.choice]
    return cell.n, cell["val" if grid.picked else "mean"]
