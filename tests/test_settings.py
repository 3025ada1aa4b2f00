"""Settings, each declared once; schedules and optimisers against torch's own."""

import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from itertools import product

import pandas as pd
import pytest
import torch
from conftest import GRID, ROOT, TINY, Countdown, make_images, script, train_all
from test_exp import exp, start  # noqa: F401 (fixtures)
from torch.nn import functional as F
from torch.optim import lr_scheduler as schedulers

import distill
import flags
import summarize
import train_student
from engine import optimise
from engine.cells import SETTINGS, Cell, Settings, every_setting, run_id
from engine.grid import find_teacher, settings_of
from engine.loop import train
from engine.recipes import weights_of
from engine.rows import COLUMNS, csv_path, read_rows
from engine.trainee import initial_model
from images.views import epoch_views, gather, normalise
from stage_losses import pkt
from utils import Interrupted

STEP = {"schedule": "step", "milestones": "2 3"}
ADAMW = {"optimizer": "adamw"}
NESTEROV = {"momentum": 0.9, "nesterov": True}


def torchs_optimiser(parameters, lr: float, decay: float, settings: Settings):
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr, weight_decay=decay)
    how = {"momentum": settings.momentum, "nesterov": settings.nesterov}
    return torch.optim.SGD(parameters, lr, weight_decay=decay, **how)


# ---------------------------------------------------------------- schedules


def warmed(optimiser, epochs: int, then):
    up = schedulers.LinearLR(optimiser, 1 / (epochs + 1), total_iters=epochs)
    return schedulers.ChainedScheduler([up, then], optimiser)


SCHEDULES = {
    "cosine": ({}, lambda o: schedulers.CosineAnnealingLR(o, 200), 230),  # rises again after 200
    "step": (
        {"schedule": "step", "milestones": "150 180 210", "gamma": 0.2},
        lambda o: schedulers.MultiStepLR(o, [150, 180, 210], 0.2),
        240,
    ),
    "warm-up, cosine": (
        {"warmup": 5, "t_max": 20},
        lambda o: warmed(o, 5, schedulers.CosineAnnealingLR(o, 20)),
        20,
    ),
    "warm-up, step": (
        {"warmup": 4, "schedule": "step", "milestones": "3 6"},
        lambda o: warmed(o, 4, schedulers.MultiStepLR(o, [3, 6])),
        9,
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_are_torchs(name):
    changes, make, epochs = SCHEDULES[name]
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.1)
    scheduler = make(optimiser)
    for epoch in range(epochs):
        ours = optimise.learning_rate(0.1, epoch, Settings(**changes))
        assert ours == pytest.approx(scheduler.get_last_lr()[0], rel=1e-9, abs=1e-12)
        optimiser.step()
        scheduler.step()


# ---------------------------------------------------------------- optimisers


@pytest.mark.parametrize(
    "changes",
    [{}, {"momentum": 0.9}, NESTEROV, ADAMW],
    ids=["sgd", "momentum", "nesterov", "adamw"],
)
@pytest.mark.parametrize("decays", [(0.0, 0.0, 0.0), (0.0, 0.01, 0.1)])
def test_a_stack_s_step_is_torchs(changes, decays):
    """To 1e-12 in float64 over 20 steps, each cell with a rate of its own that falls."""
    settings, rates = Settings(**changes), (0.1, 0.01, 0.3)
    torch.manual_seed(0)
    first = torch.randn(3, 4, 2, dtype=torch.float64)
    lone = [torch.nn.Parameter(row.clone()) for row in first]
    optimisers = [torchs_optimiser([p], *own, settings) for p, *own in zip(lone, rates, decays)]  # noqa: B905
    stack, names = first.clone(), optimise.kept(settings)
    state = {n: torch.zeros(3) if n == "step" else torch.zeros_like(stack) for n in names}
    decay = torch.tensor(decays, dtype=stack.dtype) if any(decays) else None
    for step in range(20):
        gradient = torch.randn_like(stack)
        lr = torch.tensor(rates, dtype=stack.dtype) * (0.5 if step > 10 else 1)
        optimise.step_stack(stack, gradient, state, lr, decay, settings)
        for p, g, optimiser, own in zip(lone, gradient, optimisers, lr, strict=True):
            p.grad, optimiser.param_groups[0]["lr"] = g, own.item()
            optimiser.step()
    torch.testing.assert_close(stack, torch.stack([p.data for p in lone]), rtol=0, atol=1e-12)
    assert all(set(o.state[p]) == {*names} for o, p in zip(optimisers, lone, strict=True))


@pytest.mark.parametrize("changes", [NESTEROV, ADAMW], ids=["nesterov", "adamw"])
def test_a_run_is_the_loop_by_hand(make_run, tiny_data, changes):
    settings = replace(TINY, epochs=4, t_max=200, warmup=1, **STEP, **changes)
    cell = Cell("cnn", 4, 0, lr=0.01, weight_decay=0.02)
    run = make_run("out", settings)
    train_all([cell], run)
    model = initial_model(cell, 10)
    optimiser = torchs_optimiser(model.parameters(), cell.lr, cell.weight_decay, settings)
    scheduler = warmed(optimiser, 1, schedulers.MultiStepLR(optimiser, [2, 3]))
    for epoch in range(4):
        views = epoch_views(0, epoch, tiny_data.train)
        for part in (views[i : i + 32] for i in range(0, 100, 32)):
            x = normalise(gather(tiny_data.train, part), tiny_data.mean, tiny_data.std)
            optimiser.zero_grad()
            F.cross_entropy(model(x), tiny_data.train.labels[part.index]).backward()
            optimiser.step()
        scheduler.step()
    path = run.out_dir / "checkpoints" / f"{run_id(cell, settings)}.pt"
    state = torch.load(path, weights_only=True)["state"]
    torch.testing.assert_close(state, dict(model.state_dict()), rtol=1e-4, atol=1e-6)


def test_a_killed_and_a_longer_run_of_adamw_have_the_same_bits(make_run):
    settings = replace(TINY, epochs=4, t_max=200, **STEP, **ADAMW)
    cells = [replace(cell, lr=0.003) for cell in GRID[:2]]
    expected = train_all(cells, make_run("at once", settings))
    train_all(cells, make_run("longer", replace(settings, epochs=2)))
    stopped = make_run("longer", settings, keeper=Countdown(3))
    with pytest.raises(Interrupted):
        train(cells, cells, stopped)
    stopped.keeper = Countdown(10**9)
    assert expected.items() <= train_all(cells, stopped).items()


# ---------------------------------------------------------------- declared once


def test_a_new_setting_is_everywhere_by_its_declaration(tmp_path):
    """Flag and help, run id, CSV, report: one line in a copy of the code."""
    code = tmp_path / "code"
    hidden = shutil.ignore_patterns("tests", "examples", "data", "quick", ".*", "*.csv", "*.pt")
    shutil.copytree(ROOT, code, ignore=hidden)
    cells = code / "engine" / "cells.py"
    mood = '    mood: str = setting("calm", "mood", "how it is", choices=["calm", "wild"])\n\n'
    text = cells.read_text()
    cells.write_text(text.replace("    def __post_init__", mood + "    def __post_init__", 1))
    make_images(tmp_path / "images", train=8, test=4)
    argv = "--dataset folder --epochs 1 --device cpu --data-dir images --out-dir out".split()
    program = f"""
import contextlib, sys
sys.path.insert(0, "code")
import summarize, train_student
with contextlib.suppress(SystemExit):
    train_student.main(["--help"])
for more in ([], ["--mood", "wild"], ["--mood", "wild"]):
    train_student.main({argv} + more)
summarize.main(["--out-dir", "out"])
"""
    python = [sys.executable, "-c", program]
    done = subprocess.run(python, cwd=tmp_path, capture_output=True, text=True)
    for words in ("how it is (default: calm)", "1 of 1 runs", "T_max 200, mood wild\n"):
        assert done.stdout.count(words) == 1, done
    rows = pd.read_csv(csv_path(tmp_path / "out"))
    assert list(rows) == [*COLUMNS, "mood"]
    assert dict(zip(rows.run_id, rows.mood, strict=True)) == {
        "cnn-s0-folder-e1": "calm", "cnn-s0-folder-e1-moodwild": "wild"
    }  # fmt: skip


def test_a_teacher_of_a_library_is_chosen_by_its_name(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for network in ("resnet18w32", "torchvision-resnet18", "torchvision-resnet34"):
        (tmp_path / "checkpoints" / f"{network}-teacher-s0-shapes.pt").touch()
    parser = flags.parser("")
    flags.add_teacher(parser)
    argv = ["--dataset", "shapes", "--out-dir", str(tmp_path), "--teacher"]
    for name in ("resnet18", "torchvision:resnet18"):
        args = parser.parse_args([*argv, name])
        stem = find_teacher(args, settings_of(args), needed=True).stem
        assert stem.startswith(name.replace(":", "-")) and "34" not in stem


def parsed(*argv: str) -> Settings:
    return settings_of(flags.parser("").parse_args(argv))


CHANGED = {
    "dataset": "--dataset shapes", "train_size": "--train-size 9", "val_size": "--val-size 9",
    "epochs": "--epochs 9", "batch_size": "--batch-size 9", "last_batch": "--last-batch drop",
    "t_max": "--t-max 9", "momentum": "--momentum 0.9", "clip": "--clip 9",
    "normalization": "--normalization data", "schedule": "--schedule step --milestones 9",
    "milestones": "--schedule step --milestones 9 15", "warmup": "--warmup 9",
    "gamma": "--schedule step --milestones 9 --gamma 0.9",
    "nesterov": "--momentum 0.9 --nesterov", "optimizer": "--optimizer adamw",
    "image_size": "--image-size 64", "augment": "--augment flip",
    "recipe": "--recipe crd",
    "draw": "--train-size 9 --draw 9",
}  # fmt: skip


def test_every_setting_tells_run_ids_apart():
    assert CHANGED.keys() | {"lr", "weight_decay"} == SETTINGS.keys()
    found = {}
    for one, other in product(["", *CHANGED.values()], repeat=2):
        try:
            settings = parsed(*one.split(), *other.split())
        except Exception as error:  # a cosine's with a step's
            assert "has no effect" in str(error)
            continue
        for lr, decay in ((0.1, 0.0), (0.01, 0.0), (0.1, 0.01)):
            cell = Cell("cnn", 16, 0, lr=lr, weight_decay=decay)
            known = every_setting(cell, replace(settings, amp=False))
            assert found.setdefault(run_id(cell, settings), known) == known
    assert len(found) > 200
    assert "cnn-s0-m0.9-step9.15-gamma0.2-warm5-nesterov" in run_id(
        Cell("cnn", 16, 0),
        parsed(*"--momentum 0.9 --nesterov --schedule step --milestones 9 15 --gamma 0.2".split(),
               *"--warmup 5".split()),
    )  # fmt: skip


def arguments(line: str):
    parser = flags.parser("")
    flags.add_distillation(parser)
    flags.add_teacher(parser)
    return flags.parse(parser, line.split())


def ids(line: str) -> list[str]:
    """The run ids of a distill.py command that needs no teacher."""
    args = arguments(line)
    return [run_id(cell, settings_of(args)) for cell in distill.cells_of(args)]


def test_a_recipe_is_what_no_flag_says():
    crd = "--recipe crd --method smooth --student resnet20 --alone "
    assert ids(crd) == ["resnet20-s0-crd", "resnet20-smooth-a0.1-s0-crd"]
    assert ids("--method smooth --alone") == ["cnn-s0", "cnn-smooth-a0.5-s0"]
    assert ids(crd + "--epochs 24")[0] == "resnet20-s0-e24-crd"
    assert ids(crd + "--epochs 24 --milestones 18")[0] == "resnet20-s0-e24-step18-crd"
    assert ids(crd + "--lr 0.1 0.05 --momentum 0")[::2] == [
        "resnet20-s0-lr0.1-m0-crd", "resnet20-s0-m0-crd"
    ]  # fmt: skip
    assert ids(crd + "--schedule cosine")[0] == "resnet20-s0-stepnone-crd"
    assert ids(crd + "--optimizer adamw --lr 0.001")[0] == "resnet20-s0-lr0.001-m0-adamw-crd"
    assert ids(crd + "--alpha 0.2 --hard-weight 1")[1] == "resnet20-smooth-a0.2-h1-s0-crd"


def test_a_control_is_of_a_hard_loss_that_alpha_shortens():
    smooth = "--method smooth --alpha 0.5 --control"
    assert ids(smooth) == ["cnn-none-a0.5-s0", "cnn-smooth-a0.5-s0"]
    assert ids(smooth + " --hard-weight 1") == ["cnn-smooth-a0.5-h1-s0"]


@pytest.mark.parametrize(
    "network, epochs, lr, milestones",
    [("resnet20", 240, 0.05, "150 180 210"), ("shufflenetv2", 24, 0.01, "15 18 21"),
     ("mobilenetv2", 8, 0.01, "5 6 7"), ("cnn", 1, 0.05, "1"),
     ("torchvision:mobilenet_v2", 8, 0.01, "5 6 7")],
)  # fmt: skip
def test_the_recipe_crd_is_repdistillers(network, epochs, lr, milestones):
    """Its script train_student.py: epochs, batch, rates and milestones; scaled where shorter."""
    parser = flags.parser("")
    flags.add_model(parser, "cnn")
    argv = ["--recipe", "crd", "--model", network, *["--epochs", str(epochs)] * (epochs != 240)]
    args = flags.parse(parser, argv)
    settings = settings_of(args)
    assert (args.lr, args.weight_decay, settings.milestones) == ([lr], [5e-4], milestones)
    assert (settings.epochs, settings.batch_size, settings.momentum) == (epochs, 64, 0.9)
    assert (settings.schedule, settings.gamma, settings.nesterov) == ("step", 0.1, False)


def test_weights_of_the_recipe_crd():
    assert weights_of("crd", "sp", 240) == {"alpha": 1.0, "temperature": 4.0, "hard_weight": 1.0}
    both = weights_of("crd", "kd+sp", 240)
    assert both == weights_of("crd", "sp", 240) | {"scale_t2": True}
    assert weights_of("crd", "kd", 240) == {"alpha": 0.9, "temperature": 4.0, "scale_t2": True}
    assert weights_of("crd", "dkd", 24)["soft_warmup"] == 2


def test_pkt_weighs_by_the_recipe_crd_what_repdistillers_does():
    """Its 30000 times a mean over the batch of 64 also counts each image's pair with itself."""
    student, teacher = torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(0)).double()

    def kernel(x):
        similarity = (F.normalize(x) @ F.normalize(x).T + 1) / 2
        return similarity / similarity.sum(1, keepdim=True)

    p, q = kernel(teacher), kernel(student)
    theirs = 30000 * (p * (p / q).log()).mean()
    [beta] = distill.how_trained("pkt", [], arguments("--recipe crd"))["beta"]
    ours = beta * pkt({"pooled": student}, {"pooled": teacher})
    assert ours.item() == pytest.approx(theirs.item(), rel=0.05)


@pytest.mark.parametrize("name", ["cifar10-short", "trial-first"])
def test_a_csv_of_an_older_version_means_the_same_runs(name):
    """Their run ids and their settings are what the same command computes today."""
    path = ROOT / "examples" / name / "results" / "results.csv"
    assert "schedule" not in path.read_text().splitlines()[0]
    for row in read_rows(path).astype(object).to_dict("records"):
        own = {name: row[name] for name in ("model", "seed", "method", "scale_t2", "lr")}
        own |= {name: None if pd.isna(row[name]) else row[name] for name in ("temperature", "beta")}
        own |= {"weight_decay": row["weight_decay"], "width": int(row["width"])}
        own |= {"alpha": 0.0 if pd.isna(row["alpha"]) else row["alpha"]}
        own["teacher_seed"] = None if pd.isna(row["teacher_seed"]) else int(row["teacher_seed"])
        settings = Settings(**{name: row[name] for name in asdict(Settings())})
        cell = Cell(**own, teaches=row["role"] == "teacher")
        whole = 1 - row["val_size"] / 50000 if row["dataset"] == "cifar10" else 0
        sizes = {row["train_size"], 0 if row["train_size"] == 50000 * whole else row["train_size"]}
        assert row["run_id"] in {run_id(cell, replace(settings, train_size=n)) for n in sizes}


def test_a_lone_milestone_is_found_again_and_a_protocol_of_its_own(tmp_path, capsys):
    make_images(tmp_path / "images", train=20, test=10)
    argv = "--dataset folder --epochs 2 --batch-size 16 --lr 0.01 --device cpu".split()
    argv += ["--data-dir", tmp_path / "images", "--out-dir", tmp_path / "out"]
    step = "--schedule step --milestones 1 --gamma 0.5 --momentum 0.9 --nesterov".split()
    for more in ([], step, ["--optimizer", "adamw", "--warmup", "1"]):
        assert script(train_student.main, *argv, *more) == 0
    capsys.readouterr()
    assert script(train_student.main, *argv, *step) == 0
    assert "1 of 1 runs" in capsys.readouterr().out
    rows = read_rows(csv_path(tmp_path / "out"))
    assert list(rows.milestones) == ["none", "1", "none"]
    assert script(summarize.main, "--out-dir", tmp_path / "out") == 0
    said = capsys.readouterr().out
    for words in (
        "2 epochs, T_max 200, batch_size 16, lr 0.01\n",
        "2 epochs, lr × 0.5 after epoch 1, batch_size 16, lr 0.01, momentum 0.9, nesterov\n",
        "2 epochs, T_max 200, batch_size 16, lr 0.01, warmup 1, optimizer adamw\n",
    ):
        assert f"training images, {words}" in said


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    "argv, what",
    [
        ("--out-dir=", "it is empty"),
        ("--data-dir=", "it is empty"),
        ("--milestones 5", "--milestones has no effect without --schedule step"),
        ("--gamma 0.5", "--gamma has no effect without --schedule step"),
        ("--schedule step", "--schedule step needs --milestones"),
        ("--schedule step --milestones 5 5", "--schedule step needs --milestones that grow"),
        ("--schedule step --milestones 9 5", "--schedule step needs --milestones that grow"),
        ("--schedule step --milestones 0", "--schedule step needs --milestones"),
        ("--schedule step --milestones 5,9", "--schedule step needs --milestones"),
        ("--schedule step --milestones -5", "--milestones"),
        ("--schedule step --milestones 1e9 " + "9" * 5000, "--schedule step needs --milestones"),
        ("--schedule step --milestones 5 --t-max 5", "--t-max has no effect without --schedule c"),
        ("--nesterov", "--nesterov has no effect without --momentum"),
        ("--optimizer adamw --momentum 0.9", "--momentum has no effect without --optimizer sgd"),
        ("--optimizer adam", "--optimizer"),
        ("--warmup -1", "--warmup"),
    ],
)
def test_flags_that_contradict_each_other(tmp_path, capsys, argv, what):
    assert script(train_student.main, *argv.split(), "--out-dir", tmp_path) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and what in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [[], ["--quick"]])
@pytest.mark.parametrize("where", ["FLAGS", "TEACHER_FLAGS", "STUDENT_FLAGS"])
def test_exp_sh_takes_a_step_schedule(exp, options, where):  # noqa: F811
    """Whoever has it and whoever has not: no script is given a T_max that its schedule lacks."""
    status, ran, _, _ = exp(0, *options, RANKS="1", **{where: "--schedule step --milestones 5 15"})
    assert status == 0
    schedules = {}
    for line in ran[:-1]:
        name, *argv = line.split(": ")[1].split()
        teaches = name == "train_teacher.py"
        parser = flags.parser("", sweeps=not teaches)
        if teaches:
            flags.add_model(parser, "resnet18", sweeps=False)
        else:
            flags.add_distillation(parser)
            flags.add_teacher(parser)
        who = "ResNet-18" if "--student" in argv else name
        schedules[who] = settings_of(parser.parse_args(argv)).schedule
    having = {"FLAGS": set(schedules), "TEACHER_FLAGS": {"train_teacher.py"}}
    having["STUDENT_FLAGS"] = {"distill.py"}
    assert {who for who, schedule in schedules.items() if schedule == "step"} == having[where]
