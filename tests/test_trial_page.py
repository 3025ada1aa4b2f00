"""The page of the fair trial: what it says of rows, and what it never compares."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import script
from trial_rows import (
    FRESH,
    GAINS,
    GOLDEN,
    INNER,
    KEPT,
    TRIES,
    frame,
    golden_rows,
    one_side,
    read,
    rows_of,
    text,
)

import sides
import summarize
import trial
from engine.rows import COLUMNS, csv_path
from reporting import stats, trial_pictures
from reporting import trial as fair
from reporting import trial_answer as answer
from reporting import trial_page as page
from reporting.rows import clean
from utils import UserError


@pytest.fixture(scope="module")
def golden():
    return golden_rows()


def test_golden_page(golden):
    """Read the diff, then `python tests/trial_rows.py`."""
    assert text(golden, pictures=trial_pictures.CAPTIONS) == GOLDEN.read_text()


def test_known_gains_come_out_and_bold_is_what_holds(golden):
    found = read(golden)
    kd = found.tests[(found.tests.side == "kd") & (found.tests.against == "alone")]
    assert set(zip(kd.images, kd.width, strict=True)) == set(GAINS)
    for test in kd.itertuples():
        gain = GAINS[test.images, test.width]
        error = 0.002 * np.sqrt(2 / FRESH)  # of a mean difference: the rows' own noise is 0.002
        assert abs(test.difference - gain) < 3 * error
        assert test.n == FRESH and test.sign == (gain > 0)
    nothing = found.tests[(found.tests.side == "smooth")]
    assert (nothing.sign == 0).all()
    values = page.page(found)
    bold = (values["expect"] + values["controls"] + values["others"]).count("**") / 2
    assert bold == (found.tests.sign != 0).sum() > 0


def test_one_more_side_takes_nothing_from_the_answer(golden):
    found = read(golden).tests
    kd = (found.side == "kd") & (found.against == "alone")
    further = ~found.side.isin(sides.MAIN) | ~found.against.isin(sides.MAIN)
    assert kd.sum() > 1 and further.any()
    for family in (kd, ~kd):
        assert found.p_holm[family].tolist() == pytest.approx(stats.holm(found.p[family]))
    fewer = read([row for row in golden if row["answers"] not in sides.CONTROLS.values()]).tests
    assert len(fewer) == (~further).sum()
    same = (fewer.side == "kd") & (fewer.against == "alone")
    assert fewer.p_holm[same].tolist() == found.p_holm[kd].tolist()


def test_a_method_meets_label_smoothing_and_kd_its_controls():
    rows = [row for side in (*sides.MAIN, "sp", "kd-random")
            for row in one_side(side, 500, 16, 0.32 if side == "kd" else 0.3)]  # fmt: skip
    found = read(rows)
    pairs = set(zip(found.tests.side, found.tests.against, strict=True))
    assert pairs == {("smooth", "alone"), ("kd", "alone"), ("kd", "smooth"), ("sp", "alone"),
                     ("sp", "smooth"), ("kd-random", "alone"), ("kd", "kd-random")}  # fmt: skip
    values = page.page(found)
    assert values["others"].count("| sp |") == 1 and "kd-random" not in values["others"]
    assert "| kd − it |" in values["controls"] and "**+2." in values["controls"]


@pytest.mark.parametrize(
    ("gain", "noise", "says"),
    [
        (0.02, 0.002, "a teacher is worth it: +"),
        (0.002, 0.0002, "a teacher is worth it, but less than half a point: +"),
        (0.0, 0.001, "a teacher changes it by less than half a point: "),
        (-0.02, 0.002, "a teacher does harm: −"),
        (0.001, 0.01, "undecided: "),
    ],
)
def test_the_answer_is_one_sentence(gain, noise, says):
    rows = [
        line
        for side, own in (("alone", 0), ("smooth", 0), ("kd", gain))
        for line in one_side(side, 2000, 16, 0.4 + own, noise=noise)
    ]
    found = read(rows)
    [line] = answer.answers(found)
    assert line.startswith(f"**2,000 images, cnn**: {says}")
    assert ("**" in page.expect(found)) == ("undecided" not in says and "changes" not in says)


def test_two_one_sided_tests_are_the_90_percent_interval():
    draw = np.random.default_rng(0)
    for _ in range(50):
        values = pd.DataFrame(draw.normal([0.003, 0], 0.004, (6, 2)), columns=["a", "b"])
        test = stats.contrasts(values, [("a", "b")])
        small = stats.equivalent(test, 0.005)[0] <= 0.05
        gaps = values.a - values.b
        half = gaps.sem() * 2.015048  # t of 5 degrees of freedom at 95 %
        assert small == (abs(gaps.mean()) + half <= 0.005)


def test_what_fewer_tries_would_find_is_the_mean_over_all_that_could_be_drawn(golden):
    found = read(golden)
    rows = found.rows[(found.rows.images == 500) & (found.rows.side == "kd")]
    rows = rows[rows.seed == 0].sort_values("val_acc")[["val_acc", "test_acc"]].to_numpy()
    best = fair.best_of(found, (500, 16), "kd")
    assert list(best.index) == list(range(1, TRIES + 1))
    np.testing.assert_allclose(best.loc[1], rows.mean(0))
    np.testing.assert_allclose(best.loc[TRIES], rows[-1])
    draw = np.random.default_rng(0)
    drawn = [rows[draw.permutation(TRIES)[:5].max()] for _ in range(20_000)]
    np.testing.assert_allclose(best.loc[5], np.mean(drawn, 0), atol=1e-3)


def test_a_side_with_other_numbers_of_tries_than_the_first_has_columns_of_its_own(golden):
    rows = [row for row in golden if (row["train_size"], row["width"]) == (500, 16)]
    mine = [row for row in rows if row["answers"] == "shuffled"]
    final = {row["lr"] for row in mine if row["seed"] == 1}
    spare = [row["run_id"] for row in mine if row["seed"] == 0 and row["lr"] not in final][:5]
    # By the first rules, whose sides had as many tries as their grids had points.
    rows = [row | {"momentum": 0} for row in rows if row["run_id"] not in spare]
    found = fair.read(clean(pd.DataFrame(rows, columns=COLUMNS)), fair.Asked(8, FRESH), set())
    lines = page.fewer(found).splitlines()
    assert "| 15 |" in lines[0] and len({line.count("|") for line in lines}) == 1


def test_a_half_done_place_is_named_and_never_compared(golden):
    found = read(golden)
    assert (1000, 16) not in found.whole and 1000 not in set(found.tests.images)
    assert "| 1,000 | cnn | smooth | 20 of 20 | 6 of 6 | 2 of 5 |" in page.unfinished(found)
    assert "1,000" not in page.expect(found)
    assert answer.lacking(found) == "1,000 images"
    assert "**Unfinished**, so not compared: 1,000 images." in text(golden, template="trial_answer")


def test_a_gain_that_label_smoothing_has_as_well_is_said_to_be_that():
    levels = {"worth it:": (0.4, 0.4, 0.45), "less than label smoothing:": (0.4, 0.44, 0.42)}
    levels["worth more than label smoothing:"] = (0.4, 0.4215, 0.42)
    for says, level in levels.items():
        mains = zip(sides.MAIN, level, strict=True)
        rows = [line for side, own in mains for line in one_side(side, 500, 16, own)]
        [line] = answer.answers(read(rows))
        assert says in line


def test_what_a_teacher_saw_is_known_where_it_was_trained_and_else_said_by_its_name():
    name = "resnet18-teacher-s0-val5000"
    rows = [
        line | {"teacher": name} for side in sides.MAIN for line in one_side(side, 500, 16, 0.5)
    ]
    [line] = page.taught_by(read(rows))
    assert "all images of the data set but 5,000 (by its name), held-out ones may be" in line
    trained = rows[0] | {"role": "teacher", "run_id": name, "teacher": "", "teacher_sha": ""}
    [line] = page.taught_by(read([*rows, trained]))
    assert "but 5,000, none of them held out" in line


def test_draws_of_a_former_winner_leave_nothing_unfinished():
    """Another winner was measured on three draws, before TRIES was raised."""
    rows = [line for side in sides.MAIN for line in one_side(side, 500, 16, 0.5)]
    former = next(row for row in rows if row["method"] == "kd" and row["seed"] == 0)
    ids = [f"{former['run_id']}-of-draw-{draw}" for draw in range(3)]
    rows += [former | {"seed": 20, "draw": n, "run_id": name} for n, name in enumerate(ids)]
    assert read(rows).whole == [(500, 16)]


def test_nothing_is_chosen_before_all_is_searched():
    """The runs that find the length have the final's seeds."""
    rows = [line for side in sides.MAIN for line in one_side(side, 1000, 16, 0.5)]
    searched = [row for row in rows if row["method"] == "smooth" and row["seed"] == 0]
    won = {row["lr"] for row in rows if row["seed"] == sides.FIRST_FRESH}
    spare = next(row for row in searched if row["lr"] not in won)
    found = read([row for row in rows if row is not spare])
    assert "| 1,000 | cnn | smooth | 19 of 20 | 0 of 6 | 0 of 5 |" in page.unfinished(found)
    assert "| smooth |" not in page.choices(found) and "| kd |" in page.choices(found)


def test_a_trial_with_more_steps_in_the_same_folder_is_the_one_that_is_told():
    rows = [
        line
        for side in sides.MAIN
        for line in one_side(side, 500, 16, 0.4, doubled=0.0 if side == "alone" else None)
    ]
    short = min(row["epochs"] for row in rows)
    longer = {"epochs": 4 * short, "t_max": 4 * short, "test_acc": 0.6}
    rows += [row | longer for row in rows if row["epochs"] == short]
    found = read(rows)
    assert found.lengths.epochs.to_list() == [4 * short] and np.isnan(found.lengths.moved).all()
    assert found.entries.accuracy.map(lambda values: values.mean()).eq(0.6).all()


def test_a_fresh_run_that_diverged_is_told_and_one_that_lacks_is_not_taken_for_it(golden):
    mine = [row for row in golden if (row["train_size"], row["width"]) == (5000, 4)]
    (gone,) = [row for row in mine if (row["method"], row["seed"]) == ("kd", 22)]
    rows = [row for row in mine if row is not gone]
    assert (5000, 4) not in read(rows).whole
    found = read(rows, diverged={gone["run_id"]})
    assert (5000, 4) in found.whole
    assert "(1 diverged)" in page.expect(found)
    kd = found.tests[(found.tests.width == 4) & (found.tests.side == "kd")]
    assert set(kd.n) == {FRESH - 1}


def test_with_nothing_finished_nothing_is_found():
    rows = one_side("kd", 500, 16, 0.4, fresh=0)
    found = text(rows)
    assert "## Figures" not in found and "—" not in found.split("What was done")[0]
    assert "No place is finished, so nothing has been found yet." in found
    assert "| 500 | cnn | alone | 0 of 20 | 0 of 6 | 0 of 5 |" in found
    assert trial_pictures.pictures(read(rows)) == {}


def test_a_place_whose_search_or_final_is_cut_short_is_not_whole(golden):
    """A run that is known to have diverged counts as made."""
    mine = [row for row in golden if (row["train_size"], row["width"]) == (5000, 4)]
    kd = [row for row in mine if row["method"] == "kd"]
    wins, finals = ({r["lr"] for r in kd if r["seed"] == seed} for seed in (20, 2))
    for seed, needed in ((0, finals), (2, wins)):  # a run that no later stage needs, of each stage
        (gone, *_) = [r for r in kd if r["seed"] == seed and r["lr"] not in needed]
        rows = [row for row in mine if row is not gone]
        assert read(rows).whole == []
        assert read(rows, diverged={gone["run_id"]}).whole == [(5000, 4)]


def test_sides_of_two_teachers_are_two_trials(golden):
    rows = [dict(row) for row in golden]
    kd = [row for row in rows if row["method"] == "kd" and row["train_size"] == 500]
    for row in kd[:20]:
        row["teacher_sha"] = "another"
    with pytest.raises(UserError, match="differ in teacher"):
        read(rows)


def test_more_fresh_seeds_asked_for_than_run_is_half_done(golden):
    assert read(golden, FRESH + 1).whole == []


def test_unless_said_otherwise_many_images_have_fewer_fresh_seeds():
    """Above 10,000 images five seeds are a whole, below they are half of one."""
    rows = [
        line
        for images in (5000, 45000)
        for side in sides.MAIN
        for line in one_side(side, images, 16, 0.5, fresh=sides.FEWER_FRESH)
    ]
    found = read(rows, None)
    assert found.whole == [(45000, 16)]
    assert "| 5,000 | cnn | kd | 20 of 20 | 6 of 6 | 5 of 10 |" in page.unfinished(found)


def test_the_answer_says_once_what_its_lines_have_in_common_and_names_the_places(golden):
    rows = [row for row in golden if (row["train_size"], row["width"], row["seed"], row["method"])
            not in {(45000, 16, 24, method) for method in ("none", "smooth", "kd")}]  # fmt: skip
    lost = {row["run_id"] for row in golden} - {row["run_id"] for row in rows}
    said = text(rows, template="trial_answer", diverged=lost)
    assert said.count("5 fresh seeds, where nothing else is said") == 1 == said.count("5 fresh")
    assert said.count("(over 4 fresh seeds)") == 1
    assert "above it at 3 of 4 places: 500 and 5,000 (width 4, 16) images" in said
    assert "significantly above it at none of 4 places" in said and "shapes" not in said
    drawn = text(
        [row | {"dataset": "shapes"} for row in rows], template="trial_answer", diverged=lost
    )
    assert drawn.splitlines()[2].startswith("Synthetic shapes show that the pipeline works")


def test_a_border_is_told_by_side_and_place_where_there_are_several(golden):
    found = read(golden)
    keys = [(5000, 4, "kd"), (5000, 16, "kd"), (500, 16, "smooth")]
    told = answer.sided(found, keys)
    assert told == "smooth at 500 images; kd at 5,000 (width 4, 16) images"
    one = read([row for row in golden if row["train_size"] == 500])
    assert answer.sided(one, [(500, 16, "kd"), (500, 16, "smooth")]) == "smooth; kd"


def test_trials_are_not_mixed(golden):
    other = one_side("alone", 500, 16, 0.4)
    for changes, what in (({"momentum": 0.0}, "momentum"), ({"model": "net.py:Net"}, "student")):
        mixed = golden + [row | changes | {"run_id": row["run_id"] + "x"} for row in other]
        with pytest.raises(UserError, match=f"differ in {what}"):
            read(mixed)
    # The fresh runs of one side, after something was changed: other images, another network's file.
    for name, what in (("data", "images"), ("test_data", "images"), ("code", "student")):
        mixed = [
            row | {name: 2 if row["method"] == "kd" and row["seed"] >= 20 else 1} for row in golden
        ]
        with pytest.raises(UserError, match=f"differ in {what}"):
            read(mixed)
    shuffled = [
        row | {"teacher_sha": "another"} if row["answers"] == "shuffled" else row for row in golden
    ]
    with pytest.raises(UserError, match="differ in teacher"):
        read(shuffled)
    with pytest.raises(UserError, match="has no width"):
        read([golden[0] | {"width": np.nan}, *golden[1:]])
    with pytest.raises(UserError, match="no run of a trial"):
        read([])


def test_pictures_are_drawn_and_the_same_every_time(golden):
    first, second = (trial_pictures.pictures(read(golden)) for _ in range(2))
    assert list(first) == list(trial_pictures.CAPTIONS) and first == second
    assert all(png.startswith(b"\x89PNG") for png in first.values())


def test_a_side_at_one_place_is_no_line_of_a_picture(golden):
    """kd-same has two numbers of images at width 16 and one width at 5,000 images."""
    found = read(golden)
    kept = found.tests[found.tests.side != "kd-same"]
    both, bare = (
        trial_pictures.pictures(replace(found, tests=tests)) for tests in (found.tests, kept)
    )
    assert both["trial-images"] != bare["trial-images"]
    assert both["trial-width"] == bare["trial-width"]


def test_the_report_from_the_command_line(golden, tmp_path, capsys):
    path = csv_path(tmp_path)
    ask = ["--report", "--out-dir", tmp_path, "--fresh", FRESH, "--tries", TRIES]
    assert script(trial.main, *ask) == 2
    assert "no run of a trial" in capsys.readouterr().err
    path.parent.mkdir(parents=True)
    pd.DataFrame(golden, columns=COLUMNS).to_csv(path, index=False)
    assert script(trial.main, *ask) == 0
    assert (path.parent / "TRIAL.md").read_text() == GOLDEN.read_text()
    assert all((path.parent / f"{name}.png").exists() for name in trial_pictures.CAPTIONS)
    said = capsys.readouterr().out
    assert "\n- **45,000 images, cnn**: " in said and "|" not in said
    assert said.splitlines()[-1].startswith(f"all figures: {path.parent / 'TRIAL.md'}, ")
    assert script(trial.main, "--report", "--out-dir", tmp_path) == 2  # of 60 tries
    assert "no place is finished with --tries 60" in capsys.readouterr().err
    assert (path.parent / "TRIAL.md").read_text() == GOLDEN.read_text()
    pd.DataFrame(golden, columns=COLUMNS).head(2).to_csv(path, index=False)
    assert script(summarize.main, "--out-dir", tmp_path) == 0
    assert f"`python trial.py --report --out-dir {tmp_path}`" in capsys.readouterr().err


@pytest.fixture(scope="module")
def place(golden):
    return [row for row in golden if (row["train_size"], row["width"]) == (500, 16)]


def test_tries_beyond_those_asked_for_do_not_count(place):
    """As where a search with more TRIES was begun in a finished folder, and stopped."""
    more = sides.draw("kd", range(TRIES, TRIES + 6), sides.axes("kd"))
    extra = rows_of(sides.cells("kd", more, (0,), "cnn", 16, 0), lambda _: (0.9, 0.9), images=500)
    found, usual = (read(rows) for rows in (place + extra, place))
    pd.testing.assert_frame_equal(found.tests, usual.tests)
    assert fair.best_of(found, (500, 16), "kd").equals(fair.best_of(usual, (500, 16), "kd"))


@pytest.mark.parametrize("lost", [0, 6])
def test_what_more_tries_have_left_is_never_chosen(place, lost):
    """Not by the final either; also where so many of those asked for diverged."""
    more = sides.draw("kd", range(TRIES, TRIES + 6), sides.axes("kd"))
    extra = rows_of(
        sides.cells("kd", more, sides.FINAL_SEEDS, "cnn", 16, 0), lambda _: (0.9, 0.9), images=500
    )
    kd = [row for row in place if row["method"] == "kd" and not row["answers"] > ""]
    worst = sorted((row for row in kd if not row["seed"]), key=lambda row: float(row["val_acc"]))
    gone = {row["run_id"] for row in worst[:lost]}
    rows = [row for row in place + extra if row["run_id"] not in gone]
    found = read(rows, diverged=gone)
    assert found.whole == [(500, 16)]
    assert found.entries.loc[(500, 16, "kd")].choice == sides.searched("kd", TRIES)[INNER]
    assert len(fair.best_of(found, (500, 16), "kd")) == TRIES
    there = frame(rows)
    there = there[there.epochs == there.epochs.min()]  # some were tried at twice the length
    mine = sides.asked_for(there, TRIES)
    mine = mine[mine.side == "kd"]
    assert sides.config(mine, sides.winner(mine, KEPT)) == sides.searched("kd", TRIES)[INNER]
    assert not set(sides.finalists(there[there.side == "kd"], KEPT)) <= set(mine.config)


def test_a_control_on_the_first_draw_of_several_is_said_to_be(golden):
    rows = [line for side in sides.MAIN for line in one_side(side, 500, 16, 0.4, draws=3)]
    rows += one_side("kd-random", 500, 16, 0.42)
    found = read(rows)
    kd = found.tests[found.tests.against == "kd-random"].iloc[0]
    assert (kd.draws, kd.n) == (1, FRESH)
    told = text(rows)
    assert "| 500 | cnn | kd-random, first draw |" in told and "and so are the runs that" in told
    assert "(kd-random), with 500 images only on their first draw: " in told
    assert "first draw" not in text(golden)


def test_one_place_is_told_what_several_are():
    rows = [
        line
        for side, level in (("alone", 0.4), ("smooth", 0.4), ("kd", 0.43), ("kd-shuffled", 0.37))
        for line in one_side(side, 500, 16, level, noise=0.001)
    ]
    told = answer.findings(read(rows))
    below = "points against the student alone, significantly below it. Plain distillation: +"
    assert any(below in line for line in told)
    small = "against the student alone, certainly less than half a point from it."
    assert any(line.startswith("Label smoothing: ") and small in line for line in told)


def test_of_equally_good_tries_each_is_as_likely_to_be_picked(place):
    plain = [row for row in place if row["method"] == "kd" and not row["answers"]]
    mine = [row for row in plain if not row["seed"]]
    best, second = sorted(mine, key=lambda row: -float(row["val_acc"]))[:2]
    tied = second | {"val_acc": best["val_acc"], "test_acc": 0.1}
    found = read([tied if row is second else row for row in place])
    expected = (float(best["test_acc"]) + 0.1) / 2
    assert fair.best_of(found, (500, 16), "kd").test[TRIES] == pytest.approx(expected)


def test_a_run_of_another_draws_teacher_that_diverged_is_known(place):
    place, second = [row for row in place if not row["answers"] > ""], []
    for side in sides.MAIN:
        won = sides.searched(side, TRIES)[INNER]
        cells = sides.cells(side, [won], sides.fresh_seeds(500, FRESH), "cnn", 16, 1)
        own = {"images": 500, "draw": 1, "teacher_sha": "1" * 12}
        second += rows_of(cells, lambda _: (0.3, 0.3), **own)
    lost = second.pop()  # of kd
    assert "-ts1-" in lost["run_id"]
    found = read(place + second, diverged={lost["run_id"]})
    assert found.entries.loc[(500, 16, "kd")].lost == 1 and found.whole


def test_what_a_teacher_from_elsewhere_saw_is_not_known(place):
    teacher = place[0] | {"run_id": "resnet18-teacher-s0", "role": "teacher", "weights": "r18.pt"}
    for epochs, says in ((0, "not known here."), (20, "not known here, and then on those of this")):
        page = text([*place, teacher | {"epochs": epochs, "method": "none"}])
        assert page.count(says) == 2 and "all images of the data set" not in page


def test_two_methods_search_what_either_has():
    ranges = sides.axes("kd+at")
    assert list(ranges) == ["lr", "weight_decay", "alpha", "temperature", "beta"]
    kd, both = sides.searched("kd", 60), sides.searched("kd+at", 60)
    assert [one._replace(beta=None) for one in both] == kd
    assert len({one.beta for one in both}) == len(both)
    assert ranges["beta"] == sides.axes("at")["beta"]
