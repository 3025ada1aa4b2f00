"""A run on a GPU that is stopped and goes on. Skipped where there is none."""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, command, make_images, weights

from engine.rows import csv_path, read_rows

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def flags(root) -> list[str]:
    data = ["--dataset", "folder", "--data-dir", str(root), "--batch-size", "50", "--lr", "0.01"]
    return [*data, "--device", "cuda", "--momentum", "0.9", "--save-seconds", "0.2"]


def finish(*argv: object) -> None:
    done = command(*argv)
    assert done.returncode == 0, done.stderr
    assert "no cached teacher logits" not in done.stderr and "cannot be recorded" not in done.stderr


def test_a_killed_run_goes_on(tmp_path):
    """SIGINT and SIGKILL: every row once, and weights to 1e-3 those of a run never stopped.

    Not the same bits: cuDNN tries its kernels anew in every process, and some add in any order.
    """
    make_images(tmp_path / "images", train=130, test=10)
    argv = [*flags(tmp_path / "images"), "--out-dir"]
    finish("train_teacher.py", "--epochs", 2, "--width", 4, *argv, tmp_path / "teacher")
    [checkpoint] = (tmp_path / "teacher" / "checkpoints").glob("*.pt")
    argv = ["distill.py", "--teacher", checkpoint, "--alpha", 0.1, 0.9, "--epochs", 200, *argv]
    finish(*argv, tmp_path / "whole")
    expected, rows = weights(tmp_path / "whole"), read_rows(csv_path(tmp_path / "whole"))
    assert len(expected) == 2
    for number, status in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        out = tmp_path / number.name
        run = subprocess.Popen([sys.executable, *map(str, [*argv, out])], cwd=ROOT)
        while not list(out.glob("checkpoints/unfinished/*/rank0.state")):
            assert run.poll() is None
            time.sleep(0.01)
        run.send_signal(number)
        assert run.wait(timeout=170) == status
        finish(*argv, out)
        again = read_rows(csv_path(out))
        assert list(again.run_id) == list(rows.run_id)
        for figure in ("test_acc", "train_acc"):  # an image of 20, of 260
            assert list(again[figure]) == pytest.approx(list(rows[figure]), abs=0.051)
        assert list(again.test_loss) == pytest.approx(list(rows.test_loss), abs=1e-2)
        for name, own in weights(out).items():
            own, other = (np.frombuffer(b, np.float32) for b in (own, expected[name]))
            np.testing.assert_allclose(own, other, rtol=0, atol=1e-3)
