"""Every script as a person runs it, and every mistake a person makes: one line, exit status 2."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, command, make_images, script, weights
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import distill
import summarize
import train_student
import train_teacher
from engine.cells import OPTIMISER, SETTINGS, Settings
from engine.grid import surprises
from engine.rows import COLUMNS, read_rows
from reporting.rows import PROTOCOL


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """A folder of 60 + 20 small images in two classes, one darker than the other."""
    root = tmp_path_factory.mktemp("images")
    make_images(root, train=30, test=10)
    return root


@pytest.fixture(scope="module")
def flags(images) -> list[str]:
    common = [
        "--dataset",
        "folder",
        "--epochs",
        "2",
        "--batch-size",
        "16",
        "--lr",
        "0.01",
        "--device",
        "cpu",
    ]
    return [*common, "--data-dir", str(images)]


@pytest.fixture(scope="module")
def taught(flags, tmp_path_factory) -> Path:
    """An out-dir with a trained narrow teacher."""
    out = tmp_path_factory.mktemp("taught")
    assert script(train_teacher.main, *flags, "--width", 4, "--out-dir", out) == 0
    return out


@pytest.fixture
def out(taught, tmp_path) -> Path:
    return Path(shutil.copytree(taught, tmp_path / "out"))


def rows_of(out: Path):
    return read_rows(out / "results" / "results.csv").set_index("run_id")


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file that a person would miss; locks are not."""
    files = (p for p in folder.rglob("*") if p.is_file() and not p.name.endswith("lock"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# ---------------------------------------------------------------- as they are meant


def test_the_scripts_from_the_command_line(flags, out):
    flags = [*flags, "--out-dir", out]
    done = command("train_student.py", *flags)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # quiet when not a terminal
    assert done.stdout.count("\n") == 1 and "test accuracy" in done.stdout
    done = command("distill.py", *flags, "--alpha", "0.5", "0.9", "--temperature", "4")
    assert done.returncode == 0 and done.stdout.count("\n") == 2, done.stderr
    done = command("summarize.py", "--out-dir", out)
    assert done.returncode == 0, done.stderr
    rows = rows_of(out)
    assert list(read_rows(out / "results" / "results.csv").columns) == COLUMNS
    assert sorted(rows.role) == ["distill", "distill", "student", "teacher"]
    ending = "-s0-folder-e2-b16-lr0.01"
    names = {f"cnn{ending}", f"cnn-kd-a0.5-T4{ending}", f"cnn-kd-a0.9-T4{ending}"}
    assert names < set(rows.index) and names < set(weights(out))
    teacher = rows.index[rows.role == "teacher"][0]
    assert set(rows.teacher[rows.role == "distill"]) == {teacher}


def test_event_files_hold_the_curves_and_hparams(flags, out):
    assert script(distill.main, *flags, "--out-dir", out) == 0
    [folder] = (out / "runs").glob("*/cnn-kd-a0.5-T10-s0")
    events = EventAccumulator(str(folder)).Reload()
    expected = {"loss/train", "loss/hard", "loss/soft", "acc/train", "acc/test", "lr"}
    assert expected <= set(events.Tags()["scalars"])
    points = events.Scalars("acc/test")
    assert [point.step for point in points] == [1, 2]
    assert points[-1].value == pytest.approx(
        rows_of(out).loc[f"{folder.name}-{folder.parent.name}"].test_acc
    )


def test_done_again_is_skipped_and_overwrite_replaces(flags, out, capsys):
    flags = [*flags, "--out-dir", out]
    assert script(train_student.main, *flags) == 0
    before = snapshot(out)
    assert script(train_student.main, *flags) == 0
    assert "1 of 1 runs" in capsys.readouterr().out
    assert snapshot(out) == before
    assert script(train_student.main, *flags, "--overwrite") == 0
    rows = rows_of(out)
    assert len(rows) == 2 and rows.index.is_unique
    assert weights(out) == {n: w for n, w in weights(out).items() if n in rows.index}


def test_other_students_and_several_seeds(flags, out):
    flags = [*flags, "--out-dir", out]
    wide = [*flags, "--student", "resnet18", "--student-width", 4, "--seed", 1, 2]
    assert script(distill.main, *wide) == 0
    assert script(train_student.main, *flags, "--model", "resnet18", "--width", 4) == 0
    rows = rows_of(out)
    assert sorted(rows[rows.role == "distill"].seed) == [1, 2]
    assert (rows[rows.role == "student"].model == "resnet18").all()


def test_a_sweep_and_the_student_alone_in_one_pass(flags, out, tmp_path):
    """Rows and bits are those of train_student.py and of one command a value."""
    flags, own = [*flags, "--lr", 0.01, 0.03], ["--student-width", 4, 6]
    assert script(distill.main, *flags, *own, "--alone", "--control", "--out-dir", out) == 0
    rows = rows_of(out)
    students = rows[rows.role == "student"]
    assert sorted(students.alpha) == [0.0] * 4 + [0.5] * 4  # alone, and the control of alpha 0.5
    assert list(students.groupby(["width", "lr"]).size()) == [2] * 4
    assert list(rows[rows.role == "distill"].groupby(["width", "lr"]).size()) == [1] * 4
    assert set(rows[rows.role != "teacher"].cells) == {12}
    for width in (4, 6):
        assert script(train_student.main, *flags, "--width", width, "--out-dir", tmp_path) == 0
    assert weights(tmp_path).items() <= weights(out).items() and len(weights(tmp_path)) == 4


def test_label_smoothing_asks_no_teacher(flags, tmp_path):
    argv = [*flags, "--method", "smooth", "--alpha", 0.1, "--out-dir", tmp_path]
    assert script(distill.main, *argv) == 0
    [row] = rows_of(tmp_path).itertuples()
    assert row.role == "student" and row.Index.startswith("cnn-smooth-a0.1-s0-")


def test_val_size_adds_its_columns(flags, tmp_path):
    flags = [*flags, "--val-size", 10, "--out-dir", tmp_path]
    assert script(train_student.main, *flags) == 0
    [row] = rows_of(tmp_path).itertuples()
    assert row.train_size == 50 and 0 <= row.val_acc <= row.best_val_acc <= 1


@pytest.mark.parametrize("held, said", [(10, True), (0, False)])
def test_a_teacher_that_saw_what_is_held_out_is_named(flags, out, tmp_path, capsys, held, said):
    [teacher] = (out / "checkpoints").glob("*.pt")
    argv = [*flags, "--val-size", held, "--teacher", teacher, "--out-dir", tmp_path]
    assert script(distill.main, *argv) == 0
    assert ("has --val-size 0: it may have learned" in capsys.readouterr().err) == said


def test_what_few_mean_by_a_schedule_is_named():
    step = {"schedule": "step", "epochs": 9}
    for settings, says in (
        (Settings(epochs=9, t_max=7), "is 0 in epoch 8 and rises"),
        (Settings(milestones="9", **step), "beyond the 9 epochs"),
        (Settings(epochs=9, t_max=9, warmup=9), "--warmup 9"),
    ):
        [line] = surprises(settings)
        assert says in line
    for fine in (
        Settings(),
        Settings(epochs=9, t_max=9, warmup=8),
        Settings(milestones="8", **step),
    ):
        assert surprises(fine) == []


def test_normalization_travels_with_the_teacher(flags, tmp_path):
    flags = [*flags, "--out-dir", tmp_path]
    data = ["--normalization", "data", "--width", 4]
    assert script(train_teacher.main, *flags, *data) == 0
    [path] = (tmp_path / "checkpoints").glob("*.pt")
    stored = torch.load(path, weights_only=True)
    assert stored["mean"] != [0.4914, 0.4822, 0.4465] and stored["class_names"] == ["dark", "light"]
    assert script(distill.main, *flags) == 0  # the student keeps to the reference's constants
    assert set(rows_of(tmp_path).normalization) == {"data", "reference"}


# ---------------------------------------------------------------- exp.sh


def test_exp_twice_and_cell_by_cell(images, tmp_path):
    """The second run trains only what is new to it; LOOP=1 leaves the same rows and bits."""
    env = os.environ | {
        "PYTHON": sys.executable,
        "DATASET": "folder",
        "DATA_DIR": str(images),
        "EPOCHS": "1",
        "SEEDS": "0",
        "ALPHAS": "0.5 0.9",
        "TEMPERATURES": "1",
        "RESNET_SEEDS": "",
        "RANKS": "1",
        "FLAGS": "--batch-size 16 --lr 0.01 --threads 1 --device cpu",
        "TEACHER_FLAGS": "--width 4",
    }

    def exp(**more: str) -> str:
        done = subprocess.run(
            ["sh", "exp.sh"], cwd=ROOT, env=env | more, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    first = exp(OUT_DIR=str(tmp_path / "a"))
    finished = re.compile(r": test accuracy \d")
    assert len(finished.findall(first)) == 6  # teacher, alone, two controls, two cells
    checkpoints = weights(tmp_path / "a")
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "a" / "checkpoints").glob("*.pt")}
    again = exp(OUT_DIR=str(tmp_path / "a"), METHODS="kd at:1,10")
    assert again.count("skipped") == 2  # the teacher, the pass of kd
    assert len(finished.findall(again)) == 4 and stamps == {p: p.stat().st_mtime_ns for p in stamps}
    assert set(rows_of(tmp_path / "a").beta.dropna()) == {1, 10}
    exp(OUT_DIR=str(tmp_path / "b"), LOOP="1")
    assert weights(tmp_path / "b") == checkpoints
    figures = ["test_acc", "test_loss", "best_test_acc", "train_acc", "agreement", "ece"]
    one, other = (rows_of(tmp_path / name)[figures] for name in "ab")
    assert one.loc[other.index].equals(other)


# ---------------------------------------------------------------- mistakes


def one_line(capsys) -> str:
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1, captured.err
    return captured.err


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--alpha", "1.5"], "number from 0 to 1"),
        (["--alpha", "-0.1"], "number from 0 to 1"),
        (["--alpha", "nan"], "number from 0 to 1"),
        (["--temperature", "0"], "above 0"),
        (["--temperature", "-3"], "above 0"),
        (["--temperature", "nan"], "above 0"),
        (["--temperature", "inf"], "above 0"),
        (["--temperature", "warm"], "above 0"),
        (["--epochs", "0"], "at least 1"),
        (["--epochs", "2.5"], "at least 1"),
        (["--lr", "nan"], "above 0"),
        (["--student", "vgg"], "vgg"),
        (["--dataset", "mnist"], "mnist"),
        (["--device", "cuda:99"], "--device"),
        (["--train-size", "61"], "--train-size"),
        (["--val-size", "60"], "--val-size"),
        (["--nonsense"], "--nonsense"),
        (["--seed", "9" * 400], "at least 0"),
        (["--device", "meta"], "--device"),
        (["--beta", "2"], "--beta"),
        (["--method", "none", "--scale-t2"], "--scale-t2"),
        (["--last-batch", "drop", "--batch-size", "100"], "leaves nothing of 60 images"),
    ],
)
def test_bad_flags(flags, out, capsys, argv, says):
    before = snapshot(out)
    # --val-size and --train-size change which teacher is looked for, so it is named.
    [teacher] = (out / "checkpoints").glob("*.pt")
    named = [*flags, "--out-dir", out, "--teacher", teacher]
    assert script(distill.main, *named, *argv) == 2
    assert says in one_line(capsys)
    assert snapshot(out) == before


def broken_teacher(kind: str, path: Path) -> None:
    content = torch.load(path, weights_only=True)
    if kind == "missing":
        path.unlink()
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:-500])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "other tensor file":
        torch.save({"weights": torch.zeros(3)}, path)
    elif kind == "classes":
        torch.save(content | {"classes": 7}, path)
    elif kind == "architecture":
        torch.save(content | {"model": "cnn"}, path)
    elif kind == "unknown":
        torch.save(content | {"model": "vgg"}, path)
    elif kind == "two":
        shutil.copy(path, path.with_name("cnn-teacher-s0-folder.pt"))


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("missing", "train_teacher.py"),
        ("truncated", "truncated"),
        ("empty", "truncated"),
        ("other tensor file", "not a checkpoint of this project"),
        ("classes", "7 classes"),
        ("architecture", "another architecture"),
        ("unknown", "vgg"),
        ("two", "--teacher"),
    ],
)
def test_bad_teachers(flags, out, capsys, kind, says):
    [path] = (out / "checkpoints").glob("*.pt")
    broken_teacher(kind, path)
    before = snapshot(out)
    assert script(distill.main, *flags, "--out-dir", out) == 2
    assert says in one_line(capsys)
    assert snapshot(out) == before


def test_flags_that_do_nothing_are_said(flags, out, capsys):
    own = [*flags, "--out-dir", out, "--alpha", 0.5]
    assert script(distill.main, *own, "--method", "none", "--temperature", 3) == 0
    assert "--temperature has no effect" in capsys.readouterr().err
    assert script(distill.main, *own, "--hard-weight", 1, "--control", "--soft-warmup", 9) == 0
    said = capsys.readouterr().err
    assert "--control adds nothing" in said and "--soft-warmup 9 is longer than the 2 ep" in said
    assert script(distill.main, *own, "--control", "--temperature", 3) == 0
    assert "effect" not in (said := capsys.readouterr().err) and "adds nothing" not in said


def test_the_teachers_seed_is_its_checkpoints(flags, out, capsys):
    argv = [*flags, "--out-dir", out]
    assert script(train_teacher.main, *argv, "--width", 4, "--seed", 1) == 0
    [path] = (out / "checkpoints").glob("*-teacher-s1-*.pt")
    assert script(distill.main, *argv, "--teacher", path) == 0
    assert script(distill.main, *argv, "--teacher-seed", 1) == 0
    rows = rows_of(out)
    taught = rows[rows.role == "distill"]
    assert list(taught.teacher_seed) == [1] and taught.index[0].startswith("cnn-kd-a0.5-T10-s0-ts1")
    capsys.readouterr()
    assert script(distill.main, *argv, "--teacher", path, "--teacher-seed", 0) == 2
    assert "seed 1" in one_line(capsys)


def test_a_named_teacher_that_is_missing(flags, out, capsys):
    argv = [*flags, "--out-dir", out, "--teacher", out / "nobody.pt"]
    assert script(distill.main, *argv) == 2
    assert "nobody.pt" in one_line(capsys)


@pytest.mark.parametrize(
    "content",
    [
        b"a,b\n1,2\n",
        b"\xff\xfe\x00garbage",
        b'run_id,"role\n',
        b"",
        (",".join(COLUMNS) + "\n" + "x," * 3 + "\n").encode(),
        (",".join(COLUMNS[::-1]) + "\n").encode(),
    ],
)
def test_a_malformed_csv_stops_all_scripts(flags, out, capsys, content):
    path = out / "results" / "results.csv"
    path.write_bytes(content)
    for main, argv in [(train_student.main, flags), (distill.main, flags), (summarize.main, [])]:
        before = snapshot(out)
        assert script(main, *argv, "--out-dir", out) == 2
        assert "results.csv" in one_line(capsys)
        assert snapshot(out) == before


def test_a_folder_that_cannot_be_written(flags, tmp_path, capsys):
    (tmp_path / "out").write_text("a file where the folder should be")
    assert script(train_student.main, *flags, "--out-dir", tmp_path / "out") == 2
    assert "cannot write" in one_line(capsys)
    assert (tmp_path / "out").read_text() == "a file where the folder should be"


def test_a_loss_that_becomes_non_finite(flags, out, capsys):
    before = snapshot(out)
    assert script(distill.main, *flags, "--out-dir", out, "--lr", "1e30") == 2
    assert "non-finite" in one_line(capsys) and "--lr" not in before
    after = snapshot(out)  # its curves stay, and what the teacher has said
    own = ("runs/folder-e2-b16-lr", ".sheet")
    kept = {n: c for n, c in after.items() if not any(part in n for part in own)}
    assert kept == before


def test_other_images_are_not_taken_for_the_same(flags, out, tmp_path, capsys):
    """Two image folders have the same run ids; neither rows nor teachers are shared."""
    make_images(tmp_path / "others", train=31, test=10)
    argv = [*flags, "--out-dir", out]
    assert script(train_student.main, *argv) == 0
    argv += ["--data-dir", tmp_path / "others"]
    capsys.readouterr()
    assert script(train_student.main, *argv) == 2
    assert "images" in one_line(capsys)
    assert script(distill.main, *argv) == 2
    assert "other images" in one_line(capsys)


def test_a_broken_teacher_is_nobodys_business_but_its_pupils(flags, out):
    [path] = (out / "checkpoints").glob("*.pt")
    path.write_bytes(b"")
    assert script(train_student.main, *flags, "--out-dir", out) == 0


def test_rows_survive_others_to_the_letter(flags, out):
    path = out / "results" / "results.csv"
    first = path.read_text().splitlines()
    assert script(train_student.main, *flags, "--out-dir", out) == 0
    assert path.read_text().splitlines()[: len(first)] == first


def test_a_row_of_other_settings_is_not_taken_for_done(flags, out, capsys):
    """A teacher's run id says nothing of its schedule, and a student's nothing of its teacher."""
    argv = [*flags, "--out-dir", out]
    assert script(train_teacher.main, *argv, "--width", 4, "--lr", "0.05") == 2
    assert "lr 0.01, now 0.05" in one_line(capsys)
    assert script(distill.main, *argv) == 0
    assert script(train_teacher.main, *argv, "--width", 4, "--lr", "0.05", "--overwrite") == 0
    capsys.readouterr()
    assert script(distill.main, *argv) == 2
    assert "teacher" in one_line(capsys)


def test_a_setting_is_known_everywhere():
    """One that is not is lost from run ids, from rows, or mixes protocols in the report."""
    names = {*Settings.__dataclass_fields__, *OPTIMISER}
    how = {"amp"}  # says how a run is computed, not what is
    assert set(SETTINGS) == names - how
    assert names <= set(COLUMNS)
    assert set(PROTOCOL) == names - how
