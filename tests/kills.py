"""Kill a small grid run at a random moment, let the same command go on, compare the bits.

    python tests/kills.py --trials 50 [--method kd+crd]

Each trial is a run of its own: SIGKILL at a moment drawn uniformly over the length of a whole run,
then the same command again. At the end the weights must be those of a run never killed, and the CSV
must hold every row once. The process is forked from one that has imported everything, so that a
trial lasts seconds.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))
os.environ["OMP_NUM_THREADS"] = "1"  # a forked process has no use for a parent's threads

import torch._dynamo  # noqa: E402, F401 (by an optimiser, seconds: once, and not in every child)
import torchvision.datasets  # noqa: E402, F401
from conftest import make_images, script, weights  # noqa: E402

import distill  # noqa: E402
import train_teacher  # noqa: E402
from engine.rows import csv_path, read_rows  # noqa: E402

COMMON = "--dataset folder --batch-size 20 --device cpu --threads 1".split()
GRID = "--alpha 0.1 0.5 0.9 --temperature 1 4 --momentum 0.9 --lr 0.01 --epochs 3".split()


def start(root: Path, out: Path, teacher: Path, method: str) -> int:
    """Fork a process that runs the grid; its process id."""
    pid = os.fork()
    if pid:
        return pid
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    saves = ["--save-seconds", "0.05", "--method", method]
    where = ["--data-dir", root / "images", "--out-dir", out, "--teacher", teacher]
    where += ["--teacher-cache", out / "sheets"]  # its own: a kill may meet its filling
    status = script(distill.main, *COMMON, *GRID, *saves, *where)
    os._exit(status)


def finish(pid: int) -> int:
    """Wait for a process; its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def in_child(work) -> None:
    """Do `work` in a forked process, so that this one never starts a thread."""
    pid = os.fork()
    if not pid:
        work()
        os._exit(0)
    assert finish(pid) == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--method", default="kd", help="as distill.py takes it")
    args = parser.parse_args()
    moments = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_images(root / "images", train=100, test=20)
        teach = [*COMMON, "--epochs", "1", "--width", "4", "--lr", "0.01"]
        teach += ["--data-dir", root / "images", "--out-dir", root / "teacher"]
        in_child(lambda: script(train_teacher.main, *teach))
        [teacher] = (root / "teacher" / "checkpoints").glob("*.pt")
        begun = time.monotonic()
        assert finish(start(root, root / "whole", teacher, args.method)) == 0
        length = time.monotonic() - begun
        expected = weights(root / "whole")
        assert len(expected) in (3, 6)  # without and with a temperature
        killed = resumed = tried = 0
        while killed < args.trials:
            out = root / f"trial{tried}"
            tried += 1
            pid = start(root, out, teacher, args.method)
            time.sleep(moments.uniform(0, length))
            os.kill(pid, signal.SIGKILL)
            if finish(pid) != -signal.SIGKILL:
                continue  # it was faster than the moment: not a kill
            killed += 1
            resumed += any(out.glob("checkpoints/unfinished/*/rank0.state"))
            again = start(root, out, teacher, args.method)
            assert finish(again) == 0, f"trial {killed} did not go on"
            assert weights(out) == expected, f"trial {killed} ended with other bits"
            rows = read_rows(csv_path(out))
            assert sorted(rows.run_id) == sorted(expected), f"trial {killed}: rows lost or twice"
        print(
            f"{killed} kills in a run of {length:.1f} s, {resumed} with a state to go on from: "
            f"{killed} times the same bits and every row once"
        )


if __name__ == "__main__":
    main()
