"""The fair trial: as many tries a side, held-out images alone choose, fresh seeds measure."""

import numpy as np
import pandas as pd
import pytest
from conftest import make_images, script

import sides
import train_teacher
import trial
from engine.cells import Settings, run_id
from engine.rows import COLUMNS, csv_path, read_rows
from reporting.rows import clean

TEST_COLUMNS = ["test_acc", "test_loss", "best_test_acc", "best_epoch", "test_curve"]
TEST_COLUMNS += ["agreement", "teacher_kl", "ece", "train_acc"]


def rows_of(cells, accuracy, images=1000, teacher="resnet18-teacher-s0", **changes):
    """The rows that a stage leaves: `accuracy(cell)` gives those of test and held-out images."""
    epochs = trial.epochs_of(images)
    settings = Settings(train_size=images, val_size=5000, epochs=epochs, t_max=epochs,
                        last_batch="weigh")  # fmt: skip
    rows = []
    for cell in cells:
        test, val = accuracy(cell)
        row = dict.fromkeys(COLUMNS, np.nan) | vars(settings)
        row |= {name: value for name, value in vars(cell).items() if name in COLUMNS}
        row |= {"run_id": run_id(cell, settings), "teacher": teacher, "seconds": 2.0}
        row |= {"role": "distill" if cell.taught else "student", "machine": "a CPU, 2 cores"}
        row |= {"test_acc": test, "best_test_acc": test, "best_epoch": epochs, "val_acc": val}
        row |= {"best_val_acc": val, "best_val_epoch": epochs, "commit": "0123456789"}
        rows.append(row | changes)
    return rows


def frame(rows):
    return sides.with_sides(clean(pd.DataFrame(rows, columns=COLUMNS)))


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
    measuring = set(trial.fresh_seeds(1000))
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
    late = sides.cells("alone", sides.SIDES["alone"][-1:], trial.fresh_seeds(3), 16, 0)
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
    assert set(mine.seed) == {0, 1, 2, 10, 11}
    assert set(mine.epochs) == set(mine.t_max) == {2} and set(mine.last_batch) == {"weigh"}
    found = sides.with_sides(clean(rows))
    for side in sides.MAIN:
        part = found[found.side == side]
        assert set(part.config[part.seed >= 10]) == {sides.winner(part)}

    before = csv_path(out).read_bytes()
    for stage in trial.STAGES:  # again: what is there stays, what diverged diverges and is no error
        assert script(trial.main, "--stage", stage, *flags) == 0
    assert csv_path(out).read_bytes() == before


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
        ([], "--stage"),
    ):
        assert script(trial.main, *flags, *wrong) == 2
        error = capsys.readouterr().err
        assert what in error and error.count("\n") == 1
    assert len(read_rows(csv_path(out))) == 1  # the teacher
