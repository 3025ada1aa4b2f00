"""From the fair trial's rows to comparisons, and choices at a border of the tried range.

A place is (training images, width of the student). It is whole when every main side has run its
search and final and its winner all fresh seeds. Only whole places are compared and drawn.
"""

from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

import sides
from engine.cells import OPTIMISER, Settings, run_id
from reporting import stats
from reporting.rows import NO_TEMPERATURE, PROTOCOL
from reporting.tables import distinct
from utils import UserError

PLACE = ["images", "width"]
OF_PLACE = ("train_size", "epochs", "t_max", *OPTIMISER)  # settings a trial varies
# An untuned comparison, one run a side: the protocol's learning rate, and a common form of kd.
RATE, ALPHA, TEMPERATURE = 0.1, 0.5, 4.0
# Ends of a range beyond which nothing can be tried.
NATURAL = {("weight_decay", 0.0), ("alpha", 1.0), ("temperature", 1.0)}
TUNED = ("lr", "weight_decay", "alpha", "temperature", "beta")


@dataclass(frozen=True)
class Trial:
    """A trial's runs and comparisons; accuracies and differences are fractions of 1.

    `entries`, by (images, width, side): `search`, `final`, `fresh` (how many runs are there),
    `asked` (how many fresh ones there should be),
    `lost` (how many fresh ones diverged), `choice` (the winner's number in SIDES, -1: none), `val`
    (its held-out mean over the final's seeds), `accuracy` (its test accuracies, a Series by fresh
    seed), `train` (mean train_acc of those), `whole` (of side and place).
    `tests`: images, width, side, against, n, difference, half (of the 95 % interval), p, p_holm,
    sign (1 above, -1 below, 0 not significant), over all differences of whole places.
    `searched`, by place and side: held-out gain over the student alone in the search's seed, where
    both keep RATE, and kd ALPHA and TEMPERATURE (`fixed`), and where each has its best (`own`).
    """

    rows: pd.DataFrame
    teachers: pd.DataFrame  # rows of teachers, where they were trained in the same out-dir
    entries: pd.DataFrame
    tests: pd.DataFrame
    searched: pd.DataFrame

    @property
    def sides(self) -> list[str]:
        return [side for side in sides.SIDES if side in set(self.entries.index.get_level_values(2))]

    @property
    def epochs(self) -> pd.Series:
        """Epochs of a run, by number of training images."""
        return self.rows.groupby("images").epochs.first()

    @property
    def steps(self) -> pd.Series:
        """Steps of a run, by number of training images."""
        an_epoch = np.ceil(self.epochs.index.to_numpy() / self.rows.batch_size.iloc[0])
        return self.epochs * an_epoch

    @property
    def whole(self) -> list[tuple]:
        """The whole places, in order."""
        return places_of(self.entries[self.entries.whole])


# ---------------------------------------------------------------- from rows to comparisons


def read(rows: pd.DataFrame, fresh: int | None, diverged: set[str]) -> Trial:
    """The trial in cleaned rows.

    `fresh` seeds make a winner whole (None: as many as sides.fresh_seeds has);
    `diverged` are the run ids of runs that diverged and left no row.

    Raises UserError where there is no run of a trial, or runs of several.
    """
    teachers = rows[rows.role == "teacher"]
    rows = sides.with_sides(rows)
    rows = rows.assign(images=rows.train_size)
    if rows.empty:
        raise UserError("no run of a trial in results.csv: run `sh trial.sh` first")
    check(rows)
    entries = pd.DataFrame(
        {
            (*place, side): entry(side, part, fresh, diverged)
            for place, part in rows.groupby(PLACE)
            for side in sides.SIDES
            if side in sides.MAIN or (part.side == side).any()
        }
    ).T.infer_objects()
    entries.index.names = [*PLACE, "side"]
    done = entries.tried & (entries.fresh + entries.lost == entries.asked) & (entries.fresh > 1)
    main = done[done.index.isin(sides.MAIN, level="side")].groupby(PLACE).all()
    entries["whole"] = done & main.reindex(entries.index.droplevel("side")).to_numpy()
    return Trial(rows, teachers, entries, compare(entries), searched(rows))


def check(rows: pd.DataFrame) -> None:
    """Raise UserError unless the rows are one trial's."""
    lengths = rows.groupby("images")[["epochs", "t_max"]].nunique().max(axis=None)
    # A side has one teacher, kd-same one for each number of images.
    whose = rows.side.where(rows.side != sides.KD_SAME, rows.side + rows.images.astype(str))
    teachers = rows[rows.role == "distill"].groupby(whose).teacher_sha.nunique()
    twice = rows.duplicated([*PLACE, "side", "config", "seed"])
    several = [n for n in PROTOCOL if n not in OF_PLACE and len(distinct(rows[n])) > 1]
    if lengths > 1:
        several.append("epochs")
    if twice.any() or (teachers > 1).any():
        several.append("teacher")
    if several:
        raise UserError(
            f"results.csv has trials that differ in {several[0]}: give each an --out-dir of its own"
        )


def entry(side: str, place: pd.DataFrame, fresh: int | None, diverged: set[str]) -> dict:
    """Trial.entries of one side at the place whose rows these are, but for `whole`.

    `tried`: search and final are there, or known to have diverged.
    """
    rows = place[place.side == side]
    search, final = (sides.held_out(rows, s) for s in (sides.SEARCH_SEEDS, sides.FINAL_SEEDS))
    best = sides.finalists(rows)
    final = final[final.index.isin(best)]
    choice = sides.winner(rows)
    seeds = sides.fresh_seeds(int(place.images.iloc[0]), fresh)
    winners = rows[(rows.config == choice) & rows.seed.isin(seeds)]
    settings = place_settings(place)

    def lost(configs: list[int], seeds: tuple | range) -> int:
        taught = rows.teacher_seed.dropna().unique()
        own = (int(place.width.iloc[0]), int(taught[0]) if len(taught) else 0)
        cells = sides.cells(side, [sides.SIDES[side][i] for i in configs], seeds, *own)
        return len({run_id(cell, settings) for cell in cells} & diverged - set(rows.run_id))

    every = list(range(len(sides.SIDES[side])))
    tries, finals = int(search.notna().sum(axis=None)), int(final.notna().sum(axis=None))
    tried = bool(best) and tries + lost(every, sides.SEARCH_SEEDS) == len(every)
    tried &= finals + lost(best, sides.FINAL_SEEDS) == len(best) * len(sides.FINAL_SEEDS)
    return {
        "search": tries,
        "final": finals,
        "fresh": len(winners),
        "asked": len(seeds),
        "lost": 0 if choice is None else lost([choice], seeds),
        "choice": -1 if choice is None else choice,
        "val": np.nan if choice is None else final.loc[choice].mean(),
        "accuracy": winners.set_index("seed").test_acc,
        "train": winners.train_acc.mean(),
        "tried": tried,
    }


def place_settings(rows: pd.DataFrame) -> Settings:
    """The common settings of the runs of one place, as in their run ids."""
    first, ours = rows.iloc[0], asdict(Settings())
    return Settings(**{name: type(own)(first[name]) for name, own in ours.items() if name != "amp"})


def compare(entries: pd.DataFrame) -> pd.DataFrame:
    """Trial.tests: every whole side minus the student alone, and each side but these minus smooth.

    Plain paired t-tests: unlike cells of a grid, sides need not be equally noisy.
    """
    parts = [pd.DataFrame(columns=[*PLACE, "side", "against", "n", "difference", "half", "p"])]
    for place, part in entries[entries.whole].groupby(PLACE):
        values = pd.DataFrame(part.accuracy.droplevel(PLACE).to_dict())
        pairs = [(side, "alone") for side in values if side != "alone"]
        pairs += [(side, "smooth") for side in values if side not in ("alone", "smooth")]
        named = pd.DataFrame(pairs, columns=["side", "against"])
        named = named.assign(images=place[0], width=place[1])
        found = [stats.contrasts(values[list(pair)], [pair]) for pair in pairs]
        parts.append(pd.concat([named, pd.concat(found, ignore_index=True)], axis=1))
    tests = pd.concat(parts[1:] or parts, ignore_index=True)
    tests["p_holm"] = stats.holm(tests.p)
    significant = tests.p_holm <= stats.LEVEL
    return tests.assign(sign=np.sign(tests.difference).where(significant, 0).astype(int))


def searched(rows: pd.DataFrame) -> pd.DataFrame:
    """Trial.searched."""
    rows = rows[rows.seed.isin(sides.SEARCH_SEEDS)]
    usual = (rows.temperature == NO_TEMPERATURE) | (
        (rows.alpha == ALPHA) & (rows.temperature == TEMPERATURE)
    )
    fixed = (rows.lr == RATE) & (rows.weight_decay == 0) & usual
    parts = {"fixed": rows[fixed], "own": rows}
    found = {}
    for name, part in parts.items():
        best = part.groupby([*PLACE, "side"]).val_acc.max().unstack()
        best = best.reindex(columns=list(sides.SIDES))
        found[name] = best.sub(best.alone, axis=0).drop(columns="alone").stack().dropna()
    return pd.DataFrame(found)


def places_of(frame: pd.DataFrame) -> list[tuple]:
    """The places of a frame by (images, width, side), each once, in order."""
    return list(dict.fromkeys(frame.index.droplevel("side")))


# ---------------------------------------------------------------- borders


def borders(side: str, number: int) -> list[tuple[str, float, str]]:
    """Settings of a choice that are the smallest or largest tried: (name, value, which end).

    Tried by the configurations that agree in all else. Where one value was tried there is no end.
    """
    chosen, found = sides.SIDES[side][number], []
    for name in TUNED:
        value = getattr(chosen, name)
        tried = {getattr(c, name) for c in sides.SIDES[side] if siblings(c, chosen, name)}
        if len(tried) > 1 and value in (min(tried), max(tried)) and (name, value) not in NATURAL:
            found.append((name, value, "smallest" if value == min(tried) else "largest"))
    return found


def siblings(one: sides.Config, other: sides.Config, but: str) -> bool:
    """Whether two configurations agree in all but one setting.

    T 1 was tried with one alpha and without T^2, as neither matters there: it agrees with any.
    """
    free = {but, "scale_t2"} | ({"alpha"} if 1.0 in (one.temperature, other.temperature) else set())
    return all(getattr(one, name) == getattr(other, name) for name in TUNED if name not in free)
