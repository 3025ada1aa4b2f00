"""The fair trial's sides: the space each searches, and how one is chosen. See docs/trial.md.

A side is a way to train the student. All search learning rate x weight decay over the same ranges,
and each what is its own beside them; each tries as many configurations, drawn by one quasi-random
sequence; one is chosen by the same rule, on held-out images only.
"""

import math
from collections.abc import Iterable
from itertools import pairwise, product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import qmc

from engine.cells import OPTIMISER, Cell
from engine.rows import csv_path, locked
from losses import METHODS, ON_STAGES, is_taught, parts
from utils import UserError, brief, stream, write_atomic

TRIES = 60  # configurations that a side tries
SEARCH_SEEDS, FINAL_SEEDS = (0,), (0, 1, 2)
FIRST_FRESH = 20  # seeds from here on only measure
FRESH, FEWER_FRESH, MANY = 10, 5, 10_000  # how many of those; fewer with more than MANY images
PROBES = 4  # configurations of the student alone that tell whether a length is enough
ENOUGH = 0.005  # it is, when doubling it moves the best of them by less; half a point of accuracy
EDGE = 0.05  # of a range: a choice as near to its end counts as at a border
BEYOND = 0.25  # of a range: how far beyond that end the last part of a search goes

MOMENTUM = 0.9
# Without it each side's best learning rate is the last at which the tried seeds did not diverge,
# and the comparison is of luck at that edge (docs/trial.md).
CLIP = 5.0

# Settings that differ within a trial.
OF_PLACE = ("train_size", "epochs", "t_max", "draw", *OPTIMISER)

MAIN = ("alone", "smooth", "kd")
# A control is kd with other answers: its word in run ids and rows. The first has kd's own teacher.
CONTROLS = {"kd-shuffled": "shuffled", "kd-random": "random", "kd-self": "self", "kd-same": "same"}
OWN_TEACHER = ("kd-random", "kd-self", "kd-same")
BOTH = tuple(f"kd+{name}" for name, method in METHODS.items() if method.family in ON_STAGES)
SIDES = (*MAIN, *CONTROLS, *(name for name in METHODS if name not in MAIN), *BOTH)


class Axis(NamedTuple):
    """A range of a setting, on a linear or logarithmic scale.

    `natural` are the ends beyond which there is nothing, or nothing else, to be tried.
    """

    low: float
    high: float
    log: bool = True
    natural: tuple[str, ...] = ()

    def value(self, share: float) -> float:
        """The value at a share, 0 to 1, of the range; three digits, as it is in run ids."""
        low, high = (self.scale(end) for end in self[:2])
        found = low + share * (high - low)
        return float(f"{math.exp(found) if self.log else found:.3g}")

    def share(self, value: float) -> float:
        """Where a value lies: 0 at the low end, 1 at the high one."""
        low, high = (self.scale(end) for end in self[:2])
        return (self.scale(value) - low) / (high - low)

    def scale(self, value: float) -> float:
        return (math.log(value) if value > 0 else -math.inf) if self.log else value

    def towards(self, ends: set[str]) -> "Axis":
        """The range from its middle to a quarter beyond the end that a choice was at.

        Whoever is best at an end has nothing to look for in the other half, and little far out.
        Both ends: the whole range and a quarter beyond either; none: the range. Never beyond a
        natural end: few tries come only near it, and an alpha below 0 or a T below 1 is no choice.
        """
        few, many = (0.0 if end in self.natural else BEYOND for end in ("smallest", "largest"))
        low = -few if "smallest" in ends else 0.5 if ends else 0.0
        high = 1 + many if "largest" in ends else 0.5 if ends else 1.0
        return self._replace(low=self.value(low), high=self.value(high)) if ends else self


class Config(NamedTuple):
    """One configuration of a side: a cell without its place, seed and teacher."""

    lr: float
    weight_decay: float = 0.0
    alpha: float = 0.0
    temperature: float | None = None
    scale_t2: bool = False
    beta: float | None = None


# Of every side. The least decay changes nothing in a run of a few thousand steps.
SHARED = {"lr": Axis(0.002, 0.5), "weight_decay": Axis(1e-5, 0.03, natural=("smallest",))}


def method_of(side: str) -> str:
    """The method of a side's cells: none of the student alone, kd of a control."""
    return "none" if side == "alone" else "kd" if side in CONTROLS else side


def axes(side: str) -> dict[str, Axis]:
    """What a side searches. Its ends at alpha 0 and beta 0 are the student alone.

    kd times T^2: without that factor the loss is one of these at another alpha and learning rate,
    (1 - a) hard + a soft = f [(1 - a') hard + a' T^2 soft], f = 1 - a + a / T^2, a' = a / (f T^2).
    A method with a weight of its own has alpha 0.5: another is another beta and learning rate.
    kd+sp and the like have kd's and the second's.
    """
    found, methods = dict(SHARED), parts(method_of(side))
    if not methods:
        return found
    first, last = methods[0], methods[-1]
    if first.family == "labels":
        found["alpha"] = Axis(0.01, 0.6, log=False, natural=("smallest",))
    elif first.beta is None:
        found["alpha"] = Axis(0.02, 1.0, log=False, natural=("smallest", "largest"))
    if first.temperature:
        found["temperature"] = Axis(1.0, 30.0, natural=("smallest",))
    if last.beta is not None:  # chosen for larger networks by its paper
        found["beta"] = Axis(last.beta * 1e-4, last.beta * 10, natural=("smallest",))
    return found


def draw(side: str, numbers: range, ranges: dict[str, Axis]) -> list[Config]:
    """The configurations of these numbers: points of a Halton sequence, the same for all sides.

    Shifted by our own random numbers (Cranley and Patterson 1976): scipy's scrambling may change
    with its version, and run ids would with it.
    """
    dimensions = 5
    points = qmc.Halton(dimensions, scramble=False).random(numbers.stop)[numbers.start :]
    points = (points + stream(0, 0, "the search's shift").random(dimensions)) % 1
    method = method_of(side)
    own = {"scale_t2": method.startswith("kd")}
    own |= {"alpha": 0.5} if method != "none" and "alpha" not in ranges else {}
    named = [zip(ranges.items(), point, strict=False) for point in points]
    return [
        Config(**own | {name: axis.value(share) for (name, axis), share in one}) for one in named
    ]


def first_tries(tries: int) -> int:
    """How many of them come from the declared ranges, before those are moved towards a border."""
    return tries - tries // 4


def probes() -> list[Config]:
    """Those of the student alone that tell whether a length is enough: the first, for any TRIES."""
    return draw("alone", range(PROBES), axes("alone"))


def keep(tries: int) -> int:
    """How many go on to the final."""
    return max(2, tries // 10)


def searched(side: str, tries: int, rows: pd.DataFrame | None = None) -> list[Config]:
    """All that a side is to try at the place of these rows of all sides; None: the first part."""
    first = range(first_tries(tries))
    found = draw(side, first, axes(side))
    if rows is None:
        return found
    return found + draw(side, range(first.stop, tries), widened(side, rows, tries))


def widened(side: str, rows: pd.DataFrame, tries: int) -> dict[str, Axis]:
    """The ranges of a search's last part: beyond a border where the best of the first is at one.

    What all sides share is moved for all of them, where one of MAIN needs it.
    """
    ends = {name: set() for name in axes(side)}
    for one in dict.fromkeys((*MAIN, side)):
        first = set(searched(one, tries))
        mine = of_configs(rows[rows.side == one], first)
        for best in finalists(mine, 1):
            for name, _, end in borders(one, config(mine, best), first):
                if one in MAIN if name in SHARED else one == side:
                    ends[name].add(end)
    return {name: axis.towards(ends[name]) for name, axis in axes(side).items()}


def borders(side: str, chosen: Config, tried: Iterable[Config]) -> list[tuple[str, float, str]]:
    """Settings of a choice that are at an end of what its side has tried, diverged runs included.

    As (name, value, smallest or largest); natural ends are none. EDGE says what is at an end.
    """
    found = []
    for name, axis in axes(side).items():
        value, every = getattr(chosen, name), {getattr(one, name) for one in tried} - {None}
        values = {v for v in every if v > 0}
        if not value or len(values) < 2:  # none and 0 have nothing beyond them
            continue
        share = axis._replace(low=min(values), high=max(values)).share(value)
        least = axis.share(value) <= 2 * EDGE or 0.0 in every
        most = axis.share(value) >= 1 - 2 * EDGE
        if share <= EDGE and not (least and "smallest" in axis.natural):
            found.append((name, value, "smallest"))
        if share >= 1 - EDGE and not (most and "largest" in axis.natural):
            found.append((name, value, "largest"))
    return found


def cells(
    side: str,
    configs: Iterable[Config],
    seeds: Iterable[int],
    model: str,
    width: int,
    teacher_seed: int,
) -> list[Cell]:
    """The cells of some configurations of a side, seed by seed."""
    method = method_of(side)
    own = {"method": method, "answers": CONTROLS.get(side, "")}
    own["teacher_seed"] = teacher_seed if is_taught(method) else None
    every = product(seeds, configs)
    return [Cell(model, width, seed, **own, **one._asdict()) for seed, one in every]


def fresh_seeds(images: int, count: int | None = None) -> range:
    """The seeds that measure with so many training images: `count` of them, by default FRESH.

    Above MANY images FEWER_FRESH: a run is long there, and seeds differ less.
    """
    if count is None:
        count = FEWER_FRESH if images > MANY else FRESH
    return range(FIRST_FRESH, FIRST_FRESH + count)


# ---------------------------------------------------------------- from rows
# A configuration is known by its number: its place among all of the rows' configurations in order.


def with_sides(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows, cleaned by reporting.rows, that belong to a side; `side` and `config` besides."""
    mine = (rows.role != "teacher") & (rows["clip"] == CLIP) & (rows.last_batch == "weigh")
    mine &= ~rows.auto_beta & (rows.soft_warmup == 0) & rows.hard_weight.isna()
    rows = rows[mine & (rows.val_size > 0)]
    controls = {word: side for side, word in CONTROLS.items()}
    side = rows.method.where(rows.method != "none", "alone")
    side = rows.answers.map(controls).fillna(side)
    # A trial of before there were controls: the seed of kd-same's teacher said it was that.
    old = (rows.momentum == 0) & (side == "kd") & (rows.teacher_seed == 1)
    side = side.mask(old, "kd-same")
    here = side.isin(SIDES) & ((side != "alone") | (rows.alpha == 0))
    rows = rows.assign(side=side)[here]
    configs = [config_of(row) for row in rows.itertuples()]
    in_order = sorted(set(configs), key=lambda one: [-1 if v is None else v for v in one])
    number = {one: i for i, one in enumerate(in_order)}
    return rows.assign(config=[number[one] for one in configs]).astype({"config": int})


def asked_for(place: pd.DataFrame, tries: int) -> pd.DataFrame:
    """A place's rows of one length, but for configurations that other TRIES have left there.

    So all sides are chosen among as many. All rows of the trial's first rules, which had grids.
    """
    mine = place.momentum != MOMENTUM
    for side, rows in place[~mine].groupby("side"):
        asked = set(searched(side, tries, place))
        mine[of_configs(rows, asked).index] = True
    return place[mine]


def of_configs(rows: pd.DataFrame, configs: set[Config]) -> pd.DataFrame:
    """The rows of these configurations."""
    return rows[np.array([config_of(row) in configs for row in rows.itertuples()], bool)]


def config_of(row: NamedTuple) -> Config:
    """A row's configuration, its numbers as `draw` has them."""
    lr, decay, alpha = (float(f"{value:.9g}") for value in (row.lr, row.weight_decay, row.alpha))
    beta = None if np.isnan(row.beta) else float(f"{row.beta:.9g}")
    return Config(lr, decay, alpha, row.temperature or None, bool(row.scale_t2), beta)


def config(rows: pd.DataFrame, number: int) -> Config:
    """The configuration of that number."""
    return config_of(next(rows[rows.config == number].itertuples()))


# All of a row that may be used for choosing. Its other figures are of the test set or the training
# images.
SEEN = ["config", "seed", "val_acc"]


def held_out(rows: pd.DataFrame, seeds: Iterable[int]) -> pd.DataFrame:
    """Held-out accuracy of the last epoch of one side at one place: (configurations, seeds).

    NaN where a run is missing; no line where a configuration has none.
    """
    seen = rows[rows.draw == 0][SEEN]
    seen = seen[seen.seed.isin(seeds)]
    return seen.pivot(index="config", columns="seed", values="val_acc").reindex(columns=list(seeds))


def finalists(rows: pd.DataFrame, count: int) -> list[int]:
    """The `count` best of one side's search, best first; of equals the smaller learning rate."""
    found = held_out(rows, SEARCH_SEEDS).mean(axis=1).dropna()
    return sorted(found.index, key=lambda config: (-found[config], config))[:count]


def winner(rows: pd.DataFrame, count: int) -> int | None:
    """Of one side's `count` finalists with all FINAL_SEEDS the best in their mean.

    None where the final has not been run, or every finalist lost a seed.
    """
    found = held_out(rows, FINAL_SEEDS)
    found = found.loc[found.index.isin(finalists(rows, count))].dropna().mean(axis=1)
    return int(found.idxmax()) if len(found) else None


def length(alone: pd.DataFrame) -> tuple[int, float]:
    """Epochs that are enough at one place, and by how much twice as many moved the student alone.

    That is the best held-out mean over FINAL_SEEDS of the `probes` tried at both lengths. The
    shortest that doubling moved by less than ENOUGH, else the longest tried, and 0 of no rows; NaN:
    not doubled.
    """
    means, moved, asked = {}, math.nan, set(probes())
    for epochs, part in alone.groupby("epochs"):
        # Others are no probes, or what is found would change when they are tried at both lengths.
        means[int(epochs)] = held_out(of_configs(part, asked), FINAL_SEEDS).dropna().mean(axis=1)
    for short, long in pairwise(sorted(means)):
        both = means[short].index.intersection(means[long].index)
        if long == 2 * short and len(both):
            moved = means[long][both].max() - means[short][both].max()
            if moved < ENOUGH:
                return short, moved
    return max(means, default=0), moved


# ---------------------------------------------------------------- what left no row


def diverged_path(out_dir: Path) -> Path:
    """The file of the run ids of diverged runs, one a line, so that none is tried again."""
    return csv_path(out_dir).with_name("diverged.txt")


def diverged(out_dir: Path) -> set[str]:
    """The run ids of runs that are known to have diverged."""
    path = diverged_path(out_dir)
    try:
        return set(path.read_text(encoding="utf-8").split()) if path.exists() else set()
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} ({brief(error)}): move it away") from None


def note_diverged(out_dir: Path, run_ids: set[str]) -> None:
    """Add to them. Raises UserError where the file cannot be written."""
    path = diverged_path(out_dir)
    with locked(path):
        lines = sorted(diverged(out_dir) | run_ids)
        write_atomic(path, "".join(f"{line}\n" for line in lines).encode())
