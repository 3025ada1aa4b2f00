"""The report's pictures: their scales, curves and labels."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from summary_rows import SHORT, alone, frame, only, synthetic, taught

from reporting import pictures

KD = ("cnn", "kd")


def test_terrible_cells_do_not_rule_the_scale():
    rows = [alone(0, 0.61)] + [taught(0.5, t, 0, 0.61 + t / 1000) for t in (1, 5, 10)]
    rows += [taught(0.9, t, 0, 0.1) for t in (10, 20)]
    rows += [taught(0.5, np.nan, 0, 0.1, method="sp")]  # nor does another method
    results = only(frame(rows))
    assert pictures.reach(results, KD) == pytest.approx(3)  # three medians of .1 .5 1 51 51
    kd = [row for row in rows if row["alpha"] < 0.9]
    assert pictures.reach(only(frame(kd)), KD) == pytest.approx(1)


def test_curves_are_of_seeds_in_common():
    """The third seed of the student alone is much better; the cell has it not."""
    curve = {"test_curve": "0.5 nan 0.5 0.5 0.5 0.6"}
    rows = [alone(s, acc, **curve) for s, acc in ((0, 0.6), (1, 0.6), (2, 0.66))]
    rows += [taught(0.5, 10, s, 0.612, **curve) for s in (0, 1)]
    found = pictures.curves_of(only(frame(rows)), KD)
    assert [list(table) for table in found.values()] == [[0, 1], [0, 1]]
    assert found["student alone"].index.tolist() == [1, 3, 4, 5, 6]  # untested epochs are left out


def test_curves_say_whether_they_differ():
    for gain, word in ((0.0, "no"), (0.1, "a")):
        rows = [alone(s, 0.6 + s / 1000, test_curve="0.5 0.6") for s in range(3)]
        rows += [
            taught(0.5, t, s, 0.6 + gain + (7 * s + t) % 5 / 1000, test_curve="0.5 0.6")
            for s in range(3)
            for t in (1, 5, 10)
        ]
        figure = Figure()
        pictures.by_epoch(figure, only(frame(rows)), KD)
        title = figure.axes[0].get_title()
        assert f"by epoch: {word} difference to the student alone shows (" in title


def test_long_titles_are_broken():
    settings = {**SHORT, "batch_size": 32, "lr": 0.02, "weight_decay": 5e-4}
    rows = synthetic(2, settings=settings, alphas=(0.5,), ts=(1, 5, 10, 20))
    results, figure = only(rows.assign(dataset="a folder of images", momentum=0.9)), Figure()
    pictures.heatmap(figure, results, KD)
    assert all(len(line) <= 100 for line in figure.get_supxlabel().splitlines())
