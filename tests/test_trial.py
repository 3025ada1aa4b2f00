"""The fair trial: one space a side, held-out images alone choose, fresh seeds measure."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from conftest import make_images, script
from trial_rows import (
    FRESH,
    KEPT,
    TRIES,
    frame,
    golden_rows,
    one_side,
    read,
    rows_of,
)

import sides
import train_teacher
import trial
import trial_cost
import trial_images
from engine.cells import Settings, run_id
from engine.rows import csv_path, read_rows
from reporting import trial as fair
from reporting import trial_answer as answer
from reporting import trial_page as page
from reporting.rows import clean
from utils import UserError


@pytest.fixture(scope="module")
def golden():
    return golden_rows()


TEST_COLUMNS = ["test_acc", "test_loss", "best_test_acc", "best_epoch", "test_curve"]
TEST_COLUMNS += ["agreement", "teacher_kl", "ece", "train_acc"]


def searched(side, draw, seeds=(0, 1, 2)):
    """A side's rows at one place, held-out and test accuracy drawn."""
    cells = sides.cells(side, sides.searched(side, TRIES), seeds, "cnn", 16, 0)
    return rows_of(cells, lambda cell: draw.uniform(0.3, 0.5, 2).round(3))


# ---------------------------------------------------------------- a fair search


def test_every_side_tries_as_many_configurations_each_a_run_of_its_own():
    for side in sides.SIDES:
        configs = sides.draw(side, range(sides.TRIES), sides.axes(side))
        assert len(set(configs)) == sides.TRIES, side
        cells = sides.cells(side, configs, sides.SEARCH_SEEDS, "cnn", 16, 0)
        ids = {run_id(cell, Settings()) for cell in cells}
        assert len(ids) == sides.TRIES and max(map(len, ids)) < 80, side


def test_all_sides_try_the_same_learning_rates_and_weight_decays():
    shared = {tuple(c[:2] for c in sides.searched(side, sides.TRIES)) for side in sides.SIDES}
    assert len(shared) == 1
    rates, decays = zip(*shared.pop(), strict=True)
    for values, axis in zip((rates, decays), sides.SHARED.values(), strict=True):
        shares = sorted(axis.share(value) for value in values)
        assert 0 <= shares[0] < 0.05 and 0.95 < shares[-1] <= 1
        assert max(np.diff(shares)) < 0.1  # no gap, as a quasi-random sequence has none


def test_more_tries_begin_with_the_same():
    few, many = (sides.searched("kd", tries) for tries in (12, 60))
    assert many[: len(few)] == few


def test_no_seed_that_chooses_measures():
    measuring = set(sides.fresh_seeds(500, 1000))
    assert not measuring & {*sides.SEARCH_SEEDS, *sides.FINAL_SEEDS}


def test_a_row_finds_its_side_and_configuration():
    configs = {side: sides.searched(side, 8) for side in sides.SIDES}
    cells = [c for side in configs for c in sides.cells(side, configs[side], (0,), "cnn", 16, 0)]
    found = frame(rows_of(cells, lambda _: (0.5, 0.5)))
    for side, part in found.groupby("side"):
        assert [sides.config(found, number) for number in part.config] == configs.pop(side)
    assert not configs


def at_place(*best, tries=TRIES):
    """Rows of the first part of every side's search; the best is the one nearest to values."""
    rows = []
    for side, wanted in zip(sides.MAIN, best, strict=True):
        axes = sides.axes(side)

        def far(cell, axes=axes, wanted=wanted):
            shares = [axes[n].share(getattr(cell, n)) - share for n, share in wanted.items()]
            return 0.5, 0.9 - 0.1 * float(np.abs(shares).sum())

        cells = sides.cells(side, sides.searched(side, tries), (0,), "cnn", 16, 0)
        rows += rows_of(cells, far)
    return frame(rows)


def test_a_choice_at_a_border_widens_the_shared_range_for_all_and_its_own_for_itself():
    rows = at_place({"lr": 1}, {"alpha": 1}, {"lr": 0.5}, tries=60)
    for side in ("alone", "smooth", "kd", "sp", "kd-random"):
        own, wide = sides.axes(side), sides.widened(side, rows, 60)
        assert wide["lr"].low == own["lr"].value(0.5)
        assert own["lr"].share(wide["lr"].high) == pytest.approx(1.25, abs=0.01)
        assert wide["weight_decay"] == own["weight_decay"]
        if "alpha" in own:
            assert (wide["alpha"] != own["alpha"]) == (side == "smooth")
    last = sides.searched("kd", 60, rows)[sides.first_tries(60) :]
    assert len(last) == 15 and max(c.lr for c in last) > sides.SHARED["lr"].high
    assert sides.searched("kd", 60, rows)[: -len(last)] == sides.searched("kd", 60)


def test_borders_at_both_ends_widen_a_shared_range_both_ways():
    rows = at_place({"lr": 1}, {"lr": 0.5}, {"lr": 0}, tries=60)
    own, wide = sides.SHARED["lr"], sides.widened("sp", rows, 60)["lr"]
    assert own.share(wide.low) == pytest.approx(-0.25, abs=0.01)
    assert own.share(wide.high) == pytest.approx(1.25, abs=0.01)


def test_what_diverged_was_tried_and_is_beyond_a_choice():
    """The best is the largest rate that trains: nothing is to be found beyond those that do not."""
    rows = at_place({"lr": 0.8}, {"lr": 0.8}, {"lr": 0.8}, tries=60)
    trained = rows[rows.lr <= sides.SHARED["lr"].value(0.8)]
    assert sides.widened("kd", trained, 60) == sides.axes("kd")
    best = sides.config(trained, sides.finalists(trained[trained.side == "alone"], 1)[0])
    seen = {sides.config_of(row) for row in trained[trained.side == "alone"].itertuples()}
    assert [name for name, *_ in sides.borders("alone", best, seen)] == ["lr"]
    assert sides.borders("alone", best, sides.searched("alone", 60)) == []


def test_a_natural_end_is_no_border():
    rows = at_place({"weight_decay": 0}, {"alpha": 0}, {"alpha": 1}, tries=60)
    for side, name in (("alone", "weight_decay"), ("smooth", "alpha"), ("kd", "alpha")):
        assert sides.widened(side, rows, 60)[name] == sides.axes(side)[name], side


@pytest.mark.parametrize("tries", [8, 12, 16])  # so few that none lies near the natural ends
def test_a_search_of_few_tries_does_not_leave_what_is_sensible(tries):
    rows = at_place({"lr": 0.5}, {"alpha": 0}, {"alpha": 0, "temperature": 0}, tries=tries)
    for side in ("smooth", "kd", "kd-shuffled", "kd+sp", "dkd"):
        configs = sides.searched(side, tries, rows)
        assert all(0 <= c.alpha <= 1 and (c.temperature or 1) >= 1 for c in configs), side


# ---------------------------------------------------------------- choosing


def test_held_out_accuracy_chooses():
    rows = frame(searched("kd", np.random.default_rng(0)))
    search = rows[rows.seed == 0].set_index("config").val_acc
    best = sides.finalists(rows, 5)
    assert len(best) == 5 and search[best].min() >= search.drop(best).max()
    means = rows.groupby("config").val_acc.mean()[best]
    assert sides.winner(rows, 5) == means.idxmax()


def test_what_the_test_set_says_chooses_nothing():
    draw = np.random.default_rng(1)
    rows = frame(searched("kd", draw))
    other = rows.copy()
    for name in TEST_COLUMNS:
        other[name] = draw.permutation(rows[name].fillna(0))
    assert set(sides.SEEN).isdisjoint(TEST_COLUMNS)
    without = rows.drop(columns=TEST_COLUMNS)
    for changed in (other, without):
        assert sides.finalists(changed, KEPT) == sides.finalists(rows, KEPT)
        assert sides.winner(changed, KEPT) == sides.winner(rows, KEPT)
        assert sides.length(changed[changed.side == "kd"])[0] == trial.epochs_of(1000)


def test_a_configuration_that_lost_a_seed_is_out():
    rows = frame(searched("alone", np.random.default_rng(2)))
    first = sides.winner(rows, KEPT)
    rows = rows[(rows.config != first) | (rows.seed != 2)]
    assert sides.winner(rows, KEPT) not in (first, None)


def test_of_equals_the_smaller_rate_is_chosen_and_fresh_rows_and_other_draws_choose_nothing():
    configs = sides.searched("alone", TRIES)
    cells = sides.cells("alone", configs, (0, 1, 2), "cnn", 16, 0)
    rows = rows_of(cells, lambda cell: (0.5, 0.4))
    late = max(configs)
    for seeds, draw in ((sides.fresh_seeds(1000, 3), 0), ((0, 1, 2), 1)):
        more = sides.cells("alone", [late], seeds, "cnn", 16, 0)
        rows += rows_of(more, lambda cell: (0.9, 0.9), draw=draw)
    found = frame(rows)
    assert sides.config(found, sides.winner(found, KEPT)) == min(configs)


def test_no_winner_before_the_final():
    rows = frame(searched("alone", np.random.default_rng(3), seeds=(0,)))
    assert sides.winner(rows, KEPT) is None
    assert sides.winner(rows[:0], KEPT) is None and sides.finalists(rows[:0], KEPT) == []


@pytest.mark.parametrize(
    ("gains", "factor", "moved"),
    [((0.004,), 1, 0.004), ((0.02, 0.001), 2, 0.001), ((0.02, 0.03), 4, 0.03), ((), 1, np.nan)],
)
def test_a_length_is_enough_where_doubling_it_moves_the_student_alone_by_less(gains, factor, moved):
    """By the best configuration of each length, and not by those tried at one of them alone."""
    configs, rows, level = sides.searched("alone", TRIES), [], 0.4
    for power, gain in enumerate((0, *gains)):
        level += gain
        some = configs[: TRIES if power == 0 else sides.PROBES]
        cells = sides.cells("alone", some, (0, 1, 2), "cnn", 16, 0)
        known = set(configs[: sides.PROBES])
        rows += rows_of(
            cells,
            lambda c, level=level: (0.5, level + 0.2 * (configs[5].lr == c.lr) - 0.1 * c.lr),
            double=2**power,
        )
    epochs, found = sides.length(frame(rows))
    assert epochs == factor * trial.epochs_of(1000) and known
    np.testing.assert_allclose(found, moved, atol=1e-9)


def test_what_is_tried_later_does_not_change_the_length():
    """Also where others than the probes are tried at both lengths."""
    configs, rows = sides.searched("alone", TRIES), []
    known = {one.lr for one in sides.probes()}
    for double in (1, 2):
        level = {1: 0.4, 2: 0.42}[double]
        cells = sides.cells("alone", configs, (0, 1, 2), "cnn", 16, 0)
        rows += rows_of(
            cells, lambda c, level=level: (0.5, level if c.lr in known else 0.5), double=double
        )
    assert sides.length(frame(rows)) == (2 * trial.epochs_of(1000), pytest.approx(0.02))


# ---------------------------------------------------------------- stages


@pytest.mark.parametrize(
    ("images", "steps", "epochs"),
    [(500, 2000, 500), (1000, 2000, 250), (45000, 2000, 20), (1, 1, 20)],
)
def test_length_is_in_steps_with_a_least_number_of_epochs(images, steps, epochs):
    assert trial.epochs_of(images, steps) == epochs


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Flags for trial.py on tiny images, with eight tries a side and two epochs."""
    make_images(tmp_path / "images", train=40, test=10)
    first = sides.draw

    def hot(side, numbers, ranges):  # one of the student alone diverges
        found = first(side, numbers, ranges)
        return [
            one._replace(lr=1e30) if (side, number) == ("alone", 0) else one
            for number, one in zip(numbers, found, strict=True)
        ]

    monkeypatch.setattr(sides, "draw", hot)
    monkeypatch.setattr(trial, "LEAST_EPOCHS", 2)
    out = tmp_path / "out"
    common = ["--dataset", "folder", "--data-dir", tmp_path / "images", "--val-size", 20]
    common += ["--device", "cpu", "--out-dir", out]
    short = ["--epochs", 1, "--t-max", 1, "--lr", 0.01, "--width", 4]
    assert script(train_teacher.main, *common, *short) == 0
    (teacher,) = (out / "checkpoints").glob("*-teacher-*.pt")
    own = ["--train-size", 40, "--width", 4, "--steps", 1, "--fresh", 2, "--tries", 8]
    return [*common, *own, "--doublings", 1, "--teacher", teacher], out


def test_the_stages_one_after_another_and_the_controls(small, capsys):
    flags, out = small
    counts = []
    for stage in ("length", *trial.STAGES):
        assert script(trial.main, "--stage", stage, *flags) == 0
        counts.append(int((read_rows(csv_path(out)).role != "teacher").sum()))
    kept, first = sides.keep(8), sides.first_tries(8)
    # A probe of four diverged, at both lengths. Then 8 tries a side, 2 kept, 2 fresh seeds.
    length = 2 * 3 * (sides.PROBES - 1)
    search = length + 3 * first - sides.PROBES
    assert counts[:4] == [length // 2, length, search, search + 3 * (8 - first)]
    assert counts[4] <= counts[3] + 3 * kept * 2 and counts[5] == counts[6] == counts[4] + 3 * 2
    by_image = trial_images.path_of(out, 40, 4)
    measured = by_image.read_bytes()
    assert "diverged and left no row" in capsys.readouterr().err
    found = sides.with_sides(clean(read_rows(csv_path(out))))
    assert set(found.seed) == {0, 1, 2, 20, 21} and set(found.epochs) <= {2, 4}
    assert set(found["clip"]) == {sides.CLIP} and set(found.momentum) == {sides.MOMENTUM}
    long = sides.length(found[found.side == "alone"])[0]
    for side in sides.MAIN:
        part = found[(found.side == side) & (found.epochs == long)]
        assert set(part.config[part.seed >= 20]) == {sides.winner(part, kept)}

    before = csv_path(out).read_bytes()
    for stage in ("length", "search", "fresh", "images"):  # again: what is there and diverged stays
        assert script(trial.main, "--stage", stage, *flags) == 0
    assert csv_path(out).read_bytes() == before and by_image.read_bytes() == measured
    assert "6 of 6 runs are in" in capsys.readouterr().err
    right = trial_images.known(by_image, found)
    fresh = found[found.seed >= 20].set_index("run_id").test_acc
    assert {name: one.mean() for name, one in right.items()} == pytest.approx(fresh.to_dict())

    for side in ("kd-shuffled", "kd-random", "kd-self"):
        assert script(trial.main, "--stage", "search", *flags, "--sides", side) == 0
    found = sides.with_sides(clean(read_rows(csv_path(out))))
    taught = found[found.side.isin(sides.CONTROLS)].groupby("side")
    assert (taught.size() == first).all() and set(taught.teacher_sha.nunique()) == {1}
    kd = found[found.side == "kd"].teacher_sha.iloc[0]
    assert taught.teacher_sha.first().eq(kd).to_dict() == {
        "kd-shuffled": True, "kd-random": False, "kd-self": False
    }  # fmt: skip
    assert taught.teacher.first()["kd-self"].startswith("cnnw4-s2")
    capsys.readouterr()
    (out / "checkpoints" / f"{taught.teacher.first()['kd-self']}.pt").unlink()
    assert script(trial.main, "--stage", "widen", *flags, "--sides", "kd-self") == 2
    assert "the best student alone, and " in capsys.readouterr().err
    assert script(trial.main, "--report", "--out-dir", out, "--tries", 8, "--fresh", 2) == 0
    said = capsys.readouterr().out
    assert "\n- **40 images, cnn (width 4)**: " in said and "over 2 fresh seeds" in said
    assert "test sets of 20 images" in said and said.count("(test set ± ") == 2

    for stage in ("fresh", "images"):  # the length is that of the first draw
        assert script(trial.main, "--stage", stage, *flags, "--draw", 1) == 0
    rows = read_rows(csv_path(out))
    drawn = rows[rows.draw == 1]
    assert len(drawn) == 3 * 2 and set(drawn.epochs) == {long}
    assert drawn.data.nunique() == 1 and set(drawn.data).isdisjoint(rows.data[rows.draw == 0])
    assert script(trial.main, "--report", "--out-dir", out, "--tries", 8, "--fresh", 2) == 0
    assert "over 2 draws of the training images" in capsys.readouterr().out


def test_winners_are_measured_on_other_draws_of_the_images(golden):
    rows = [
        line
        for side, gain in (("alone", 0), ("smooth", 0), ("kd", 0.03))
        for line in one_side(side, 2000, 16, 0.4 + gain, draws=3)
    ]
    found = read(rows, draws=3)
    kd = found.tests[found.tests.side == "kd"].iloc[0]
    assert (kd.draws, kd.n) == (3, 3) and "over 3 draws" in answer.how(found)
    assert read(rows[:-1], draws=3).whole == [] and read(golden, draws=2).whole == []
    # Unless it is said, a place has as many as its rows.
    mine = [row for row in golden if (row["train_size"], row["width"]) == (5000, 4)]
    both = read(rows + mine)
    kd = both.tests[(both.tests.side == "kd") & (both.tests.against == "alone")]
    assert list(kd.draws) == [3, 1] and list(kd.n) == [3, FRESH]
    assert "over 3 draws of the training images, where" in answer.how(both)
    assert "(over 5 fresh seeds)" in answer.answers(both)[1]
    assert read(rows[:-1] + mine).whole == [(5000, 4)]


@pytest.mark.parametrize("apart", [0.0005, 0.03])
def test_over_draws_nothing_is_surer_than_over_all_seeds(apart):
    """The draws' means are alike by chance, or apart; a paired t-test by scipy of either."""
    gaps = np.random.default_rng(0).normal(0.01, 0.005, (3, 10))
    gaps += 0.01 + apart * np.array([[-1], [0], [1]]) - gaps.mean(1, keepdims=True)
    index = pd.MultiIndex.from_product([range(3), range(10)], names=["draw", "seed"])
    values = pd.DataFrame({"alone": 0.5, "kd": 0.5 + gaps.ravel()}, index)
    found = fair.over_draws(values, ("kd", "alone"))
    seeds, draws = (scipy.stats.ttest_1samp(x, 0) for x in (gaps.ravel(), gaps.mean(1)))
    halves = [np.ptp(test.confidence_interval()) / 2 for test in (seeds, draws)]
    assert (halves[0] > halves[1]) == (apart < 0.001)
    assert found["half"] == pytest.approx(max(halves))
    assert found["p"] == pytest.approx(max(seeds.pvalue, draws.pvalue))
    assert found["n"] == 3 and found["difference"] == pytest.approx(0.01)


@pytest.fixture
def by_image(golden):
    """A place's rows, and which of 4,000 test images each fresh run is right on."""
    rows = [dict(row) for row in golden if (row["train_size"], row["width"]) == (5000, 4)]
    draw, right = np.random.default_rng(0), {}
    easy = draw.uniform(0, 1, 4000)
    for row in rows:
        if row["seed"] >= sides.FIRST_FRESH:
            right[row["run_id"]] = easy < draw.normal(row["test_acc"], 0.1, 4000)
            row["test_acc"] = right[row["run_id"]].mean()
    return rows, right


def test_the_test_sets_own_sampling_is_what_a_paired_bootstrap_over_images_gives(by_image):
    rows, right = by_image
    found = read(rows, right=right)
    own = {row["run_id"]: row["method"] for row in rows}
    kd, alone = (
        np.mean([bits for run, bits in right.items() if own[run] == method], axis=0)
        for method in ("kd", "none")
    )
    test = found.tests[(found.tests.side == "kd") & (found.tests.against == "alone")].iloc[0]
    assert test.difference == pytest.approx((kd - alone).mean()) and test.test_images == 4000
    low, high = scipy.stats.bootstrap(
        (kd, alone), lambda a, b, axis: (a - b).mean(axis), paired=True, n_resamples=2000,
        batch=200, method="percentile", random_state=1,
    ).confidence_interval  # fmt: skip
    assert test.sampled == pytest.approx((high - low) / 2, rel=0.08)
    [line] = answer.answers(found)
    assert line.count(" (test set ± ") == 2 and "test sets of 4,000 images" in answer.how(found)
    assert page.expect(found).count("(± ") == 3
    # Never mixed with the seeds' interval; and not known where one run's images are not.
    bare = read(rows, right=dict(list(right.items())[1:]))
    assert (bare.tests.half == found.tests.half).all()
    assert bare.tests.sampled.isna().sum() == 2
    assert answer.answers(bare)[0].count("test set ±") == 0


def test_a_stale_file_of_images_cannot_lie(by_image, tmp_path):
    rows, right = by_image
    here, path = frame(rows), tmp_path / "right" / "1x1.npz"
    trial_images.add(path, here, dict(list(right.items())[:5]))
    trial_images.add(path, here, right)
    kept = trial_images.known(path, here)
    assert kept.keys() == right.keys()
    assert all((kept[name] == bits).all() for name, bits in right.items())
    name = next(iter(right))
    for off in (0.0004, 0.1):
        moved = here.assign(test_acc=here.test_acc + off * (here.run_id == name))
        assert trial_images.known(path, moved).keys() == right.keys() - {name}
    whole = path.read_bytes()
    bits = whole.index(b"right.npy") + 60  # inside the packed numbers
    for damaged in (whole[:100], whole[:bits] + bytes(40) + whole[bits + 40 :]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="cannot read"):
            trial_images.known(path, here)


def test_mistakes(small, capsys):
    flags, out = small
    for wrong, what in (
        (["--stage", "search"], "run --stage length first"),
        (["--stage", "final", "--doublings", 0], "run --stage widen first"),
        (["--stage", "widen", "--doublings", 0], "run --stage search first"),
        (["--stage", "search", "--lr", 0.2], "--lr is set by the trial"),
        (["--stage", "search", "--momentum", 0.5], "--momentum is set by the trial"),
        (["--stage", "search", "--seed", 3], "--seed is set by the trial"),
        (["--stage", "search", "--sides", "kd", "kd-self"], "kd-self has a teacher of its own"),
        (["--stage", "search", "--sides", "kd-self", "--doublings", 0], "run its final first"),
        (["--stage", "search", "--sides", "kd-same", "--teacher", "t.pt"], "leave --teacher out"),
        (["--stage", "search", "--val-size", 0], "--val-size"),
        (["--stage", "search", "--draw", 1], "--draw: everything is chosen on the first draw"),
        (["--stage", "search", "--fresh", 1], "two fresh seeds"),
        (["--stage", "search", "--tries", 3], "--tries 3 is no search"),
        (["--stage", "search", "--student", "resnet8"], "resnet8 has no width"),
        ([], "--stage"),
    ):
        assert script(trial.main, *flags, *wrong) == 2
        error = capsys.readouterr().err
        assert what in error and error.count("\n") == 1, error
    assert len(read_rows(csv_path(out))) == 1  # the teacher


def test_another_trial_in_the_same_folder_is_refused_at_once(small, capsys):
    flags, _ = small
    search = [*flags, "--stage", "search", "--sides", "kd", "--doublings", 0]
    assert script(trial.main, *search) == 0
    capsys.readouterr()
    for other in (["--val-size", 10], ["--batch-size", 16]):
        for what in (search, [*flags, "--plan", "40:4"]):
            assert script(trial.main, *what, *other) == 2
            error = capsys.readouterr().err
            assert "has a trial with" in error and error.count("\n") == 1


def test_a_shorter_trial_than_that_of_the_page_is_refused(small, capsys):
    """It would train for hours, and the page tell the longer one."""
    flags, _ = small
    for stage in ("search", "widen", "final", "fresh"):
        assert script(trial.main, *flags, "--doublings", 0, "--steps", 3, "--stage", stage) == 0
    capsys.readouterr()
    assert script(trial.main, *flags, "--doublings", 0, "--stage", "search") == 2
    error = capsys.readouterr().err
    assert "has a trial of 3 epochs here" in error and error.count("\n") == 1


def test_runs_that_are_there_under_another_name_are_refused_at_once(small, capsys):
    """Of another teacher, or of --train-size 0: with both no later stage knew what to choose."""
    flags, out = small
    search = [*flags, "--stage", "search", "--sides", "kd", "--doublings", 0, "--train-size", 60]
    assert script(trial.main, *search) == 0
    before = read_rows(csv_path(out))
    stored = torch.load(flags[-1], weights_only=True)
    stored["cell"]["seed"] = 1
    torch.save(stored, out / "other.pt")
    for other in (["--teacher", out / "other.pt"], ["--train-size", 0]):
        assert script(trial.main, *search, *other) == 2
        error = capsys.readouterr().err
        assert "the same run by another teacher" in error and error.count("\n") == 1
    assert read_rows(csv_path(out)).equals(before)


@pytest.mark.parametrize("size", [60, 0])
def test_all_the_images_have_one_draw(small, capsys, size):
    flags, out = small
    ask = ["--stage", "fresh", *flags, "--train-size", size, "--draw", 1]
    assert script(trial.main, *ask) == 0 and "all 60 images are the same" in capsys.readouterr().err
    assert len(read_rows(csv_path(out))) == 1  # the teacher


def test_sizes_by_default_what_the_data_allow(tmp_path, capsys):
    make_images(tmp_path, train=43, test=3)
    ask = ["--sizes", "--dataset", "folder", "--data-dir", tmp_path]
    assert script(trial.main, *ask) == 0 and capsys.readouterr().out == "20 66\n"
    next((tmp_path / "train" / "dark").iterdir()).unlink()  # classes that are not alike
    assert script(trial.main, *ask) == 0 and capsys.readouterr().out == "20 0\n"


def test_what_it_costs_and_what_fits_an_hour(small, capsys, monkeypatch):
    flags, out = small
    monkeypatch.setattr(trial_cost, "pace", lambda *_: trial_cost.Pace(1.0, 0.0))
    monkeypatch.setattr(trial_cost, "answer_pace", lambda *_: 1.0)
    monkeypatch.setattr(trial_cost.time, "process_time", lambda: 0.0)
    flags += ["--steps", 100, "--plan", "40:4", "0:8", "--ranks", 2, "--tries", 40]
    assert script(trial.main, *flags) == 0
    first, second = capsys.readouterr().out.splitlines()
    # A side: 40 tries, 4 kept with two more seeds, 2 fresh; four probes, three seeds, two lengths,
    # of which those with the search's seed and length are tries.
    runs, long = 3 * (40 + 8 + 2) - 4, 100
    assert f"2 places, 3 sides: about {2 * (runs + 24):,} runs, " in first
    # Of 162 views, those that three and two seeds see; on two ranks.
    taught = (40 + 60) * 162 * (1 - (161 / 162) ** ((3 + 2) * long)) / 2
    hours = ((runs + 36) * long + taught) / 3600
    assert f"{2 * (runs + 36) * long:,} steps, about {hours:.1f} hours" in first
    assert f"{taught / 3600:.1f} hours of it for the teacher's answers. A length" in first
    assert second.startswith("Within an hour") and "SIZES=40 WIDTHS= TRIES=" in second


def test_a_plan_times_the_teacher_where_there_is_one(small, capsys):
    flags, _ = small
    assert script(trial.main, *flags, "--plan", "40:4") == 0
    assert "seconds of it for the teacher's answers. A length" in capsys.readouterr().out
    assert script(trial.main, *flags[:-2], "--plan", "40:4") == 0
    assert "its answers until they are cached, come on top" in capsys.readouterr().out


def test_a_width_is_refused_with_the_plan(small, capsys):
    flags, _ = small
    assert script(trial.main, *flags, "--student", "resnet8", "--plan", "40:", "40:4") == 2
    assert "resnet8 has no width to choose" in capsys.readouterr().err
