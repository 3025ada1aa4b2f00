"""gpu.sh, with a Python that only says what it is asked: parts that fail, no GPU, two reports."""

import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

# A Python by name: what gpu.sh and exp.sh ask it leaves what they look for, unless it is to fail.
STUB = """\
#!/bin/sh
case "$*" in
*get_device_properties*) echo "Some GPU, 1 GiB" ;;
*device_count*) echo 1 ;;
*"-m pytest"*) echo "3 passed"; [ "$FAIL" != tests ] ;;
*" bench.py"*|bench.py*)
    for last in "$@"; do :; done
    [ "$FAIL" != bench ] || { echo "no memory left"; exit 1; }
    mkdir -p "$last/results" && echo "# a bench" >"$last/results/bench.md" ;;
*train_teacher.py*)
    [ "$FAIL" != quick ] || exit 1
    mkdir -p "$OUT_DIR/results"
    [ -e "$OUT_DIR/results/results.csv" ] && [ "$FAIL" != again ] ||
        echo row >>"$OUT_DIR/results/results.csv" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path):
    """The scripts in a folder of their own."""
    root = tmp_path / "checkout"
    root.mkdir()
    needs = ("requirements.txt", "requirements-dev.txt")
    for name in ("gpu.sh", "exp.sh", "start.sh", "setup.sh", "ranks.sh", *needs):
        shutil.copy(ROOT / name, root)
    (root / "python").write_text(STUB)
    (root / "python").chmod(0o755)
    return root


def gpu(checkout, fail="", *folder, **env):
    env = {"PYTHON": "./python", "FAIL": fail} | env
    return subprocess.run(
        ["sh", "gpu.sh", *folder],
        cwd=checkout,
        env=os.environ | env,
        capture_output=True,
        text=True,
    )


def test_gpu_report(checkout):
    assert gpu(checkout).returncode == 0
    report = (checkout / "gpu-report" / "REPORT.md").read_text()
    assert "Some GPU, 1 GiB" in report and "# a bench" in report and "3 passed" in report
    assert report.count("| passed |") == 4
    assert gpu(checkout).returncode == 0  # and leaves the first one alone
    assert (checkout / "gpu-report-2" / "REPORT.md").exists()
    done = gpu(checkout, "", "gpu-report")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert (checkout / "gpu-report" / "REPORT.md").read_text() == report


@pytest.mark.parametrize(
    ("fail", "logs"),
    [
        ("tests", "tests.txt"),
        ("quick", "quick.txt again.txt"),
        ("again", "again.txt"),
        ("bench", "bench.txt"),
    ],
)
def test_a_part_that_fails_does_not_stop_the_others(checkout, fail, logs):
    done = gpu(checkout, fail, "new")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"failed: {logs}"
    report = (checkout / "new" / "REPORT.md").read_text()
    assert report.count("**failed**") == len(logs.split())
    assert report.count("| passed |") == 4 - len(logs.split())
    assert all(f"The end of {log}" in report for log in logs.split())
    assert ("# a bench" in report) == (fail != "bench")
    assert ("no memory left" in report) == (fail == "bench")


def test_without_a_gpu_there_is_one_line(checkout):
    done = gpu(checkout, PYTHON=sys.executable, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: torch sees no GPU") and done.stderr.count("\n") == 1
    assert not (checkout / "gpu-report").exists()


def test_options_and_the_folder_in_any_order(checkout):
    for order in (["--reference", "new"], ["new", "--reference"]):
        gpu(checkout, "", *order)
        assert "the reference's ResNet-18 rows" in (checkout / "new" / "REPORT.md").read_text()
        shutil.rmtree(checkout / "new")
    done = gpu(checkout, "", "one", "two")
    assert done.returncode == 2 and "one FOLDER at most" in done.stderr


@pytest.mark.parametrize("flag", ["--device cpu", "--device=cpu"])
def test_a_rehearsal_on_the_cpu(checkout, flag):
    gpu(checkout, FLAGS=flag)
    report = (checkout / "gpu-report" / "REPORT.md").read_text()
    assert "a rehearsal on the CPU" in report and "Some GPU" not in report


def test_an_option_that_is_none_is_no_folder(checkout):
    done = gpu(checkout, "", "--refrence")
    assert done.returncode == 2 and done.stderr.startswith("error: --refrence is no option")
    assert not list(checkout.glob("*refrence*"))
