"""Rows as the fair trial leaves them, for its tests.

`python tests/trial_rows.py` writes the golden page anew; read its diff before keeping it.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import sides
import trial
from engine.cells import Settings, run_id
from engine.rows import COLUMNS
from reporting import report, trial_pictures
from reporting import trial as fair
from reporting import trial_page as page
from reporting.rows import clean

GOLDEN = Path(__file__).resolve().parent / "golden" / "TRIAL.md"
FRESH, TRIES = 5, 20
KEPT = sides.keep(TRIES)
INNER = 6  # at no border of any side


def rows_of(cells, accuracy, images=1000, double=1, draw=0, **changes):
    """The rows that a stage leaves: `accuracy(cell)` gives those of test and held-out images."""
    epochs = trial.epochs_of(images) * double
    settings = Settings(train_size=images, val_size=5000, epochs=epochs, t_max=epochs, draw=draw,
                        last_batch="weigh", clip=sides.CLIP, momentum=sides.MOMENTUM)  # fmt: skip
    rows = []
    for cell in cells:
        test, val = (round(float(value), 4) for value in accuracy(cell))
        row = dict.fromkeys(COLUMNS, np.nan) | vars(settings)
        row |= {name: value for name, value in vars(cell).items() if name in COLUMNS}
        row |= {"run_id": run_id(cell, settings), "machine": "a CPU, 2 cores", "device": "cpu"}
        row |= {"role": "distill" if cell.taught else "student", "torch": "2.11.0"}
        row |= {"test_acc": test, "best_test_acc": test, "best_epoch": epochs, "val_acc": val}
        row |= {"best_val_acc": val, "best_val_epoch": epochs, "commit": "0123456789"}
        own = f"-s1-n{images}-val5000" if cell.answers == "same" else "-s0"
        sha = f"{images if cell.answers == 'same' else 0:012d}"
        row |= {"teacher": f"resnet18-teacher{own}", "teacher_sha": sha, "seconds": 2.0}
        rows.append(row | changes)
    return rows


def one_side(
    side, images, width, level, best=INNER, fresh=FRESH, noise=0.002, seed=0, draws=1, doubled=None
):
    """All stages of a side at a place: it wins with configuration `best`, `level` on test.

    `doubled`: what twice as many steps add to the student alone, where that was tried.
    """
    draw = np.random.default_rng([seed, images, width, len(side)])
    own = ("cnn", width, 1 if side == "kd-same" else 0)
    won = sides.searched(side, TRIES)[best]

    def accuracy(cell):
        config = sides.Config(*(getattr(cell, name) for name in sides.Config._fields))
        val = level if config == won else level - 0.02 - draw.uniform(0, 0.1)
        return level + draw.normal(0, noise), val

    def of(configs, seeds, **how):
        return rows_of(sides.cells(side, configs, seeds, *own), accuracy, images, **how)

    rows = of(sides.searched(side, TRIES), sides.SEARCH_SEEDS)
    mine = frame(rows)
    # Without the other sides nothing is known to be at a border, so no range is widened.
    last = range(sides.first_tries(TRIES), TRIES)
    rows += of(sides.draw(side, last, sides.axes(side)), sides.SEARCH_SEEDS)
    mine = frame(rows)
    best_few = [sides.config(mine, number) for number in sides.finalists(mine, KEPT)]
    rows += of(best_few, sides.FINAL_SEEDS[1:])
    if doubled is not None:
        probes = sides.probes()
        also = [one for one in probes if one not in best_few]
        rows += of(also, sides.FINAL_SEEDS[1:]) + of(probes, sides.FINAL_SEEDS, double=2)
        longer = [row for row in rows if row["epochs"] == 2 * trial.epochs_of(images)]
        for row in longer:
            short = next(r for r in rows if r["seed"] == row["seed"] and r["lr"] == row["lr"])
            row["val_acc"] = round(short["val_acc"] + doubled, 4)
    for number in range(draws):
        rows += of([won], sides.fresh_seeds(images, fresh), draw=number)
    return rows


def frame(rows):
    return sides.with_sides(clean(pd.DataFrame(rows, columns=COLUMNS)))


def read(rows, fresh=FRESH, diverged=frozenset(), draws=None, right=None):
    asked = fair.Asked(TRIES, fresh, draws)
    return fair.read(clean(pd.DataFrame(rows, columns=COLUMNS)), asked, diverged, right)


def text(rows, pictures=(), template="TRIAL.md", **how):
    values = {"pictures": list(pictures), "captions": trial_pictures.CAPTIONS}
    return report.render(template, page.page(read(rows, **how)) | values)


# Gains of kd over the student alone; by label smoothing nobody gains but by chance.
GAINS = {(500, 16): 0.05, (5000, 16): 0.02, (45000, 16): 0.0, (5000, 4): 0.03}


def golden_rows():
    """Four whole places, with a control and kd-same; a fifth half done."""
    rows = []
    for (images, width), gain in GAINS.items():
        level = 0.3 + 0.1 * np.log10(images / 500) + width / 1000
        moved = {500: 0.001}.get(images)
        rows += one_side("alone", images, width, level, doubled=moved)
        rows += one_side("smooth", images, width, level)
        rows += one_side("kd", images, width, level + gain)
    rows += one_side("kd-same", 500, 16, 0.32)
    rows += one_side("kd-same", 5000, 16, 0.42)
    rows += one_side("kd-shuffled", 500, 16, 0.316)
    rows += one_side("alone", 1000, 16, 0.4)
    rows += one_side("smooth", 1000, 16, 0.4, fresh=2)
    return rows + one_side("kd", 1000, 16, 0.44, fresh=0)


if __name__ == "__main__":
    GOLDEN.write_text(text(golden_rows(), pictures=trial_pictures.CAPTIONS))
