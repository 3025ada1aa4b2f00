"""The summary: golden files, figures by hand, families of comparisons."""

import io
import itertools
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from summary_rows import (
    GOLDEN,
    PICTURES,
    alone,
    by_hand,
    frame,
    named,
    only,
    run,
    save,
    synthetic,
    taught,
    teacher,
    texts,
    versus,
)

import summarize
from engine.rows import read_rows
from reporting import compare, pictures, stats, tables
from reporting.rows import CELL

KD = ("cnn", "kd")
SECOND = {"teacher": "resnet18-teacher-s1", "teacher_seed": 1}


@pytest.fixture(scope="module")
def grid():
    """45 cells, 5 seeds, with controls and the T² grid, and its results; never written to."""
    rows = synthetic(ablation=True)
    return rows, only(rows)


def all_contrasts(rows, pairs):
    """stats.contrasts of `pairs` of (method, scale_t2, alpha, T), over all that the cnn did."""
    mine = rows[rows.model == "cnn"].assign(t=rows.temperature.fillna(0))
    values = mine.pivot(index="seed", columns=["method", "scale_t2", "alpha", "t"])["test_acc"]
    values.columns = values.columns.to_flat_index()
    alike = [(method, alpha) for method, _, alpha, _ in values]  # T and T^2 aside
    return stats.contrasts(values, pairs, alike)


# ---------------------------------------------------------------- golden


def test_golden_files():
    table, text = texts(read_rows(GOLDEN / "results.csv"), pictures=PICTURES)
    assert table.encode() == (GOLDEN / "table.md").read_bytes()
    assert text.encode() == (GOLDEN / "REPORT.md").read_bytes()


def test_stored_figures():
    """Means, deviations, pairs and differences that an earlier, independent version had."""
    stored = pd.read_csv(GOLDEN / "figures.csv")
    found = []
    for results in summarize.compared(read_rows(GOLDEN / "results.csv"))[0]:
        settings = results.protocol.settings
        name = "e{epochs:g}-tmax{t_max:g}-val{val_size:g}".format(**settings)
        cells = results.cells.rename(columns={"n": "seeds"})
        found.append(results.tests.join(cells, on=CELL).assign(protocol=name))
    both = stored.merge(pd.concat(found), on=["protocol", *CELL, "against"], suffixes=("_", ""))
    assert len(both) == (stored.pairs > 0).sum() > 70  # what had no pair is no comparison
    for old, new in (("n_", "seeds"), ("pairs", "n"), ("mean_", "mean"), ("std_", "std"),
                     ("val_", "val"), ("difference_", "difference")):  # fmt: skip
        np.testing.assert_allclose(both[new].astype(float), both[old], atol=1e-9)


def test_the_whole_way(tmp_path, monkeypatch, capsys):
    """What summarize.py prints and leaves, and that pictures are the same bytes again."""
    rows = synthetic(2, alphas=(0.5, 0.9), ts=(5, 10))
    path = save(tmp_path, rows)
    assert run(tmp_path, monkeypatch) == 0
    table, text = texts(rows, pictures=PICTURES)
    assert path.with_name("table.md").read_text() == table
    assert path.with_name("REPORT.md").read_text() == text
    assert table in capsys.readouterr().out
    again = pictures.pictures([only(rows)])
    assert list(again) == PICTURES
    for name, png in again.items():
        assert path.with_name(f"{name}.png").read_bytes() == png
        assert Image.open(io.BytesIO(png)).width == 1280
        assert f"![{name}]({name}.png)" in text
    assert any((tmp_path / "runs-summary").rglob("*tfevents*"))


def test_every_run_is_named_and_every_name_is_a_run():
    rows, text = pd.read_csv(GOLDEN / "results.csv"), (GOLDEN / "REPORT.md").read_text()
    assert named(text) == set(rows.run_id)


def test_the_report_opens_with_the_answer(grid):
    for text in ((GOLDEN / "REPORT.md").read_text(), texts(grid[0])[1]):
        opening = re.split(r"\n!\[|\n\*\*cnn, kd\*\*", text)[0].splitlines()
        assert 5 <= len([line for line in opening[1:] if line]) <= 8
        asked = [line.split("**")[1] for line in opening if line.startswith("- **")]
        assert asked[:3] == ["What it adds", "More than noise?", "Is it the teacher?"]
        # below it the picture and the table, all else is folded
        shown = re.sub(r"<details>.*?</details>", "", text, flags=re.DOTALL)
        assert "run ids" in text and "run ids" not in shown
        assert re.search(r"\n\n\*\*cnn, kd\*\*\n\n\| T", shown)
        assert "— of" not in text and "chose nothing" not in text
    # annealed first, the other two are named
    opening = (GOLDEN / "REPORT.md").read_text().split("\n![heatmap]")[0]
    assert opening.count("T_max") == 3


def test_what_nobody_trained_is_not_known():
    """A grid without a student alone, and one without a control or a second seed."""
    orphans = frame([taught(0.5, 1, 0, 0.61), taught(0.9, 1, 0, 0.62)])
    for text in texts(orphans):
        assert "no student was trained alone with these settings, so what it adds is" in text
        assert "More than noise" not in text and "Is it the teacher" not in text
    for text in texts(frame([alone(0, 0.60), taught(0.5, 1, 0, 0.61)])):
        assert "the student alone 60.00: +1.00." in text
        assert "**More than noise?** Not known" in text and "teacher?** Not known" in text


def test_drawn_shapes_are_called_no_evidence_first():
    rows = [alone(0, 0.6, dataset="shapes"), taught(0.5, 1, 0, 0.61, dataset="shapes")]
    table, text = texts(frame(rows))
    assert table.startswith("**Synthetic") and text.startswith("# Report\n\n**Synthetic")
    assert "no evidence" not in texts(frame([alone(0, 0.6)]))[1]


# ---------------------------------------------------------------- figures by hand


def test_figures_by_hand():
    results = only(by_hand())
    # means 62, 64.5 and 63; standard deviations |a - b| / sqrt 2
    assert texts(by_hand())[0].count(
        "| 1 | 62.00 ± 1.41 | — |\n| 10 | **64.50 ± 0.71** | 63.00 ± 4.24 |"
    )
    assert versus(results, 0.5, 10).difference == pytest.approx(0.035)
    assert versus(results, 0.5, 10).n == 2
    assert versus(results, 0.9, 10, "best").difference == pytest.approx(-0.015)


def test_without_spread_there_is_no_interval_and_no_p():
    """Two seeds that differ by the same point are two seeds, but no t-test."""
    rows = [alone(0, 0.6), alone(1, 0.62), taught(0.5, 1, 0, 0.61), taught(0.5, 1, 1, 0.63)]
    test = versus(only(frame(rows)), 0.5, 1)
    assert test.n == 2 and test.difference == pytest.approx(0.01)
    assert np.isnan([test.half, test.p, test.p_holm]).all() and test.sign == 0


def test_one_seed_gives_no_interval():
    rows = synthetic(1)
    assert only(rows).tests[["half", "p", "p_holm"]].isna().all(axis=None)
    for text in texts(rows):
        figures = re.sub(r"differences in points, .*: the best\.", "", text)
        assert " ± 0" not in text and "[+" not in text and " †" not in figures.split("<details>")[0]


def test_one_figure_is_one_text():
    assert tables.percent(0.62035) == tables.percent(np.float64(0.62035))
    assert tables.points(-0.00001) == "+0.00" and tables.points(-0.01) == "−1.00"


# ---------------------------------------------------------------- families of comparisons


def test_holm_is_over_the_grid_against_the_student_alone(grid):
    rows, results = grid
    cells = list(
        itertools.product((0.1, 0.25, 0.5, 0.75, 0.9), (1, 2.5, 5, 7.5, 10, 20, 30, 40, 50))
    )
    pairs = [(("kd", False, *cell), ("none", False, 0.0, 0)) for cell in cells]
    expected = all_contrasts(rows, pairs)
    tests = results.against(KD, "alone").loc[cells]
    np.testing.assert_allclose(tests[["difference", "half", "p"]].astype(float),
                               expected[["difference", "half", "p"]], atol=1e-12)  # fmt: skip
    np.testing.assert_allclose(tests.p_holm.astype(float), stats.holm(expected.p))
    assert set(tests.family) == {45} and 5 < (tests.sign == 1).sum() < 45
    marked = compare.of(tables.sheet(results).marked, KD)
    assert marked.str.contains("†").sum() == (tests.sign == 1).sum()
    assert set(results.against(("cnn", "control"), "alone").family) == {5}


def test_the_best_is_compared_with_holm_over_all_pairs(grid):
    """It was picked by these figures; Holm over the 44 others alone would not keep the 5 %."""
    rows, results = grid
    means = rows[(rows.method == "kd") & (rows.scale_t2 == False)].groupby(  # noqa: E712
        ["alpha", "temperature"]
    )["test_acc"].mean()  # fmt: skip
    best = means.idxmax()
    assert results.where(KD, "best")[2:] == best
    pairs = list(itertools.combinations([("kd", False, *cell) for cell in means.index], 2))
    p = dict(zip(map(frozenset, pairs), stats.holm(all_contrasts(rows, pairs).p), strict=True))
    tests = results.against(KD, "best")
    assert len(tests) == 44 and set(tests.family) == {990}
    for cell, test in tests.iterrows():
        expected = p[frozenset((("kd", False, *cell), ("kd", False, *best)))]
        assert test.p_holm == pytest.approx(expected)
    assert 0 < (tests.sign == 0).sum() < 44


def test_controls_and_scaled_grid_are_paired(grid):
    rows, results = grid
    mine = rows[rows.alpha == 0.5].sort_values("seed")
    control = mine[mine.method == "none"].test_acc.to_numpy()
    at_ten = mine[mine.temperature == 10]
    cell, scaled = (at_ten[at_ten.scale_t2 == t2].test_acc.to_numpy() for t2 in (False, True))
    assert versus(results, 0.5, 10, "control").difference == pytest.approx((cell - control).mean())
    over = versus(results, 0.5, 10, "plain", "kd × T²")
    assert over.difference == pytest.approx((scaled - cell).mean())
    assert set(results.against(KD, "control").family) == {45}
    assert results.against(KD, "plain").empty


def test_methods_are_compared_over_all_that_could_have_been_picked():
    rows = [alone(seed, acc) for seed, acc in enumerate((0.60, 0.61, 0.62))]
    rows += [taught(0.5, 10, seed, acc) for seed, acc in enumerate((0.61, 0.63, 0.63))]
    among = compare.METHODS
    assert not only(frame(rows)).tests.against.isin(["kd", among]).any()
    for beta, gain in ((1000, -0.01), (3000, 0.0)):
        rows += [
            taught(0.5, np.nan, seed, acc + gain, f"-b{beta}", method="sp", beta=beta)
            for seed, acc in enumerate((0.63, 0.63, 0.66))
        ]
    results = only(frame(rows))
    # the better beta; against alone +3, +2, +4, one of three cells; against kd +2, 0, +3
    test = versus(results, 0.5, 0, among, "sp, β 3000")
    assert test.difference == pytest.approx(0.03) and test.family == 3
    test = versus(results, 0.5, 0, "kd", "sp, β 3000")
    assert test.difference == pytest.approx(0.05 / 3) and test.family == 2
    assert results.against(("cnn", "sp, β 1000"), "kd").empty
    scaled = [{**row, "scale_t2": row["method"] == "kd"} for row in rows]  # all the kd there is
    test = versus(only(frame(scaled)), 0.5, 0, "kd", "sp, β 3000")
    assert test.difference == pytest.approx(0.05 / 3) and test.family == 2
    held = [{**row, "val_size": 5000, "val_acc": row["test_acc"]} for row in rows]
    chosen = only(frame(held))  # validation's choices are the whole family
    assert versus(chosen, 0.5, 0, among, "sp, β 3000").family == 2


def test_a_beta_that_lost_seeds_does_not_stand_for_its_method():
    rows = [alone(s, 0.6) for s in range(3)] + [taught(0.5, 10, s, 0.61) for s in range(3)]
    rows += [taught(0.5, np.nan, s, 0.615 + 0.001 * s, "-b300", beta=300, method="sp")
             for s in range(3)]  # fmt: skip
    rows += [taught(0.5, np.nan, 2, 0.7, "-b3000", beta=3000, method="sp")]
    results = only(frame(rows))
    stand = compare.stand_ins(results.cells.loc[["cnn"]])
    assert {variant for _, variant, _, _ in stand.index} == {"kd", "sp, β 300"}


def test_what_the_choice_of_an_epoch_on_the_test_set_adds_to_validation_s():
    common = {"epochs": 3, "t_max": 9, "val_size": 5000}
    first = {"test_curve": "0.50 0.61 0.55", "best_test_acc": 0.61, "best_val_epoch": 3}
    second = {"test_curve": "0.50 0.58 0.60", "best_test_acc": 0.60, "best_val_epoch": 2}
    rows = frame([alone(0, 0.55, **common, **first), alone(1, 0.60, **common, **second)])
    # 6 and 2 points by seed: t(1) = 12.706, times 2.828 / sqrt(2)
    assert "60.50 ± 0.71 | 56.50 ± 2.12 | +4.00 [−21.41, +29.41] |" in texts(rows)[1]
    nothing = rows.assign(val_size=0, best_val_epoch=np.nan)
    assert "validation's" not in texts(nothing)[1]


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
    results = only(rows)
    assert results.protocol.metric == "val"
    assert results.cells["mean"].tolist() == [0.55, 0.58]  # validation's epochs, not the best
    assert results.where(KD, "picked")[2:] == results.where(KD, "choice")[2:] == (0.5, 5)
    assert results.where(KD, "best")[2:] == (0.5, 10)
    assert "chose α 0.5, T 5 (65.00 on validation): 55.00 on test" in texts(rows)[1]
    annealed = only(rows.assign(t_max=3, val_acc=[0.5, 0.6]))
    assert annealed.protocol.metric == "last"
    assert annealed.where(KD, "picked")[2:] == (0.5, 10)


def test_annealed_protocols_show_the_last_epoch_and_others_the_best():
    rows = synthetic(2, alphas=(0.5,), ts=(5,)).assign(test_curve=np.nan)
    rows["test_acc"], rows["best_test_acc"] = 0.55, 0.65
    assert "**55.00 ± 0.00**" in texts(rows)[0]
    assert "**65.00 ± 0.00**" in texts(rows, "best")[0]
    half = rows.assign(t_max=12)
    assert "**65.00 ± 0.00**" in texts(half)[0] and "chosen on the test set" in texts(half)[0]
    assert "**55.00 ± 0.00**" in texts(half, "last")[0]


# ---------------------------------------------------------------- what must not be mixed up


def test_protocols_are_never_mixed():
    short, other = synthetic(2, alphas=(0.5,), ts=(5, 10)), synthetic(2, alphas=(0.5,), ts=(5, 10))
    other = other[other.role != "teacher"].assign(lr=0.05, run_id=lambda rows: rows.run_id + "-lr")
    found, _ = summarize.compared(pd.concat([other, short], ignore_index=True))
    assert [results.protocol.settings["lr"] for results in found] == [0.05, 0.1]
    assert [set(results.cells.n) for results in found] == [{2}, {2}]
    titles = [tables.title(results.protocol.settings) for results in found]
    assert titles[0] != titles[1] and "lr 0.05" in titles[0]


def test_the_main_protocol_is_taught_and_annealed():
    some = {"alphas": (0.5,), "ts": (5, 10)}
    parts = [synthetic(1, settings={"epochs": e, "t_max": t}, tail=f"-e{e}-tmax{t}", **some)
             for e, t in ((4, 8), (5, 5), (6, 6))]  # fmt: skip
    rows = pd.concat([part[part.role != "teacher"] for part in parts])
    rows = rows[(rows.epochs != 6) | (rows.role == "student")]  # annealed, but nobody was taught
    found, _ = summarize.compared(rows)
    assert [results.protocol.settings["epochs"] for results in found] == [5, 4, 6]


def test_unequal_seeds_are_paired_on_those_in_common():
    rows = by_hand()
    more = pd.concat([rows, frame([taught(0.5, 10, 7, 0.99), alone(9, 0.10)])])
    results = only(more)
    assert results.cells.loc[(*KD, 0.5, 10)].n == 3
    assert versus(results, 0.5, 10).n == 2
    assert versus(results, 0.5, 10).difference == pytest.approx(0.035)
    assert "+3.50" in texts(more)[1] and "(n 2)" in texts(more)[1]
    apart = only(rows[~((rows.role == "student") & (rows.seed == 1))])
    assert set(apart.against(KD, "alone").n) == {1}


def test_a_teacher_of_the_same_settings_is_resnet18_alone():
    rows = [teacher(0.90), teacher(0.92, run_id="t1", seed=1)]
    rows += [taught(0.5, 10, s, 0.93 + 0.01 * s, model="resnet18", width=64) for s in (0, 1)]
    test = versus(only(frame(rows)), 0.5, 10, student="resnet18")
    assert test.n == 2 and test.difference == pytest.approx(0.025)
    other = only(frame(rows).assign(lr=[0.2, 0.2, 0.1, 0.1]))
    assert other.against(("resnet18", "kd"), "alone").empty


def test_two_teachers_of_one_cell_make_two_grids_that_keep_their_twins():
    rows = [alone(0, 0.6), taught(0.5, 10, 0, 0.61), taught(0.5, 10, 0, 0.62, "-ts1", **SECOND)]
    results = only(frame(rows))
    names = ["kd; teacher resnet18-teacher-s0", "kd; teacher resnet18-teacher-s1"]
    assert [variant for _, variant in results.grids] == names
    assert [results.cells.loc[("cnn", name, 0.5, 10)]["mean"] for name in names] == [0.61, 0.62]
    rows.append(taught(0.5, 10, 0, 0.63, "-t2", scale_t2=True))
    scaled = only(frame(rows)).tests.query("against == 'plain'")
    assert scaled.variant.tolist() == ["kd × T²; teacher resnet18-teacher-s0"]
    assert scaled.difference.tolist() == pytest.approx([0.02])
    # but a teacher for each seed is one grid: then the seeds take the teachers' spread in
    rows[2] |= {"seed": 1}
    assert only(frame(rows[:3])).cells.loc[(*KD, 0.5, 10)].n == 2


def test_each_teachers_grid_meets_the_control():
    rows = [alone(s, 0.6 + 0.001 * s) for s in (0, 1)]
    rows += [alone(s, 0.59 + 0.002 * s, "-control", alpha=0.5) for s in (0, 1)]
    for tail, who in (("", {}), ("-ts1", SECOND)):
        rows += [taught(0.5, 10, s, 0.61 + 0.003 * s, tail, **who) for s in (0, 1)]
    assert (only(frame(rows)).tests.against == "control").sum() == 2


def test_a_cell_that_lost_seeds_is_never_the_best():
    rows = frame([*by_hand().to_dict("records"), taught(0.9, 1, 0, 0.99)])
    assert only(rows).where(KD, "best")[2:] == (0.5, 10)
    assert "| **64.50 ± 0.71** |" in texts(rows)[0] and "| 99.00 (n 1) |" in texts(rows)[0]


def test_a_further_seed_of_one_cell_does_not_make_it_the_best():
    rows = [alone(s, 0.6) for s in (0, 1)]
    rows += [taught(0.5, t, s, 0.6 + t / 1000 + s / 500) for t in (5, 10, 20) for s in (0, 1)]
    results = only(frame([*rows, taught(0.5, 5, 2, 0.6)]))
    assert results.where(KD, "best")[2:] == (0.5, 20)


def test_a_cell_above_the_best_is_not_called_equal_to_it():
    rows = [alone(s, 0.6 + 0.001 * s) for s in range(5)]
    rows += [taught(0.5, 10, s, 0.61 + 0.001 * s + 0.0003 * (s % 2)) for s in range(5)]
    rows += [taught(0.1, 10, s, 0.60 + 0.001 * s + 0.0004 * (s % 2)) for s in range(5)]
    rows += [taught(0.9, 5, s, 0.66 + 0.001 * s + 0.0002 * (s % 3)) for s in range(4)]
    results = only(frame(rows))
    assert results.where(KD, "best")[2:] == (0.5, 10)
    assert versus(results, 0.9, 5, "best").sign == 1 and versus(results, 0.1, 10, "best").sign == -1
    assert "0 of 2 other cells do not differ significantly from the best" in texts(frame(rows))[1]


def test_controls_are_compared_without_kd():
    rows = [alone(s, 0.6) for s in (0, 1)]
    rows += [alone(s, 0.58 + 0.01 * s, "-control", alpha=0.5) for s in (0, 1)]
    results = only(frame(rows))
    assert versus(results, 0.5, 0, variant="control").difference == pytest.approx(-0.015)
    assert "α 0.5: −1.50 [" in texts(frame(rows))[1]
    rows += [taught(0.5, np.nan, s, 0.61, method="sp") for s in (0, 1)]
    test = versus(only(frame(rows)), 0.5, 0, "control", "sp")
    assert test.difference == pytest.approx(0.025)


def test_a_hard_loss_of_full_weight_is_not_compared_with_the_control_of_a_shortened_one():
    rows = [alone(s, 0.6 + 0.01 * s) for s in (0, 1)]
    rows += [alone(s, 0.58 + 0.01 * s, "-control", alpha=0.5) for s in (0, 1)]
    for weight, count, name in ((np.nan, 1, KD), (1.0, 0, ("cnn", "kd, hard × 1"))):
        cell = [taught(0.5, 4, s, 0.61, hard_weight=weight) for s in (0, 1)]
        results = only(frame(rows + cell))
        assert len(results.against(name, "control")) == count
        assert len(results.against(name, "alone")) == 1


def test_what_it_adds_names_the_seeds_where_they_are_not_the_same():
    cells = [taught(0.5, 4, s, 0.62 + 0.01 * s) for s in (0, 1)]
    same = [alone(s, 0.6) for s in (0, 1)]
    assert "the student alone 60.00 ± 0.00: +2.50" in texts(frame(same + cells))[1]
    more = [*same, alone(9, 0.5)]
    assert "(3 seeds); over the seeds of both: +2.50" in texts(frame(more + cells))[1]


def test_the_answer_says_no_more_than_there_is():
    """One cell, a control of another alpha, a hard loss of its own, no teacher at all."""
    rows = [alone(s, 0.6 + 0.01 * s) for s in (0, 1)]
    one = texts(frame(rows + [taught(0.5, 4, s, 0.62) for s in (0, 1)]))[1]
    assert "the one cell (cnn, kd), α 0.5, T 4, has" in one and "picked on the test set" not in one
    control = [alone(s, 0.58, "-control", alpha=0.9) for s in (0, 1)]
    cells = [taught(a, 4, s, 0.62 - a / 100) for a in (0.5, 0.9) for s in (0, 1)]
    other = texts(frame(rows + control + cells))[1]
    assert "**Is it the teacher?** Not known: at α 0.5, T 4 there is no control" in other
    own = [taught(0.9, 4, s, 0.62, hard_weight=1.0) for s in (0, 1)]
    assert "Not known: at α 0.9, T 4 there is no control" in texts(frame(rows + control + own))[1]
    smooth = {"method": "smooth", "role": "student", "teacher": np.nan, "teacher_sha": np.nan}
    cells = [taught(0.9, np.nan, s, 0.62 + 0.003 * s, **smooth) for s in (0, 1)]
    none = texts(frame(rows + control + cells))[1]
    assert "**Is it the method?** At α 0.9" in none and "and the method adds +4.15" in none
    assert "the teacher adds" not in none


def test_cells_without_a_seed_in_common_are_not_called_equal():
    best = [taught(0.5, 1, s, 0.63 + 0.002 * s) for s in (0, 1, 2)]
    near = [taught(0.5, 4, s, acc) for s, acc in enumerate((0.64, 0.61, 0.63))]
    other = [taught(0.5, t, s, 0.4) for t in (10, 20, 30) for s in (3, 4, 5)]
    said = texts(frame(best + near + other))[1]
    assert "1 of 1 other cell does not differ" in said
    assert "from the best (3 more cannot be compared with it). Two cells are typically" in said


def test_a_checkpoint_that_has_a_teachers_name_is_not_that_teacher():
    rows = by_hand()
    rows["teacher_acc"] = np.where(rows.role == "distill", 0.9154, np.nan)
    assert "Teacher: resnet18, 91.54 in its last epoch." in texts(rows)[1]
    rows.loc[rows.role == "distill", "teacher_acc"] = 0.8
    elsewhere = "resnet18-teacher-s0 from elsewhere (checkpoint 0123456789ab), 80.00 here."
    assert f"Teacher: {elsewhere}" in texts(rows)[1]


def test_what_cannot_be_given_counts_for_no_degree_of_freedom():
    two = tables.over_seeds([0.9, 0.8])
    assert tables.over_seeds([0.9, 0.8, np.nan]) == two != tables.over_seeds([0.9, 0.8, 0.85])


def test_kd_and_its_scaled_twin_count_as_one_network():
    """At T 1 they are the same loss: that the two agree says nothing of how noisy they are."""
    draw = np.random.default_rng(0).normal(0, 0.003, (3, 2))
    rows = [alone(s, 0.6 + draw[s, 0]) for s in range(3)]
    rows += [taught(0.5, 1, s, 0.61 + draw[s, 1]) for s in range(3)]
    twins = [taught(0.5, 1, s, 0.61 + draw[s, 1], "-t2", scale_t2=True) for s in range(3)]
    one, both = (versus(only(frame(found)), 0.5, 1) for found in (rows, rows + twins))
    assert both.half == pytest.approx(one.half) and both.p == pytest.approx(one.p)


def test_runs_that_should_not_differ_are_said_to():
    rows = by_hand()
    assert "The runs differ in" not in texts(rows)[1]
    rows.loc[rows.role == "student", "machine"] = "another CPU"
    assert "The runs differ in `machine`." in texts(rows)[1].split("\n![")[0]
