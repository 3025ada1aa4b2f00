"""Grids made wider, runs made longer, the best epoch's weights, and every way to be stopped."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch
from conftest import (
    GRID,
    ROOT,
    TINY,
    Countdown,
    begin,
    command,
    make_images,
    script,
    train_all,
    weights,
)

import engine.steps
import train_student
from engine import measure
from engine.loop import train
from engine.resume import Unfinished, claim, folder_of
from engine.rows import best_path, csv_path, read_rows
from engine.teacher import load_teacher
from utils import Interrupted, UserError, is_lead, process_count


@pytest.fixture
def steps(monkeypatch):
    """How many student steps were taken, of each cell."""
    taken = {}

    def counted(trainee, batch, real=engine.steps.student_step):
        taken[trainee.run_id] = taken.get(trainee.run_id, 0) + 1
        real(trainee, batch)

    monkeypatch.setattr(engine.steps, "student_step", counted)
    return taken


def stop(cells, run, chances: int) -> None:
    run.keeper = Countdown(chances)
    with pytest.raises(Interrupted):
        train(cells, cells, run)


# ---------------------------------------------------------------- a grid made wider or narrower


@pytest.mark.parametrize("cells", [GRID, GRID[:1]], ids=["wider", "narrower"])
def test_an_interrupted_grid_with_other_cells_goes_on(make_run, steps, cells):
    expected = train_all(cells, make_run("never stopped"))
    for name in expected:
        steps[name] = 0
    stop(GRID[1:3] if cells == GRID else GRID, make_run("stopped"), chances=9)
    assert train_all(cells, make_run("stopped")).items() >= expected.items()
    a_run = 2 * 4  # steps
    assert {steps[name] for name in expected} == {a_run}  # none was taken twice
    left = list((make_run("stopped").out_dir / "checkpoints" / "unfinished").iterdir())
    assert len(left) == (0 if cells == GRID else 1)  # what nobody has taken up stays


def test_a_command_that_only_looks_does_not_stop_the_one_whose_cells_these_are(make_run):
    """As where all jobs of an array start again at once, and each looks into the others' states."""
    run = make_run("out")
    looks = threading.Event()

    def look():
        with claim(folder_of(GRID[:1], run.settings, run.out_dir)):
            looks.set()
            time.sleep(0.3)

    threading.Thread(target=look).start()
    looks.wait()
    with Unfinished(GRID[:1], [], run).claimed(), pytest.raises(UserError, match="another process"):
        claim(folder_of(GRID[:1], run.settings, run.out_dir))


def test_what_cannot_be_gone_on_with_is_said(make_run, steps, capfd):
    stop(GRID[:2], make_run("out"), chances=9)
    run = make_run("out")
    run.data = replace(run.data, fingerprint=7)
    train_all(GRID, run)
    assert "has 2 of these cells unfinished, but with other settings (data 0, now 7)" in (
        capfd.readouterr().err
    )
    assert set(steps.values()) > {8}


# ---------------------------------------------------------------- a run made longer


@pytest.mark.parametrize("changes", [{}, {"momentum": 0.9}])
def test_a_longer_run_of_the_same_schedule_goes_on(make_run, steps, changes):
    longer = replace(TINY, epochs=4, t_max=8, **changes)
    expected = train_all(GRID, make_run("at once", longer))
    steps.clear()
    for epochs in (1, 2, 4):
        out = make_run("bit by bit", replace(longer, epochs=epochs))
        found = train_all(GRID, out)
    assert expected.items() <= found.items()
    assert sum(steps.values()) == 4 * 4 * len(GRID)
    one, other = (
        read_rows(csv_path(make_run(name).out_dir)).set_index("run_id")
        for name in ("at once", "bit by bit")
    )
    same = ["test_acc", "test_loss", "best_test_acc", "best_epoch", "test_curve", "train_acc"]
    assert one[same].equals(other.loc[one.index, same])


def test_other_measurements_are_another_run_but_of_a_shorter_one_that_ended(make_run, steps):
    """A run's best epoch depends on them, its weights do not."""
    stop(GRID, make_run("stopped"), chances=9)
    with pytest.raises(UserError, match="eval_every 1, now 2"):
        train_all(GRID, make_run("stopped", eval_every=2))
    for epochs in (1, 2):
        settings = replace(TINY, epochs=epochs)
        steps.clear()
        train_all(GRID, make_run("longer", settings, eval_every=epochs))
    assert sum(steps.values()) == 4 * len(GRID)  # the second epoch alone


def test_another_schedule_starts_anew(make_run, steps):
    train_all(GRID, make_run("out", replace(TINY, epochs=1, t_max=1)))
    steps.clear()
    train_all(GRID, make_run("out", replace(TINY, epochs=2, t_max=2)))
    assert sum(steps.values()) == 2 * 4 * len(GRID)


# ---------------------------------------------------------------- the best epoch's weights


def test_the_best_epochs_weights_are_kept(make_run):
    """Through a stop, too; and they are the weights that have the best epoch's accuracy."""
    settings = replace(TINY, epochs=5, t_max=5, last_batch="drop")
    cells = [replace(cell, lr=0.1) for cell in GRID]
    stop(cells, make_run("out", settings, keep_best=True), chances=14)
    run = make_run("out", settings, keep_best=True)
    train_all(cells, run)
    rows, folder = read_rows(csv_path(run.out_dir)).set_index("run_id"), run.out_dir / "checkpoints"
    assert (rows.best_epoch < 5).any()
    for name, row in rows.iterrows():
        path = best_path(folder / f"{name}.pt")
        assert torch.load(path, weights_only=True)["epoch"] == row.best_epoch
        model = load_teacher(path, run.data.classes, False, run.device).model
        [logits] = measure.all_logits(measure.one_by_one([model], False), run.data.test, run.data)
        assert measure.accuracy(logits, run.data.test.labels) == row.best_test_acc


def test_best_weights_asked_for_only_later_are_those_of_a_run_in_one_go(make_run, capfd):
    """Half of a run without --keep best, or a shorter run without it, has lost its best epoch."""
    settings = replace(TINY, epochs=4, t_max=4, last_batch="drop")
    cells = [replace(cell, lr=0.1) for cell in GRID[:2]]
    names = train_all(cells, make_run("at once", settings, keep_best=True))
    stop(cells, make_run("stopped", settings, keep_best=True), chances=8)
    stop(cells, make_run("stopped", settings), chances=7)  # here what was kept would go stale
    train_all(cells, make_run("shorter", replace(settings, epochs=3)))
    for name in ("stopped", "shorter"):
        assert train_all(cells, make_run(name, settings, keep_best=True)).items() >= names.items()
        assert capfd.readouterr().err.count("was not begun with --keep best") == len(cells)


def test_best_weights_that_are_missing_are_made(tmp_path):
    make_images(tmp_path / "images", train=20, test=10)
    argv = "--dataset folder --epochs 2 --batch-size 16 --lr 0.01 --device cpu".split()
    argv += ["--data-dir", tmp_path / "images", "--out-dir", tmp_path / "out"]
    for more in ([], ["--val-size", 10]):
        assert script(train_student.main, *argv, *more) == 0
        assert script(train_student.main, *argv, *more, "--keep", "best") == 0
    [plain, chosen] = sorted((tmp_path / "out" / "checkpoints").glob("*.best.pt"))
    rows = read_rows(csv_path(tmp_path / "out")).set_index("run_id")
    found = torch.load(chosen, weights_only=True)["epoch"]
    assert found == rows.loc[chosen.name.removesuffix(".best.pt")].best_val_epoch
    assert len(rows) == 2 and plain.stat().st_size


# ---------------------------------------------------------------- signals


@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1"])  # test_ranks.py has the others
def test_every_signal_to_stop_saves_first(tmp_path, name):
    make_images(tmp_path / "images", train=20, test=10)
    argv = ["train_student.py", *"--dataset folder --epochs 100000 --batch-size 16".split()]
    argv += ["--device", "cpu", "--threads", "1", "--lr", "0.001"]
    argv += ["--data-dir", tmp_path / "images", "--out-dir", tmp_path / "out"]
    process = begin(*argv)
    while not list((tmp_path / "out" / "runs").glob("*/*/events*")):
        assert process.poll() is None
        time.sleep(0.05)
    number = getattr(signal, name)
    process.send_signal(number)
    process.send_signal(signal.SIGTERM)  # as a scheduler's second word: nothing is lost by it
    _, err = process.communicate(timeout=60)
    assert "the same command goes on from here" in err
    assert process.returncode in (128 + number, 128 + signal.SIGTERM)
    assert list((tmp_path / "out" / "checkpoints" / "unfinished").rglob("rank0.state"))


# ---------------------------------------------------------------- the environment


WHOLE = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
PARTS = [{name: value} for name, value in WHOLE.items()]
PARTS += [WHOLE | {"WORLD_SIZE": ""}, WHOLE | {"RANK": "x"}, {"RANK": "1", "WORLD_SIZE": "2"}]


@pytest.mark.parametrize("env", [*PARTS, WHOLE], ids=str)
def test_all_of_torchruns_variables_make_several(env, monkeypatch):
    for name in WHOLE:
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert (process_count(), is_lead()) == ((2, False) if env == WHOLE else (1, True))


@pytest.mark.parametrize("env", [{"RANK": "1"}, {"PYTHONSAFEPATH": "1"}], ids=str)
def test_what_schedulers_leave_behind(env, tmp_path):
    argv = [sys.executable, str(ROOT / "train_student.py"), "--lr", "-1"]
    env = os.environ | env
    done = subprocess.run(argv, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: argument --lr"), done


def test_half_of_torchruns_variables_are_one_process(tmp_path):
    make_images(tmp_path / "images", train=8, test=4)
    argv = ["train_student.py", *"--dataset folder --epochs 1 --batch-size 8".split()]
    argv += ["--device", "cpu", "--data-dir", tmp_path / "images", "--out-dir", tmp_path / "out"]
    done = command(*argv, RANK="1", WORLD_SIZE="2", LOCAL_RANK="")
    assert done.returncode == 0 and "test accuracy" in done.stdout
    assert done.stderr.count("\n") == 1 and "trains alone" in done.stderr
    assert len(weights(tmp_path / "out")) == 1
