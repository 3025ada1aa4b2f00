"""The CUDA path on a GPU: what a CPU's tests cannot tell. Skipped as a whole where there is none.

Kernels that add in no fixed order make two runs differ by rounding, so what is compared with a
tolerance says here which and why.
"""

import functools
import gc
import itertools
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from conftest import GRID, ROOT, TINY, command, of_response, random_split
from method_inputs import RESPONSE, STAGED
from torch import Tensor

from engine import measure, steps
from engine.cells import Cell, Settings
from engine.fused import FusedStep
from engine.loop import train
from engine.parallel import Ranks
from engine.resume import Keeper, Run
from engine.rows import csv_path, read_rows
from engine.sheet import Sheet, check
from engine.steps import PlainStep, Steps
from engine.teacher import Teacher
from engine.trainee import Batch, Trainee, initial_model, student_step
from images.sources import Data
from images.views import Split, Views, epoch_views, gather, normalise
from models import autocast, find

DEVICE = torch.device("cuda", 0)
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


@pytest.fixture(autouse=True)
def as_in_a_run(monkeypatch):
    """The flags that parallel.start sets, and no kernel that adds in no fixed order."""
    for name, value in {"benchmark": True, "allow_tf32": False, "deterministic": True}.items():
        monkeypatch.setattr(torch.backends.cudnn, name, value)


def there(split: Split) -> Split:
    return replace(split, padded=split.padded.to(DEVICE), labels=split.labels.to(DEVICE))


@functools.cache
def small() -> Data:
    """Random pixels on the GPU: 100 images to train on, 40 to test on."""
    splits = there(random_split(100, 1)), there(random_split(40, 2))
    return Data(*splits, None, [str(i) for i in range(10)], MEAN, STD, 0, 0)


@functools.cache
def teacher() -> Teacher:
    """An untrained narrow ResNet-18."""
    model = initial_model(Cell("resnet18", 4, 0, teaches=True), 10).eval().requires_grad_(False)
    model.to(DEVICE, memory_format=torch.channels_last)
    return Teacher(model, "tiny-teacher", "0" * 12, MEAN, STD, False)


def new_run(settings: Settings) -> Run:
    keeper = Keeper.__new__(Keeper)  # without its signal handlers
    return Run(settings, small(), teacher(), ROOT, DEVICE, Ranks(), keeper)


def started(cells: list[Cell], settings: Settings) -> Steps:
    """A pass at the beginning of its first epoch."""
    pass_ = Steps([Trainee(c, settings, 10, DEVICE) for c in cells], new_run(settings))
    begin(pass_, 0)
    return pass_


def begin(pass_: Steps, epoch: int) -> None:
    views = epoch_views(0, epoch, pass_.images)
    pass_.begin(epoch, views, teacher()(gather(pass_.images, views)))


def two_epochs(cells: list[Cell], settings: Settings) -> tuple[Steps, Tensor]:
    """The pass, and all that two epochs leave: sums of each, weights, statistics and momentum."""
    pass_, left = started(cells, settings), []
    for epoch in range(2):
        if epoch:
            begin(pass_, epoch)
        for step in range(pass_.count):
            pass_.take(step)
        for trainee in pass_.trainees:
            left.append(trainee.sums / trainee.sums[4])
            trainee.sums.zero_()
            trainee.epoch, trainee.step = epoch + 1, 0
    left += [tensor for trainee in pass_.trainees for tensor in trainee.tensors()]
    return pass_, torch.cat([tensor.double().flatten() for tensor in left])


# ---------------------------------------------------------------- views


@functools.cache
def many() -> Split:
    return random_split(50_000, 3)


@pytest.mark.parametrize("size", [80, 128, 500, 2000])
def test_views_are_the_cpus(size):
    """Pixels bit for bit; normalised ones to an ulp of x / 255, carried through the rest.

    A GPU divides by a Python number by multiplying with its reciprocal, the CPU does not.
    """
    split, images = there(many()), len(many())
    last_images = torch.arange(split.views) * images + images - 1  # every view of the last one
    every = epoch_views(0, 0, many()).numbers(split)
    for numbers in torch.cat([every[: 20 * size], every[-size:], last_images]).split(size):
        own = gather(split, Views.numbered(numbers.to(DEVICE), split))
        pixels = gather(many(), Views.numbered(numbers, split))
        assert torch.equal(own.cpu(), pixels)
        assert own.is_contiguous(memory_format=torch.channels_last)
        x, expected = normalise(own, MEAN, STD), normalise(pixels, MEAN, STD)
        near = {"rtol": 2**-23, "atol": 2**-23 / min(STD)}
        torch.testing.assert_close(x.cpu(), expected, **near)


def test_a_whole_epoch_of_views_is_the_cpus():
    split, views = there(many()), epoch_views(0, 1, many())
    moved = epoch_views(0, 1, split)
    for start in range(0, len(views), 2000):
        part = slice(start, start + 2000)
        assert torch.equal(gather(split, moved[part]).cpu(), gather(many(), views[part]))


def test_logits_are_independent_of_batch_composition(tmp_path):
    """Where they are not, every epoch would compute them again."""
    check(teacher(), small().train, Sheet(tmp_path / "a.sheet", {}, 100, 10))


# ---------------------------------------------------------------- stacked as in the loop

# Rates that float32 holds exactly, halved in the second epoch: the loop's is a float32 tensor.
OWN = [{"lr": 1 / 32}, {"lr": 1 / 64, "weight_decay": 1 / 128}]


@pytest.mark.parametrize(
    "changes",
    [{}, {"momentum": 0.9, "clip": 1.0, "nesterov": True}, {"optimizer": "adamw"}],
    ids=str,
)
@pytest.mark.parametrize("method", RESPONSE)
def test_fused_agrees_with_the_loop(method, changes):
    """To 1e-10 in float64 over 20 steps, of which the first two were the loop's in both."""
    settings = replace(TINY, **changes)
    cells = [
        of_response(method, a, t, **own) for a in (0.3, 0.9) for t in (1.0, 4.0) for own in OWN
    ]
    cells += [Cell("cnn", 4, 0, lr=1 / 32), of_response("smooth", 0.2, 1.0, lr=1 / 32)]
    loop, stacked = ([Trainee(c, settings, 10, DEVICE) for c in cells] for _ in range(2))
    for trainee in [*loop, *stacked]:
        trainee.model.double()
    one, other = PlainStep(loop, False), PlainStep(stacked, False)
    for step in range(20):
        if step == 2:  # taken up in mid-run, momentum and all
            other = FusedStep(stacked)
        views = epoch_views(0, step // 4, small().train)[(step % 4) * 32 :][:32]
        pixels = gather(small().train, views)
        x, taught = normalise(pixels, MEAN, STD).double(), teacher()(pixels).double()
        batch = Batch(x, small().train.labels[views.index], taught, weight=len(views) / 32)
        for team in (one, other):
            team.anneal(step // 10)
            team(batch)
    for a, b in zip(loop, stacked, strict=True):
        for p, q in zip(a.model.parameters(), b.model.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=1e-10)
        torch.testing.assert_close(a.sums, b.sums, rtol=0, atol=1e-8)


def reference_cells() -> list[Cell]:
    """The reference's 45 cells and the student alone."""
    grid = itertools.product((0.1, 0.3, 0.5, 0.7, 0.9), (1, 2, 3, 4, 5, 10, 20, 50, 100))
    own = {"lr": 0.125, "teacher_seed": 0}
    return [Cell("cnn", 16, 0, "kd", a, float(t), **own) for a, t in grid] + [
        Cell("cnn", 16, 0, lr=0.125)
    ]


def random_batch(size: int, seed: int) -> Batch:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 3, 32, 32, generator=g).to(memory_format=torch.channels_last)
    labels, logits = torch.randint(10, (size,), generator=g), torch.randn(size, 10, generator=g)
    return Batch(x.to(DEVICE), labels.to(DEVICE), 3 * logits.to(DEVICE))


def test_46_cells_agree_with_the_loop_in_float32():
    """Ten steps of 128 images and of the 80 that the reference's last batch has.

    The two add in other orders. Where rounding decides a near tie of the max-pool, weights differ
    by a pixel's gradient: by 2e-5 on a CPU. They move by 3e-2 in these steps; 5e-4 lies between.
    """
    loop, stacked = ([Trainee(c, TINY, 10, DEVICE) for c in reference_cells()] for _ in range(2))
    first = deepcopy(loop[0].model)
    teams = PlainStep(loop, False), FusedStep(stacked)
    for step in range(10):
        for team in teams:
            team.anneal(0)
            team(random_batch(80 if step % 5 == 4 else 128, step))
    moved = [
        (p - q).abs().max()
        for p, q in zip(first.parameters(), loop[0].model.parameters(), strict=True)
    ]
    assert max(moved) > 1e-2
    for a, b in zip(loop, stacked, strict=True):
        for p, q in zip(a.model.parameters(), b.model.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=5e-4)
        torch.testing.assert_close(a.sums / a.sums[4], b.sums / b.sums[4], rtol=0, atol=1e-3)


@pytest.mark.parametrize("changes", [{"momentum": 0.9}, {"optimizer": "adamw"}], ids=str)
def test_a_lone_cell_goes_on_from_a_stack(changes):
    """As on more ranks than before: momentum in another layout, the rate in the very tensor."""
    settings = replace(TINY, **changes)
    stacked = [Trainee(cell, settings, 10, DEVICE) for cell in GRID]
    lone, team = Trainee(GRID[0], settings, 10, DEVICE), FusedStep(stacked)
    team(random_batch(32, 0))
    lone.load(stacked[0].state())
    alone = PlainStep([lone], False)
    for each in (team, alone):
        each.anneal(1)
        each(random_batch(32, 1))
    assert all(group["lr"] is lone.lr for group in lone.optimiser.param_groups)
    assert torch.as_tensor(lone.lr).device == DEVICE
    assert float(lone.lr) == pytest.approx(lone.lr_at(1), rel=1e-6)
    for p, q in zip(lone.model.parameters(), stacked[0].model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-4)


# ---------------------------------------------------------------- recorded as launched

RESNET = [Cell("resnet18", 4, 0, "kd", 0.5, 4.0, lr=0.05, teacher_seed=0)]
RECORDED = {
    "a stack": (GRID, False),
    "one CNN": (GRID[:1], False),
    "a ResNet": (RESNET, False),
    "a ResNet, phased in": ([replace(RESNET[0], soft_warmup=2)], False),
    "a ResNet in bfloat16": (RESNET, True),
}


@pytest.mark.parametrize(
    "what, changes",
    [
        *itertools.product(RECORDED, ({}, {"momentum": 0.9})),
        *itertools.product(("a stack", "one CNN"), [{"optimizer": "adamw"}]),
    ],
)
def test_recorded_steps_leave_what_launched_ones_do(monkeypatch, what, changes):
    """Over two epochs of three whole batches and a last of four images.

    cuDNN is told to add in a fixed order; some of torch's own kernels may not. So two passes of
    launched steps say how far apart such passes are, and a recorded one may be ten times as far;
    where they are equal, 1e-4, far less than a step of these.
    """
    cells, amp = RECORDED[what]
    settings = replace(TINY, **changes, amp=amp)
    pass_, recorded = two_epochs(cells, settings)
    assert pass_.replay
    monkeypatch.setattr(steps, "CAPTURE", {})
    pass_, launched = two_epochs(cells, settings)
    assert not pass_.replay and launched.isfinite().all()
    noise = (two_epochs(cells, settings)[1] - launched).abs().max().item()
    assert noise < 1e-2
    torch.testing.assert_close(recorded, launched, rtol=0, atol=10 * noise + 1e-4)


def test_compiled_steps_leave_what_torchs_own_kernels_do(monkeypatch, capsys):
    """Over two epochs, recorded both times; as far apart as kernels that add in other orders."""
    settings = replace(TINY, momentum=0.9)
    pass_, plain = two_epochs(GRID, settings)
    assert not pass_.teams[0].compiled
    monkeypatch.setattr(steps, "COMPILE_FROM", 0)
    pass_, compiled = two_epochs(GRID, settings)
    assert pass_.replay and pass_.teams[0].compiled and not capsys.readouterr().err
    torch.testing.assert_close(compiled, plain, rtol=0, atol=1e-4)


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("what", RECORDED)
def test_ten_steps_never_wait_for_the_gpu(monkeypatch, what, recorded):
    cells, amp = RECORDED[what]
    if not recorded:
        monkeypatch.setattr(steps, "CAPTURE", {})
    pass_ = started(cells, replace(TINY, batch_size=8, momentum=0.9, amp=amp))
    for step in range(2):
        pass_.take(step)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(2, 12):
            pass_.take(step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert bool(pass_.replay) == recorded


def refuse() -> None:
    """A step that asks for a value cannot be recorded: launched instead, and nothing is lost."""
    launch = Steps._whole_batch

    def ask(self):
        launch(self)
        self.start.item()

    before = torch.cuda.current_stream()
    torch.backends.cudnn.deterministic = True
    settings = replace(TINY, momentum=0.9)
    Steps._whole_batch = ask
    pass_, refused = two_epochs(GRID, settings)
    assert not pass_.replay and torch.cuda.current_stream() == before
    steps.CAPTURE.clear()
    torch.testing.assert_close(refused, two_epochs(GRID, settings)[1], rtol=0, atol=1e-4)


def test_a_step_that_cannot_be_recorded_is_launched():
    """In a process of its own: torch does not promise what a failed capture leaves behind."""
    path = [str(ROOT), str(ROOT / "tests")]
    done = command("-c", f"import sys; sys.path[:0] = {path}; import test_cuda; test_cuda.refuse()")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("this step cannot be recorded") == 1


# ---------------------------------------------------------------- memory, bfloat16, NCCL


def test_methods_on_layers_train_along_there(tmp_path):
    """Modules, crd's bank and the weight of --beta auto, beside kd as well."""
    cells = [
        Cell("resnet8", 4, 0, name, 0.5, 4.0 * ("kd" in name) or None, None, teacher_seed=0,
             auto_beta=True)
        for name in (*STAGED, "kd+crd")
    ]  # fmt: skip
    run = Run(TINY, small(), teacher(), tmp_path, DEVICE, Ranks(), Keeper(1e9))
    assert train(cells, cells, run) == []


def test_beside_a_method_on_activations_the_others_are_recorded(tmp_path, monkeypatch):
    """They leave what they leave where every kernel is launched, up to rounding."""
    sp = Cell("cnn", 4, 0, "sp", 0.5, beta=1.0, lr=0.05, teacher_seed=0)
    losses = []
    for name in ("recorded", "launched"):
        run = Run(TINY, small(), teacher(), tmp_path / name, DEVICE, Ranks(), Keeper(1e9))
        assert train([sp, *GRID], [sp, *GRID], run) == []
        losses.append(read_rows(csv_path(run.out_dir)).test_loss)
        monkeypatch.setattr(steps, "CAPTURE", {})
        monkeypatch.setattr(steps, "FUSES", set())
    assert list(losses[0]) == pytest.approx(list(losses[1]), abs=1e-3)


def test_46_cells_take_less_than_4_gb():
    """A recorded step on 128 images, and 500 images measured."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()  # by other tests of this process
    run = new_run(replace(TINY, batch_size=128))
    splits = there(random_split(300, 4)), there(random_split(500, 5))
    run.data = replace(run.data, train=splits[0], test=splits[1])
    trainees = [Trainee(cell, run.settings, 10, DEVICE) for cell in reference_cells()]
    pass_ = Steps(trainees, run)
    pass_.begin(0, epoch_views(0, 0, splits[0]), torch.zeros(300, 10, device=DEVICE))
    for step in range(pass_.count):
        pass_.take(step)
    assert pass_.replay
    assert len(measure.record(pass_.predictor(trainees), run.data)) == 46
    assert torch.cuda.max_memory_allocated() - before < 4e9


def test_bfloat16_ends_before_the_logits():
    model = initial_model(RESNET[0], 10).to(DEVICE, memory_format=torch.channels_last)
    with autocast(model, DEVICE, True):
        x = random_batch(32, 0).x
        with find(model, x).watch() as stages:
            logits = model(x)
    assert stages["stage4"].dtype == torch.bfloat16 and logits.dtype == torch.float32
    trainee = Trainee(RESNET[0], replace(TINY, amp=True), 10, DEVICE)
    for step in range(5):
        student_step(trainee, random_batch(32, step))
    assert all(tensor.isfinite().all() for tensor in trainee.tensors())


NCCL = """
import sys
sys.path[:0] = {path}
import torch
import torch.distributed as dist
from test_cuda import DEVICE
from engine.parallel import Ranks, all_gather, from_lead

torch.cuda.set_device(DEVICE)
dist.init_process_group("nccl", init_method="file://{file}", rank=0, world_size=1)
item = {{"rows": [1, 2.5, None, "a"], "logits": torch.arange(6.0).view(2, 3)}}
for back in (*all_gather(Ranks(), item), from_lead(Ranks(), item)):
    assert back is not item and back["rows"] == item["rows"]
    assert back["logits"].device.type == "cpu" and torch.equal(back["logits"], item["logits"])
dist.destroy_process_group()
"""


def test_ranks_talk_over_nccl(tmp_path):
    """One rank alone, as a GPU is no two ranks'."""
    path = [str(ROOT), str(ROOT / "tests")]
    done = command("-c", NCCL.format(path=path, file=tmp_path / "rendezvous"))
    assert done.returncode == 0, done.stderr
