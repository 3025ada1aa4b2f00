"""How steps are taken: stacked as in the loop, recorded as launched, settings of a cell's own."""

import contextlib
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from conftest import CPU, GRID, TINY, Countdown, of_response, train_all
from method_inputs import RESPONSE
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from engine import graph, steps
from engine.cells import Cell, run_id
from engine.fused import FusedStep, can_fuse, first_max
from engine.loop import train
from engine.rows import csv_path, read_rows
from engine.steps import PlainStep, Steps
from engine.trainee import Batch, Trainee
from images.views import epoch_views, gather, normalise
from models.cnn import Pool
from utils import Interrupted, UserError

OWN = [{"lr": 0.1}, {"lr": 0.03, "weight_decay": 1e-2}]


def batch_number(step: int, data, teacher) -> Batch:
    """A batch in float64, the fourth of every epoch a small one."""
    views = epoch_views(0, step // 4, data.train)[(step % 4) * 32 :][:32]
    pixels = gather(data.train, views)
    x = normalise(pixels, data.mean, data.std).double()
    weight = len(views) / 32
    return Batch(x, data.train.labels[views.index], teacher(pixels).double(), weight=weight)


@pytest.mark.parametrize(
    "changes, method",
    [
        ({}, "kd"),
        ({"momentum": 0.9, "clip": 1.0, "nesterov": True}, "kd"),
        ({"optimizer": "adamw"}, "kd"),
        *(({"momentum": 0.9}, name) for name in RESPONSE),
    ],
)
def test_fused_agrees_with_the_loop(tiny_data, tiny_teacher, changes, method):
    """To 1e-10 in float64 over 20 steps, with a control and scaled cells in the same company."""
    settings = replace(TINY, **changes)
    cells = [
        of_response(method, a, t, **own) for a in (0.3, 0.9) for t in (1.0, 4.0) for own in OWN
    ]
    cells += [Cell("cnn", 4, 0), Cell("cnn", 4, 0, "none", 0.5)]
    cells += [replace(cells[1], scale_t2=method == "kd"), of_response("smooth", 0.2, 1.0)]
    loop, stacked = ([Trainee(c, settings, 10, CPU) for c in cells] for _ in range(2))
    for trainee in [*loop, *stacked]:
        trainee.model.double()
    assert can_fuse(stacked)
    one, other = PlainStep(loop, False), PlainStep(stacked, False)
    for step in range(20):
        if step == 2:  # taken up in mid-run, momentum and all
            other = FusedStep(stacked)
        for team in (one, other):
            team.anneal(step // 10)
            team(batch_number(step, tiny_data, tiny_teacher))
    for a, b in zip(loop, stacked, strict=True):
        for p, q in zip(a.model.parameters(), b.model.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=1e-10)
        torch.testing.assert_close(a.sums, b.sums, rtol=0, atol=1e-8)
    x, chosen = batch_number(0, tiny_data, tiny_teacher).x, {*loop[1:4], *stacked[1:4]}
    with torch.no_grad():
        for p, q in zip(one.predict(x, chosen), other.predict(x, chosen), strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=1e-8)


def test_momentum_from_a_stack_is_laid_out_as_a_lone_cell_s_weights(tiny_data, tiny_teacher):
    """As when two ranks go on from what one has saved: torch's fused SGD refuses two layouts."""
    settings = replace(TINY, momentum=0.9)
    stacked = [Trainee(cell, settings, 10, CPU) for cell in GRID]
    team = FusedStep(stacked)
    batch = batch_number(0, tiny_data, tiny_teacher)
    team(replace(batch, x=batch.x.float(), logits=batch.logits.float()))
    lone = Trainee(GRID[0], settings, 10, CPU)
    lone.load(stacked[0].state())
    for p, q in zip(lone.model.parameters(), stacked[0].model.parameters(), strict=True):
        own, other = (
            t.optimiser.state[w]["momentum_buffer"] for t, w in ((lone, p), (stacked[0], q))
        )
        assert own.stride() == p.stride() and torch.equal(own, other) and own.any()


def test_of_equal_pixels_the_first_has_the_pools_gradient():
    """As F.max_pool2d decides it; the black border that a crop adds is full of equal pixels."""
    x = torch.randint(0, 3, (4, 6, 16, 16)).double().requires_grad_()
    weights = torch.randn(4, 6, 16, 16, dtype=torch.float64)
    ours = first_max(first_max(x.permute(0, 2, 3, 1), 2), 1).permute(0, 3, 1, 2)
    gradients = [torch.autograd.grad((y * weights).sum(), x)[0] for y in (ours, Pool()(x))]
    assert torch.equal(ours, Pool()(x))
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


def test_a_long_pass_is_compiled_where_it_can_be(make_run, monkeypatch, capsys):
    """Whole batches alone. Where the compiler fails a line says so, and weights are the same."""
    sizes = []

    def compiler(losses, dynamic):
        def run(batch):
            sizes.append(len(batch.labels))
            if broken:
                raise RuntimeError("no C compiler\nand more")
            return losses(batch)

        return run

    for name, value in {"FUSES": {"cpu"}, "CAPTURE": {"cpu": lambda step: step}}.items():
        monkeypatch.setattr(steps, name, value)
    broken, plain = False, train_all(GRID, make_run("plain"))
    monkeypatch.setattr(torch, "compile", compiler)
    assert train_all(GRID, make_run("short")) == plain and not sizes
    monkeypatch.setattr(steps, "COMPILE_FROM", 8)  # an epoch's 4 steps, two epochs
    assert train_all(GRID, make_run("compiled")) == plain and set(sizes) == {32}
    assert not capsys.readouterr().err.count("cannot be compiled")
    broken, sizes = True, []
    assert train_all(GRID, make_run("broken")) == plain and len(sizes) == 1
    assert capsys.readouterr().err.count("cannot be compiled (no C compiler)") == 1
    broken, lost = False, torch.autograd.grad  # the gradient is compiled as late as it is asked for

    def first_fails(*args):
        monkeypatch.setattr(torch.autograd, "grad", lost)
        raise RuntimeError("no Triton")

    monkeypatch.setattr(torch.autograd, "grad", first_fails)
    assert train_all(GRID, make_run("late")) == plain
    assert capsys.readouterr().err.count("cannot be compiled (no Triton)") == 1


def test_batch_norm_students_are_not_fused():
    assert not can_fuse([Trainee(Cell("resnet18", 2, s), TINY, 10, CPU) for s in (0, 1)])


def test_a_pass_of_stacks_leaves_what_the_loop_leaves(make_run, monkeypatch):
    """Two widths, a stack that is full, the student alone: rows in order, accuracies the same."""
    cells = [replace(cell, width=width) for width in (4, 6) for cell in GRID]
    cells += [Cell("cnn", 6, 0, lr=0.05)]
    plain, fused = make_run("plain"), make_run("fused")
    train_all(cells, plain)
    monkeypatch.setattr(steps, "FUSES", {"cpu"})
    monkeypatch.setattr(steps, "STACK", 3)
    train_all(cells, fused)
    rows = [read_rows(csv_path(run.out_dir)) for run in (plain, fused)]
    assert list(rows[0].run_id) == list(rows[1].run_id) and rows[0].width.nunique() == 2
    for figure in ("test_acc", "best_test_acc", "train_acc", "teacher_kl"):
        assert list(rows[1][figure]) == pytest.approx(list(rows[0][figure]), abs=1e-4)


# ---------------------------------------------------------------- recorded and replayed


class Tape:
    """Stands for the capture of a CUDA graph: some steps to warm up, then `step` on every replay.

    Unlike a graph, a replay reads Python's numbers anew; Kernels does not.
    """

    def __init__(self):
        self.recorded = self.replayed = 0

    def __call__(self, step):
        self.recorded += 1
        for _ in range(graph.WARM_UP):
            step()

        def replay():
            self.replayed += 1
            step()

        return replay


RECORDED = {
    "a stack": GRID,
    "one CNN": GRID[:1],
    "ResNets": [Cell("resnet18", 2, 0, "kd", a, 4.0, lr=0.05, teacher_seed=0) for a in (0.2, 0.8)],
    "labels alone": [of_response("smooth", 0.1, 1.0)],
}


@pytest.mark.parametrize(
    "what, changes",
    [
        *product(RECORDED, ({}, {"momentum": 0.9})),
        *product(("a stack", "one CNN"), [{"optimizer": "adamw"}]),
    ],
)
def test_a_recorded_step_leaves_the_same_bits(make_run, monkeypatch, what, changes):
    """Warm-up leaves no trace in weights, the optimiser, batch-norm statistics or sums."""
    cells = RECORDED[what]
    settings = replace(TINY, **changes, epochs=3, t_max=3)
    monkeypatch.setattr(steps, "FUSES", {"cpu"})
    eager = train_all(cells, make_run("eager", settings))
    tape = Tape()
    monkeypatch.setitem(steps.CAPTURE, "cpu", tape)
    run = make_run("recorded", settings)
    assert train_all(cells, run) == eager
    assert tape.recorded == 1 and tape.replayed == 3 * 3  # the fourth batch of 4 images is not
    figures = [read_rows(csv_path(make_run(n).out_dir)) for n in ("eager", "recorded")]
    assert figures[0].train_acc.equals(figures[1].train_acc)
    for chances in (2, 6, 9):  # stopped in mid-epoch, and recorded anew
        stopped = make_run(f"stopped {chances}", settings, keeper=Countdown(chances))
        with pytest.raises(Interrupted):
            train(cells, cells, stopped)
        stopped.keeper = Countdown(10**9)
        assert train_all(cells, stopped) == eager


class Kernels(TorchDispatchMode):
    """A recording as a CUDA graph's: the kernels, on the memory and with the numbers they had."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **kwargs or {})
        self.calls.append((func, args, kwargs or {}, found))
        return found

    @torch.no_grad()
    def replay(self):
        now = {}  # what stands for the recording's results

        def current(x):
            return now.get(id(x), x) if isinstance(x, Tensor) else x

        for func, args, kwargs, found in self.calls:
            new = func(*tree_map(current, args), **tree_map(current, kwargs))
            now |= zip(map(id, tree_leaves(found)), tree_leaves(new), strict=True)


@pytest.mark.parametrize("model", ["cnn", "resnet18"])
def test_a_replay_has_the_weight_that_the_soft_loss_has_in_its_epoch(make_run, monkeypatch, model):
    """It grows over four epochs. It is a tensor here, as it is on a GPU."""
    recordings = []

    def capture(step):
        step()
        recordings.append(Kernels())
        with recordings[-1]:
            step()
        return recordings[-1].replay

    monkeypatch.setattr(steps, "FUSES", {"cpu"})
    monkeypatch.setitem(steps.CAPTURE, "cpu", capture)
    settings = replace(TINY, epochs=5, last_batch="drop")
    cell = Cell(model, 2, 0, "dkd", 0.5, 4.0, beta=1.0, lr=0.05, teacher_seed=0, soft_warmup=4)
    trainee = Trainee(cell, settings, 10, CPU)
    trainee.weight = torch.tensor(trainee.weight)
    pass_ = Steps([trainee], make_run("out", settings))
    seen = []
    for epoch in range(5):
        pass_.begin(epoch, epoch_views(0, epoch, pass_.images), torch.randn(100, 10))
        for step in range(pass_.count):
            pass_.take(step)
        loss, hard, soft = trainee.sums[:3].tolist()
        seen.append((loss - 0.5 * hard) / (0.5 * soft))
        trainee.epoch, trainee.step = epoch + 1, 0
        trainee.sums.zero_()
    assert len(recordings) == 1
    assert seen == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0], abs=1e-4)


def test_where_a_step_cannot_be_recorded_it_is_launched(make_run, monkeypatch, capsys):
    def refuse(step):
        try:
            step()
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        finally:
            raise RuntimeError("the capture is invalid")  # as the end of a CUDA graph's does

    eager = train_all(GRID, make_run("eager"))
    monkeypatch.setitem(steps.CAPTURE, "cpu", refuse)
    assert train_all(GRID, make_run("refused")) == eager
    said = capsys.readouterr().err
    assert said.count("cannot be recorded (operation not permitted") == 1 and "more" not in said


def test_beside_methods_on_activations_all_others_are_stacked_and_recorded(make_run, monkeypatch):
    """Their rows are their own, though a pass takes the cells in another order than the command."""
    sp, both = (Cell("cnn", 4, 0, m, 0.5, beta=1.0, lr=0.05, teacher_seed=0) for m in ("sp", "at"))
    cells = [sp, *GRID[:2], both, *GRID[2:]]
    settings = replace(TINY, momentum=0.9)
    plain, stacked, stopped = (make_run(n, settings) for n in ("plain", "stacked", "stopped"))
    train_all(cells, plain)
    tape = Tape()
    monkeypatch.setattr(steps, "FUSES", {"cpu"})
    monkeypatch.setitem(steps.CAPTURE, "cpu", tape)
    kinds = Steps([Trainee(cell, settings, 10, CPU) for cell in cells], stacked)
    assert [(type(team), len(team.trainees)) for team in kinds.teams] == [
        (FusedStep, len(GRID)), (PlainStep, 2)
    ]  # fmt: skip
    left = train_all(cells, stacked)
    assert tape.recorded == 1 and tape.replayed == 2 * 3  # the fourth batch of 4 images is not
    rows = [read_rows(csv_path(run.out_dir)) for run in (plain, stacked)]
    assert list(rows[0].run_id) == list(rows[1].run_id)
    for figure in ("test_acc", "best_test_acc", "train_acc", "teacher_kl"):
        assert list(rows[1][figure]) == pytest.approx(list(rows[0][figure]), abs=1e-4)
    stopped.keeper = Countdown(6)
    with pytest.raises(Interrupted):
        train(cells, cells, stopped)
    stopped.keeper = Countdown(10**9)
    assert train_all(cells, stopped) == left
    tape.recorded = 0
    alone = make_run("alone", settings)
    train_all([sp, both], alone)
    assert tape.recorded == 0
    own = read_rows(csv_path(alone.out_dir)).set_index("run_id")
    measured = ["test_acc", "best_test_acc"]
    assert rows[0].set_index("run_id").loc[own.index, measured].equals(own[measured])


class Watch(TorchDispatchMode):
    """Fails at what a CUDA graph cannot record: the host reading a value or handing over memory.

    What the host makes (torch.tensor of a list) shows on the CPU, what it copies on another device.
    """

    READS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "lift_fresh"}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        places = tree_leaves(args[1]) if name in ("index", "index_put", "index_put_") else []
        masked = any(p.dtype in (torch.bool, torch.uint8) for p in places if p is not None)
        assert name not in self.READS and not masked, f"{name} waits for the device"
        found = func(*args, **kwargs or {})
        tensors = [x for x in tree_leaves((args, kwargs, found)) if isinstance(x, Tensor)]
        if len({tensor.device for tensor in tensors}) > 1:  # a number may go along, as an argument
            numbers = all(t.ndim == 0 for t in tensors if t.device == CPU)
            assert numbers and name not in ("_to_copy", "copy_"), f"{name} copies from the host"
        return found


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("what", [*RECORDED, "all methods"])
def test_a_recorded_step_asks_for_no_value_and_takes_no_tensor_from_the_host(
    make_run, monkeypatch, what, device
):
    cells = RECORDED.get(what) or [of_response(method, 0.5, 4.0) for method in RESPONSE]
    device = torch.device(device)
    monkeypatch.setattr(steps, "FUSES", {device.type})
    if device.type == "meta":  # which has no autocast
        monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    settings = replace(TINY, momentum=0.9)
    run = make_run("out", settings, device=device)
    train = run.data.train
    moved = {"padded": train.padded.to(device), "labels": train.labels.to(device)}
    run.data = replace(run.data, train=replace(train, **moved))
    pass_ = Steps([Trainee(cell, settings, 10, device) for cell in cells], run)
    pass_.begin(0, epoch_views(0, 0, pass_.images), torch.zeros(100, 10, device=device))
    pass_._whole_batch()  # the warm-up, in which constants come to be
    with Watch():
        pass_._whole_batch()


HOST = {
    "a value": lambda x: x.sum().item(),
    "a branch": lambda x: 1 if x.sum() > 0 else 0,
    "a mask": lambda x: x[x > 0],
    "places by value": lambda x: x.nonzero(),
    "a list": lambda x: x + torch.tensor([1.0, 2.0]),
    "NumPy's memory": lambda x: x + torch.from_numpy(np.ones(2)),
    "a copy": lambda x: torch.empty(2, device="meta").copy_(x),
    "a number's copy": lambda x: torch.ones(()).to("meta"),
}


@pytest.mark.parametrize("what", HOST)
def test_the_watch_sees(what):
    with pytest.raises(AssertionError, match="waits for the device|copies from the host"), Watch():
        HOST[what](torch.ones(2))


@pytest.mark.parametrize("what", RECORDED)
def test_a_step_leaves_no_graph_of_gradients(make_run, monkeypatch, what):
    """One that lived on would belong to the stream of its step, and spoil the recording of one."""
    monkeypatch.setattr(steps, "FUSES", {"cpu"})
    trainees = [Trainee(cell, TINY, 10, CPU) for cell in RECORDED[what]]
    pass_ = Steps(trainees, make_run())
    pass_.begin(0, epoch_views(0, 0, pass_.images), torch.zeros(100, 10))
    leaves = [p for t in trainees for p in t.model.parameters()]
    leaves += [p for team in pass_.teams for p in getattr(team, "stacks", {}).values()]

    def nodes():
        return [get_gradient_edge(leaf).node for leaf in leaves]

    marked = nodes()
    for node in marked:  # alive while the step uses them, and for as long as it does
        node.metadata["of a step"] = True
    pass_.take(0)
    assert all("of a step" in node.metadata for node in nodes())
    del marked, node
    assert not any("of a step" in node.metadata for node in nodes())


# ---------------------------------------------------------------- a cell's own settings


def test_own_settings_give_the_same_bits_alone_and_in_a_sweep(make_run):
    """Learning rates, weight decays and widths in one pass, and the student alone beside them."""
    cells = [replace(c, **own) for c in GRID[:2] for own in OWN]
    cells += [replace(GRID[0], width=6), Cell("cnn", 4, 0, lr=0.3)]
    together = train_all(cells, make_run("sweep"))
    assert len(set(together.values())) == len(cells)
    for cell in cells:
        name = run_id(cell, TINY)
        assert train_all([cell], make_run(name)) == {name: together[name]}


@pytest.mark.parametrize(("last_batch", "count"), [("keep", 4), ("weigh", 4), ("drop", 3)])
def test_the_last_batch(make_run, last_batch, count):
    """Of 100 images in batches of 32 the last has 4."""
    settings = replace(TINY, last_batch=last_batch)
    run = make_run("out", settings)
    trainee = Trainee(GRID[0], settings, 10, CPU)
    pass_ = Steps([trainee], run)
    assert pass_.count == count
    views = epoch_views(0, 0, pass_.images)
    pass_.begin(0, views, run.teacher(gather(run.data.train, views)))
    for step in range(pass_.count):
        pass_.take(step)
    assert trainee.sums[4] == (100 if count == 4 else 96)
    suffix = "" if last_batch == "keep" else f"-last{last_batch}"
    assert run_id(GRID[0], settings).endswith(f"b32{suffix}-lr0.05-tmax2")


def test_a_weighed_last_batch_steps_as_far_as_its_share(make_run):
    """Plain SGD over one epoch at a tiny rate, so that steps add up."""
    moved = {}
    for last_batch in ("keep", "weigh", "drop"):
        settings = replace(TINY, last_batch=last_batch, epochs=1)
        trainee = Trainee(replace(GRID[0], lr=1e-4), settings, 10, CPU)
        first = trainee.model.head.bias.detach().clone()
        pass_ = Steps([trainee], make_run("out", settings))
        views = epoch_views(0, 0, pass_.images)
        pass_.begin(0, views, torch.zeros(100, 10))
        for step in range(pass_.count):
            pass_.take(step)
        moved[last_batch] = (trainee.model.head.bias.detach() - first).double()
    last = moved["keep"] - moved["drop"]  # what the last batch's whole step adds
    torch.testing.assert_close(moved["weigh"] - moved["drop"], last * 4 / 32, rtol=1e-2, atol=1e-8)


def moved_by_a_step(clip, batch):
    """How far a step at lr 0.1 moves the weights of a distilled student, in all."""
    trainee = Trainee(replace(GRID[0], lr=0.1), replace(TINY, clip=clip), 10, CPU)
    trainee.model.double()
    first = [p.detach().clone() for p in trainee.model.parameters()]
    PlainStep([trainee], False)(batch)
    moved = [p - q for p, q in zip(trainee.model.parameters(), first, strict=True)]
    return torch.cat([m.flatten() for m in moved]).norm().item()


def test_a_clipped_step_is_as_long_as_the_norm_and_no_shorter_one_is_touched(
    tiny_data, tiny_teacher
):
    batch = batch_number(0, tiny_data, tiny_teacher)
    free = moved_by_a_step(0.0, batch)
    assert moved_by_a_step(free / 0.1 / 2, batch) == pytest.approx(free / 2, rel=1e-5)
    assert moved_by_a_step(free / 0.1 * 2, batch) == free
    assert run_id(GRID[0], replace(TINY, clip=5.0)).endswith("-clip5")


def test_nothing_left_by_a_dropped_batch_is_an_error(make_run):
    settings = replace(TINY, last_batch="drop", batch_size=128)
    with pytest.raises(UserError, match="leaves nothing of 100 images"):
        train(GRID, GRID, make_run("out", settings))


def test_a_small_last_batch_is_named_where_a_loss_diverges(make_run):
    wild = replace(GRID[0], lr=1e30)
    [line] = train([wild], [wild], make_run("keep"))
    assert "lr 1e+30" in line and "on 4 images" in line and "--last-batch weigh" in line
    [line] = train([wild], [wild], make_run("weigh", replace(TINY, last_batch="weigh")))
    assert "last-batch" not in line
