"""From the fair trial's rows to comparisons, choices at a border, and what fewer tries would find.

A place is (training images, width of the student). It is whole when every main side has run its
search and final and its winner all fresh seeds. Only whole places are compared and drawn.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import comb

import sides
from engine.cells import Settings, run_id
from reporting import stats
from reporting.rows import PROTOCOL
from reporting.tables import distinct
from utils import UserError

PLACE = ["images", "width"]
TUNED = ("lr", "weight_decay", "alpha", "temperature", "beta")
MARGIN = 0.005  # a difference that is certainly smaller is as good as none
TRIES = (1, 5, 10, 20, 40, 60)  # of the best-of-n tables


class Asked(NamedTuple):
    """What makes a place whole."""

    tries: int = sides.TRIES  # configurations a side
    fresh: int | None = None  # seeds a winner; None: as many as sides.fresh_seeds has
    draws: int | None = None  # of the training images; None: as many as the place's main sides had


@dataclass(frozen=True)
class Trial:
    """A trial's runs and comparisons; accuracies and differences are fractions of 1.

    `rows` are those of the length that each place was found to need.
    `entries`, by (images, width, side): `search`, `final`, `fresh` (how many runs are there),
    `asked` (how many fresh ones there should be), `lost` (how many fresh ones diverged),
    `lost_search`, `choice` (the winner's Config or None), `borders` (of it, as sides.borders),
    `val` (its held-out mean over the final's seeds), `accuracy` (its test accuracies, a Series by
    draw and fresh seed), `runs` (their run ids), `train` (mean train_acc of those), `whole` (of
    side and place).
    `tests`: images, width, side, against, draws, n (draws, or seeds of a lone one), difference,
    half (of the 95 % interval over those), p, p_holm, sign (1 above, -1 below, 0 not significant),
    and p_small: that the difference is within MARGIN; both corrected over whole places, those of
    `question` among themselves and all others among themselves.
    `sampled`: 1.96 standard errors of the difference over the `test_images` (NaN: not known).
    `lengths`, by place: `epochs`, `steps`, and `moved`, the gain of the student alone by twice as
    many (NaN: not tried).
    """

    asked: Asked
    rows: pd.DataFrame
    teachers: pd.DataFrame  # rows of teachers, where they were trained in the same out-dir
    entries: pd.DataFrame
    tests: pd.DataFrame
    lengths: pd.DataFrame

    @property
    def sides(self) -> list[str]:
        return [side for side in sides.SIDES if side in set(self.entries.index.get_level_values(2))]

    @property
    def whole(self) -> list[tuple]:
        """The whole places, in order."""
        return places_of(self.entries[self.entries.whole])


# ---------------------------------------------------------------- from rows to comparisons


def read(
    rows: pd.DataFrame,
    asked: Asked,
    diverged: set[str],
    right: dict[str, np.ndarray] | None = None,
) -> Trial:
    """The trial in cleaned rows; `diverged` are run ids of runs that diverged and left no row.

    `right`: by run id, bool (test images,), which of those a run is right on, where that is known.
    Raises UserError where there is no run of a trial, or runs of several.
    """
    teachers = rows[rows.role == "teacher"]
    rows = sides.with_sides(rows)
    rows = rows.assign(images=rows.train_size)
    if rows.empty:
        raise UserError("no run of a trial in results.csv: run `sh trial.sh` first")
    check(rows)
    lengths = pd.DataFrame({place: needed(part) for place, part in rows.groupby(PLACE)}).T
    lengths.index.names = PLACE
    rows = rows[rows.epochs == lengths.epochs.reindex(rows.set_index(PLACE).index).to_numpy()]
    rows = pd.concat([sides.asked_for(place, asked.tries) for _, place in rows.groupby(PLACE)])
    entries = pd.DataFrame(
        {
            (*place, side): entry(side, part, asked, drawn, diverged)
            for place, part in rows.groupby(PLACE)
            for drawn in [draws_of(part, asked)]
            for side in sides.SIDES
            if side in sides.MAIN or (part.side == side).any()
        }
    ).T.infer_objects()
    entries.index.names = [*PLACE, "side"]
    done = entries.tried & (entries.fresh + entries.lost == entries.asked) & (entries.fresh > 1)
    main = done[done.index.isin(sides.MAIN, level="side")].groupby(PLACE).all()
    entries["whole"] = done & main.reindex(entries.index.droplevel("side")).to_numpy()
    return Trial(asked, rows, teachers, entries, compare(entries, right or {}), lengths)


def needed(place: pd.DataFrame) -> dict:
    """Trial.lengths of a place whose rows, of any length, these are."""
    alone = place[place.side == "alone"]
    epochs, moved = sides.length(alone if len(alone) else place[:0])
    measured = alone[alone.seed >= sides.FIRST_FRESH].epochs.max()
    if measured > epochs:  # a trial with more STEPS in the same directory: its own length counts
        epochs, moved = int(measured), sides.length(alone[alone.epochs >= measured])[1]
    epochs = epochs or int(place.epochs.max())
    an_epoch = np.ceil(place.images.iloc[0] / place.batch_size.iloc[0])
    return {"epochs": epochs, "steps": epochs * an_epoch, "moved": moved}


def check(rows: pd.DataFrame) -> None:
    """Raise UserError unless the rows are one trial's."""
    # All sides have one teacher a draw; one that learned from the place has one for each place.
    own = rows.side.isin(sides.OWN_TEACHER)
    places = rows.images.astype(str) + " " + rows.width.astype(str)
    whose = (rows.side + places).where(own, "") + rows.draw.astype(str)
    teachers = rows[rows.role == "distill"].groupby(whose).teacher_sha.nunique()
    twice = rows.duplicated([*PLACE, "side", "config", "seed", "draw", "epochs"])
    several = [n for n in PROTOCOL if n not in sides.OF_PLACE and len(distinct(rows[n])) > 1]
    if len(distinct(rows.model)) > 1 or len(distinct(rows.code)) > 1:
        several.append("student")
    if twice.any() or (teachers > 1).any():
        several.append("teacher")
    drawn = rows.groupby(["images", "draw"]).data.nunique()
    if rows.test_data.nunique() > 1 or (drawn > 1).any():
        several.append("images")
    if rows.width.isna().any():
        raise UserError(f"results.csv: {rows.run_id[rows.width.isna()].iloc[0]} has no width")
    if several:
        raise UserError(
            f"results.csv has trials that differ in {several[0]}: give each an --out-dir of its own"
        )


def draws_of(place: pd.DataFrame, asked: Asked) -> int:
    """How many draws the place has whose rows these are: those its main sides' winners are on."""
    mains, count = place[place.side.isin(sides.MAIN)], sides.keep(asked.tries)
    best = {side: sides.winner(rows, count) for side, rows in mains.groupby("side")}
    measured = mains[(mains.side.map(best) == mains.config) & (mains.seed >= sides.FIRST_FRESH)]
    return asked.draws or 1 + int(max(measured.draw, default=0))


def entry(side: str, place: pd.DataFrame, asked: Asked, drawn: int, diverged: set[str]) -> dict:
    """Trial.entries of one side at the place whose rows these are, but for `whole`.

    `drawn`: how many draws the place has.
    `tried`: search and final are there, or known to have diverged.
    """
    rows = place[place.side == side]
    search, final = (sides.held_out(rows, s) for s in (sides.SEARCH_SEEDS, sides.FINAL_SEEDS))
    search, count = search.dropna(), sides.keep(asked.tries)
    seeds = sides.fresh_seeds(int(place.images.iloc[0]), asked.fresh)
    draws = range(1 if side in sides.OWN_TEACHER else drawn)
    first, taught = place.iloc[0], set(rows.teacher_seed.dropna()) or {0}  # of all draws

    def lost(configs: list[sides.Config], seeds: tuple | range, draws: range = range(1)) -> int:
        if not diverged:
            return 0
        own = side, configs, seeds, first.model, int(first.width)
        cells = [c for seed in taught for c in sides.cells(*own, int(seed))]
        ids = {run_id(c, s) for c in cells for d in draws for s in settings_of(first, d)}
        return len(ids & diverged - set(rows.run_id))

    every = sides.searched(side, asked.tries, place) if diverged else []
    lost_search = lost(every, sides.SEARCH_SEEDS)
    best, choice = [], None  # until all is searched: the length's runs choose nothing
    if len(search) + lost_search >= asked.tries:
        best, choice = sides.finalists(rows, count), sides.winner(rows, count)
    final = final[final.index.isin(best)]
    winners = rows[(rows.config == choice) & rows.seed.isin(seeds) & rows.draw.isin(draws)]
    winners = winners[winners.test_acc.notna()]
    winning = [] if choice is None else [sides.config(rows, choice)]
    finals = [sides.config(rows, number) for number in best]
    tries = int(final.notna().to_numpy().sum())  # pandas 2 sums columns alone
    tried = tries + lost(finals, sides.FINAL_SEEDS) == len(best) * len(sides.FINAL_SEEDS) > 0
    seen = {sides.config_of(row) for row in rows.itertuples()} | set(every if lost_search else ())
    return {
        "search": len(search),
        "final": tries,
        "fresh": len(winners),
        "asked": len(seeds) * len(draws),
        "lost": lost(winning, seeds, draws),
        "lost_search": lost_search,
        "choice": winning[0] if winning else None,
        "borders": sides.borders(side, winning[0], seen) if winning else [],
        "val": final.loc[choice].mean() if winning else np.nan,
        "accuracy": winners.set_index(["draw", "seed"]).test_acc,
        "runs": winners.set_index(["draw", "seed"]).run_id,
        "train": winners.train_acc.mean(),
        "tried": tried,
    }


def settings_of(row: pd.Series, draw: int) -> list[Settings]:
    """The settings of a place in run ids, which may say --train-size 0 of all that are left."""
    own = {n: type(v)(row[n]) for n, v in asdict(Settings()).items() if n != "amp"}
    sizes = [own["train_size"]] + [0] * (draw == 0)
    return [Settings(**own | {"train_size": n, "draw": draw}) for n in sizes]


def compare(entries: pd.DataFrame, right: dict[str, np.ndarray]) -> pd.DataFrame:
    """Trial.tests: the pairs of `compared` at every whole place.

    Plain paired t-tests: unlike cells of a grid, sides need not be equally noisy. Over the draws'
    means where there are several, else over seeds.
    """
    columns = [*PLACE, "side", "against", "draws", "n", "difference", "half", "df", "p", "p_small"]
    columns += ["sampled", "test_images"]
    found = []
    for place, part in entries[entries.whole].groupby(PLACE):
        values = pd.DataFrame(part.accuracy.droplevel(PLACE).to_dict())
        runs = pd.DataFrame(part.runs.droplevel(PLACE).to_dict())
        for pair in compared(values):
            both = values[list(pair)].dropna()
            draws = both.index.get_level_values("draw").nunique()
            test = over_draws(both, pair) if draws > 1 else contrast(both, pair)
            test |= sampling(runs.loc[both.index, list(pair)], right)
            found.append(dict(zip(columns, [*place, *pair, draws], strict=False)) | test)
    tests = pd.DataFrame(found, columns=columns)
    asked = question(tests)
    for family in (asked, ~asked):
        for corrected, p in (("p_holm", tests.p), ("p_small", tests.p_small)):
            tests.loc[family, corrected] = stats.holm(p[family])
    return tests.assign(sign=stats.signs(tests))


def question(tests: pd.DataFrame) -> pd.Series:
    """Which of Trial.tests are the page's question, what kd gains over the student alone.

    Two families, so that one more control or method takes nothing from the answer.
    """
    return (tests.side == "kd") & (tests.against == "alone")


def contrast(values: pd.DataFrame, pair: tuple[str, str]) -> dict[str, float]:
    """The t-test of a pair of columns over the lines of `values`, and p_small."""
    test = stats.contrasts(values, [pair])
    return test.iloc[0].to_dict() | {"p_small": stats.equivalent(test, MARGIN)[0]}


def over_draws(values: pd.DataFrame, pair: tuple[str, str]) -> dict[str, float]:
    """`contrast` over the draws' means, but never surer than over all seeds alike.

    Two or three means lie close together by chance, too: then the seeds say how far off they are.
    """
    seeds, draws = contrast(values, pair), contrast(values.groupby("draw").mean(), pair)
    wider = draws if draws["half"] >= seeds["half"] else seeds  # that of equal means is NaN
    cautious = {name: max(seeds[name], draws[name]) for name in ("p", "p_small")}
    return draws | {"half": wider["half"], "df": wider["df"]} | cautious


def compared(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of sides: each and the student alone, a method and smooth, kd and each control."""
    others = [side for side in names if side != "alone"]
    methods = [side for side in others if side not in ("smooth", *sides.CONTROLS)]
    pairs = [(side, "alone") for side in others] + [(side, "smooth") for side in methods]
    return pairs + [("kd", side) for side in others if side in sides.CONTROLS]


def sampling(runs: pd.DataFrame, right: dict[str, np.ndarray]) -> dict[str, float]:
    """`sampled` and `test_images` of Trial.tests, for the run ids of two sides by draw and seed.

    The difference is a mean over images, of each image's difference of the sides' mean correctness:
    its standard error is that mean's, for these networks. NaN unless all of them are known.
    """
    unknown = {"sampled": np.nan, "test_images": np.nan}
    bits = [[right.get(run) for run in pair] for pair in runs.to_numpy()]
    sizes = {-1 if one is None else len(one) for pair in bits for one in pair}
    if len(sizes) != 1 or -1 in sizes:
        return unknown
    of_draw = runs.groupby("draw")[runs.columns[0]].transform("size")  # draws count alike
    gaps = np.array([np.subtract(*pair, dtype=float) for pair in bits])
    gaps = np.average(gaps, axis=0, weights=1 / of_draw)  # (test images,)
    count = len(gaps)
    return {"sampled": 1.96 * gaps.std(ddof=1) / np.sqrt(count), "test_images": count}


def places_of(frame: pd.DataFrame) -> list[tuple]:
    """The places of a frame by (images, width, side), each once, in order."""
    return list(dict.fromkeys(frame.index.droplevel("side")))


# ---------------------------------------------------------------- what fewer tries would find


def search_rows(trial: Trial, place: tuple, side: str) -> pd.DataFrame:
    """The rows of a side's search at a place."""
    rows = trial.rows[(trial.rows.images == place[0]) & (trial.rows.width == place[1])]
    return rows[(rows.side == side) & rows.seed.isin(sides.SEARCH_SEEDS) & (rows.draw == 0)]


def best_of(trial: Trial, place: tuple, side: str) -> pd.DataFrame:
    """By number of tries n: the expected best held-out accuracy, and the test accuracy with it.

    Columns `val` and `test`, of the search's one seed. The expectation is over which n of the B
    configurations were tried: the i-th worst is the best of them in C(i-1, n-1) of C(B, n) cases.
    (Dodge et al. 2019, EMNLP, section 3, with replacement; without as here it is unbiased, Tang et
    al. 2020, ACL, section 3.) Of equally good ones each is as likely to be picked. A diverged run
    counts as the worst one.
    """
    rows = search_rows(trial, place, side).sort_values("val_acc")[["val_acc", "test_acc"]]
    rows["test_acc"] = rows.groupby("val_acc").test_acc.transform("mean")
    lost = trial.entries.loc[(*place, side)].lost_search
    values = np.concatenate([np.repeat(rows.to_numpy()[:1], lost, 0), rows.to_numpy()])
    count = len(values)
    below = np.arange(count)  # how many are worse
    found = {n: comb(below, n - 1) / comb(count, n) @ values for n in range(1, count + 1)}
    return pd.DataFrame(found, index=["val", "test"]).T
