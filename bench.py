"""What a grid costs: the plain way (teacher in every step) and the engine, side by side.

    python bench.py                                                # drawn images
    python bench.py --dataset cifar10 --data-dir D --ranks 2       # the images of a folder

Random networks of the reference's size: what they say does not matter for their speed. Writes
results/bench.md and results/bench.png below --out-dir.
"""

import argparse
import io
import itertools
import multiprocessing
import os
import queue
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import flags
from datasets.sources import SOURCES, Data, load
from datasets.views import VIEWS, epoch_views, gather, normalise, plain
from engine.cells import Cell, Settings
from engine.fused import FusedStep, can_fuse
from engine.grid import bfloat16_is_faster
from engine.measure import all_logits
from engine.parallel import keep_freed_memory
from engine.rows import machine
from engine.sheet import Sheet, ask
from engine.teacher import CHUNK, Teacher
from engine.trainee import Batch, Trainee, initial_model, student_step
from utils import ROOT, UserError, check_writable, run_script, write_atomic

ALPHAS = [0.1, 0.25, 0.5, 0.75, 0.9]
TEMPERATURES = [1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 30.0, 40.0, 50.0]
GRID = len(ALPHAS) * len(TEMPERATURES)  # cells of one seed
SIZES = [1, 5, GRID, 5 * GRID]
BATCH, EPOCHS = 128, 100  # the reference's


def asked(seeds: int, epochs: int = EPOCHS) -> float:
    """How many epochs' worth of views the teacher is asked in `epochs` of `seeds` seeds.

    An epoch draws one of VIEWS for each image: those that are new by then. (Expectation.)
    """
    return VIEWS * (1 - (1 - 1 / VIEWS) ** (seeds * epochs))


def timed(work: Callable[[int], object], repeats: int, device: torch.device) -> float:
    """Median seconds of `work(i)` after two calls that do not count."""
    times = []
    for i in range(repeats + 2):
        begun = time.perf_counter()
        work(i)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return statistics.median(times[2:])


def make_teacher(data: Data, device: torch.device, amp: bool) -> Teacher:
    model = initial_model(Cell("resnet18", 64, 0, teaches=True), len(data.classes))
    model = model.to(device).eval().requires_grad_(False)
    return Teacher(model, "bench", "", data.mean, data.std, amp)


def make_students(count: int, data: Data, device: torch.device) -> list[Trainee]:
    """The first `count` cells of the reference's grid, seed after seed."""
    grid = product(range(5), ALPHAS, TEMPERATURES)
    cells = [Cell("cnn", 16, seed, "kd", a, t, teacher_seed=0) for seed, a, t in grid]
    return [Trainee(cell, Settings(), len(data.classes), device) for cell in cells[:count]]


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
    teacher = make_teacher(data, device, job.amp)
    if job.amp:
        teacher.model.to(memory_format=torch.channels_last)
    [student] = make_students(1, data, device)
    student.model.to(memory_format=torch.contiguous_format)
    images = PilImages(data, BATCH * (job.repeats + 2))
    loader = DataLoader(images, BATCH, shuffle=True, num_workers=min(4, os.cpu_count()))
    batches, waits = itertools.chain.from_iterable(itertools.repeat(loader)), []

    def step(_: int) -> None:
        x, labels = (part.to(device) for part in next(batches))
        begun = time.perf_counter()
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=job.amp):
            logits = teacher.model(x).float()
        if device.type == "cuda":
            torch.cuda.synchronize()
        waits.append(time.perf_counter() - begun)
        student_step(student, Batch(x, labels, logits), lr=0.01)

    whole = timed(step, job.repeats, device)
    own = [t.to(device) for t in next(iter(DataLoader(images, BATCH)))]
    batch = Batch(*own, torch.randn(len(own[0]), len(data.classes), device=device))
    students = timed(lambda _: student_step(student, batch, 0.01), job.repeats, device)
    teaching = statistics.median(waits[2:])
    # What is left of the step is waiting for the workers: images, transforms, collation.
    view = max(whole - teaching - students, 0)
    return {"ask": teaching, "view": view, "students": students}


# ---------------------------------------------------------------- the engine


def engine_way(data: Data, device: torch.device, job: argparse.Namespace, wait: Callable) -> dict:
    """Seconds a step: asking the teacher all views of a batch, the batch itself, own cells."""
    teacher, train = make_teacher(data, device, job.amp), data.train
    teacher.model.to(memory_format=torch.channels_last)
    students = make_students(job.cells, data, device)[job.rank :: job.ranks]
    views, chunk = epoch_views(0, 0, len(train), device), CHUNK[device.type]

    def part(i: int, size: int) -> slice:
        start = i * size % max(len(views) - size, 1)
        return slice(start, start + size)

    wait()
    asks = timed(lambda i: ask(teacher, train, views[part(i, chunk)]), job.repeats, device)

    with tempfile.TemporaryDirectory() as folder:
        sheet = Sheet(Path(folder) / "bench.sheet", {}, len(train), len(data.classes))

        def batch(i: int) -> Batch:
            own = views[part(i, BATCH)]
            logits, _ = sheet.read(own.numbers(len(train)).cpu())
            x = normalise(gather(train, own), data.mean, data.std)
            return Batch(x, train.labels[own.index], logits.to(device))

        wait()
        looks, one = timed(batch, 5 * job.repeats, device), batch(0)
    if device.type == "cuda" and can_fuse(students):
        fused = [FusedStep(students[i : i + GRID]) for i in range(0, len(students), GRID)]
        steps = [lambda group=group: group(one, 0.01) for group in fused]
    else:
        steps = [lambda cell=cell: student_step(cell, one, 0.01) for cell in students]
    wait()
    repeats = max(3, 2 * job.repeats // max(len(steps), 1))
    learns = timed(lambda _: [step() for step in steps], repeats, device)
    wait()
    models = [trainee.model for trainee in students[:GRID]]
    tests = timed(lambda _: all_logits(models, data.test, data, job.amp), 1, device)
    tests *= 10_000 / len(data.test) / len(models)
    # Chunks are shared out over the ranks; the batch and its own cells are every rank's.
    ask_batch = asks * BATCH / chunk / job.ranks
    return {"ask": ask_batch, "view": looks, "students": learns, "test": tests}


# ---------------------------------------------------------------- running


def work(job: argparse.Namespace, barrier, answers) -> None:
    """One process of one line of the table; puts its figures, or its complaint, into `answers`."""
    try:
        torch.set_num_threads(job.threads)
        device = torch.device(job.device)
        data = load(job.dataset, job.data_dir, device)
        keep_freed_memory()
        way = plain_way if job.plain else engine_way
        answer = way(data, device, job, barrier.wait)
        answer["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if device.type == "cuda":
            answer["memory"] = torch.cuda.max_memory_allocated()
        answers.put(answer)
    except Exception as error:
        barrier.abort()  # nobody waits for this one
        answers.put(f"{type(error).__name__}: {error}")


def measure(job: argparse.Namespace) -> dict:
    """Run a line's processes side by side; the slowest rank counts, memory adds up.

    Raises UserError where one of them fails or is killed.
    """
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(job.ranks), context.Queue()
    jobs = [argparse.Namespace(**vars(job) | {"rank": rank}) for rank in range(job.ranks)]
    processes = [context.Process(target=work, args=(one, barrier, answers)) for one in jobs]
    for process in processes:
        process.start()
    found = []
    while len(found) < len(processes):
        try:
            found.append(answers.get(timeout=1))
        except queue.Empty:
            if any(process.exitcode for process in processes):
                found.append("a process was killed (out of memory?)")
        if found and isinstance(found[-1], str):
            for process in processes:
                process.kill()
            raise UserError(f"cannot measure {job.cells} cells: {found[-1]}")
    for process in processes:
        process.join()
    memory = sum(one.pop("memory") for one in found)
    return {name: max(one[name] for one in found) for name in found[0]} | {"memory": memory}


def plans(args: argparse.Namespace, device: torch.device, amp: bool) -> Iterator[tuple]:
    """The lines: name, job, and how often a step of all its cells asks the teacher a batch."""
    cores = os.cpu_count()
    common = {"dataset": args.dataset, "data_dir": args.data_dir, "device": device.type}
    common |= {"repeats": max(8, args.repeats), "ranks": 1, "threads": cores, "cells": 1}
    base = argparse.Namespace(**common, plain=True, amp=False)
    yield "plain: PIL, workers, teacher in every step, float32", base, 1.0
    if amp:
        faster = argparse.Namespace(**vars(base) | {"amp": True})
        yield "plain, its teacher in bfloat16 and channels last", faster, 1.0
    for cells in args.cells:
        ranks, seeds = min(args.ranks, cells), -(-cells // GRID)
        line = {"plain": False, "amp": amp, "ranks": ranks, "threads": max(1, cores // ranks)}
        job = argparse.Namespace(**vars(base) | line | {"cells": cells})
        yield f"engine, {seeds} seed{'s' * (seeds > 1)}", job, asked(seeds) / EPOCHS


# ---------------------------------------------------------------- telling


def figures(job: argparse.Namespace, asks: float, found: dict) -> dict:
    """Seconds of a step: the teacher's and the views' for all cells, and all in all for one."""
    seeds = -(-job.cells // GRID)
    line = found | {"teacher": asks * found["ask"], "view": seeds * found["view"]}
    return line | {
        "cell": (line["teacher"] + line["view"] + line["students"]) / job.cells,
        "again": (line["view"] + line["students"]) / job.cells,
        "cells": job.cells,
    }


HEADER = """\
| way | cells | teacher | view | student | one cell-step | plain / this | on a full sheet | memory |
|---|---:|---:|---:|---:|---:|---:|---:|---:|"""


def row(name: str, line: dict, plain_cell: float) -> str:
    """A line in Markdown, times in ms; ratios are to the plain way's cell-step."""
    ms = {key: f"{1000 * line[key]:.2f}" for key in ("teacher", "view", "cell")}
    again = f"{plain_cell / line['again']:.1f}" if "test" in line else "–"
    return (
        f"| {name} | {line['cells']} | {ms['teacher']} | {ms['view']} | "
        f"{1000 * line['students'] / line['cells']:.2f} | {ms['cell']} | "
        f"{plain_cell / line['cell']:.1f} | {again} | {line['memory'] / 2**30:.2f} GiB |"
    )


def picture(plain_cell: float, line: dict) -> bytes:
    """Cost of a grid by number of seeds, from the measured line of one seed's grid, as a PNG."""
    from matplotlib.figure import Figure

    hours, seeds = 391 * EPOCHS / 3600, np.arange(1, 21)
    students = seeds * (line["view"] + line["students"])
    ways = {
        "plain: teacher in every step": seeds * GRID * plain_cell,
        "teacher once an epoch for all cells": students + seeds * line["ask"],
        "teacher once a view (answer sheet)": students + line["ask"] * asked(seeds) / EPOCHS,
        "a later grid on the same sheet": students,
    }
    figure = Figure(figsize=(8, 4.2), dpi=160, layout="constrained")
    axes = figure.subplots()
    styles = zip(ways.items(), ("#999999", "#D55E00", "#0072B2", "#009E73"), "os^D", strict=True)
    for (name, cost), colour, marker in styles:
        axes.plot(seeds, hours * cost, color=colour, marker=marker, ms=4, label=name)
    axes.set(xlabel=f"seeds, each {GRID} cells of {EPOCHS} epochs", ylabel="hours", yscale="log")
    axes.set_title("What a grid costs", loc="left")
    axes.set_xticks([1, 5, 10, 15, 20])
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def main(argv: list[str] | None = None) -> None:
    p = flags.Parser(description=__doc__.splitlines()[0], allow_abbrev=False)
    p.add_argument("--dataset", choices=sorted(SOURCES), default="shapes")
    p.add_argument("--data-dir", type=Path, default=ROOT / "data")
    p.add_argument("--out-dir", type=Path, default=ROOT, help="bench.md goes to its results/")
    p.add_argument("--cells", type=flags.COUNT, nargs="+", default=SIZES, help="sizes of the grid")
    p.add_argument("--repeats", type=flags.COUNT, default=20, help="timed steps of the plain way")
    p.add_argument("--amp", action=argparse.BooleanOptionalAction, default=None,
        help="bfloat16 in the teacher; unset: where it is faster")  # fmt: skip
    p.add_argument("--ranks", type=flags.COUNT, default=1, help="processes of the engine")
    args = p.parse_args(argv)
    if max(args.cells) > max(SIZES):
        raise UserError(f"--cells goes up to {max(SIZES)}, five seeds of the reference's grid")
    folder = args.out_dir / "results"
    check_writable(folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    amp = bfloat16_is_faster(device) if args.amp is None else args.amp
    rows, lines = [], []
    print(HEADER)
    for name, job, asks in plans(args, device, amp):
        lines.append(figures(job, asks, measure(job)))
        rows.append(row(name, lines[-1], lines[0]["cell"]))
        print(rows[-1], flush=True)
    last = lines[-1]
    text = (
        f"# bench.py\n\n{machine(str(device))}; torch {torch.__version__}; data set "
        f"{args.dataset}; batch {BATCH}; medians of {max(8, args.repeats)} plain steps; engine: "
        f"{args.ranks} rank(s), teacher in {'bfloat16' if amp else 'float32'}.\n\n"
        f"{HEADER}\n" + "\n".join(rows) + "\n\n"
        "Milliseconds of a step: the teacher's and the view's serve all cells together, the "
        "student's is one cell's; a cell-step is their sum per cell. The teacher's is its time for "
        f"a batch by the share of views that are new in {EPOCHS} epochs; on a full sheet none is. "
        f"Memory is the ranks' sum. Testing a cell on 10,000 images takes {last['test']:.3f} s.\n"
    )
    write_atomic(folder / "bench.md", text.encode())
    if grid := [line for line in lines if line["cells"] == GRID]:
        write_atomic(folder / "bench.png", picture(lines[0]["cell"], grid[0]))
    print(f"written: {folder / 'bench.md'}")


if __name__ == "__main__":
    run_script(main)
