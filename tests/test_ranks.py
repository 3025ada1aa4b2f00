"""Ranks under torchrun on gloo, and kills."""

import os
import platform
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, command, make_images, script, small_teacher, weights

import distill
import train_teacher
from engine.grid import deals_groups
from engine.parallel import prepare
from engine.rows import csv_path, read_rows

COMMON = ["--dataset", "folder", "--batch-size", "50", "--device", "cpu", "--threads", "1"]
COMMON += ["--epochs", "2", "--lr", "0.01"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def torchrun(ranks: int, *argv: object) -> None:
    done = command(*TORCHRUN, ranks, *argv)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def flags(tmp_path_factory) -> list[str]:
    root = tmp_path_factory.mktemp("images")
    make_images(root, train=130, test=10)  # of each class: 260 views, two of the teacher's chunks
    return [*COMMON, "--data-dir", str(root)]


@pytest.fixture(scope="module")
def teacher(flags, tmp_path_factory):
    return small_teacher(tmp_path_factory.mktemp("teacher"), *flags)


def test_the_same_bits_on_one_and_three_ranks(flags, teacher, tmp_path):
    """Four cells do not divide by three, and two chunks of views leave a rank without any."""
    argv = [*flags, "--teacher", teacher, "--alpha", 0.1, 0.9, "--temperature", 1, 4]
    assert script(distill.main, *argv, "--out-dir", tmp_path / "1") == 0
    torchrun(3, "distill.py", *argv, "--out-dir", tmp_path / "3")
    expected = weights(tmp_path / "1")
    assert len(expected) == 4 and weights(tmp_path / "3") == expected
    rows = read_rows(csv_path(tmp_path / "3"))
    assert sorted(rows.run_id) == sorted(expected) and set(rows.ranks) == {3}


def test_what_stands_in_one_ranks_way_is_said(flags, teacher, tmp_path):
    """The lead has the student alone; only the other rank's cell looks for the layer."""
    argv = [*flags, "--teacher", teacher, "--method", "sp", "--alone", "--student-layers", "nope"]
    done = command(*TORCHRUN, 2, "distill.py", *argv, "--out-dir", tmp_path)
    assert done.returncode != 0 and "error: cnn has no layer 'nope'" in done.stderr


def test_ranks_of_methods_on_activations(flags, teacher, tmp_path):
    """Dealt in turn: each of the two ranks has a cell of either method."""
    argv = [*flags, "--teacher", teacher, "--method", "fitnet", "kd+crd", "--beta", 1]
    argv += ["--alpha", 0.1, 0.5]
    assert script(distill.main, *argv, "--out-dir", tmp_path / "1") == 0
    torchrun(2, "distill.py", *argv, "--out-dir", tmp_path / "2")
    assert len(weights(tmp_path / "1")) == 4
    assert weights(tmp_path / "1") == weights(tmp_path / "2")


def test_ranks_deal_teachers_out(flags, tmp_path):
    """Each trains one: the bits of one process, and a line for the idle rank."""
    argv = [*flags, "--width", 4, "--epochs", 1, "--train-size", 100]
    for seed in (0, 1):
        assert script(train_teacher.main, *argv, "--seed", seed, "--out-dir", tmp_path / "1") == 0
    words = ["train_teacher.py", *argv, "--seed", 0, 1, "--out-dir", tmp_path / "3"]
    done = command(*TORCHRUN, 3, *words)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("a network is trained by one process: some of the 3") == 1
    assert weights(tmp_path / "3") == weights(tmp_path / "1") and len(weights(tmp_path / "1")) == 2
    assert list(read_rows(csv_path(tmp_path / "3")).ranks) == [1, 1]


@pytest.mark.parametrize(
    ("sizes", "world", "dealt"),
    [
        ([1, 1], 2, True),
        ([3] * 10, 2, True),  # 15 cells a rank, not 20
        ([51] * 3, 2, False),  # 78 cells, not 102
        ([4, 4], 2, False),  # the same either way
        ([1], 2, False),
        ([2, 3, 1], 1, False),
        ([], 4, False),
    ],
)
def test_seeds_are_dealt_where_a_seeds_cells_would_leave_ranks_waiting(sizes, world, dealt):
    assert deals_groups(sizes, world) == dealt


def test_what_stops_a_rank_that_is_not_the_lead_is_said_once(flags, teacher, tmp_path):
    """The second rank's seed is being trained by another command; the first one's gets its row."""
    argv = [*flags, "--teacher", teacher, "--out-dir", tmp_path, "--epochs", 40, "--seed"]
    run = subprocess.Popen([sys.executable, "distill.py", *map(str, argv), "1"], cwd=ROOT)
    try:
        while not list(tmp_path.glob("runs/*/*/*")):  # training has begun
            assert run.poll() is None
            time.sleep(0.01)
        run.send_signal(signal.SIGSTOP)
        done = command(*TORCHRUN, 2, "distill.py", *argv, 0, 1)
    finally:
        run.kill()
        run.wait()
    assert done.returncode != 0
    assert done.stderr.count("error: another process is training these cells") == 1
    assert list(read_rows(csv_path(tmp_path)).seed) == [0]


def test_ctrl_c_saves_and_the_same_command_goes_on(flags, teacher, tmp_path):
    argv = [*flags, "--teacher", teacher, "--epochs", 40]
    assert script(distill.main, *argv, "--out-dir", tmp_path / "whole") == 0
    argv += ["--out-dir", tmp_path / "out"]
    run = subprocess.Popen([sys.executable, "distill.py", *map(str, argv)], cwd=ROOT)
    while not list(tmp_path.glob("out/runs/*/*/*")):  # training has begun
        assert run.poll() is None
        time.sleep(0.01)
    time.sleep(0.2)
    run.send_signal(signal.SIGINT)
    assert run.wait(timeout=180) == 130
    assert list(tmp_path.glob("out/checkpoints/unfinished/*/rank0.state"))
    assert script(distill.main, *argv) == 0
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")


@pytest.mark.parametrize("several", ["--alpha 0.1 0.5 0.9", "--seed 0 1 2"])
def test_ranks_save_at_ctrl_c_and_another_number_goes_on(flags, teacher, tmp_path, several):
    """Of three seeds the last runs alone, beside a rank that has nothing left to do."""
    argv = [*flags, "--teacher", teacher, "--epochs", 60, *several.split()]
    assert script(distill.main, *argv, "--out-dir", tmp_path / "whole") == 0
    argv += ["--out-dir", tmp_path / "out"]
    words = [sys.executable, *map(str, [*TORCHRUN, 2, "distill.py", *argv])]
    run = subprocess.Popen(words, cwd=ROOT, start_new_session=True)
    while len(list(tmp_path.glob("out/runs/*/*/*"))) < 3:  # all have begun
        assert run.poll() is None
        time.sleep(0.01)
    time.sleep(0.2)
    os.killpg(run.pid, signal.SIGINT)
    assert run.wait(timeout=180) != 0
    saved = {path.name for path in tmp_path.glob("out/checkpoints/unfinished/*/*.state")}
    assert saved == ({"rank0.state", "rank1.state"} if "alpha" in several else {"rank0.state"})
    assert script(distill.main, *argv) == 0
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")


def test_a_signal_to_one_rank_loses_nothing_of_the_others(flags, teacher, tmp_path):
    """Without torchrun, which would forward it: the other learns of it by waiting."""
    argv = [*flags, "--teacher", teacher, "--epochs", 60, "--alpha", 0.1, 0.5]
    assert script(distill.main, *argv, "--out-dir", tmp_path / "whole") == 0
    argv += ["--out-dir", tmp_path / "out", "--save-seconds", 1000]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    together = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    words = [sys.executable, "distill.py", *map(str, argv)]
    runs = [
        subprocess.Popen(
            words, cwd=ROOT, env=together | {"RANK": rank}, stderr=subprocess.PIPE, text=True
        )
        for rank in "01"
    ]
    while len(list(tmp_path.glob("out/runs/*/*/*"))) < 2:  # both have begun
        assert [run.poll() for run in runs] == [None, None]
        time.sleep(0.01)
    time.sleep(0.2)
    runs[1].send_signal(signal.SIGTERM)
    said = [run.communicate(timeout=180)[1] for run in runs]
    assert [run.returncode for run in runs] == [2, 143]
    assert "error: another process of this command has ended" in said[0]
    saved = {path.name for path in tmp_path.glob("out/checkpoints/unfinished/*/*.state")}
    assert saved == {"rank0.state", "rank1.state"}
    assert script(distill.main, *argv) == 0
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")


def test_killed_at_any_moment_nothing_is_lost():
    done = command(ROOT / "tests" / "kills.py", "--trials", 4, "--seed", 1, "--method", "kd+crd")
    assert done.returncode == 0, done.stderr
    assert "4 times the same bits and every row once" in done.stdout


def test_a_gpu_is_prepared_with_and_without_its_number(monkeypatch):
    """set_device refuses a device without one, and torch.device("cuda") has none."""
    current = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: current.append(str(device)))
    for device in ("cuda", "cuda:1"):
        monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
        prepare(torch.device(device))
        assert torch.backends.cudnn.benchmark and not torch.backends.cudnn.allow_tf32
    assert current == ["cuda:1"]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_a_step_finds_the_memory_that_the_last_one_freed():
    """Whether it would without our doing hangs on the addresses: up to 3,000 page faults a step."""
    steps = """
import resource
import torch
from engine.parallel import keep_freed_memory

def step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    [torch.ones(2**20) for _ in range(8)]  # 4 MiB each
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed_memory()
print(sorted(step() for _ in range(21))[10])  # a system may take memory back now and then
"""
    done = command("-c", steps)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 400  # pages, of 8,192
