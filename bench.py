"""What a grid costs: a plain loop (teacher in every step) and the engine.

    python bench.py                                                # synthetic images
    python bench.py --dataset cifar10 --data-dir D --ranks 2       # the images of a folder

The networks have the reference's size and random weights. Writes results/bench.md below --out-dir.
"""

import argparse
import dataclasses
import functools
import itertools
import logging
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).parent))  # python -P leaves it out

import flags
from engine import measure
from engine.cells import Cell, Settings
from engine.grid import bfloat16_is_faster, grouped
from engine.parallel import Ranks, keep_freed_memory, prepare
from engine.resume import Run
from engine.rows import machine
from engine.sheet import Sheet, epoch_logits, view_logits
from engine.steps import Steps
from engine.teacher import CHUNK, Teacher
from engine.trainee import Batch, Trainee, initial_model, student_step
from images.sources import SOURCES, Data, load
from images.views import Split, epoch_views, plain
from reporting import cost
from reporting.cost import ALPHAS, BATCH, EPOCHS, GRID, IMAGES, SEEDS, TEMPERATURES, TEST_IMAGES
from utils import ROOT, UserError, check_writable, run_script, write_atomic

SIZES = [1, 5, GRID, SEEDS * GRID]
BLOCK = {"cpu": 1, "cuda": 20}  # steps from one look at the clock to the next
RESNET = Cell("resnet18", 64, 0, teaches=True)


def timed(work: Callable[[int], object], repeats: int, device: torch.device, block: int) -> float:
    """Median seconds of `work(i)` over blocks of `block` calls, after two blocks of warm-up.

    A GPU is synchronised only between blocks, as training does not wait after every step.
    """
    numbers, times = itertools.count(), []
    for _ in range(repeats + 2):
        begun = time.perf_counter()
        for i in itertools.islice(numbers, block):
            work(i)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append((time.perf_counter() - begun) / block)
    return statistics.median(times[2:])


def busy(work: Callable[[int], object], seconds: float, device: torch.device) -> float:
    """The fraction of the `seconds` of `work(i)` that a GPU is busy; 0 without one."""
    if device.type != "cuda":
        return 0.0
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for i in range(BLOCK["cuda"]):
            work(i)
        torch.cuda.synchronize()
    on_gpu = (e for e in seen.events() if e.device_type == DeviceType.CUDA)
    kernels = sum(e.self_device_time_total for e in on_gpu if not e.is_user_annotation)  # us
    return kernels / 1e6 / BLOCK["cuda"] / seconds


def make_teacher(data: Data, device: torch.device, amp: bool) -> Teacher:
    model = initial_model(RESNET, len(data.classes))
    model = model.to(device).eval().requires_grad_(False)
    return Teacher(model, "bench", "", data.mean, data.std, amp)


def grid(count: int) -> list[Cell]:
    """The first `count` cells of the reference's grid, seed after seed."""
    every = product(range(SEEDS), ALPHAS, TEMPERATURES)
    cells = [Cell("cnn", 16, seed, "kd", a, t, teacher_seed=0) for seed, a, t in every]
    return cells[:count]


# ---------------------------------------------------------------- the plain way


class PilImages(Dataset):
    """Training images as torchvision serves them: PIL images through transforms, in a worker."""

    def __init__(self, data: Data, count: int):
        from PIL import Image
        from torchvision import transforms as t

        pixels = plain(data.train, slice(0, count)).permute(0, 2, 3, 1).cpu().numpy()
        self.images = [Image.fromarray(image) for image in pixels]
        self.labels = data.train.labels[:count].tolist()
        augment = [t.RandomCrop(32, padding=4), t.RandomHorizontalFlip()]
        self.transform = t.Compose([*augment, t.ToTensor(), t.Normalize(data.mean, data.std)])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


def plain_way(data: Data, device: torch.device, job: argparse.Namespace, wait: Callable) -> dict:
    """Seconds a step of the plain loop; with job.amp the teacher in bfloat16 and channels last."""
    teacher, block = make_teacher(data, device, job.amp), BLOCK[device.type]
    if job.amp:
        teacher.model.to(memory_format=torch.channels_last)
    student = Trainee(grid(1)[0], Settings(), len(data.classes), device)
    student.model.to(memory_format=torch.contiguous_format)
    images = PilImages(data, min(BATCH * block * (job.repeats + 2), len(data.train)))
    loader = DataLoader(images, BATCH, shuffle=True, num_workers=min(4, os.cpu_count()))
    batches = itertools.chain.from_iterable(itertools.repeat(loader))

    def teach(x: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=job.amp):
            return teacher.model(x).float()

    def step(_: int) -> None:
        x, labels = (part.to(device) for part in next(batches))
        student_step(student, Batch(x, labels, teach(x)))

    whole = timed(step, job.repeats, device, block)
    x, labels = (part.to(device) for part in next(iter(DataLoader(images, BATCH))))
    asks = timed(lambda _: teach(x), job.repeats, device, block)
    batch = Batch(x, labels, teach(x))
    students = timed(lambda _: student_step(student, batch), job.repeats, device, block)
    # The rest of the step is waiting for the workers: images, transforms, collation.
    view = max(whole - asks - students, 0)
    return {"ask": asks, "view": view, "students": students, "busy": busy(step, whole, device)}


# ---------------------------------------------------------------- the engine


def engine_way(data: Data, device: torch.device, job: argparse.Namespace, wait: Callable) -> dict:
    """Seconds a step: the teacher's logits of a batch, and the steps of all cells.

    As in training, a seed's cells are trained together, one seed after the other.
    """
    teacher = make_teacher(data, device, job.amp)
    chunk, images = CHUNK[device.type], len(data.train)
    teacher.model.to(memory_format=torch.channels_last)
    with tempfile.TemporaryDirectory() as folder:
        every = data.train.views * images
        sheet = Sheet(Path(folder) / "bench.sheet", {}, every, len(data.classes))
        # No keeper, as nothing is saved. As many steps as the reference's, whatever the number of
        # images, so that a GPU compiles them.
        settings = Settings(amp=job.amp, epochs=EPOCHS * IMAGES // images)
        how = settings, data, teacher, Path(), device, Ranks(), None
        run = Run(*how, sheet=sheet)
        views = epoch_views(0, 0, data.train)

        def compute_and_cache(i: int) -> None:
            start = i * chunk % max(images - chunk, 1)
            own = views[start : start + chunk]
            sheet.write(own.numbers(data.train).cpu(), view_logits(teacher, data.train, own))

        wait()
        asks = timed(compute_and_cache, job.repeats, device, 1)
        *others, last = grouped(grid(job.cells))
        passes = [time_pass(group, run, job, wait) for group in others]
        passes.append(time_pass(last, run, job, wait, last=True))
    found = {name: sum(one[name] for one in passes) for name in ("view", "students")}
    # The teacher's chunks are distributed over the ranks.
    return passes[-1] | found | {"ask": asks * BATCH / chunk / job.ranks}


def resnet_way(data: Data, device: torch.device, job: argparse.Namespace, wait: Callable) -> dict:
    """Seconds a step of training a ResNet-18 on the labels, as the teacher is."""
    run = Run(Settings(amp=job.amp), data, None, Path(), device, Ranks(), None)
    return time_pass([RESNET], run, job, wait, last=True) | {"ask": 0.0}


def time_pass(
    group: list[Cell], run: Run, job: argparse.Namespace, wait: Callable, last: bool = False
) -> dict:
    """Seconds a step of the cells of a seed's `group` that are this rank's, stepped as in training.

    "view" is the start of an epoch, divided by its steps, and gathering a batch where that is not
    part of a recorded step; "students" the rest. The `last` group is also tested and profiled.
    """
    data, device, images = run.data, run.device, len(run.data.train)
    own = group[job.rank :: job.ranks]
    steps = Steps([Trainee(c, run.settings, len(data.classes), device) for c in own], run)
    drawn = functools.partial(epoch_views, group[0].seed, 0, data.train)
    if run.sheet:
        run.sheet.write(drawn().numbers(data.train).cpu(), torch.randn(images, len(data.classes)))

    def begin(_: int) -> None:
        views, logits = drawn(), None
        if run.sheet:
            known = epoch_logits(
                run.teacher, data.train, views, run.sheet, run.ranks, lambda _: None
            )
            logits = known.to(device)
        steps.begin(0, views, logits)

    def place(i: int) -> int:
        return i % max(images // BATCH, 1)

    def step(i: int) -> None:
        for trainee in steps.trainees:
            trainee.step = place(i)
        steps.take(place(i))

    def gathered(i: int) -> Batch:
        return steps.batch(slice(place(i) * BATCH, (place(i) + 1) * BATCH))

    wait()
    begins = timed(begin, 3, device, 1)
    wait()
    block, on_gpu = BLOCK[device.type], device.type == "cuda"
    repeats = job.repeats if on_gpu else max(3, 2 * job.repeats // max(len(own), 1))
    whole = timed(step, repeats, device, block)
    wait()
    looks = 0.0 if steps.replay else timed(gathered, 5 * job.repeats, device, block)
    found = {"view": begins / steps.count + looks, "students": max(whole - looks, 0.0)}
    if last:
        wait()
        predict = steps.predictor(steps.trainees)
        tests = timed(lambda _: measure.record(predict, data), 1, device, 1)
        found["test"] = tests * TEST_IMAGES / len(data.test) / max(len(own), 1)
        found["busy"] = busy(step, whole, device)
    return found


# ---------------------------------------------------------------- running

WAYS = {"plain": plain_way, "engine": engine_way, "ResNet-18": resnet_way}


def repeat(split: Split, count: int) -> Split:
    """`count` images, by repeating the split's: their content does not matter for the speed."""
    times = -(-count // len(split))
    padded, labels = split.padded.repeat(times, 1, 1, 1), split.labels.repeat(times)
    return dataclasses.replace(split, padded=padded[:count], labels=labels[:count])


def work(rank: int, job: dict, barrier, results) -> None:
    """One process of one line of the table; puts its figures into `results`."""
    job = argparse.Namespace(**job, rank=rank)
    torch.set_num_threads(job.threads)
    device = torch.device(job.device)
    prepare(device)
    data = load(job.dataset, job.data_dir, device)
    if job.dataset == "shapes":  # the start of an epoch depends on the number of images
        data.train, data.test = repeat(data.train, IMAGES), repeat(data.test, TEST_IMAGES)
    keep_freed_memory()
    found = WAYS[job.way](data, device, job, barrier.wait)
    unit = 1 if sys.platform == "darwin" else 1024
    found["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if device.type == "cuda":
        found["memory"] = torch.cuda.max_memory_allocated()
    results.put(found)


def side_by_side(job: dict) -> dict:
    """Run a line's processes in parallel; the slowest rank counts, memory adds up.

    Raises UserError where one of them fails or is killed, which ends the others.
    """
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(job["ranks"]), context.Queue()
    logging.getLogger("torch.multiprocessing.spawn").setLevel("ERROR")  # our line is enough
    try:
        torch.multiprocessing.spawn(work, (job, barrier, results), job["ranks"])
    except Exception as error:  # its last line is the process's own error, or the signal
        why = str(error).strip().splitlines()[-1]
        why += " (out of memory?)" * ("SIGKILL" in why)
        raise UserError(f"cannot measure {job['cells']} cells: {why}") from None
    found = [results.get() for _ in range(job["ranks"])]
    memory = sum(one.pop("memory") for one in found)
    return {name: max(one[name] for one in found) for name in found[0]} | {"memory": memory}


def plans(args: argparse.Namespace, device: torch.device, amp: bool) -> Iterator[tuple]:
    """The lines: name, job, and the teacher's batches per step of all its cells."""
    cores = os.cpu_count()
    common = {"dataset": args.dataset, "data_dir": args.data_dir, "device": str(device)}
    common |= {"repeats": max(8, args.repeats), "ranks": 1, "threads": cores, "cells": 1}
    base = {**common, "way": "plain", "amp": False}
    yield "plain: PIL, workers, teacher in every step, float32", base, 1.0
    if amp:
        yield "plain, its teacher in bfloat16 and channels last", base | {"amp": True}, 1.0
    engine = base | {"way": "engine", "amp": amp}
    for cells in args.cells:
        ranks, seeds = min(args.ranks, cells), -(-cells // GRID)
        job = engine | {"cells": cells, "ranks": ranks, "threads": max(1, cores // ranks)}
        yield f"engine, {seeds} seed{'s' * (seeds > 1)}", job, cost.new_views(seeds) / EPOCHS
    if args.estimate:
        yield "engine, a ResNet-18 on the labels", engine | {"way": "ResNet-18"}, 0.0


def figures(job: dict, asks: float, found: dict) -> dict:
    """A line for reporting/cost.py, from what its processes have `found`."""
    teacher, shared = asks * found["ask"], found["view"] + found["students"]
    every = {"cell": (teacher + shared) / job["cells"], "again": shared / job["cells"]}
    return found | every | {"teacher": teacher} | {n: job[n] for n in ("way", "cells", "ranks")}


def main(argv: list[str] | None = None) -> None:
    p = flags.Parser(description=__doc__.splitlines()[0], allow_abbrev=False)
    p.add_argument("--dataset", choices=sorted(SOURCES), default="shapes")
    p.add_argument("--data-dir", type=flags.folder, default=ROOT / "data")
    p.add_argument("--out-dir", type=Path, default=ROOT, help="bench.md goes to its results/")
    p.add_argument("--cells", type=flags.COUNT, nargs="+", default=SIZES, help="sizes of the grid")
    p.add_argument("--repeats", type=flags.COUNT, default=20, help="timed steps of the plain way")
    p.add_argument("--amp", action=argparse.BooleanOptionalAction, default=None,
        help="bfloat16 in the teacher; unset: where it is faster")  # fmt: skip
    p.add_argument("--ranks", type=flags.COUNT, default=1, help="processes of the engine")
    p.add_argument("--estimate", action="store_true",
        help="also train a ResNet-18 a little, and say what exp.sh will take here")  # fmt: skip
    args = p.parse_args(argv)
    if max(args.cells) > max(SIZES):
        raise UserError(f"--cells goes up to {max(SIZES)}, five seeds of the reference's grid")
    if args.estimate and GRID not in args.cells:
        raise UserError(f"--estimate needs the line of one seed's grid: --cells {GRID}")
    folder = args.out_dir / "results"
    check_writable(folder)
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    amp = bfloat16_is_faster(device) if args.amp is None else args.amp
    rows, lines = [], []
    print(cost.HEADER)
    for name, job, asks in plans(args, device, amp):
        lines.append(figures(job, asks, side_by_side(job)))
        rows.append(cost.row(name, lines[-1], lines[0]["cell"]))
        print(rows[-1], flush=True)
    engine = [line for line in lines if line["way"] == "engine"]
    text = (
        f"# bench.py\n\n{machine(str(device))}; torch {torch.__version__}; data set "
        f"{args.dataset}; batch {BATCH}; medians of {max(8, args.repeats)} plain steps; engine: "
        f"{args.ranks} rank(s), teacher in {'bfloat16' if amp else 'float32'}.\n\n"
        f"{cost.HEADER}\n" + "\n".join(rows) + "\n\n" + cost.foot(engine[-1], device.type == "cuda")
    )
    if args.estimate:
        grid_line = next(line for line in engine if line["cells"] == GRID)
        told = cost.estimate_text(grid_line, lines[-1])
        print(f"\n{told}")
        text += f"\n{told}"
    write_atomic(folder / "bench.md", text.encode())
    print(f"written: {folder / 'bench.md'}")


if __name__ == "__main__":
    run_script(main)
