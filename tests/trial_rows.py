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
from reporting import report
from reporting import trial as fair
from reporting import trial_page as page
from reporting.rows import clean

GOLDEN = Path(__file__).resolve().parent / "golden" / "TRIAL.md"
FRESH = 5
INNER = {"alone": 25, "smooth": 28, "kd": 24, "kd-same": 24, "sp": 22}  # at no border


def rows_of(cells, accuracy, images=1000, **changes):
    """The rows that a stage leaves: `accuracy(cell)` gives those of test and held-out images."""
    epochs = trial.epochs_of(images)
    settings = Settings(train_size=images, val_size=5000, epochs=epochs, t_max=epochs,
                        last_batch="weigh", clip=sides.CLIP)  # fmt: skip
    rows = []
    for cell in cells:
        test, val = (round(float(value), 4) for value in accuracy(cell))
        row = dict.fromkeys(COLUMNS, np.nan) | vars(settings)
        row |= {name: value for name, value in vars(cell).items() if name in COLUMNS}
        row |= {"run_id": run_id(cell, settings), "machine": "a CPU, 2 cores", "device": "cpu"}
        row |= {"role": "distill" if cell.taught else "student", "torch": "2.11.0"}
        row |= {"test_acc": test, "best_test_acc": test, "best_epoch": epochs, "val_acc": val}
        row |= {"best_val_acc": val, "best_val_epoch": epochs, "commit": "0123456789"}
        own = f"-s1-n{images}-val5000" if cell.teacher_seed else "-s0"
        sha = f"{images if cell.teacher_seed else 0:012d}"
        row |= {"teacher": f"resnet18-teacher{own}", "teacher_sha": sha, "seconds": 2.0}
        rows.append(row | changes)
    return rows


def one_side(side, images, width, level, best=None, fresh=FRESH, noise=0.002, seed=0):
    """All stages of a side at a place: it wins with configuration `best`, `level` on test."""
    best = INNER[side] if best is None else best
    draw = np.random.default_rng([seed, images, width, len(side)])
    own = (width, sides.SAME_TEACHER if side == sides.KD_SAME else 0)
    configs = sides.SIDES[side]

    def accuracy(cell):
        won = (cell.lr, cell.weight_decay, cell.alpha, cell.temperature, cell.scale_t2, cell.beta)
        val = level if won == configs[best] else level - 0.02 - draw.uniform(0, 0.1)
        return level + draw.normal(0, noise), val

    rows = rows_of(sides.cells(side, configs, sides.SEARCH_SEEDS, *own), accuracy, images)
    best_six = sides.finalists(frame(rows))
    more = sides.cells(side, [configs[i] for i in best_six], sides.FINAL_SEEDS[1:], *own)
    rows += rows_of(more, accuracy, images)
    winner = sides.cells(side, [configs[best]], sides.fresh_seeds(images, fresh), *own)
    return rows + rows_of(winner, accuracy, images)


def frame(rows):
    return sides.with_sides(clean(pd.DataFrame(rows, columns=COLUMNS)))


def read(rows, fresh=FRESH, diverged=frozenset()):
    return fair.read(clean(pd.DataFrame(rows, columns=COLUMNS)), fresh, diverged)


def text(rows, pictures=(), **how):
    return report.render("TRIAL.md", page.page(read(rows, **how)) | {"pictures": list(pictures)})


# Gains of kd over the student alone; by label smoothing nobody gains but by chance.
GAINS = {(500, 16): 0.05, (5000, 16): 0.02, (45000, 16): 0.0, (5000, 4): 0.03}


def golden_rows():
    """Four whole places, one with kd at a border and kd-same; a fifth half done."""
    rows = []
    for (images, width), gain in GAINS.items():
        level = 0.3 + 0.1 * np.log10(images / 500) + width / 1000
        rows += one_side("alone", images, width, level)
        rows += one_side("smooth", images, width, level)
        rows += one_side("kd", images, width, level + gain, best=59 if images == 500 else None)
    rows += one_side("kd-same", 500, 16, 0.32)
    rows += one_side("kd-same", 5000, 16, 0.42)
    rows += one_side("alone", 1000, 16, 0.4)
    rows += one_side("smooth", 1000, 16, 0.4, fresh=2)
    return rows + one_side("kd", 1000, 16, 0.44, fresh=0)


if __name__ == "__main__":
    GOLDEN.write_text(text(golden_rows(), pictures=["trial-images", "trial-width"]))
