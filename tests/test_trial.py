"""The fair trial: as many tries a side, held-out images alone choose, fresh seeds measure."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import make_images, script
from trial_rows import (
    FRESH,
    GAINS,
    GOLDEN,
    INNER,
    frame,
    golden_rows,
    one_side,
    read,
    rows_of,
    text,
)

import sides
import train_teacher
import trial
from engine.cells import Settings, run_id
from engine.rows import COLUMNS, csv_path, read_rows
from reporting import trial_page as page
from reporting import trial_pictures
from reporting.rows import clean
from utils import UserError

TEST_COLUMNS = ["test_acc", "test_loss", "best_test_acc", "best_epoch", "test_curve"]
TEST_COLUMNS += ["agreement", "teacher_kl", "ece", "train_acc"]


def searched(side, draw, seeds=(0, 1, 2)):
    """A side's rows at one place, held-out and test accuracy drawn."""
    cells = sides.cells(side, sides.SIDES[side], seeds, 16, 0)
    return rows_of(cells, lambda cell: draw.uniform(0.3, 0.5, 2).round(3))


# ---------------------------------------------------------------- a fair number of tries


def test_every_side_tries_as_many_configurations():
    for side, configs in sides.SIDES.items():
        assert len(set(configs)) == len(configs) == sides.BUDGET, side
        cells = sides.cells(side, configs, sides.SEARCH_SEEDS, 16, 0)
        assert len({run_id(cell, Settings()) for cell in cells}) == sides.BUDGET, side


def test_sides_share_their_range_of_learning_rates_and_the_default_is_in_it():
    for side, configs in sides.SIDES.items():
        rates = {config.lr for config in configs}
        assert min(rates) == min(sides.FINE) and max(rates) == max(sides.FINE), side
        assert 0.1 in rates and any(c.lr == 0.1 and not c.weight_decay for c in configs), side


def test_no_seed_that_chooses_measures():
    measuring = set(sides.fresh_seeds(500, 1000))
    assert not measuring & {*sides.SEARCH_SEEDS, *sides.FINAL_SEEDS}


@pytest.mark.parametrize("side", sides.SIDES)
def test_a_row_finds_its_side_and_configuration(side):
    teacher = sides.SAME_TEACHER if side == sides.KD_SAME else 0
    cells = sides.cells(side, sides.SIDES[side], (0,), 16, teacher)
    found = frame(rows_of(cells, lambda cell: (0.5, 0.5)))
    assert found.side.tolist() == [side] * sides.BUDGET
    assert found.config.tolist() == list(range(sides.BUDGET))


# ---------------------------------------------------------------- choosing


def test_held_out_accuracy_chooses():
    rows = frame(searched("kd", np.random.default_rng(0)))
    search = rows[rows.seed == 0].set_index("config").val_acc
    best = sides.finalists(rows)
    assert len(best) == sides.KEEP and search[best].min() >= search.drop(best).max()
    means = rows.groupby("config").val_acc.mean()[best]
    assert sides.winner(rows) == means.idxmax()


def test_what_the_test_set_says_chooses_nothing():
    draw = np.random.default_rng(1)
    rows = frame(searched("kd", draw))
    other = rows.copy()
    for name in TEST_COLUMNS:
        other[name] = draw.permutation(rows[name].fillna(0))
    assert set(sides.SEEN).isdisjoint(TEST_COLUMNS)
    assert sides.finalists(other) == sides.finalists(rows)
    assert sides.winner(other) == sides.winner(rows)
    without = rows.drop(columns=TEST_COLUMNS)
    assert sides.winner(without) == sides.winner(rows)


def test_a_configuration_that_lost_a_seed_is_out():
    rows = frame(searched("alone", np.random.default_rng(2)))
    first = sides.winner(rows)
    rows = rows[(rows.config != first) | (rows.seed != 2)]
    assert sides.winner(rows) not in (first, None)


def test_equals_are_chosen_in_the_order_tried_and_fresh_rows_choose_nothing():
    cells = sides.cells("alone", sides.SIDES["alone"], (0, 1, 2), 16, 0)
    rows = rows_of(cells, lambda cell: (0.5, 0.4))
    assert sides.finalists(frame(rows)) == list(range(sides.KEEP))
    late = sides.cells("alone", sides.SIDES["alone"][-1:], sides.fresh_seeds(1000, 3), 16, 0)
    rows += rows_of(late, lambda cell: (0.9, 0.9))
    assert sides.winner(frame(rows)) == 0


def test_no_winner_before_the_final():
    rows = frame(searched("alone", np.random.default_rng(3), seeds=(0,)))
    assert sides.winner(rows) is None
    assert sides.winner(rows[:0]) is None and sides.finalists(rows[:0]) == []


# ---------------------------------------------------------------- stages


@pytest.mark.parametrize(
    ("images", "steps", "epochs"),
    [(500, 2000, 500), (1000, 2000, 250), (45000, 2000, 20), (1, 1, 20)],
)
def test_length_is_in_steps_with_a_least_number_of_epochs(images, steps, epochs):
    assert trial.epochs_of(images, steps) == epochs


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Flags for trial.py on tiny images, with sides of eight configurations and two epochs."""
    make_images(tmp_path / "images", train=40, test=10)
    some = {side: configs[:8] for side, configs in sides.SIDES.items()}
    hot = sides.Config(1e30)  # diverges
    some["alone"][3] = hot
    monkeypatch.setattr(sides, "SIDES", some)
    monkeypatch.setattr(sides, "BUDGET", 8)
    monkeypatch.setattr(trial, "LEAST_EPOCHS", 2)
    out = tmp_path / "out"
    common = ["--dataset", "folder", "--data-dir", tmp_path / "images", "--val-size", 20]
    common += ["--device", "cpu", "--out-dir", out]
    short = ["--epochs", 1, "--t-max", 1, "--lr", 0.01, "--width", 4]
    assert script(train_teacher.main, *common, *short) == 0
    (teacher,) = (out / "checkpoints").glob("*-teacher-*.pt")
    own = ["--train-size", 40, "--width", 4, "--steps", 1, "--fresh", 2]
    return [*common, *own, "--teacher", teacher], out


def test_the_stages_one_after_another(small, capsys):
    flags, out = small
    counts = []
    for stage in trial.STAGES:
        assert script(trial.main, "--stage", stage, *flags) == 0
        rows = read_rows(csv_path(out))
        counts.append(int((rows.role != "teacher").sum()))
    # One of 24 diverged; 6 a side with two more seeds; 1 a side with two fresh ones.
    assert counts == [23, 23 + 3 * 6 * 2, 23 + 3 * 6 * 2 + 3 * 2]
    assert "1 of 24 runs diverged" in capsys.readouterr().err
    mine = rows[rows.role != "teacher"]
    assert set(mine.seed) == {0, 1, 2, 20, 21}
    assert set(mine.epochs) == set(mine.t_max) == {2} and set(mine.last_batch) == {"weigh"}
    assert set(mine["clip"]) == {sides.CLIP}
    found = sides.with_sides(clean(rows))
    for side in sides.MAIN:
        part = found[found.side == side]
        assert set(part.config[part.seed >= 20]) == {sides.winner(part)}

    before = csv_path(out).read_bytes()
    capsys.readouterr()
    for stage in trial.STAGES:  # again: what is there stays, and what diverged is not tried again
        assert script(trial.main, "--stage", stage, *flags) == 0
    assert csv_path(out).read_bytes() == before
    assert "diverged" not in capsys.readouterr().err and len(sides.diverged(out)) == 1


def test_kd_has_a_further_side_with_a_teacher_of_the_same_images(small):
    flags, out = small
    flags = flags[:-2]
    same = [*flags[: flags.index("--width")], "--epochs", 1, "--t-max", 1, "--lr", 0.01]
    assert script(train_teacher.main, *same, "--width", 4, "--seed", sides.SAME_TEACHER) == 0
    flags += ["--sides", "kd-same", "--teacher-seed", sides.SAME_TEACHER]
    assert script(trial.main, "--stage", "search", *flags) == 0
    found = sides.with_sides(clean(read_rows(csv_path(out))))
    assert set(found.side) == {"kd-same"} and len(found) == 8


def test_mistakes(small, capsys):
    flags, out = small
    for wrong, what in (
        (["--stage", "final"], "run --stage search first"),
        (["--stage", "search", "--lr", 0.2], "--lr is set by the trial"),
        (["--stage", "search", "--seed", 3], "--seed is set by the trial"),
        (["--stage", "search", "--sides", "kd-same"], "side kd-same with a teacher of seed 0"),
        (["--stage", "search", "--val-size", 0], "--val-size"),
        (["--stage", "search", "--fresh", 1], "two fresh seeds"),
        ([], "--stage"),
    ):
        assert script(trial.main, *flags, *wrong) == 2
        error = capsys.readouterr().err
        assert what in error and error.count("\n") == 1
    assert len(read_rows(csv_path(out))) == 1  # the teacher


# ---------------------------------------------------------------- the page


@pytest.fixture(scope="module")
def golden():
    return golden_rows()


def test_golden_page(golden):
    """Read the diff, then `python tests/trial_rows.py`."""
    assert text(golden, pictures=["trial-images", "trial-width"]) == GOLDEN.read_text()


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
    bold = (page.expect(found) + page.others(found)).count("**") / 2
    assert bold == (found.tests.sign != 0).sum() > 0


def test_a_tiny_gain_is_no_bold_one(golden):
    rows = [
        line
        for side, gain in (("alone", 0), ("smooth", 0), ("kd", 0.001))
        for line in one_side(side, 2000, 16, 0.4 + gain, noise=0.01)
    ]
    assert "**" not in page.expect(read(rows))


def test_a_half_done_place_is_named_and_never_compared(golden):
    found = read(golden)
    assert (1000, 16) not in found.whole and 1000 not in set(found.tests.images)
    assert "| 1,000 | 16 | smooth | 60 of 60 | 18 of 18 | 2 of 5 |" in page.unfinished(found)
    assert "1,000" not in page.expect(found)
    assert "Not all of it is there" in text(golden)


def test_a_fresh_run_that_diverged_is_told_and_one_that_lacks_is_not_taken_for_it(golden):
    (gone,) = [
        row
        for row in golden
        if (row["method"], row["seed"], row["train_size"], row["width"]) == ("kd", 22, 5000, 4)
    ]
    rows = [row for row in golden if row is not gone]
    assert (5000, 4) not in read(rows).whole
    found = read(rows, diverged={gone["run_id"]})
    assert (5000, 4) in found.whole
    assert "(1 diverged)" in page.expect(found)
    kd = found.tests[(found.tests.width == 4) & (found.tests.side == "kd")]
    assert set(kd.n) == {FRESH - 1}


def test_with_nothing_finished_nothing_is_found():
    rows = one_side("kd", 500, 16, 0.4, fresh=0)
    found = text(rows)
    assert "No place is finished, so nothing has been found yet." in found
    assert "| 500 | 16 | alone | 0 of 60 | 0 of 18 | 0 of 5 |" in found
    assert trial_pictures.pictures(read(rows)) == {}


def test_a_place_whose_search_or_final_is_cut_short_is_not_whole(golden):
    """As after a side has got more to try; a run that is known to have diverged counts as made."""
    mine = [row for row in golden if (row["train_size"], row["width"]) == (5000, 4)]
    kd = [row for row in mine if row["method"] == "kd"]
    for seed in (0, 2):  # a run of the search that no later stage needs, and one of the final
        wins = {row["run_id"] for row in kd if row["seed"] in sides.fresh_seeds(5000, FRESH)}
        (gone, *_) = [r for r in reversed(kd) if r["seed"] == seed and r["run_id"] not in wins]
        rows = [row for row in mine if row is not gone]
        assert read(rows).whole == []
        assert read(rows, diverged={gone["run_id"]}).whole == [(5000, 4)]


def test_without_a_run_at_the_unfair_rate_nothing_is_said_of_it(golden):
    mine = [row for row in golden if (row["train_size"], row["width"]) == (5000, 4)]
    rows = [row for row in mine if row["lr"] != page.RATE or row["method"] != "none"]
    found = page.findings(read(mine))
    assert len(found) == 3 and f"keep lr {page.RATE:g}" in found[2]
    lost = {row["run_id"] for row in mine} - {row["run_id"] for row in rows}
    assert len(page.findings(read(rows, diverged=lost))) == 2


def test_sides_of_two_teachers_are_two_trials(golden):
    rows = [dict(row) for row in golden]
    kd = [row for row in rows if row["method"] == "kd" and row["train_size"] == 500]
    for row in kd[:60]:
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
    assert "| 5,000 | 16 | kd | 60 of 60 | 18 of 18 | 5 of 10 |" in page.unfinished(found)
    assert "5 to 10 fresh seeds" not in text(rows, fresh=None).split("## Unfinished")[0]


def test_border_is_noticed_and_natural_ends_are_none():
    kd = sides.SIDES["kd"]

    def at(**changes):
        inner = kd[INNER["kd"]]._replace(lr=0.1, alpha=1.0)
        return page.ends("kd", kd.index(inner._replace(**changes)))

    assert at(temperature=4.0) == [] == at(temperature=10.0)  # below 4 there is T 1
    assert at(temperature=1.0, scale_t2=False) == []
    assert at(lr=0.8) == ["lr 0.8 is the largest tried"]
    assert at(lr=0.025, alpha=0.25, temperature=20.0) == [
        "lr 0.025 is the smallest tried",
        "α 0.25 is the smallest tried",
        "T 20 is the largest tried",
    ]
    plain = sides.SIDES["alone"].index(sides.Config(0.1, 0.0))
    most = sides.SIDES["alone"].index(sides.Config(0.1, 0.03))
    assert page.ends("alone", plain) == []
    assert page.ends("alone", most) == ["weight decay 0.03 is the largest tried"]


def test_an_end_is_one_with_all_else_as_chosen(monkeypatch):
    """T 10 at alpha 0.9 is the largest though another alpha has T 20; so is one of two values."""
    forms = [(0.5, 4.0), (0.5, 10.0), (0.5, 20.0), (0.9, 4.0), (0.9, 10.0)]
    some = [sides.Config(0.1, wd, a, t) for a, t in forms for wd in (0.0, 0.003)]
    monkeypatch.setitem(sides.SIDES, "kd", some)
    chosen = some.index(sides.Config(0.1, 0.003, 0.9, 10.0))
    assert page.ends("kd", chosen) == [
        "weight decay 0.003 is the largest tried",
        "α 0.9 is the largest tried",
        "T 10 is the largest tried",
    ]


def test_trials_are_not_mixed(golden):
    other = one_side("alone", 500, 16, 0.4)
    for changes, what in (({"epochs": 7}, "epochs"), ({"momentum": 0.9}, "momentum")):
        mixed = golden + [row | changes | {"run_id": row["run_id"] + "x"} for row in other]
        with pytest.raises(UserError, match=f"differ in {what}"):
            read(mixed)
    with pytest.raises(UserError, match="no run of a trial"):
        read([])


def test_pictures_are_drawn_and_the_same_every_time(golden):
    first, second = (trial_pictures.pictures(read(golden)) for _ in range(2))
    assert set(first) == {"trial-images", "trial-width"} and first == second
    assert all(png.startswith(b"\x89PNG") for png in first.values())


def test_a_side_at_one_place_is_no_line_of_a_picture(golden):
    """kd-same has two numbers of images at width 16 and one width at 5,000 images."""
    found = read(golden)
    kept = found.tests[found.tests.side != sides.KD_SAME]
    both, bare = (
        trial_pictures.pictures(replace(found, tests=tests)) for tests in (found.tests, kept)
    )
    assert both["trial-images"] != bare["trial-images"]
    assert both["trial-width"] == bare["trial-width"]


def test_the_report_from_the_command_line(golden, tmp_path, capsys):
    path = csv_path(tmp_path)
    assert script(trial.main, "--report", "--out-dir", tmp_path) == 2
    assert "no run of a trial" in capsys.readouterr().err
    path.parent.mkdir(parents=True)
    pd.DataFrame(golden, columns=COLUMNS).to_csv(path, index=False)
    assert script(trial.main, "--report", "--out-dir", tmp_path, "--fresh", FRESH) == 0
    assert (path.parent / "TRIAL.md").read_text() == GOLDEN.read_text()
    assert (path.parent / "trial-images.png").exists()
