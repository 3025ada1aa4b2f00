"""The fair trial's sides: the configurations of each, and how one is chosen. See docs/trial.md.

A side is a way to train the student. Each tries the same number of configurations, and one is
chosen by the same rule, on held-out images only.
"""

from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from engine.cells import Cell
from engine.rows import csv_path, locked
from losses import METHODS, is_taught
from utils import UserError, brief, write_atomic

BUDGET = 60  # configurations that a side tries
KEEP = 6  # of them go on to the final
SEARCH_SEEDS, FINAL_SEEDS = (0,), (0, 1, 2)
FIRST_FRESH = 20  # seeds from here on only measure
FRESH, FEWER_FRESH, MANY = 10, 5, 10_000  # how many of those; fewer with more than MANY images
SAME_TEACHER = 1  # the seed of a teacher that was trained on the student's own images

# Without it each side's best learning rate is the last at which the tried seeds did not diverge,
# and the comparison is of luck at that edge (docs/trial.md).
CLIP = 5.0

MAIN = ("alone", "smooth", "kd")
KD_SAME = "kd-same"  # kd, taught by SAME_TEACHER


class Config(NamedTuple):
    """One configuration of a side: a cell without its place, seed and teacher."""

    lr: float
    weight_decay: float = 0.0
    alpha: float = 0.0
    temperature: float | None = None
    scale_t2: bool = False
    beta: float | None = None


# Two lists of learning rates with the same ends: a side with less else to tune has more of them.
FINE = (0.025, 0.05, 0.07, 0.1, 0.14, 0.2, 0.28, 0.4, 0.56, 0.8)
DOUBLING = (0.025, 0.05, 0.1, 0.2, 0.4, 0.8)
DECAYS = (0.0, 0.0003, 0.001, 0.003, 0.01, 0.03)
EPSILONS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)


def alone() -> list[Config]:
    """The student alone, the baseline."""
    return [Config(lr, decay) for lr, decay in product(FINE, DECAYS)]


def smooth() -> list[Config]:
    """Label smoothing: soft targets without a teacher. Its epsilon is alpha."""
    return [Config(lr, alpha=epsilon) for lr, epsilon in product(FINE, EPSILONS)]


def kd() -> list[Config]:
    """Distillation times T^2, and T 1, where the factor is none.

    Without T^2 the loss is one of these, times a factor that a learning rate takes up:
    (1 - a) hard + a soft = f [(1 - a') hard + a' T^2 soft], f = 1 - a + a / T^2, a' = a / (f T^2).
    The reference's best cell (0.9, 5) is a' = 0.26. At T 1 alpha hardly matters: one form.
    """
    forms = [(a, t, True) for a, t in product((0.25, 0.5, 1.0), (4.0, 10.0, 20.0))]
    return [Config(lr, 0.0, *form) for lr, form in product(DOUBLING, [(1.0, 1.0, False), *forms])]


def other(method: str) -> list[Config]:
    """A method with a weight of its own, which its paper chose for larger networks.

    (1 - a) hard + a b soft: another alpha is another beta and learning rate, so it is 0.5.
    """
    half_decades = [10 ** (0.5 - power / 2) for power in range(10)]
    betas = [float(f"{METHODS[method].beta * factor:.3g}") for factor in half_decades]
    return [Config(lr, alpha=0.5, beta=beta) for lr, beta in product(DOUBLING, betas)]


# Without methods that have both a temperature and a weight: those would need a third axis.
OTHERS = [name for name, m in METHODS.items() if m.beta is not None and not m.temperature]
SIDES: dict[str, list[Config]] = {
    "alone": alone(),
    "smooth": smooth(),
    "kd": kd(),
    KD_SAME: kd(),
    **{name: other(name) for name in OTHERS},
}


def cells(
    side: str, configs: Iterable[Config], seeds: Iterable[int], width: int, teacher_seed: int
) -> list[Cell]:
    """The cells of some configurations of a side, seed by seed."""
    method = {"alone": "none", KD_SAME: "kd"}.get(side, side)
    own = {"method": method, "teacher_seed": teacher_seed if is_taught(method) else None}
    every = product(seeds, configs)
    return [Cell("cnn", width, seed, **own, **config._asdict()) for seed, config in every]


def fresh_seeds(images: int, count: int | None = None) -> range:
    """The seeds that measure with so many training images: `count` of them, by default FRESH.

    Above MANY images FEWER_FRESH: a run is long there, and seeds differ less.
    """
    if count is None:
        count = FEWER_FRESH if images > MANY else FRESH
    return range(FIRST_FRESH, FIRST_FRESH + count)


# ---------------------------------------------------------------- from rows
# A configuration is known by its number: its place in SIDES[side].


def with_sides(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows, cleaned by reporting.rows, that belong to a side; `side` and `config` besides."""
    number = {side: {c: i for i, c in enumerate(configs)} for side, configs in SIDES.items()}
    sides, configs = [], []
    for row in rows.itertuples():
        side = "alone" if row.method == "none" else row.method
        side = KD_SAME if side == "kd" and row.teacher_seed == SAME_TEACHER else side
        student = row.model == "cnn" and row.role != "teacher"
        student = student and not row.auto_beta and not row.soft_warmup
        sides.append(side)
        configs.append(number.get(side, {}).get(config_of(row)) if student else None)
    found = rows.assign(side=sides, config=pd.array(configs, "Int64"))
    return found[found.config.notna()].astype({"config": int})


def config_of(row: NamedTuple) -> Config:
    """A row's configuration, its numbers as SIDES has them."""
    lr, decay, alpha = (float(f"{value:.9g}") for value in (row.lr, row.weight_decay, row.alpha))
    beta = None if np.isnan(row.beta) else float(f"{row.beta:.9g}")
    return Config(lr, decay, alpha, row.temperature or None, bool(row.scale_t2), beta)


# All of a row that may be used for choosing. Its other figures are of the test set or the training
# images.
SEEN = ["config", "seed", "val_acc"]


def held_out(rows: pd.DataFrame, seeds: Iterable[int]) -> pd.DataFrame:
    """Held-out accuracy of the last epoch of one side at one place: (configurations, seeds).

    NaN where a run is missing; no line where a configuration has none.
    """
    seen = rows[SEEN]
    seen = seen[seen.seed.isin(seeds)]
    return seen.pivot(index="config", columns="seed", values="val_acc").reindex(columns=list(seeds))


def finalists(rows: pd.DataFrame) -> list[int]:
    """The KEEP best of one side's search, best first; of equals the first that SIDES names."""
    found = held_out(rows, SEARCH_SEEDS).mean(axis=1).dropna()
    return sorted(found.index, key=lambda config: (-found[config], config))[:KEEP]


def winner(rows: pd.DataFrame) -> int | None:
    """Of one side's finalists with all FINAL_SEEDS the best in their mean.

    None where the final has not been run, or every finalist lost a seed.
    """
    found = held_out(rows, FINAL_SEEDS)
    found = found.loc[found.index.isin(finalists(rows))].dropna().mean(axis=1)
    return int(found.idxmax()) if len(found) else None


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
