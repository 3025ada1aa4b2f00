"""exp.sh with a Python that only writes down what it is to run, on GPUs that are not there."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

# Answers for torch, fails or waits where it is told to, and leaves a line in $LOG. Like the scripts
# it saves at SIGTERM; one that has had the terminal's Ctrl-C before would not, but for RANK.
PYTHON = """#!/bin/sh
case "$1" in -c) exec {python} "$@" ;; esac
trap '[ -z "${{RANK-}}" ] || echo "saved: $*" >>"$LOG"; exit 143' TERM
echo "gpu ${{CUDA_VISIBLE_DEVICES-all}}: $*" >>"$LOG"
echo "output of $*"
case "$*" in
*"${{FAILS:-nothing}}"*) exit "$STATUS" ;;
*"${{WAITS:-nothing}}"*) while :; do sleep 0.05; done ;;
esac
"""
TORCH = """
import os

class cuda:
    is_available = staticmethod(lambda: "TOO_OLD" not in os.environ)
    device_count = staticmethod(lambda: int(os.environ["CARDS"]))
"""
SMI = """#!/bin/sh
i=0
while [ $i -lt "$CARDS" ]; do echo "GPU $i: a card (UUID: GPU-$i)"; i=$((i + 1)); done
"""


@pytest.fixture
def start(tmp_path):
    """Starts exp.sh on a machine of so many GPUs."""
    tools = {"python": PYTHON.format(python=sys.executable), "nvidia-smi": SMI, "torch.py": TORCH}
    for name, text in tools.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def begin(gpus: int, *options: str, **env: str) -> subprocess.Popen:
        env |= {"PYTHON": str(tmp_path / "python"), "PYTHONPATH": str(tmp_path)}
        env |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(tmp_path / "log")}
        rest = {"CARDS": str(gpus), "SEEDS": "0 1", "ALPHAS": "0.5", "TEMPERATURES": "1 4"}
        kept = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
        process = subprocess.Popen(
            ["sh", "exp.sh", *options],
            cwd=ROOT,
            env=kept | rest | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        begun.append(process)
        return process

    begun = []
    yield begin
    for process in begun:  # what a failed test has left
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture
def exp(start, tmp_path):
    """Runs it to its end: status, what it ran, what it said on stdout and on stderr."""

    def run(gpus: int, *options: str, **env: str) -> tuple[int, list[str], str, str]:
        process = start(gpus, *options, **env)
        out, err = process.communicate(timeout=60)
        return process.returncode, lines(tmp_path), out, err

    return run


def lines(folder: Path) -> list[str]:
    log = folder / "log"
    return log.read_text().splitlines() if log.exists() else []


# ---------------------------------------------------------------- which GPUs there are


def test_a_gpu_that_torch_cannot_use_is_no_reason_for_days_on_the_cpu(exp):
    status, ran, _, err = exp(2, "--quick", TOO_OLD="1")
    assert status == 2 and not ran
    assert err.startswith("error: ") and err.count("\n") == 2 and "driver" in err
    assert 'FLAGS="--train-size 1000' in err and '--device cpu" sh exp.sh --quick' in err


@pytest.mark.parametrize("flag", ["--device cpu", "--device=cpu"])
def test_the_cpu_may_be_meant(exp, flag):
    for env in ({"TOO_OLD": "1"}, {}):
        status, ran, _, err = exp(2, FLAGS=f"--lr 0.1 {flag}", RANKS="1", **env)
        assert status == 0 and "runs on the CPU" in err
        assert not any("torch.distributed" in line for line in ran)
        assert any("distill.py --threads" in line for line in ran)


def test_a_machine_without_gpus_says_what_the_cpu_means(exp):
    for env in ({}, {"TOO_OLD": "1"}):
        status, _, _, err = exp(0, **env)
        assert status == 0 and "runs on the CPU" in err


def test_one_gpu_or_one_that_is_named(exp):
    for gpus, flags in ((1, ""), (4, "--device cuda:3")):
        status, ran, _, err = exp(gpus, FLAGS=flags)
        assert status == 0 and "CPU" not in err
        assert all(line.startswith("gpu all: ") for line in ran)
        assert not any("torch.distributed" in line or "--threads" in line for line in ran)
