"""The plain way and the grid engine, side by side in one run on this machine.

    python bench.py                                   # drawn shapes in CIFAR-10's numbers
    python bench.py --dataset folder --data-dir DIR   # the real images

(a) The plain way is what a distillation repository usually does: torchvision transforms on PIL
images in DataLoader workers, and the teacher asked anew in every step, in float32, for one student.
(b) The engine does the same epoch at 1, 5, 9, 45 and 225 cells: views gathered from one uint8
tensor, the teacher asked once per view for all cells, then every cell's step. A cell-step is one
batch of 128 through one student: forward, loss, backward, SGD. Writes results/bench.md.
"""

import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

import flags
import parallel
from cells import Cell
from data import Data, epoch_views, gather, load, normalise, plain
from fused import FusedStep, can_fuse
from grid import has_bfloat16, settings_of
from teacher import CHUNK, Teacher
from trainee import Batch, Trainee, initial_model, student_step
from utils import ROOT, machine, run_script, write_atomic

ALPHAS = [0.1, 0.25, 0.5, 0.75, 0.9]
TEMPERATURES = [1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 30.0, 40.0, 50.0]
SIZES = [1, 5, 9, 45, 225]  # cells
GRID_STEPS = 391 * 100  # steps of the reference protocol: 50,000 images, batch 128, 100 epochs


@dataclass
class Bench:
    data: Data
    device: torch.device
    amp: bool
    batch: int
    repeats: int


class PilImages(Dataset):
    """The training set as torchvision serves it: PIL images through transforms, in a worker."""

    def __init__(self, data: Data):
        from torchvision import transforms

        count = min(len(data.train), 5_000)  # no step sees more here, and workers need no more
        images = plain(data.train, slice(0, count)).permute(0, 2, 3, 1).cpu().numpy()
        self.images = [Image.fromarray(image) for image in images]
        self.labels = data.train.labels[:count].tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(data.mean, data.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


def new_teacher(bench: Bench, amp: bool) -> Teacher:
    """A ResNet-18 of the reference's size; what it says does not matter for its speed."""
    model = initial_model(Cell("resnet18", 64, 0, teaches=True), len(bench.data.classes))
    model = model.to(bench.device, memory_format=torch.channels_last).eval().requires_grad_(False)
    return Teacher(model, "bench", 0, "", bench.data.mean, bench.data.std, amp)


def new_students(bench: Bench, count: int, settings: object) -> list[Trainee]:
    """The first `count` cells of the grid, seed after seed."""
    cells = [
        Cell("cnn", 16, seed, "kd", alpha, temperature, teacher_seed=0)
        for seed in range(5)
        for alpha in ALPHAS
        for temperature in TEMPERATURES
    ]
    classes = len(bench.data.classes)
    return [Trainee(cell, settings, classes, bench.device) for cell in cells[:count]]


def seconds(bench: Bench, work: Callable[[int], object], repeats: int) -> float:
    """Median seconds of `work(i)`, after two calls that do not count."""
    times = []
    for i in range(-2, repeats):
        begun = time.perf_counter()
        work(i)
        if bench.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return statistics.median(times[2:])


def plain_way(bench: Bench, settings: object) -> dict[str, float]:
    """Seconds a step of the plain loop: loading included, teacher online, one student."""
    workers = min(4, torch.get_num_threads())
    teacher = new_teacher(bench, amp=False).model
    [student] = new_students(bench, 1, settings)
    loader = DataLoader(
        PilImages(bench.data), bench.batch, shuffle=True, num_workers=workers, drop_last=True
    )
    batches = iter(loader)
    asked = []

    def step(_: int) -> None:
        x, labels = (t.to(bench.device) for t in next(batches))
        begun = time.perf_counter()
        with torch.no_grad():
            logits = teacher(x)
        if bench.device.type == "cuda":
            torch.cuda.synchronize()
        asked.append(time.perf_counter() - begun)
        student_step(student, Batch(x, labels, logits), settings.lr)

    whole = seconds(bench, step, min(bench.repeats, len(loader) - 3))
    return {"step": whole, "teacher": statistics.median(asked[2:]), "workers": workers}


def engine_way(bench: Bench, settings: object, count: int) -> dict[str, float]:
    """Seconds a step of all `count` cells: teacher, view and students, each by itself."""
    teacher = new_teacher(bench, bench.amp)
    students = new_students(bench, count, settings)
    seeds = -(-count // 45)  # each seed has its views and its teacher pass
    views = epoch_views(0, 0, len(bench.data.train), bench.device)
    train = bench.data.train

    def stretch(i: int, size: int):
        start = (i + 2) * size % (len(views) - size)
        return views[start : start + size]

    ask = seconds(
        bench, lambda i: teacher(gather(train, stretch(i, CHUNK))), max(3, bench.repeats // 10)
    )
    teacher_step = ask * bench.batch / CHUNK * seeds

    def view(i: int) -> torch.Tensor:
        return normalise(gather(train, stretch(i, bench.batch)), bench.data.mean, bench.data.std)

    view_step = seconds(bench, view, 10 * bench.repeats) * seeds
    x = view(0)
    logits = torch.randn(bench.batch, len(bench.data.classes), device=bench.device)
    batch = Batch(x, train.labels[stretch(0, bench.batch).index], logits)
    step_all = [lambda: [student_step(s, batch, settings.lr) for s in students]]
    if bench.device.type == "cuda" and can_fuse(students):
        groups = [FusedStep(students[i : i + 45]) for i in range(0, count, 45)]
        step_all = [lambda: [group(batch, settings.lr) for group in groups]]
    students_step = seconds(bench, lambda i: step_all[0](), max(5, bench.repeats // count))
    whole = teacher_step + view_step + students_step
    return {
        "cells": count,
        "teacher": teacher_step,
        "view": view_step,
        "student": students_step / count,
        "whole": whole,
        "cell": whole / count,
        "views": bench.batch * seeds / teacher_step,
    }
