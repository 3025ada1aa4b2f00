"""exp.sh and trial.sh with a Python that only writes down what it is to run, on GPUs not there."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

# Answers for torch, fails or waits where it is told to, and leaves a line in $LOG. Like the scripts
# it saves at SIGTERM; one that has had the terminal's Ctrl-C before would not, but for RANK.
PYTHON = """#!/bin/sh
case "$1" in -c | -) exec {python} "$@" ;; esac
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
ALONE = "train_student.py"
TORCHRUN = "-m torch.distributed.run --standalone --nproc-per-node"


@pytest.fixture
def start(tmp_path):
    """Starts a shell script on a machine of so many GPUs."""
    tools = {"python": PYTHON.format(python=sys.executable), "nvidia-smi": SMI, "torch.py": TORCH}
    for name, text in tools.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def begin(
        gpus: int, *options: str, script: str = "exp.sh", cwd: Path = ROOT, **env: str
    ) -> subprocess.Popen:
        env |= {"PYTHON": str(tmp_path / "python"), "PYTHONPATH": str(tmp_path)}
        env |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(tmp_path / "log")}
        rest = {"CARDS": str(gpus), "SEEDS": "0 1", "ALPHAS": "0.5", "TEMPERATURES": "1 4"}
        kept = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
        process = subprocess.Popen(
            ["sh", str(ROOT / script), *options],
            cwd=cwd,
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

    def run(gpus: int, *options: str, **env) -> tuple[int, list[str], str, str]:
        process = start(gpus, *options, **env)
        out, err = process.communicate(timeout=60)
        return process.returncode, lines(tmp_path), out, err

    return run


def lines(folder: Path) -> list[str]:
    log = folder / "log"
    return log.read_text().splitlines() if log.exists() else []


def wait_for(test) -> None:
    for _ in range(1000):
        if test():
            return
        time.sleep(0.02)
    raise AssertionError("it did not come")


# ---------------------------------------------------------------- which GPUs there are


def test_a_gpu_that_torch_cannot_use_is_no_reason_for_days_on_the_cpu(exp):
    status, ran, _, err = exp(2, "--quick", TOO_OLD="1")
    assert status == 2 and not ran
    assert err.startswith("error: ") and err.count("\n") == 2 and "driver" in err
    assert f'add to FLAGS: FLAGS="--device cpu" sh {ROOT}/exp.sh --quick' in err
    for hidden in ("", "-1", "NoDevFiles"):
        status, ran, _, _ = exp(2, "--quick", TOO_OLD="1", CUDA_VISIBLE_DEVICES=hidden)
        assert status == 0 and ran


@pytest.mark.parametrize("flag", ["--device cpu", "--device=cpu"])
def test_the_cpu_may_be_meant(exp, flag):
    for env in ({"TOO_OLD": "1"}, {}):
        status, ran, _, err = exp(2, FLAGS=f"--lr 0.1 {flag}", RANKS="1", **env)
        assert status == 0 and "runs on the CPU" in err
        assert not any("torch.distributed" in line for line in ran)
        assert any("distill.py" in line and "--threads" in line for line in ran)


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


# ---------------------------------------------------------------- several GPUs


def test_one_gpu_trains_the_teacher_and_all_share_the_grid(exp):
    status, ran, _, _ = exp(3, TEACHER_FLAGS="--width 8")
    assert status == 0
    assert ran[0].startswith("gpu all: train_teacher.py") and "--width 8" in ran[0]
    assert ran[1].startswith(f"gpu all: {TORCHRUN} 3 distill.py") and "--seed 0 1" in ran[1]


@pytest.mark.parametrize(("visible", "first", "second"), [(None, "0", "1"), ("5,3,2", "5", "3")])
def test_the_resnet_students_run_side_by_side(start, tmp_path, visible, first, second):
    """Each waits here until both are there, so one after the other would never end."""
    env = {"CUDA_VISIBLE_DEVICES": visible} if visible else {}
    process = start(3, WAITS="--student resnet18", RESNET_SEEDS="7", **env)
    wait_for(lambda: sum("--student resnet18" in line for line in lines(tmp_path)) == 2)
    pair = sorted(line for line in lines(tmp_path) if "--student resnet18" in line)
    assert sorted(line.split(":")[0] for line in pair) == sorted([f"gpu {first}", f"gpu {second}"])
    assert {line.split("--seed 7 ")[1] for line in pair} == {
        "--alpha 0.5 --temperature 10",
        "--alpha 0.9 --temperature 5",
    }
    os.kill(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    saved = [line for line in lines(tmp_path) if line.startswith("saved: ")]
    assert len(saved) == 2  # and it has waited for them
    mine = [line for line in out.split("\n") if "--student resnet18" in line]
    assert sum("output of distill.py" in line for line in mine) == 2


def test_a_term_ends_both_students(start, tmp_path):
    process = start(2, WAITS="--student resnet18")
    wait_for(lambda: sum("--student resnet18" in line for line in lines(tmp_path)) == 2)
    os.killpg(process.pid, signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143


@pytest.mark.parametrize("gpus", [1, 2])
def test_a_student_that_diverges_stops_no_other(exp, gpus):
    status, ran, _, _ = exp(
        gpus, FAILS="--alpha 0.5 --temperature 10", STATUS="2", RESNET_SEEDS="0 1"
    )
    assert status == 2
    assert sum("--student resnet18" in line for line in ran) == 4 and "summarize.py" in ran[-1]


def test_a_student_that_is_killed_ends_the_script_and_its_neighbour(start, tmp_path):
    env = {"FAILS": "--alpha 0.5 --temperature 10", "STATUS": "137"}
    process = start(2, WAITS="--alpha 0.9 --temperature 5", **env)
    process.communicate(timeout=60)
    assert process.returncode == 137
    # Its neighbour is not at it any more, or it would have had the pipe open.
    assert not any("summarize.py" in line for line in lines(tmp_path))


def test_a_teacher_at_hand_is_not_trained(exp):
    status, ran, _, err = exp(1, TEACHER="teachers/t.pt")
    assert status == 0 and "== teacher" not in err
    assert not any("train_teacher.py" in line for line in ran)
    students = [line for line in ran if "distill.py" in line]
    named = f"--teacher {ROOT}/teachers/t.pt"
    assert len(students) == 3 and all(named in line for line in students)


# ---------------------------------------------------------------- the student alone


def test_the_student_alone_is_in_the_first_grids_pass(exp):
    status, ran, _, err = exp(1, "--ablation", METHODS="sp:30,300 kd")
    assert status == 0 and not any(ALONE in line for line in ran)
    assert [" --alone --control" in line for line in ran[1:4]] == [True, False, False]
    assert "--method sp:30,300" in ran[1] and "--method kd" in ran[2]
    assert "== student alone, control and grid, sp:30,300\n" in err and "== grid, kd\n" in err


def test_cell_by_cell_it_is_trained_by_itself(exp):
    status, ran, _, err = exp(1, LOOP="1", RESNET_SEEDS="")
    assert status == 0 and not any("--alone" in line for line in ran)
    assert [ALONE in line for line in ran].index(True) == 1 and "--method none" in ran[2]
    assert len(ran) == 8 and "== student alone, and control\n" in err


# ---------------------------------------------------------------- the trial


def test_a_stage_that_goes_wrong_ends_its_place_alone(exp, tmp_path):
    """Its later stages would choose from nothing. The other places and the report still come."""
    teacher = made(tmp_path / "t.pt")
    env = {"OUT_DIR": str(tmp_path / "out"), "TEACHER": teacher, "WIDTHS": "", "RANKS": "1"}
    env |= {"FAILS": "final --train-size 100", "STATUS": "2", "SIZES": "100 400"}
    status, ran, _, _ = exp(1, "--quick", script="trial.sh", **env)
    places = [line.split("--stage ")[1].split(" --sides")[0] for line in ran if "--stage" in line]
    stages = ["length", "length", "search", "widen", "final", "fresh", "images"]
    whole = [f"{stage} --train-size 400 --width 8" for stage in stages]
    broken = [f"{stage} --train-size 100 --width 8" for stage in stages[:-2]]
    assert places == [*broken, *whole] and status == 2
    assert "--plan 100:8 400:8 --ranks 1 --sides alone smooth kd" in ran[0]
    assert "--report" in ran[-1] and ran[-1].endswith("--tries 8 --fresh 4")
    assert all(f"--teacher {teacher}" in line for line in ran if "search" in line)


def made(path: Path) -> str:
    path.touch()
    return str(path)


def test_what_a_trial_cannot_do_is_said_before_it_starts(exp, tmp_path):
    """Not after the hours of the stages before."""
    there = made(tmp_path / "t.pt")
    for env, says in (
        ({"TEACHER": "nowhere.pt"}, f"no file {ROOT}/nowhere.pt"),
        ({"TEACHER": there, "TEACHERS": f"{there} {there}x"}, f"no file {there}x"),
        ({"METHODS": "sp kd-self"}, "CONTROLS=kd-self"),
        ({"WIDTH": "8 16"}, "'8 16' is no number"),
        ({"WIDTHS": "8 x"}, "'x' is no number"),
    ):
        status, ran, _, err = exp(0, "--quick", script="trial.sh", **env)
        assert status == 2 and not ran and says in err and err.count("\n") == 1


def test_a_network_whose_name_begins_like_one_of_ours_has_no_width(exp, tmp_path):
    env = {
        "OUT_DIR": str(tmp_path / "out"),
        "STUDENT": "cnn2.py:Net",
        "TEACHER": made(tmp_path / "t"),
    }
    status, ran, _, _ = exp(1, script="trial.sh", SIZES=" 500 1000 ", RANKS="1", **env)
    assert status == 0 and "--plan 500: 1000: --ranks" in ran[0]


def test_any_network_any_images_controls_draws_and_teachers(exp, tmp_path):
    files = [made(tmp_path / name) for name in ("a b.pt", "c.pt", "d.pt")]
    env = {"OUT_DIR": str(tmp_path / "out"), "TEACHER": files[0], "TEACHERS": " ".join(files[1:])}
    env |= {"STUDENT": "net.py:Net", "TEACHER_MODEL": "big.py:Big", "DATASET": "folder"}
    env |= {"SIZES": "90", "VAL_SIZE": "30", "CONTROLS": "kd-shuffled kd-self", "DRAWS": "4"}
    status, ran, _, err = exp(1, script="trial.sh", RANKS="1", DATA_DIR="images", **env)
    assert status == 0 and all(f"--data-dir {ROOT}/images" in line for line in ran[:-1])
    stages = [line for line in ran if "--stage" in line]
    nets = "--student net.py:Net ", "--teacher-model big.py:Big "
    assert all(net in line for line in stages for net in nets)
    assert all("--train-size 90 --sides" in line or "--draw " in line for line in stages)
    fresh = [line.split("--stage fresh --train-size 90 ")[1] for line in stages if "fresh" in line]
    teachers = [*files, files[1]]  # the first is a path, no list
    main = [f"--draw {k} " * (k > 0) + f"--sides alone smooth kd --teacher {t}"
            for k, t in enumerate(teachers)]  # fmt: skip
    shuffled = [line.replace("alone smooth kd", "kd-shuffled") for line in main]
    assert fresh == [*main, *shuffled, f"--sides kd-self --teacher {files[0]}"]
    assert "draw 4" in err


# ---------------------------------------------------------------- what a person writes


@pytest.mark.parametrize("script", ["exp.sh", "trial.sh", "gpu.sh"])
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_is_the_scripts_head(exp, script, flag):
    status, ran, out, err = exp(0, flag, script=script)
    assert (status, ran, err) == (0, [], "")
    assert f"sh {script}" in out and "shellcheck" not in out and "set -eu" not in out


@pytest.mark.parametrize(
    ("script", "env", "says"),
    [
        ("exp.sh", {"RANKS": "abc"}, "RANKS=abc"),
        ("exp.sh", {"RANKS": "-1"}, "RANKS=-1"),
        ("trial.sh", {"SAME_TEACHER": "5k"}, "'5k' is no number of images"),
        ("trial.sh", {"SAME_TEACHER": "100 0"}, "SAME_TEACHER=0 is all images"),
        ("trial.sh", {"VAL_SIZE": "0500"}, "'0500' is no number"),
    ],
)
def test_a_number_that_is_none_is_one_line(exp, script, env, says):
    status, ran, _, err = exp(0, "--quick", script=script, **env)
    assert status == 2 and not ran
    assert err.startswith("error: ") and says in err and err.count("\n") == 1


def test_to_a_caller_in_another_folder_whole_paths_are_printed(exp, tmp_path):
    for cwd, folder in ((tmp_path, f"{ROOT}/quick"), (ROOT, "quick")):
        status, ran, _, _ = exp(0, "--quick", cwd=cwd)
        assert status == 0 and f"--out-dir {folder} " in ran[-2]


def test_files_among_the_flags_are_the_callers(exp, tmp_path):
    own = {"FLAGS": "--lr 0.1 --teacher-model=t.py:Net", "STUDENT_FLAGS": "--student my/net.py:Net"}
    own |= {"TEACHER": "t.pt", "RESNET_SEEDS": ""}
    status, ran, _, _ = exp(1, cwd=tmp_path, **own)
    assert status == 0 and f"--student {tmp_path}/my/net.py:Net " in ran[0]
    assert f"--lr 0.1 --teacher-model={tmp_path}/t.py:Net " in ran[0]
    (tmp_path / "log").unlink()
    spaced = tmp_path / "my work"
    spaced.mkdir()
    status, ran, _, err = exp(1, cwd=spaced, **own)
    assert status == 2 and not ran and err.count("\n") == 1 and "t.py:Net has a space" in err
    status, ran, _, _ = exp(1, **own)  # from the scripts' own folder, whatever its name
    assert status == 0 and "--student my/net.py:Net " in ran[0]


def test_how_many_processes_hangs_on_the_cores_alone(exp, tmp_path):
    said = set()
    for threads in ("", "1", "64"):
        status, ran, _, _ = exp(0, RESNET_SEEDS="", OMP_NUM_THREADS=threads)
        assert status == 0
        said.add(tuple(ran))
        (tmp_path / "log").unlink()
    assert len(said) == 1


def test_lists_are_words_and_never_files(exp):
    status, ran, _, _ = exp(1, METHODS="*", RESNET_SEEDS="")
    assert status == 0 and sum("--method *" in line for line in ran) == 1


def test_folders_with_spaces_are_one_word_each(exp, tmp_path):
    out, data = str(tmp_path / "my 'runs'"), str(tmp_path / "my $data *")
    status, ran, _, _ = exp(1, OUT_DIR=out, DATA_DIR=data, TEACHER=str(tmp_path / "a t.pt"))
    assert status == 0 and all(f"--out-dir {out}" in line for line in ran)
    assert all(f"--data-dir {data} " in line for line in ran if "distill.py" in line)


# ---------------------------------------------------------------- methods x pairs

NO_GRID = {"ALPHAS": "", "TEMPERATURES": ""}


def test_the_fields_table_is_a_teacher_and_its_students_for_each_pair(exp):
    status, ran, _, _ = exp(
        1, RECIPE="crd", PAIRS="resnet56:resnet20 vgg13:vgg8", METHODS="kd sp:3,30", **NO_GRID
    )
    assert status == 0
    scripts = [line.split(": ", 1)[1] for line in ran]
    assert [one.split()[0] for one in scripts] == [
        *["train_teacher.py", "distill.py"] * 2, "summarize.py"
    ]  # fmt: skip
    common = "--dataset cifar100 --data-dir data --out-dir . --recipe crd"
    assert all(common in one for one in scripts[:4])
    assert "--model resnet56" in scripts[0] and "--model vgg13" in scripts[2]
    expected = "--teacher vgg13 --student vgg8 --method kd sp:3,30 --alone --seed 0 1"
    assert scripts[3].endswith(expected)
    assert not any(word in " ".join(scripts) for word in ("--t-max", "--epochs", "--alpha"))


def test_pairs_by_the_references_recipe_and_a_teacher_of_ones_own(exp, tmp_path):
    env = {"PAIRS": "resnet18:resnet8", "TEACHER": "t.pt", "EPOCHS": "24", "METHODS": "kd"}
    status, ran, _, _ = exp(1, **env, **NO_GRID)
    assert status == 0 and len(ran) == 2
    assert "--recipe reference --epochs 24" in ran[0] and "--t-max 200" in ran[0]
    assert "--teacher " in ran[0] and "t.pt --student resnet8 --method kd --alone" in ran[0]


@pytest.mark.parametrize("given", [{"ALPHAS": "0.5"}, {"LOOP": "1"}, "--ablation"])
def test_what_only_a_grid_has_is_no_part_of_a_table_of_pairs(exp, given):
    options, env = ([given], {}) if isinstance(given, str) else ([], given)
    status, ran, _, err = exp(1, *options, **NO_GRID | {"RECIPE": "crd"} | env)
    assert status == 2 and not ran and err.count("\n") == 1 and "are of the grid" in err
    status, ran, _, _ = exp(1, **NO_GRID, RECIPE="crd", LOOP="0")
    assert status == 0 and ran


def test_quick_pairs_are_narrow_where_there_is_a_width(exp):
    status, ran, _, _ = exp(1, "--quick", PAIRS="resnet14:resnet8 resnet18:cnn", **NO_GRID)
    assert status == 0 and "--width" not in ran[0] and "--model resnet18 --width 16" in ran[2]


def test_no_seeds_is_no_students(exp):
    """An unset list has a default; an empty one is empty."""
    for env in ({"PAIRS": "vgg13:vgg8"}, {"RECIPE": "crd", "PAIRS": "vgg13:vgg8"}):
        status, ran, _, _ = exp(1, SEEDS="", **env, **NO_GRID)
        assert status == 0
        scripts = [line.split(": ", 1)[1].split()[0] for line in ran[-2:]]
        assert scripts == ["train_teacher.py", "summarize.py"]


def test_a_students_file_among_the_pairs_is_the_callers(exp, tmp_path):
    status, ran, _, _ = exp(1, cwd=tmp_path, PAIRS="vgg13:my.py:Net", METHODS="kd", **NO_GRID)
    assert status == 0 and f"--student {tmp_path}/my.py:Net " in ran[1]


def test_a_list_of_blanks_is_empty(exp):
    status, ran, _, err = exp(1, SEEDS=" ", METHODS=" ", PAIRS=" ", RESNET_SEEDS="")
    assert status == 0 and not any("--seed" in line for line in ran)


def test_what_quick_sets_comes_before_the_callers(exp):
    env = {"EPOCHS": "3", "T_MAX": "3", "TEACHER_FLAGS": "--keep best", "SEEDS": ""}
    status, ran, _, _ = exp(0, "--quick", **env)
    assert status == 0
    [teacher] = [line for line in ran if "train_teacher.py" in line]
    for own in ("--width 16 ", "--weight-decay 5e-4 ", "--t-max 3 ", "--epochs 3 "):
        assert own in teacher
    assert teacher.endswith("--keep best")
    [resnet] = [line for line in ran if "--student resnet18" in line][:1]
    assert "--epochs 3 --t-max 3 " in resnet and "--epochs 5" not in resnet


def test_a_python_that_is_not_there_is_one_line():
    env = os.environ | {"PYTHON": "/nowhere/python"}
    done = subprocess.run(
        ["sh", "exp.sh", "--quick"], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "error: there is no /nowhere/python, which PYTHON names\n"


def test_a_python_without_the_packages_is_named(tmp_path):
    bare = tmp_path / "bare"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        ["sh", "exp.sh", "--quick"],
        cwd=ROOT,
        env=env | {"PYTHON": str(bare), "OUT_DIR": str(tmp_path / "out")},
        capture_output=True,
        text=True,
    )
    says = f"note: {bare}, which PYTHON names, lacks something in requirements.txt, or has it older"
    assert done.returncode and done.stderr.startswith(says)


def test_where_to_write_is_no_flag(exp):
    for env, says in (
        ({"FLAGS": "--lr 0.1 --out-dir=/tmp/x"}, "OUT_DIR says where"),
        ({"TEACHER_FLAGS": "--out-dir x"}, "OUT_DIR says where"),
    ):
        for name in ("exp.sh", "trial.sh"):
            status, ran, _, err = exp(0, script=name, **env)
            assert status == 2 and not ran and says in err and err.count("\n") == 1


def test_a_pair_is_named_by_the_teacher_it_has(exp):
    status, _, _, err = exp(1, PAIRS="resnet18:resnet8", TEACHER="/t.pt", METHODS="kd", **NO_GRID)
    assert status == 0 and "== resnet8 by /t.pt: alone, kd" in err
    status, ran, _, err = exp(1, PAIRS="torchvision:resnet50:resnet8", **NO_GRID)
    assert status == 2 and err.count("\n") == 1 and "a teacher from elsewhere" in err


@pytest.mark.parametrize("pair", ["resnet56", "resnet56:", ":resnet20"])
def test_a_pair_names_two_networks(exp, pair):
    status, ran, _, err = exp(1, PAIRS=f"vgg13:vgg8 {pair}", **NO_GRID)
    assert status == 2 and not ran
    assert err.startswith(f"error: {pair} is no pair") and err.count("\n") == 1


# ---------------------------------------------------------------- flags


def test_flags_come_after_those_of_quick(exp):
    status, ran, _, _ = exp(1, "--quick", FLAGS="--lr 0.5")
    assert status == 0
    for line in ran[:-1]:
        assert (
            "--train-size 1000 --batch-size 32 " in line
            and "--lr 0.02 --momentum 0.9 --lr 0.5" in line
        )
    status, ran, _, _ = exp(1, "--quick", RECIPE="crd", FLAGS="--lr 0.5", **NO_GRID)
    assert status == 0 and "--model resnet14 --train-size 1000 --lr 0.5" in ran[-3]


def test_which_teacher_where_a_folder_may_hold_those_of_pairs_too(exp, tmp_path):
    status, ran, _, _ = exp(1)
    assert status == 0 and all("--teacher resnet18" in line for line in ran[1:-1])
    (tmp_path / "log").unlink()
    status, ran, _, _ = exp(1, TEACHER_FLAGS="--model vgg8")
    assert status == 0 and not any("--teacher" in line for line in ran[1:-1])


def test_a_control_that_is_none_is_refused(exp):
    status, ran, _, err = exp(1, "--quick", script="trial.sh", CONTROLS="kd-shuffled kd-same")
    assert status == 2 and not ran and "kd-same: SAME_TEACHER" in err
