"""The plain way and the grid engine, side by side in one run on this machine.

    python bench.py                                   # drawn shapes in place of CIFAR-10's images
    python bench.py --dataset folder --data-dir DIR   # the real images

(a) The plain way is what a distillation repository usually does: torchvision transforms on PIL
images in DataLoader workers, and in every step the teacher asked anew, for one student.
(b) The engine at 1, 5, 9, 45 and 225 cells: views gathered from one uint8 tensor, the teacher asked
once per view for all cells of a seed, then a step of every cell.

A cell-step is one batch of 128 through one student: forward, loss, backward, SGD. Each line is
measured in processes of its own, whose peak memory is given. Prints a table; writes bench.md.
"""

import argparse
import itertools
import multiprocessing
import os
import queue
import resource
import statistics
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import flags
from datasets.sources import SOURCES, Data, load
from datasets.views import Views, epoch_views, gather, normalise, plain
from engine.cells import Cell, Settings
from engine.fused import FusedStep, can_fuse
from engine.grid import bfloat16_is_faster
from engine.parallel import keep_freed_memory
from engine.rows import machine
from engine.teacher import CHUNK, Teacher
from engine.trainee import Batch, Trainee, initial_model, student_step
from utils import ROOT, UserError, check_writable, run_script, write_atomic

ALPHAS = [0.1, 0.25, 0.5, 0.75, 0.9]
TEMPERATURES = [1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 30.0, 40.0, 50.0]
SIZES = [1, 5, 9, 45, 225]  # cells; 45 is the grid of one seed
BATCH = 128
FULL_STEPS = 391 * 100  # the reference protocol: 50,000 images, batch 128, 100 epochs
TEACHER_FLOPS = 2 * 555_422_720  # a ResNet-18 forward pass of one 32x32 image


def median(work: Callable[[int], object], repeats: int, device: torch.device) -> float:
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
    """A ResNet-18 of the reference's size; what it says does not matter for its speed."""
    model = initial_model(Cell("resnet18", 64, 0, teaches=True), len(data.classes))
    model = model.to(device).eval().requires_grad_(False)
    return Teacher(model, "bench", "", data.mean, data.std, amp)


def make_students(count: int, data: Data, device: torch.device) -> list[Trainee]:
    """The first `count` cells of the reference's grid, seed after seed."""
    grid = product(range(5), ALPHAS, TEMPERATURES)
    cells = [Cell("cnn", 16, seed, "kd", a, t, teacher_seed=0) for seed, a, t in grid]
    return [Trainee(cell, Settings(), len(data.classes), device) for cell in cells[:count]]


# ---------------------------------------------------------------- (a) the plain way


class PilImages(Dataset):
    """Training images as torchvision serves them: PIL images through transforms, in a worker."""

    def __init__(self, data: Data, count: int):
        from PIL import Image
        from torchvision import transforms as t

        pixels = plain(data.train, slice(0, count)).permute(0, 2, 3, 1).cpu().numpy()
        self.images = [Image.fromarray(image) for image in pixels]
        self.labels = data.train.labels[:count].tolist()
        self.transform = t.Compose(
            [
                t.RandomCrop(32, padding=4),
                t.RandomHorizontalFlip(),
                t.ToTensor(),
                t.Normalize(data.mean, data.std),
            ]
        )

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
    batches, asked = itertools.chain.from_iterable(itertools.repeat(loader)), []

    def step(_: int) -> None:
        x, labels = (part.to(device) for part in next(batches))
        begun = time.perf_counter()
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=job.amp):
            logits = teacher.model(x).float()
        if device.type == "cuda":
            torch.cuda.synchronize()
        asked.append(time.perf_counter() - begun)
        student_step(student, Batch(x, labels, logits), lr=0.01)

    whole = median(step, job.repeats, device)
    own = [t.to(device) for t in next(iter(DataLoader(images, BATCH)))]
    batch = Batch(*own, torch.randn(len(own[0]), len(data.classes), device=device))
    students = median(lambda _: student_step(student, batch, 0.01), job.repeats, device)
    ask = statistics.median(asked[2:])
    # What is left of the step is waiting for the workers: images, transforms, collation.
    return {"teacher": ask, "view": max(whole - ask - students, 0), "students": students}


# ---------------------------------------------------------------- (b) the engine


def engine_way(data: Data, device: torch.device, job: argparse.Namespace, wait: Callable) -> dict:
    """Seconds a step of this rank's share of the cells, with views and teacher for all seeds."""
    seeds = -(-job.cells // 45)
    teacher = make_teacher(data, device, job.amp)
    teacher.model.to(memory_format=torch.channels_last)
    students = make_students(job.cells, data, device)[job.rank :: job.ranks]
    views, train, chunk = epoch_views(0, 0, len(data.train), device), data.train, CHUNK[device.type]

    def stretch(i: int, size: int) -> Views:
        start = i * size % max(len(views) - size, 1)
        return views[start : start + size]

    def view(i: int) -> Tensor:
        return normalise(gather(train, stretch(i, BATCH)), data.mean, data.std)

    wait()
    asks = median(lambda i: teacher(gather(train, stretch(i, chunk))), job.repeats // 4, device)
    wait()
    looks = median(view, 5 * job.repeats, device)
    part = stretch(0, BATCH)
    logits = torch.randn(BATCH, len(data.classes), device=device)
    batch = Batch(view(0), train.labels[part.index], logits)
    if device.type == "cuda" and can_fuse(students):
        fused = [FusedStep(students[i : i + 45]) for i in range(0, len(students), 45)]
        steps = [lambda one=one: one(batch, 0.01) for one in fused]
    else:
        steps = [lambda one=one: student_step(one, batch, 0.01) for one in students]
    wait()
    repeats = max(3, 2 * job.repeats // max(len(steps), 1))
    learns = median(lambda _: [step() for step in steps], repeats, device)
    # The chunks are shared out over the ranks; the views and its own cells are every rank's.
    ask = asks * BATCH / chunk / job.ranks * seeds
    return {"teacher": ask, "view": looks * seeds, "students": learns}


WAYS = {"plain": plain_way, "engine": engine_way}


# ---------------------------------------------------------------- running and telling


def work(job: argparse.Namespace, barrier, answers) -> None:
    """One process of one line of the table; puts its figures, or its complaint, into `answers`."""
    try:
        answers.put(figures(job, barrier))
    except Exception as error:
        barrier.abort()  # nobody waits for this one
        answers.put(f"{type(error).__name__}: {error}")


def figures(job: argparse.Namespace, barrier) -> dict:
    """What one process measures, and its peak memory in bytes."""
    torch.set_num_threads(job.threads)
    device = torch.device(job.device)
    data = load(job.dataset, job.data_dir, device)
    keep_freed_memory()
    answer = WAYS[job.way](data, device, job, barrier.wait)
    answer["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if device.type == "cuda":
        answer["memory"] = torch.cuda.max_memory_allocated()
    return answer


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
    line = {name: max(one[name] for one in found) for name in ("teacher", "view", "students")}
    line["memory"] = sum(one["memory"] for one in found)
    line["step"] = line["teacher"] + line["view"] + line["students"]
    return line | {"cell": line["step"] / job.cells}


def ceilings(device: torch.device) -> tuple[float, float]:
    """Measured bfloat16 FLOP/s of an 8192-cube product and bytes/s of a copy, read plus written."""
    a, b = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    product_time = median(lambda _: a @ b, 10, device)
    block = torch.randn(2**28, device=device)  # 1 GiB, far more than a cache
    copy_time = median(lambda _: block.clone(), 10, device)
    return 2 * 8192**3 / product_time, 2 * block.nbytes / copy_time


def table(lines: list[tuple[str, int, dict]]) -> str:
    """The lines in Markdown, times in ms; the ratio is to the first line."""
    plain_cell = lines[0][2]["cell"]
    rows = [
        "| way | cells | teacher | view | student | one cell-step | plain / this | peak memory |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, cells, line in lines:
        ms = {key: 1000 * line[key] for key in ("teacher", "view", "students", "cell")}
        rows.append(
            f"| {name} | {cells} | {ms['teacher']:.1f} | {ms['view']:.2f} | "
            f"{ms['students'] / cells:.2f} | {ms['cell']:.2f} | {plain_cell / line['cell']:.1f} | "
            f"{line['memory'] / 2**30:.2f} GiB |"
        )
    return "\n".join(rows)


def cuda_notes(line: dict, device: torch.device) -> str:
    """What the 45-cell line means on a GPU."""
    flops, bandwidth = ceilings(device)
    views = BATCH / line["teacher"]
    return (
        f"Teacher: {views:,.0f} views/s, {views * TEACHER_FLOPS / flops:.0%} of the measured "
        f"bfloat16 ceiling ({flops / 1e12:.0f} TFLOP/s); a copy moves {bandwidth / 1e12:.2f} TB/s. "
        f"45 cells for {FULL_STEPS:,} steps: {line['step'] * FULL_STEPS / 60:.1f} minutes, "
        "without the teacher's own training and the evaluations.\n"
    )


def main(argv: list[str] | None = None) -> None:
    p = flags.Parser(description=__doc__.splitlines()[0], allow_abbrev=False)
    p.add_argument("--dataset", choices=sorted(SOURCES), default="shapes")
    p.add_argument("--data-dir", type=Path, default=ROOT / "data")
    p.add_argument("--out-dir", type=Path, default=ROOT, help="bench.md goes to its results/")
    p.add_argument("--cells", type=flags.COUNT, nargs="+", default=SIZES, help="sizes of the grid")
    p.add_argument("--repeats", type=flags.COUNT, default=20, help="timed steps of the plain way")
    p.add_argument("--ranks", type=flags.COUNT, default=1, help="processes of the engine")
    args = p.parse_args(argv)
    if max(args.cells) > max(SIZES):
        raise UserError(f"--cells goes up to {max(SIZES)}, five seeds of the reference's grid")
    check_writable(args.out_dir / "results")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    amp, cores = bfloat16_is_faster(device), os.cpu_count()
    common = {"dataset": args.dataset, "data_dir": args.data_dir, "device": device.type}
    common |= {"repeats": max(8, args.repeats)}
    one = argparse.Namespace(**common, way="plain", ranks=1, threads=cores, cells=1, amp=False)
    plans = [("plain: PIL, workers, teacher in every step, float32", one)]
    if amp:
        faster = argparse.Namespace(**vars(one) | {"amp": True})
        plans.append(("plain, its teacher in bfloat16 and channels last", faster))
    for count in args.cells:
        ranks = min(args.ranks, count)
        line = {"way": "engine", "ranks": ranks, "threads": max(1, cores // ranks), "cells": count}
        plans.append(("engine", argparse.Namespace(**vars(one) | line | {"amp": amp})))
    lines = []
    for name, job in plans:
        lines.append((name, job.cells, measure(job)))
        print(table(lines).splitlines()[-1] if len(lines) > 1 else table(lines), flush=True)
    text = (
        f"# bench.py\n\n{machine(str(device))}; torch {torch.__version__}; "
        f"data set {args.dataset}; batch {BATCH}; medians of {common['repeats']} plain steps; "
        f"engine: {args.ranks} rank(s) of {max(1, cores // args.ranks)} thread(s), "
        f"teacher in {'bfloat16' if amp else 'float32'}. "
        "Teacher, view and student are milliseconds of a step: the teacher's and the view's serve "
        "all cells together, the student's is one cell's; a cell-step is their sum per cell. "
        f"225 cells are five seeds, each with its own views.\n\n{table(lines)}\n"
    )
    if device.type == "cuda" and 45 in args.cells:
        text += "\n" + cuda_notes({cells: line for _, cells, line in lines}[45], device)
    write_atomic(args.out_dir / "results" / "bench.md", text.encode())
    print(f"written: {args.out_dir / 'results' / 'bench.md'}")


if __name__ == "__main__":
    run_script(main)
