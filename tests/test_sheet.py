"""Cached teacher logits: exact, whole or absent, never another teacher's, computed once."""

import errno
import os
import shutil
from dataclasses import replace

import pytest
import torch
from conftest import GRID, TINY, Countdown, begin, make_images, script, train_all, weights

import distill
import train_teacher
from engine import sheet as sheet_module
from engine.loop import train
from engine.parallel import Ranks
from engine.rows import csv_path, read_rows
from engine.sheet import epoch_logits, open_sheet
from engine.teacher import CHUNK, Teacher
from images.views import Views, epoch_views, gather
from utils import Interrupted


class Counted(Teacher):
    """A teacher that notes how many views it is asked at a time."""

    def __call__(self, pixels, stages=False):
        self.__dict__.setdefault("asked", []).append(len(pixels))
        return super().__call__(pixels, stages)


@pytest.fixture
def counted(tiny_teacher) -> Counted:
    return Counted(**vars(tiny_teacher))


@pytest.fixture
def open_tiny(tiny_data, tmp_path):
    """Opens the sheet of a teacher over the tiny data."""
    return lambda teacher: open_sheet(tmp_path, teacher, tiny_data, "this machine")


def logits_of(teacher, data, sheet, seed=0, epoch=1):
    views = epoch_views(seed, epoch, data.train)
    return epoch_logits(teacher, data.train, views, sheet, Ranks(), lambda _: None)


def test_every_view_has_a_number_of_its_own(tiny_data):
    split = tiny_data.train
    numbers = torch.arange(162 * 100)
    views = Views.numbered(numbers, split)
    assert torch.equal(views.numbers(split), numbers) and split.views == 162
    assert len(set(zip(*(v.tolist() for v in vars(views).values()), strict=True))) == 162 * 100
    assert [int(v.max()) for v in (views.index, views.dy, views.dx)] == [99, 8, 8]


@pytest.mark.parametrize("size", [7, 32, 1000])
def test_logits_are_those_of_the_students_views(
    tiny_data, tiny_teacher, tmp_path, monkeypatch, size
):
    """Row i is the teacher's word on exactly view i, wherever chunks end, from a sheet or not."""
    monkeypatch.setitem(CHUNK, "cpu", size)
    online = tiny_teacher(gather(tiny_data.train, epoch_views(0, 1, tiny_data.train)))
    torch.testing.assert_close(logits_of(tiny_teacher, tiny_data, None), online)
    sheet = open_sheet(tmp_path, tiny_teacher, tiny_data, "this machine")
    first = logits_of(tiny_teacher, tiny_data, sheet)
    torch.testing.assert_close(first, online)
    assert torch.equal(logits_of(tiny_teacher, tiny_data, sheet), first)


def test_nothing_is_asked_twice(tiny_data, counted, open_tiny):
    """Not in another epoch, seed or command, and not where it was written an epoch before."""
    sheet = open_tiny(counted)
    first = logits_of(counted, tiny_data, sheet)
    counted.asked.clear()
    assert torch.equal(logits_of(counted, tiny_data, open_tiny(counted)), first)
    assert len(counted.asked) == 2  # the two chunks of the new command's probe
    counted.asked.clear()
    everything = Views.numbered(torch.arange(16200), tiny_data.train)
    epoch_logits(counted, tiny_data.train, everything, sheet, Ranks(), lambda _: None)
    counted.asked.clear()
    for seed in (1, 2):
        logits_of(counted, tiny_data, sheet, seed)
    assert counted.asked == []


def test_a_pass_that_was_stopped_is_not_repeated(make_run, counted, open_tiny, monkeypatch):
    monkeypatch.setitem(CHUNK, "cpu", 30)
    run = make_run("out", replace(TINY, epochs=1), teacher=counted, sheet=open_tiny(counted))
    for chances, expected in [(3, 3), (3, 1)]:  # of four chunks
        run.keeper = Countdown(chances)
        counted.asked.clear()
        with pytest.raises(Interrupted):
            train(GRID, GRID, run)
        assert len(counted.asked) == expected
    run.keeper = Countdown(10**9)
    counted.asked.clear()
    train(GRID, GRID, run)
    assert counted.asked == [30, 10]  # the test set's, for the rows


def test_the_same_bits_with_a_sheet_and_without(make_run, open_tiny, tiny_teacher):
    without = train_all(GRID, make_run("without"))
    for name in ("filling it", "reading it"):
        assert train_all(GRID, make_run(name, sheet=open_tiny(tiny_teacher))) == without


# ---------------------------------------------------------------- what is not used


def test_a_torn_row_is_a_hole(tiny_data, counted, open_tiny):
    sheet = open_tiny(counted)
    whole = logits_of(counted, tiny_data, sheet)
    [row] = epoch_views(0, 1, tiny_data.train)[:1].numbers(tiny_data.train)
    place = sheet.start + int(row) * sheet.width
    for torn in (sheet.width, 4, sheet.width - 4):  # all of it, its first word, all but the check
        os.pwrite(sheet.file, bytes(torn), place)
        assert sheet.read(row[None])[1].tolist() == [False]
        assert torch.equal(logits_of(counted, tiny_data, sheet), whole)
        assert sheet.read(row[None])[1].tolist() == [True]


def test_another_teacher_or_way_has_another_sheet(
    open_tiny, tiny_teacher, tiny_data, tmp_path, monkeypatch
):
    open_tiny(tiny_teacher)
    open_tiny(replace(tiny_teacher, sha="f" * 12))
    open_tiny(replace(tiny_teacher, amp=True))
    open_sheet(tmp_path, tiny_teacher, tiny_data, "another machine")
    monkeypatch.setattr(sheet_module, "FORM", 0)
    open_tiny(tiny_teacher)
    assert len(list(tmp_path.glob("*.sheet"))) == 5


def test_a_sheet_of_other_logits_is_found_out(open_tiny, tiny_teacher, capsys):
    """Whatever its name says, and though no epoch has run yet."""

    class Other(Teacher):
        def __call__(self, pixels, stages=False):
            return super().__call__(pixels) + 1e-4

    assert open_tiny(Other(**vars(tiny_teacher)))
    assert open_tiny(tiny_teacher) is None
    assert "not this teacher" in capsys.readouterr().err


def test_a_file_cut_off_under_a_run_is_holes(open_tiny, tiny_data, tiny_teacher):
    sheet = open_tiny(tiny_teacher)
    whole = logits_of(tiny_teacher, tiny_data, sheet)
    os.truncate(sheet.path, 5000)
    assert torch.equal(logits_of(tiny_teacher, tiny_data, sheet), whole)


@pytest.mark.parametrize("damage", ["truncated", "header", "a row"])
def test_a_damaged_file_is_left(open_tiny, tiny_teacher, tiny_data, capsys, damage):
    sheet = open_tiny(tiny_teacher)
    number = torch.arange(1)
    if damage == "truncated":
        os.truncate(sheet.path, 5000)
    elif damage == "header":
        os.pwrite(sheet.file, b"x", 0)
    else:  # whole by its check word, and not this teacher
        sheet.write(number, torch.ones(1, 10))
    assert open_tiny(tiny_teacher) is None
    assert capsys.readouterr().err.startswith("no cached teacher logits at ")


def test_no_sheet_where_logits_depend_on_the_batch(open_tiny, tiny_teacher, capsys):
    class Moody(Teacher):
        def __call__(self, pixels, stages=False):
            return super().__call__(pixels) + torch.arange(len(pixels))[:, None] * 1e-3

    assert open_tiny(Moody(**vars(tiny_teacher))) is None
    assert "depends on the rest of its batch" in capsys.readouterr().err


# ---------------------------------------------------------------- the disk


def test_a_disk_that_fills_up_costs_a_line(make_run, open_tiny, tiny_teacher, monkeypatch, capsys):
    without = train_all(GRID, make_run("without"))
    sheet, room = open_tiny(tiny_teacher), [150]
    write = os.pwrite

    def filling(*args):
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(*args)

    monkeypatch.setattr(os, "pwrite", filling)
    assert train_all(GRID, make_run("full", sheet=sheet)) == without
    assert capsys.readouterr().err.count("No space left on device") == 1


def test_too_small_a_disk_is_a_line_and_no_file(
    open_tiny, tiny_teacher, tmp_path, monkeypatch, capsys
):
    usage = shutil.disk_usage(tmp_path)._replace(free=700_000)
    monkeypatch.setattr(sheet_module.shutil, "disk_usage", lambda _: usage)
    assert open_tiny(tiny_teacher) is None
    assert "grow to 0.72 MB" in capsys.readouterr().err and not list(tmp_path.iterdir())


# ---------------------------------------------------------------- commands


def test_two_grids_at_once_end_as_one_after_another(tmp_path):
    make_images(tmp_path / "images", train=130, test=10)
    common = ["--dataset", "folder", "--data-dir", tmp_path / "images", "--epochs", 3]
    common += ["--batch-size", 50, "--device", "cpu", "--threads", 1, "--lr", 0.01]
    assert script(train_teacher.main, *common, "--width", 4, "--out-dir", tmp_path / "t") == 0
    [teacher] = (tmp_path / "t" / "checkpoints").glob("*.pt")
    grids = [["--alpha", a, "--temperature", 1, 4, "--teacher", teacher] for a in (0.1, 0.9)]
    for name, grid in zip("ab", grids, strict=True):
        argv = [*common, *grid, "--teacher-cache", "off", "--out-dir", tmp_path / name]
        assert script(distill.main, *argv) == 0
    assert not list(tmp_path.rglob("*.sheet"))
    both = [
        begin("distill.py", *common, *grid, "--out-dir", tmp_path / f"{name}2")
        for name, grid in zip("ab", grids, strict=True)
    ]
    assert [process.communicate(timeout=170) and process.returncode for process in both] == [0, 0]
    assert len(list((tmp_path / "t").rglob("*.sheet"))) == 1
    for name in "ab":
        assert weights(tmp_path / name) == weights(tmp_path / f"{name}2")
        one, two = (read_rows(csv_path(tmp_path / n)).test_loss for n in (name, f"{name}2"))
        assert one.equals(two)


def test_the_teacher_computes_with_the_kernels_of_every_process(tiny_teacher, monkeypatch):
    """Chosen by a trial of their speed, as students' are on a GPU, they could differ by command."""
    cudnn = torch.backends.cudnn
    monkeypatch.setattr(cudnn, "benchmark", True)
    seen = []
    watched = tiny_teacher.model.register_forward_hook(
        lambda *_: seen.append((cudnn.benchmark, cudnn.deterministic))
    )
    for stages in (False, True):
        tiny_teacher(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), stages=stages)
    watched.remove()
    assert set(seen) == {(False, True)} and (cudnn.benchmark, cudnn.deterministic) == (True, False)
