"""What comes from outside: checkpoints, image folders and CSVs of others, and of other days."""

import os
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import ROOT, Countdown, make_images, script, train_all
from torch import nn

import distill
import engine.grid
import models
import summarize
import train_student
import train_teacher
from engine.cells import REFERENCE, Cell, Settings
from engine.loop import train
from engine.rows import COLUMNS, FIRST, LATER, csv_path, read_rows, write_rows
from engine.trainee import draws
from utils import LARGEST, Interrupted, UserError, check_writable, load_checkpoint

FLAGS = "--dataset folder --epochs 1 --batch-size 16 --lr 0.01 --device cpu --threads 1".split()


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Images, and an out-dir with a narrow teacher of theirs."""
    root = tmp_path_factory.mktemp("made")
    make_images(root / "images", train=20, test=10)
    argv = [*FLAGS, "--data-dir", root / "images", "--out-dir", root / "out"]
    assert script(train_teacher.main, *argv, "--width", 4) == 0
    return root


@pytest.fixture
def place(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "place"))


def run(main, place: Path, *more) -> int:
    where = ["--data-dir", place / "images", "--out-dir", place / "out"]
    return script(main, *FLAGS, *where, *more)


def one_line(capsys) -> str:
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1, captured.err
    return captured.err


def teacher_of(place: Path) -> Path:
    [path] = (place / "out" / "checkpoints").glob("*teacher*.pt")
    return path


# ---------------------------------------------------------------- checkpoints


def changed(**entries):
    return lambda content: content | entries


def poisoned(content: dict, value: float) -> dict:
    """With a weight of the head that no training leaves."""
    state = {name: tensor.clone() for name, tensor in content["state"].items()}
    state["head.weight"][:] = value
    return content | {"state": state}


STRANGERS = {
    "a path as run_id": (changed(run_id="../../ESCAPED/x"), "its run_id is '../../ESCAPED/x'"),
    "a hidden run_id": (changed(run_id=".x"), "its run_id"),
    "a run_id that is no text": (changed(run_id=7), "its run_id is a int"),
    "a path as seed": (changed(cell={"seed": "../../ESCAPED"}), "its cell has no seed"),
    "an empty cell": (changed(cell={}), "its cell has no seed"),
    "a huge seed": (changed(cell={"seed": LARGEST + 1}), "its cell has no seed"),
    "no mean": (changed(mean=[0.5, 0.5]), "mean and std"),
    "a mean that is none": (changed(mean=[0.5, 0.5, float("nan")]), "mean and std"),
    "no classes": (
        lambda content: {k: content[k] for k in content if k != "classes"},
        "lacks clas",
    ),
    "names that are no list": (changed(class_names="ab"), "class_names"),
    "weights alone": (lambda content: content["state"], "weights alone"),
    "a list": (lambda content: [1, 2], "it holds a list"),
    "keys that are no text": (changed(state={1: torch.zeros(1)}), "weights are of another"),
    "a weight that is NaN": (lambda content: poisoned(content, float("nan")), "not finite"),
    "logits that overflow": (
        lambda content: poisoned(content, 3e38),
        "s0-folder.pt are not finite",
    ),
    "a width that no memory holds": (changed(width=10**6), "weights are of another"),
    "a negative width": (changed(width=-4), "weights are of another"),
}


def files(place: Path) -> list[Path]:
    return [path for path in sorted(place.rglob("*")) if not path.name.endswith("lock")]


@pytest.mark.parametrize("kind", STRANGERS)
def test_a_strangers_checkpoint_is_one_line_and_writes_nothing(place, capsys, kind):
    change, says = STRANGERS[kind]
    path = place / "strange.pt"
    torch.save(change(torch.load(teacher_of(place), weights_only=True)), path)
    before = files(place)
    assert run(distill.main, place, "--teacher", path, "--teacher-cache", place / "sheets") == 2
    assert says in one_line(capsys)
    assert [file for file in files(place) if "sheets" not in str(file)] == before
    assert not list(place.parent.glob("ESCAPED*")) and not (ROOT.parent / "ESCAPED").exists()


def test_a_teacher_of_classes_in_another_order(place, capsys):
    """One folder renamed: labels 0 and 1 change places, and it would teach the wrong one."""
    for split in ("train", "test"):
        (place / "images" / split / "dark").rename(place / "images" / split / "night")
    named = ["--teacher", teacher_of(place)]
    assert run(distill.main, place, *named) == 2
    error = one_line(capsys)
    assert "dark, light, in this order" in error and "the data light, night" in error
    assert run(distill.main, place, *named, "--other-classes") == 0


def test_a_teacher_of_other_classes_of_the_same_number(place, capsys):
    argv = "--dataset shapes --train-size 20 --epochs 1 --device cpu".split()
    argv += ["--out-dir", place / "out", "--teacher", ROOT / "teachers/cifar10-resnet18w32.pt"]
    assert script(distill.main, *argv) == 2
    assert "airplane, automobile" in one_line(capsys)


def test_a_named_teacher_is_never_ignored(place, capsys):
    assert run(train_student.main, place, "--teacher", place / "typo.pt") == 2
    assert "typo.pt" in one_line(capsys)


def test_somebodys_own_teacher_is_not_written_over(place, capsys):
    path = teacher_of(place)
    csv_path(place / "out").unlink()
    before = path.read_bytes()
    assert run(train_teacher.main, place, "--width", 4) == 2
    assert "has no row" in one_line(capsys) and path.read_bytes() == before
    other = path.parent / "unfinished" / "0123456789ab"  # some other command's
    other.mkdir(parents=True)
    (other / "rank0.state").write_bytes(b"")
    assert run(train_teacher.main, place, "--width", 4) == 2
    assert "has no row" in one_line(capsys) and path.read_bytes() == before
    assert run(train_teacher.main, place, "--width", 4, "--overwrite") == 0


def test_a_kill_between_a_teachers_checkpoint_and_its_row(place, monkeypatch):
    """The same command goes on: the run's own folder is still there."""
    csv_path(place / "out").unlink()
    teacher_of(place).unlink()

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("engine.rows.write_rows", killed)
        assert run(train_teacher.main, place, "--width", 4) == 130
    assert teacher_of(place).exists()
    assert run(train_teacher.main, place, "--width", 4) == 0
    assert len(read_rows(csv_path(place / "out"))) == 1


def test_a_teacher_is_known_by_its_weights(place):
    """Trained again to the same ones, the file is another and its students are still its."""
    path = teacher_of(place)
    assert run(distill.main, place) == 0
    before, known = path.read_bytes(), load_checkpoint(path)["sha"]
    assert run(train_teacher.main, place, "--width", 4, "--keep", "best") == 0
    assert path.read_bytes() != before and load_checkpoint(path)["sha"] == known
    assert run(distill.main, place) == 0
    content = torch.load(path, weights_only=True)
    content["state"]["head.bias"][0] += 1e-6
    torch.save(content, path)
    assert load_checkpoint(path)["sha"] != known


def test_what_another_command_has_finished_meanwhile_is_not_trained_again(place, monkeypatch):
    trained = []

    def first(group, *more, real=engine.grid.train):
        found = real(group, *more)
        trained.append(group[0].seed)
        if trained == [0]:  # now the other command
            assert run(train_student.main, place, "--seed", 1) == 0
        return found

    monkeypatch.setattr("engine.grid.train", first)
    assert run(train_student.main, place, "--seed", 0, 1, 2) == 0
    assert trained == [0, 1, 2]


def test_processes_with_the_same_number_do_not_meet(tmp_path, monkeypatch):
    """As in containers."""
    monkeypatch.setattr("os.getpid", lambda: 1)
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(check_writable, tmp_path) for _ in range(400)]:
            done.result()
    assert not list(tmp_path.iterdir())


def test_all_digits_of_a_number_are_kept(place, capsys):
    for _ in range(2):
        assert run(train_student.main, place, "--lr", 0.10760132314343228) == 0
    assert "1 of 1 runs" in capsys.readouterr().out


def test_what_is_no_number_in_the_csv_is_named(place, capsys):
    path = csv_path(place / "out")
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    frame.assign(lr="0,01").to_csv(path, index=False)
    assert run(train_student.main, place) == 2
    assert "no number under lr" in one_line(capsys)


# ---------------------------------------------------------------- images that change


@pytest.mark.parametrize("kind", ["deleted", "swapped"])
def test_other_test_images_are_not_taken_for_the_same(place, capsys, kind):
    assert run(train_student.main, place) == 0
    first, other = (place / "images" / "test" / name / "0.png" for name in ("dark", "light"))
    if kind == "deleted":
        first.unlink()
    else:
        first.rename(place / "moved.png")
        other.rename(first)
        (place / "moved.png").rename(other)
    capsys.readouterr()
    assert run(train_student.main, place) == 2
    assert "test images" in one_line(capsys)
    assert run(distill.main, place) == 0  # the teacher's training images are the same
    rows = read_rows(csv_path(place / "out"))
    assert rows.data.nunique() == 1 and rows.test_data.nunique() == 2


def test_rows_of_other_test_images_are_never_compared(place, capsys):
    assert run(train_student.main, place) == 0
    (place / "images" / "test" / "dark" / "0.png").unlink()
    assert run(distill.main, place) == 0
    capsys.readouterr()
    assert script(summarize.main, "--out-dir", place / "out") == 0
    out = capsys.readouterr().out
    assert out.count("## folder, 40 training images, 1 epoch, T_max 200") == 2
    assert "no student was trained alone with these settings" in out
    assert not re.search(r"the student alone \d", out)


# ---------------------------------------------------------------- CSVs


def test_a_csv_of_an_older_version_is_read_and_gone_on_with(place, capsys):
    assert run(train_student.main, place) == 0
    path = csv_path(place / "out")
    new = pd.read_csv(path, dtype=str, keep_default_na=False)
    new[FIRST + LATER[:5]].to_csv(path, index=False)
    rows = read_rows(path)
    assert list(rows) == COLUMNS
    assert (
        set(rows["clip"]) == {0.0}
        and set(rows.last_batch) == {"keep"}
        and rows.machine.isna().all()
    )
    capsys.readouterr()
    assert run(train_student.main, place) == 0
    assert "1 of 1 runs" in capsys.readouterr().out
    assert run(distill.main, place) == 0
    after = pd.read_csv(path, dtype=str, keep_default_na=False)
    assert list(after) == COLUMNS and len(after) == 3
    assert after[FIRST][:2].equals(new[FIRST]) and set(after["clip"]) == {"0.0"}
    assert script(summarize.main, "--out-dir", place / "out") == 0


def test_every_later_column_is_blank_or_the_references(place):
    """A new setting that had no default in a CSV of its day would be read as a blank."""
    settings = {*asdict(Settings()), *("lr", "weight_decay")}
    assert settings & set(LATER) <= set(REFERENCE)


@pytest.mark.parametrize(
    "columns, between, odd",
    [
        (FIRST[1:], ",", "it lacks run_id"),
        ([*COLUMNS, "mood"], ",", "it has mood"),
        (COLUMNS[::-1], ",", "their order"),
        (COLUMNS, ";", "none separated by a comma"),  # as a spreadsheet saves it
    ],
)
def test_a_csv_of_something_else_is_refused(place, capsys, columns, between, odd):
    path = csv_path(place / "out")
    frame = pd.read_csv(path, dtype=str, keep_default_na=False).assign(mood="good")
    frame[columns].to_csv(path, index=False, sep=between)
    assert run(train_student.main, place) == 2
    assert f"has not this version's columns ({odd})" in one_line(capsys)


def test_a_row_without_a_name_and_one_there_twice_are_named(place, capsys):
    path = csv_path(place / "out")
    head, row = path.read_text().splitlines()
    blank = "," * (len(COLUMNS) - 1)  # as a spreadsheet leaves a row that was emptied
    name = row.split(",")[0]
    for more, says in ((blank, "no run_id in line 3"), (row, f"{name} more than once")):
        path.write_text("\n".join([head, row, more]) + "\n")
        assert run(train_student.main, place) == 2
        assert says in one_line(capsys)


def test_a_run_that_has_ended_leaves_signals_to_others(place):
    """In a notebook Ctrl-C would else be swallowed by the cells after it."""
    names = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(name) for name in names]
    assert run(train_student.main, place) == 0
    assert [signal.getsignal(name) for name in names] == before


def test_no_row_is_written_that_could_not_be_read(place, capsys):
    for flag in ("--seed", "--teacher-seed"):
        assert run(distill.main, place, flag, 2**64) == 2
        assert "too large" in one_line(capsys)
    path = csv_path(place / "out")
    before = path.read_bytes()
    row = pd.read_csv(path).iloc[0].to_dict()
    for odd in ({"seed": 2**64}, {"seed": "x"}, {"role": "guru"}, {"run_id": None}):
        with pytest.raises(UserError):
            write_rows(place / "out", [row | {"run_id": "new"} | odd])
    assert path.read_bytes() == before
    assert run(train_student.main, place, "--seed", LARGEST) == 0
    assert read_rows(path).seed.max() == LARGEST
    assert script(summarize.main, "--out-dir", place / "out") == 0


@pytest.mark.parametrize("column", ["data", "test_data", "epochs", "seconds", "seed"])
def test_words_where_numbers_belong_are_one_line(place, capsys, column):
    path = csv_path(place / "out")
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    frame.assign(**{column: "abc"}).to_csv(path, index=False)
    for main in (train_student.main, summarize.main):
        more = [] if main is summarize.main else [*FLAGS, "--data-dir", place / "images"]
        assert script(main, *more, "--out-dir", place / "out") == 2
        assert f"no number under {column}" in one_line(capsys)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a lock of another user's")
def test_a_lock_that_cannot_be_had_is_said_before_training(place, capsys):
    (place / "out" / "results" / "results.csv.lock").unlink(missing_ok=True)
    (place / "out" / "results" / "results.csv.lock").mkdir()
    assert run(train_student.main, place) == 2
    assert "cannot lock" in one_line(capsys)
    assert not list((place / "out" / "checkpoints").glob("cnn*"))


def test_a_linked_csv_stays_a_link(place):
    path = csv_path(place / "out")
    path.rename(place / "shared.csv")
    path.symlink_to(place / "shared.csv")
    assert run(train_student.main, place) == 0
    assert path.is_symlink() and len(read_rows(place / "shared.csv")) == 2


def test_nobody_needs_to_read_on(place):
    """A grid goes on where the reader of its lines has left."""
    argv = [sys.executable, ROOT / "train_student.py", *FLAGS, "--seed", "0", "1", "2"]
    argv += ["--data-dir", place / "images", "--out-dir", place / "out"]
    process = subprocess.Popen(map(str, argv), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.wait(100) == 0, process.stderr.read()
    assert len(read_rows(csv_path(place / "out"))) == 4
    process.stderr.close()


# ---------------------------------------------------------------- teachers from elsewhere


def test_the_report_names_a_teacher_from_elsewhere(place, tmp_path, capsys):
    where = ["--data-dir", place / "images", "--out-dir", tmp_path / "other"]
    teacher = teacher_of(place)
    assert script(distill.main, *FLAGS, *where, "--teacher", teacher) == 0
    [row] = read_rows(csv_path(tmp_path / "other")).itertuples()
    own = read_rows(csv_path(place / "out")).set_index("run_id").test_acc[teacher.stem]
    assert row.teacher_acc == own
    capsys.readouterr()
    assert script(summarize.main, "--out-dir", tmp_path / "other") == 0
    out = capsys.readouterr().out
    told = f"Teacher: {teacher.stem} from elsewhere (checkpoint {row.teacher_sha}), "
    assert told + f"{100 * own:.2f} here." in out
    assert "0 teachers" not in out


def test_the_report_says_that_seeds_had_different_teachers(place, capsys):
    """By seed, and by checkpoint where two have one run id."""
    for seed in (1, 2):
        assert run(train_teacher.main, place, "--width", 4, "--seed", seed) == 0
        assert run(distill.main, place, "--seed", seed, "--teacher-seed", seed) == 0
    again = "--width", 4, "--seed", 1, "--lr", 0.02, "--overwrite"
    assert run(train_teacher.main, place, *again) == 0
    assert run(distill.main, place, "--seed", 3, "--teacher-seed", 1) == 0
    capsys.readouterr()
    assert script(summarize.main, "--out-dir", place / "out") == 0
    rows = read_rows(csv_path(place / "out"))
    shas = sorted(rows.teacher_sha[rows.teacher_seed == 1])
    names = [f"resnet18w4-teacher-s1-folder ({sha})" for sha in shas]
    names.append("resnet18w4-teacher-s2-folder")
    told = f"- **Not one teacher**: seeds of one cell had different ones ({', '.join(names)}), so"
    assert told in capsys.readouterr().out


# ---------------------------------------------------------------- what leaves the house


def test_the_student_in_plain_pytorch_is_the_same(place):
    """The module that docs/columns.md has, and with a plain flatten it is another."""
    assert run(train_student.main, place) == 0
    [path] = (place / "out" / "checkpoints").glob("cnn-s0*.pt")
    stored = torch.load(path, weights_only=True)
    ours = models.build("cnn", stored["width"], stored["classes"]).eval()
    ours.load_state_dict(stored["state"])
    code = (ROOT / "docs" / "columns.md").read_text().split("```python\n")[2].split("```")[0]
    x = torch.randn(5, 3, 32, 32)
    for text, same in ((code, True), (code.replace(".permute(0, 2, 3, 1)", ""), False)):
        names = {}
        exec(text, names)
        theirs = names["Student"](stored["width"], stored["classes"])
        theirs.load_state_dict(stored["state"])
        assert torch.allclose(ours(x), theirs(x), atol=1e-5) == same


# ---------------------------------------------------------------- networks that draw


class Dropping(models.CNN):
    """The student with dropout, as somebody might bring it."""

    def forward(self, x):
        return super().forward(nn.functional.dropout(x, 0.3, self.training))


@pytest.fixture
def dropping(monkeypatch):
    monkeypatch.setitem(models.MODELS, "dropping", Dropping)


GRID = [
    Cell("dropping", 4, 0, "kd", alpha, 4.0, lr=0.05, teacher_seed=0) for alpha in (0.1, 0.5, 0.9)
]


def test_dropout_is_the_same_alone_in_company_and_after_a_stop(dropping, make_run):
    together = train_all(GRID, make_run("together"))
    alone = {}
    for cell in GRID:
        torch.rand(7)  # whatever else draws has no part in it
        alone |= train_all([cell], make_run(f"alone {cell.alpha}"))
    assert alone == together
    with pytest.raises(Interrupted):
        train(GRID, GRID, make_run("stopped", keeper=Countdown(5)))
    assert train_all(GRID, make_run("stopped")) == together


def test_dropout_differs_by_step_and_is_known(dropping):
    drawing = [name for name in ("dropping", "cnn", "resnet18") if draws(name, 4, 10, 32)]
    assert drawing == ["dropping"]
