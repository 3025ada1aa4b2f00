"""Our table beside the reference's, and what it says of whether that one repeats itself."""

import re

import numpy as np
import pandas as pd
import pytest
from summary_rows import REFERENCE, only, synthetic, texts, their_table

from reporting import replication


def test_beside_the_reference():
    rows = synthetic(2, alphas=(0.1, 0.5), ts=(1, 10), settings=REFERENCE)
    rows["test_curve"] = np.nan
    rows.loc[rows.run_id == "resnet18-teacher-s0", "best_test_acc"] = 0.9200
    rows.loc[rows.run_id == "cnn-kd-a0.5-T10-s0", "best_test_acc"] = 0.6300
    rows.loc[rows.run_id == "cnn-kd-a0.5-T10-s1", "best_test_acc"] = 0.6310
    text = texts(rows)[1]
    minus = text.split("Our mean minus the reference's figure")[1].split("</details>")[0]
    assert minus.splitlines()[2] == "| T \\ α | 0.1 | 0.5 |"
    assert re.search(r"\| 10 \| \S+ \| \+0\.50 \|", minus)  # 63.05, the reference 62.55
    assert "| teacher | resnet18 | 92.00 | 91.54 | +0.46 |" in text
    assert "Over 4 cells the difference is" in text


@pytest.mark.parametrize("change", [{"soft_warmup": 20}, {"hard_weight": 1.0}])
def test_only_plain_kd_stands_beside_the_reference(change):
    def both(rows):
        page = texts(rows)[1]
        minus = page.split("Our mean minus the reference's figure")[1].split("</details>")[0]
        return minus, [line for line in page.splitlines() if "**Pattern**" in line]

    rows = synthetic(2, alphas=(0.1, 0.5), ts=(1, 5, 10), settings=REFERENCE)
    bent = rows[rows.role == "distill"].assign(best_test_acc=0.1, **change)
    bent["run_id"] += "-bent"
    assert both(pd.concat([rows, bent])) == both(rows) and both(rows)[1]


def test_only_the_reference_protocol_stands_beside_the_reference():
    for changes in ({"lr": 0.05}, {"train_size": 10000}, {"epochs": 99}, {"val_size": 5000}):
        rows = synthetic(1, alphas=(0.5,), ts=(10,), settings=REFERENCE).assign(**changes)
        assert "Beside the reference" not in "".join(texts(rows))


def test_who_taught_is_named_beside_the_reference_and_stands_there_only_if_alike():
    rows = synthetic(2, settings=REFERENCE, alphas=(0.5, 0.9), ts=(5, 10))
    small = {"run_id": "resnet18w32-teacher-s0", "width": 32, "epochs": 14, "t_max": 14}
    rows.loc[rows.role == "teacher", list(small)] = list(small.values())
    rows.loc[rows.role == "distill", "teacher"] = small["run_id"]
    _, text = texts(rows)
    assert "Ours were taught by resnet18w32-teacher-s0." in text
    beside = text.split("Beside the reference")[1].split("</details>")[0]
    assert "| student | cnn |" in beside and "| teacher | resnet18 |" not in beside


def as_the_reference(seeds, noise=0.0, shift=0.0):
    """Our grid of three seeds with the reference's very figures, moved and with noise."""
    rows = synthetic(seeds, settings=REFERENCE)
    theirs = their_table()
    known = theirs[theirs.model == "cnn"].set_index(["alpha", "temperature"]).test_acc
    draw = np.random.default_rng(0)
    for i, entry in rows[rows.role == "distill"].iterrows():
        acc = known[entry.alpha, entry.temperature] + shift + draw.normal(0, noise)
        rows.loc[i, ["best_test_acc", "test_acc"]] = acc, acc - 0.002 - 0.001 * entry.seed
    return rows


def repeated(rows):
    return replication.replication(only(rows), their_table())


def test_the_reference_s_own_table_repeats_itself():
    found = repeated(as_the_reference(3, noise=1e-6, shift=0.01))
    assert found.ours.shape == (3, 45)
    assert "over 45 cells is 1.00 for the means of our 3 seeds" in replication.pattern(found)
    assert "are +1.00 points from the reference" in replication.inside(found)
    assert "in 0 of 45 cells" in replication.inside(found)
    best = replication.best_cells(found)
    assert "α 0.9, T 5 (3 of 3)" in best and "is number 1 of our 45" in best
    # 0.2, 0.3 and 0.4 points by seed: t(2) = 4.303, 0.1 / sqrt(3) = 0.0577
    assert "adds +0.30 [+0.05, +0.55] to these cells" in replication.best_epoch(found)


def test_noise_repeats_no_pattern():
    rows = as_the_reference(3)
    grid = rows.role == "distill"
    noise = np.random.default_rng(1).normal(0.62, 0.003, grid.sum())
    rows.loc[grid, "best_test_acc"] = noise
    found = repeated(rows)
    own = [replication.rho(row, found.reference) for _, row in found.ours.iterrows()]
    assert np.abs(own).max() < 0.45  # three standard errors of 45 cells
    assert int(re.search(r"in (\d+) of 45 cells", replication.inside(found))[1]) >= 42
    assert "(3 of 3)" not in replication.best_cells(found)


def test_a_part_of_the_grid_or_a_single_seed_is_told_as_far_as_it_goes():
    assert repeated(synthetic(2, settings=REFERENCE, alphas=(0.5,), ts=(1, 10))) is None
    one = replication.sentences(repeated(as_the_reference(1)))
    assert "[" not in "".join(one) and "agree" not in one[0] and "one seed" in one[1]
    rows = as_the_reference(3)
    lost = rows.run_id == "cnn-kd-a0.5-T10-s2"
    assert repeated(rows[~lost]).ours.shape == (3, 44)  # a cell that diverged in one seed
    few = repeated(rows[(rows.seed < 2) | (rows.alpha < 0.5) | (rows.role != "distill")])
    assert few.ours.shape == (2, 45)  # a seed under way
    again = rows[lost].assign(run_id="another teacher's", teacher="x")
    assert repeated(pd.concat([rows, again], ignore_index=True)) is None
