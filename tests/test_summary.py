"""The summary from fixture CSVs: golden files, figures by hand, every odd CSV."""

import io
import itertools
import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image
from scipy.stats import ttest_rel
from summary_rows import (
    GOLDEN,
    PICTURES,
    REFERENCE,
    alone,
    by_hand,
    frame,
    only,
    run,
    save,
    synthetic,
    taught,
    teacher,
    texts,
)

from engine.rows import read_rows
from reporting import evidence, groups, methods, plots, sentences, stats, tables


@pytest.fixture(scope="module")
def grid():
    """45 cells, 5 seeds, with controls and the T² grid, and its group; never written to."""
    rows = synthetic(ablation=True)
    return rows, only(rows)


# ---------------------------------------------------------------- golden


def test_golden_files():
    table, text = texts(read_rows(GOLDEN / "results.csv"), pictures=PICTURES)
    assert table.encode() == (GOLDEN / "table.md").read_bytes()
    assert text.encode() == (GOLDEN / "REPORT.md").read_bytes()


def test_the_whole_way(tmp_path, monkeypatch, capsys):
    """What summarize.py prints and leaves, and that pictures are the same bytes again."""
    rows = synthetic(2, alphas=(0.5, 0.9), ts=(5, 10))
    path = save(tmp_path, rows)
    assert run(tmp_path, monkeypatch) == 0
    table, text = texts(rows, pictures=PICTURES)
    assert path.with_name("table.md").read_text() == table
    assert path.with_name("REPORT.md").read_text() == text
    assert table in capsys.readouterr().out
    again = plots.pictures([only(rows)])
    assert list(again) == PICTURES
    for name, png in again.items():
        assert path.with_name(f"{name}.png").read_bytes() == png
        assert Image.open(io.BytesIO(png)).width == 1280
        assert f"![{name}]({name}.png)" in text
    assert any((tmp_path / "runs").rglob("*tfevents*"))


def test_every_run_is_named_and_every_name_is_a_run():
    rows, text = pd.read_csv(GOLDEN / "results.csv"), (GOLDEN / "REPORT.md").read_text()
    named = set()
    for span in re.findall(r"`([^`\n]*)`", text):
        if not re.search(r"-s(\d|\{)", span):
            continue
        braces = re.search(r"\{([0-9,]+)\}", span)
        seeds = braces[1].split(",") if braces else [""]
        named |= {span.replace(braces[0], seed) if braces else span for seed in seeds}
    assert named == set(rows.run_id)


# ---------------------------------------------------------------- figures by hand


def test_pivot_by_hand():
    group = only(by_hand())
    # means 62, 64.5 and 63; standard deviations |a - b| / sqrt 2
    assert tables.accuracy_pivot(group.grids[0]).splitlines()[2:] == [
        "| 1 | 62.00 ± 1.41 | — |",
        "| 10 | **64.50 ± 0.71** (best) | **63.00 ± 4.24** |",
    ]
    cell = group.grids[0].cells.loc[0.5, 10]
    # differences 4 and 3 points: mean 3.5, half-width 12.7062 x 0.7071 / sqrt 2 = 6.353
    assert cell.difference == pytest.approx(0.035)
    assert cell.difference_half == pytest.approx(0.0635310)
    # both differences of (0.5, 1) are one point: no spread, no p
    assert np.isnan(group.grids[0].cells.loc[0.5, 1].p)
    assert "α 0.5 with T 1 are equal" in sentences.gaps(group)
    assert "no row for α 0.9 with T 1." in sentences.gaps(group)


def test_marks_and_sentences_follow_scipy(grid):
    _, group = grid
    plain = next(g for g in group.grids if g.variant == "kd")
    base = group.alone["cnn"].set_index("seed").test_acc
    p = {}
    for cell, part in plain.rows.groupby(["alpha", "temperature"]):
        p[cell] = ttest_rel(part.set_index("seed").test_acc, base).pvalue
    ordered = sorted(p, key=p.get)
    beating = []
    for k, cell in enumerate(ordered):
        if p[cell] * (45 - k) > 0.05:
            break
        beating.append(cell)
    beating = [cell for cell in beating if plain.cells.loc[cell].difference > 0]
    assert 5 < len(beating) < 45
    assert set(plain.cells.index[plain.cells.above]) == set(beating)
    text = sentences.sentences(group)
    assert f"{len(beating)} of the 45 cells beat the student alone after Holm's" in text
    assert tables.accuracy_pivot(plain).count("†") == len(beating)


def test_the_best_is_compared_with_holm_over_all_pairs(grid):
    """It was picked by these figures; Holm over the 44 others alone would not keep the 5 %."""
    _, group = grid
    plain = next(g for g in group.grids if g.variant == "kd")
    values = plain.rows.pivot(index="seed", columns=["alpha", "temperature"], values="test_acc")
    pairs = list(itertools.combinations(values, 2))
    p = [ttest_rel(values[one], values[other]).pvalue for one, other in pairs]
    found = zip(map(frozenset, pairs), stats.holm(p), strict=True)
    told = {pair for pair, p in found if p <= 0.05}
    best = values.mean().idxmax()
    assert plain.best == best
    same = [c for c in values if c != best and frozenset((c, best)) not in told]
    assert 0 < len(same) < 44
    text = sentences.sentences(group)
    assert f"{len(same)} of the 44 other cells tested cannot be told from the best" in text
    assert sentences.cell_list(same) in text


def test_controls_and_scaled_grid_are_paired(grid):
    rows, group = grid
    plain = next(g for g in group.grids if g.variant == "kd")
    rows = rows[rows.alpha == 0.5].sort_values("seed")
    control = rows[rows.method == "none"].test_acc.to_numpy()
    at_ten = rows[rows.temperature == 10]
    cell, scaled = (at_ten[at_ten.scale_t2 == t2].test_acc.to_numpy() for t2 in (False, True))
    over = evidence.against_control(group, plain).loc[0.5, 10]
    assert over.difference == pytest.approx((cell - control).mean())
    assert over.p == pytest.approx(ttest_rel(cell, control).pvalue)
    change = evidence.against_plain(plain, evidence.scaled_twin(group, plain)).loc[0.5, 10]
    assert change.difference == pytest.approx((scaled - cell).mean())
    text = evidence.explanation_part(group)
    assert "`cnn-none-a0.5-s{0,1,2,3,4}`" in text
    assert "no control" not in sentences.gaps(group)
    assert "scale_t2" not in sentences.gaps(group)


def test_beside_the_reference():
    rows = synthetic(2, alphas=(0.1, 0.5), ts=(1, 10), settings=REFERENCE)
    rows["test_curve"] = np.nan
    rows.loc[rows.run_id == "resnet18-teacher-s0", "best_test_acc"] = 0.9200
    rows.loc[rows.run_id == "cnn-kd-a0.5-T10-s0", "best_test_acc"] = 0.6300
    rows.loc[rows.run_id == "cnn-kd-a0.5-T10-s1", "best_test_acc"] = 0.6310
    for text in texts(rows):
        assert "| 63.05 − 62.55 = +0.50 |" in text
        assert "| teacher | resnet18 |  |  | 92.00 | 91.54 | +0.46 |" in text
    # whatever the pivots show, best epochs stand beside the reference's
    assert "63.05 − 62.55 = +0.50" in texts(rows, "last")[0]


def test_only_the_reference_protocol_stands_beside_the_reference():
    for changes in ({"lr": 0.05}, {"train_size": 10000}, {"epochs": 99}, {"val_size": 5000}):
        rows = synthetic(1, alphas=(0.5,), ts=(10,), settings=REFERENCE).assign(**changes)
        table, _ = texts(rows)
        assert "not comparable with the reference table" in table
        assert " = +" not in table


def test_validation_chooses_epoch_and_cell():
    common = {"epochs": 3, "t_max": 9, "val_size": 5000}
    first = {"test_curve": "0.50 0.61 0.55", "best_test_acc": 0.61, "best_val_epoch": 3}
    second = {"test_curve": "0.50 0.58 0.70", "best_test_acc": 0.70, "best_val_epoch": 2}
    rows = frame(
        [
            taught(0.5, 5, 0, 0.55, best_val_acc=0.65, **common, **first),
            taught(0.5, 10, 0, 0.70, best_val_acc=0.60, **common, **second),
        ]
    )
    group = only(rows)
    (grid,) = group.grids
    assert group.metric == "val"
    assert grid.cells["mean"].tolist() == [0.55, 0.58]  # the epochs of validation, not the best
    assert grid.picked == (0.5, 5) and grid.best == (0.5, 10)
    assert "| cnn | kd | α 0.5, T 5 | 65.00 | 55.00 |" in evidence.validation_part(group)
    assert "chose α 0.5, T 5: test accuracy 55.00 %" in sentences.sentences(group)
    annealed = only(rows.assign(t_max=3, val_acc=[0.5, 0.6]))
    assert annealed.metric == "last" and annealed.grids[0].picked == (0.5, 10)


def test_method_table_is_paired_with_alone_and_kd():
    rows = [alone(seed, acc) for seed, acc in enumerate((0.60, 0.61, 0.62))]
    rows += [taught(0.5, 10, seed, acc) for seed, acc in enumerate((0.61, 0.63, 0.63))]
    assert methods.methods_part(only(frame(rows))) == ""
    for beta, gain in ((1000, -0.01), (3000, 0.0)):
        rows += [
            taught(0.5, np.nan, seed, acc + gain, f"-b{beta}", method="sp", beta=beta)
            for seed, acc in enumerate((0.63, 0.63, 0.66))
        ]
    text = methods.methods_part(only(frame(rows)))
    (line,) = [line for line in text.splitlines() if line.startswith("| sp")]
    # the better beta; against alone +3, +2, +4 (p 0.035, one of three cells) and against kd
    # +2, 0, +3 (p 0.199, one of two pairs)
    assert "α 0.5, β 3000 | 2 | 64.00 ± 1.73 | 3 | +3.00 [+0.52, +5.48] | 0.105 |" in line
    assert "+1.67 [-2.13, +5.46] | 0.399 | `cnn-sp-a0.5-b3000-s{0,1,2}` |" in line


# ---------------------------------------------------------------- what must not be mixed up


def test_one_seed_gives_no_interval():
    rows = synthetic(1)
    table, text = texts(rows)
    assert "±" not in table and "†" not in table and " [" not in table
    body = text.split("## cifar10")[1]
    assert "±" not in body.replace("mean ± std over seeds", "")
    assert not re.search(r"\[[-+]?\d", body)
    assert "With one seed no interval can be given, and none is" in table
    assert "a single seed, so no standard deviation, interval or test" in text


def test_groups_are_never_mixed():
    short, other = synthetic(2, alphas=(0.5,), ts=(5, 10)), synthetic(2, alphas=(0.5,), ts=(5, 10))
    other = other[other.role != "teacher"].assign(lr=0.05, run_id=lambda rows: rows.run_id + "-lr")
    found, _ = groups.split(pd.concat([other, short], ignore_index=True))
    assert [group.settings["lr"] for group in found] == [0.05, 0.1]
    assert [group.grids[0].cells.n.tolist() for group in found] == [[2, 2], [2, 2]]
    titles = [tables.title(group.settings) for group in found]
    assert titles[0] != titles[1] and "lr 0.05" in titles[0]


def test_annealed_groups_show_the_last_epoch_and_others_the_best():
    rows = synthetic(2, alphas=(0.5,), ts=(5,)).assign(test_curve=np.nan)
    rows["test_acc"], rows["best_test_acc"] = 0.55, 0.65
    assert "**55.00 ± 0.00**" in texts(rows)[0]
    assert "**65.00 ± 0.00**" in texts(rows, "best")[0]
    table, text = texts(rows.assign(t_max=12))
    assert "**65.00 ± 0.00**" in table and "**chosen on the test set**" in table
    assert "**55.00 ± 0.00**" in texts(rows.assign(t_max=12), "last")[0]


def test_unequal_seeds_are_paired_on_those_in_common():
    rows = by_hand()
    extra = [taught(0.5, 10, 7, 0.99), alone(9, 0.10)]
    cell = only(pd.concat([rows, frame(extra)])).grids[0].cells.loc[0.5, 10]
    assert (cell.n, cell.pairs) == (3, 2)
    assert cell.difference == pytest.approx(0.035)
    apart = only(rows[~((rows.role == "student") & (rows.seed == 1))])
    assert apart.grids[0].cells.pairs.tolist() == [1, 1, 1]
    assert "Only one seed of the student alone" in sentences.sentences(apart)
    assert "(n 2)" in tables.accuracy_pivot(only(pd.concat([rows, frame(extra)])).grids[0])


def test_a_teacher_of_the_same_settings_is_resnet18_alone():
    rows = [teacher(0.90), teacher(0.92, run_id="t1", seed=1)]
    rows += [taught(0.5, 10, s, 0.93 + 0.01 * s, model="resnet18", width=64) for s in (0, 1)]
    cell = only(frame(rows)).grids[0].cells.iloc[0]
    assert cell.pairs == 2 and cell.difference == pytest.approx(0.025)
    other = only(frame(rows).assign(lr=[0.2, 0.2, 0.1, 0.1]))
    assert other.grids[0].cells.iloc[0].pairs == 0
    assert "no row of the student alone" in sentences.gaps(other)


def test_two_teachers_of_one_cell_make_two_grids():
    rows = [alone(0, 0.6), taught(0.5, 10, 0, 0.61)]
    rows.append(taught(0.5, 10, 0, 0.62, "-ts1", teacher="resnet18-teacher-s1", teacher_seed=1))
    grids = only(frame(rows)).grids
    assert [grid.cells["mean"].tolist() for grid in grids] == [[0.61], [0.62]]
    # but a teacher for each seed is one grid: then the seeds take the teachers' spread in
    rows[2] |= {"seed": 1}
    assert [grid.cells.n.tolist() for grid in only(frame(rows)).grids] == [[2]]


def test_teachers_that_differ_by_cell_are_said():
    rows = [alone(0, 0.6), alone(1, 0.6)]
    rows += [taught(0.5, 10, s, 0.61) for s in (0, 1)]
    other = {"teacher": "resnet18-teacher-s1", "teacher_seed": 1}
    rows += [taught(0.9, 10, s, 0.66 + 0.01 * s, "-ts1", **other) for s in (0, 1)]
    assert "not all cells were taught by the same teachers" in sentences.gaps(only(frame(rows)))
    # torn apart by a doubly taught cell, both grids keep their twins with T²
    rows += [taught(0.5, 10, s, 0.62, "-ts1", **other) for s in (0, 1)]
    rows += [taught(0.5, 10, s, 0.63, "-t2", scale_t2=True) for s in (0, 1)]
    group = only(frame(rows))
    plain = {g.teacher: g for g in group.grids if not g.scale_t2}
    twin = evidence.scaled_twin(group, plain["resnet18-teacher-s0"])
    assert twin.cells["mean"].tolist() == [0.63]
    assert evidence.scaled_twin(group, plain["resnet18-teacher-s1"]) is None


def test_a_cell_that_lost_seeds_is_never_the_best():
    rows = [*by_hand().to_dict("records"), taught(0.9, 1, 0, 0.99)]
    (grid,) = only(frame(rows)).grids
    assert grid.best == (0.5, 10) and grid.cells["mean"].max() == 0.99
    text = tables.accuracy_pivot(grid)
    assert "**64.50 ± 0.71** (best)" in text and "| 99.00 (n 1) |" in text


def test_the_gains_parts_add_up_on_seeds_in_common():
    rows = [*by_hand().to_dict("records"), alone(0, 0.59, "-control", alpha=0.5)]
    text = sentences.sentences(only(frame(rows)))
    # seed 0 alone: 64 - 60 = (59 - 60) + (64 - 59)
    assert "Of the +4.00 points of α 0.5, T 10 over the student alone (1 seed)" in text
    assert "has -1.00; the teacher adds +5.00" in text


def test_controls_are_shown_without_kd():
    rows = [alone(s, 0.6) for s in (0, 1)]
    rows += [alone(s, 0.58 + 0.01 * s, "-control", alpha=0.5) for s in (0, 1)]
    rows += [taught(0.5, np.nan, s, 0.61, method="sp") for s in (0, 1)]
    text = evidence.explanation_part(only(frame(rows)))
    assert "| 0.5 | 58.50 ± 0.71 | -1.50 ± 6.35 | — |" in text


def test_one_figure_is_one_text():
    assert tables.percent(0.62035) == tables.percent(np.float64(0.62035))


def test_students_above_their_teacher_stay_in_the_picture():
    rows = synthetic(2, alphas=(0.5,), ts=(5, 10))
    weak = "0.3 0.3 0.4 0.4 0.4 0.4"
    teacher_too = rows.role == "teacher"
    rows.loc[teacher_too, ["test_curve", "epochs"]] = [weak, 6]
    group = only(rows)
    figure = Figure()
    plots.curves(figure, group, group.grids[0])
    low, high = figure.axes[0].get_ylim()
    for line in figure.axes[0].lines:  # the teacher's is seen at least where it is highest
        assert low < line.get_ydata().max() <= high


def test_colours_centre_on_the_student_alone_of_the_same_seeds():
    """A cell above its pair must not be painted as below because of another seed's student."""
    rows = [alone(0, 0.6), alone(1, 0.7), taught(0.5, 10, 0, 0.61), taught(0.9, 10, 0, 0.59)]
    group = only(frame(rows))
    assert plots.alone_estimate(group, group.grids[0]).mean == pytest.approx(0.6)


def test_cells_without_spread_over_their_control_are_counted_as_untested():
    """Two seeds that differ by the same point are two seeds, but no t-test."""
    rows = [alone(s, 0.6) for s in (0, 1)]
    rows += [alone(s, 0.58 + 0.01 * s, "-control", alpha=0.5) for s in (0, 1)]
    rows += [taught(0.5, 10, s, 0.59 + 0.01 * s) for s in (0, 1)]  # one point over it, twice
    rows += [taught(0.5, 20, s, 0.59 + 0.02 * s) for s in (0, 1)]
    group = only(frame(rows))
    said = " ".join(sentences.explained(group, group.grids[0]))
    assert "of the 2 cells (1 of them could be tested) beat the control of their α" in said


def test_the_same_cell_twice_is_counted_once():
    rows = [alone(0, 0.6), taught(0.5, 10, 0, 0.61), taught(0.5, 10, 0, 0.62, "-again")]
    group = only(frame(rows))
    assert group.grids[0].cells.n.tolist() == [1]
    assert "`cnn-kd-a0.5-T10-s0` is the same cell and seed as" in sentences.gaps(group)
