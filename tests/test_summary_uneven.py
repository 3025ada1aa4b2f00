"""The summary where grids are uneven: other teachers, missing seeds, collapsed or single cells."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from summary_rows import REFERENCE, SHORT, alone, frame, only, synthetic, taught, teacher, texts

from reporting import evidence, methods, plots, sentences, tables

SECOND = {"teacher": "resnet18-teacher-s1", "teacher_seed": 1}


# ---------------------------------------------------------------- other teachers


def test_students_of_another_teacher_never_stand_beside_the_reference():
    rows = synthetic(2, settings=REFERENCE, alphas=(0.5, 0.9), ts=(5, 10))
    _, text = texts(rows)
    assert "Over these 4 cells the difference is" in text and "Left out" not in text
    small = {"run_id": "resnet18w32-teacher-s0", "width": 32, "epochs": 14, "t_max": 14}
    rows.loc[rows.role == "teacher", list(small)] = list(small.values())
    rows.loc[rows.role == "distill", "teacher"] = small["run_id"]
    _, text = texts(rows)
    assert "Over these" not in text
    assert "Left out are the students of `resnet18w32-teacher-s0`" in text
    assert "| student | cnn |" in text  # the student alone needs no teacher


def two_teachers():
    rows = [alone(s, 0.6 + 0.001 * s) for s in (0, 1)]
    rows += [alone(s, 0.59 + 0.002 * s, "-control", alpha=0.5) for s in (0, 1)]
    for tail, who in (("", {}), ("-ts1", SECOND)):
        rows += [taught(0.5, 10, s, 0.61 + 0.003 * s, tail, **who) for s in (0, 1)]
    return rows


def test_each_teachers_grid_meets_the_control():
    text = evidence.explanation_part(only(frame(two_teachers())))
    for name in ("resnet18-teacher-s0", "resnet18-teacher-s1"):
        assert f"**Student cnn: kd; teacher {name}**" in text


def test_grids_of_different_teachers_are_no_fair_comparison():
    rows = [alone(0, 0.6, agreement=0.6, **SECOND)]
    rows += [taught(0.5, 10, 0, 0.61), taught(0.5, 10, 0, 0.62, "-t2", scale_t2=True, **SECOND)]
    said = sentences.gaps(only(frame(rows)))
    assert "its grids had different teachers (kd: `resnet18-teacher-s0`; kd × T²: `" in said
    assert "agreement and KL of the student alone and the control are with" in said


def test_a_teacher_trained_again_is_another_to_agree_with():
    known = {"agreement": 0.6, "teacher": "resnet18-teacher-s0"}
    same, other = (
        sentences.gaps(
            only(frame([alone(0, 0.6, teacher_sha=sha, **known), taught(0.5, 10, 0, 0.61)]))
        )
        for sha in ("0123456789ab", "ba9876543210")
    )
    said = "agreement and KL of the student alone and the control are with another checkpoint"
    assert said in other and said not in same


def test_curves_show_the_teacher_that_taught():
    rows = synthetic(2, alphas=(0.5,), ts=(1, 5, 10, 20))
    other = teacher(0.8, **SHORT, test_curve="0.6 0.6 0.6 0.6 0.6 0.6")
    rows = frame([*rows.to_dict("records"), {**other, "run_id": "resnet18-teacher-s1", "seed": 1}])
    rows.loc[rows.role == "student", "teacher"] = "resnet18-teacher-s1"  # measured against it
    rows.loc[rows.run_id == "resnet18-teacher-s0", "test_curve"] = "0.6 0.6 0.6 0.6 0.62 0.62"
    group, figure = only(rows), Figure()
    assert len(group.teachers) == 2
    plots.curves(figure, group, group.grids[0])
    names = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert "teacher (1 seed)" in names


# ---------------------------------------------------------------- missing seeds


def test_a_further_seed_of_one_cell_does_not_make_it_the_best():
    rows = [alone(s, 0.6) for s in (0, 1)]
    rows += [taught(0.5, t, s, 0.6 + t / 1000 + s / 500) for t in (5, 10, 20) for s in (0, 1)]
    (grid,) = only(frame([*rows, taught(0.5, 5, 2, 0.6)])).grids
    assert grid.best == (0.5, 20)
    assert "over 2 to 3 seeds" in tables.legend(grid, only(frame(rows)))


def test_the_best_of_some_is_not_called_the_best_of_all():
    rows = [taught(0.5, t, s, 0.6 + t / 1000 + s / 500) for t in (5, 10) for s in (0, 1)]
    group = only(frame([alone(0, 0.6), alone(1, 0.6), *rows, taught(0.9, 5, 0, 0.9)]))
    (grid,) = group.grids
    assert "The best by mean among the cells of at least 2 seeds is α 0.5, T 10" in " ".join(
        sentences.best_cell(group, grid)
    )
    assert "of all; only cells of at least 2 seeds." in tables.legend(grid, group)


def test_a_cell_above_the_best_is_not_called_equal_to_it():
    rows = [alone(s, 0.6 + 0.001 * s) for s in range(5)]
    rows += [taught(0.5, 10, s, 0.61 + 0.001 * s + 0.0003 * (s % 2)) for s in range(5)]
    rows += [taught(0.1, 10, s, 0.60 + 0.001 * s + 0.0004 * (s % 2)) for s in range(5)]
    rows += [taught(0.9, 5, s, 0.66 + 0.001 * s + 0.0002 * (s % 3)) for s in range(4)]
    (grid,) = only(frame(rows)).grids
    assert grid.best == (0.5, 10) and grid.against_best.above.loc[0.9, 5]
    said = sentences.told_apart(grid.against_best)
    assert (
        said.startswith("0 of the 2 other cells")
        and "Above it, on the seeds in common: α 0.9" in said
    )


def test_a_beta_that_lost_seeds_does_not_stand_for_its_method():
    rows = [alone(s, 0.6) for s in range(3)] + [taught(0.5, 10, s, 0.61) for s in range(3)]
    sp = {"method": "sp", "teacher": "resnet18-teacher-s0"}
    rows += [taught(0.5, np.nan, s, 0.615 + 0.001 * s, "-b300", beta=300, **sp) for s in range(3)]
    rows += [taught(0.5, np.nan, 2, 0.7, "-b3000", beta=3000, **sp)]
    group = only(frame(rows))
    line = next(line for line in methods.methods_part(group).splitlines() if line[:5] == "| sp ")
    assert "β 300 |" in line and "| 3 |" in line
    assert "sp, β 3000: no cell has seed 0, 1, which the student alone has" in sentences.gaps(group)


def test_colours_and_curves_go_by_the_seeds_in_common():
    """The third seed of the student alone is much better; no cell has it."""
    curve = {"test_curve": "0.5 0.5 0.5 0.5 0.5 0.6"}
    rows = [alone(s, acc, **curve) for s, acc in ((0, 0.6), (1, 0.6), (2, 0.66))]
    rows += [taught(0.5, t, s, 0.612, **curve) for t in (1, 5, 10) for s in (0, 1)]
    rows += [taught(0.5, 20, s, acc, **curve) for s, acc in ((0, 0.61), (1, 0.61), (2, 0.67))]
    group = only(frame(rows))
    (grid,) = group.grids
    estimate = plots.alone_estimate(group, grid)
    assert estimate.mean == pytest.approx(0.62)
    assert (plots.shades(grid, estimate) > estimate.mean).all()
    assert (grid.cells["mean"].loc[0.5, [1, 5, 10]] < estimate.mean).all()
    grid.best = (0.5, 1)
    assert list(plots.mean_curves(group, grid)["student alone"].columns) == [0, 1]


# ---------------------------------------------------------------- other methods, single cells


def test_every_method_meets_the_control():
    rows = [alone(s, 0.6 + 0.001 * s) for s in range(3)]
    rows += [taught(0.5, np.nan, s, 0.61 + 0.002 * s, method="sp") for s in range(3)]
    assert "sp: no control (no teacher, hard loss × (1 − α)) for α 0.5" in sentences.gaps(
        only(frame(rows))
    )
    rows += [alone(s, 0.605 + 0.0015 * s, "-control", alpha=0.5) for s in range(3)]
    said = sentences.sentences(only(frame(rows)))
    assert "the teacher adds +0.55" in said
    assert "of the 1 cell beat the control of their α" in said


def test_nothing_is_said_of_a_choice_that_nobody_made():
    held = {"val_size": 5000, "val_acc": 0.6, "best_val_acc": 0.6, "best_val_epoch": 6}
    group = only(frame([alone(0, 0.6, **held)]))
    assert evidence.validation_part(group) == ""
    one = only(frame([alone(0, 0.6), taught(0.5, 10, 0, 0.61)]))
    assert "chosen on the test set" not in sentences.gaps(one)


# ---------------------------------------------------------------- pictures


def test_a_collapsed_method_does_not_bleach_the_kd_heatmap():
    rows = [alone(0, 0.61)] + [taught(0.5, t, 0, 0.61 + t / 1000) for t in (1, 5, 10)]
    group = only(frame([*rows, taught(0.5, np.nan, 0, 0.1, method="sp")]))
    kd = next(grid for grid in group.grids if grid.method == "kd")
    assert plots.scale(group, kd, plots.alone_estimate(group, kd)) == pytest.approx(0.01)


def test_long_titles_are_broken_and_single_epochs_marked():
    settings = {"epochs": 1, "t_max": 1, "batch_size": 32, "lr": 0.02, "weight_decay": 5e-4}
    rows = synthetic(2, settings=settings, alphas=(0.5,), ts=(1, 5, 10, 20))
    rows = rows.assign(dataset="folder", momentum=0.9)
    rows["test_curve"] = rows.test_acc.astype(str)
    group, figure = only(rows), Figure()
    plots.curves(figure, group, group.grids[0])
    assert all(len(line) <= 95 for line in plots.heading(group, group.grids[0]).splitlines()[1:])
    for line in figure.axes[0].lines:
        assert line.get_markevery()[0] == 0  # the only point has its marker
