"""How a pass takes its steps: the batch, which cells are computed as one, and on a GPU the graph.

On a CPU every cell is stepped by itself (`student_step`). On a GPU cells that can are stacked
(fused.py), and a whole batch's step, from its views to the new weights, is recorded once and then
replayed (graph.py). A long pass has its stacks compiled, too. All of it leaves what the plain steps
leave, up to rounding.
"""

from collections.abc import Callable
from itertools import groupby
from typing import Protocol

import torch
from torch import Tensor

from engine import measure
from engine.cells import Settings
from engine.fused import FusedStep, can_fuse
from engine.graph import cuda_graph, reason, record
from engine.resume import Run
from engine.trainee import Batch, Trainee, student_step
from images.views import Views, gather, normalise
from utils import UserError, note

# How a device records a step; a device that is not here launches every kernel by itself.
CAPTURE: dict[str, Callable] = {"cuda": cuda_graph}
FUSES = {"cuda"}  # devices on which stacking pays: a CPU gains nothing by fewer, larger kernels
COMPILE_FROM = 20_000  # steps of a pass that save more than the seconds that compiling takes
STACK = 64  # cells at most in one stack: bounds the memory of a wide grid


class Team(Protocol):
    """Some cells and how they are computed."""

    trainees: list[Trainee]

    def anneal(self, epoch: int) -> None: ...  # set the learning rates of an epoch, from 0
    def __call__(self, batch: Batch) -> None: ...  # one step of every cell
    def predict(self, x: Tensor, chosen: set[Trainee]) -> list[Tensor]: ...  # logits [B, K] each


class PlainStep:
    """Cells one after another: what FusedStep must agree with."""

    def __init__(self, trainees: list[Trainee], amp: bool):
        self.trainees, self.amp = trainees, amp

    def anneal(self, epoch: int) -> None:
        for trainee in self.trainees:
            trainee.anneal(epoch)

    def __call__(self, batch: Batch) -> None:
        for trainee in self.trainees:
            if not trainee.diverged:
                student_step(trainee, batch)

    def predict(self, x: Tensor, chosen: set[Trainee]) -> list[Tensor]:
        return measure.one_by_one([t.model for t in self.trainees if t in chosen], self.amp)(x)


def teams(trainees: list[Trainee], device: torch.device, amp: bool) -> list[Team]:
    """The cells as stacks of one width where the device gains by it, in the order of `trainees`."""
    if device.type not in FUSES:
        return [PlainStep(trainees, amp)]
    found: list[Team] = []
    for _, group in groupby(trainees, lambda t: (t.cell.model, t.cell.width)):
        alike = list(group)
        for start in range(0, len(alike), STACK):
            part = alike[start : start + STACK]
            found.append(FusedStep(part) if can_fuse(part) else PlainStep(part, amp))
    return found


def steps_in(images: int, settings: Settings) -> int:
    """Steps of an epoch. Raises UserError where there is none."""
    whole, rest = divmod(images, settings.batch_size)
    if settings.last_batch != "drop":
        return whole + bool(rest)
    if not whole:
        raise UserError(f"--last-batch drop leaves nothing of {images} images: a smaller batch?")
    return whole


class Steps:
    """The steps of a pass over the trainees of this rank."""

    def __init__(self, trainees: list[Trainee], run: Run):
        self.trainees, self.run = trainees, run
        self.images, self.size = run.data.train, run.settings.batch_size
        self.count = steps_in(len(self.images), run.settings)
        self.taught_stages = any(t.on_stages for t in trainees)
        self.epoch, self.views, self.logits = 0, None, None
        self.teams = teams(trainees, run.device, run.settings.amp)
        # A teacher's activations are too large to keep a copy of. And a step that draws random
        # numbers seeds them, which a recording cannot.
        recordable = not self.taught_stages and not any(t.draws for t in trainees)
        self.capture = CAPTURE.get(run.device.type) if recordable else None
        if self.capture and self.count * run.settings.epochs >= COMPILE_FROM:
            for team in self.teams:
                if isinstance(team, FusedStep):
                    team.compile_for(self.size)
        self.replay: Callable[[], None] | None = None
        self.start = torch.zeros((), dtype=torch.int64, device=run.device)  # a replay's first image

    def begin(self, epoch: int, views: Views, logits: Tensor | None) -> None:
        """An epoch, its views and the teacher's logits for them, [N, K] or None."""
        self.epoch = epoch
        for team in self.teams:
            team.anneal(epoch)
        if self.replay:  # it reads where the epoch of its recording lay
            for old, new in zip(vars(self.views).values(), vars(views).values(), strict=True):
                old.copy_(new)
            if logits is not None:
                self.logits.copy_(logits)
        else:
            self.views, self.logits = views, logits

    def take(self, step: int) -> None:
        """A step, the epoch's number `step`, of the cells that are that far and no farther."""
        here = {t for t in self.trainees if (t.epoch, t.step) == (self.epoch, step)}
        if not here:
            return
        first, last = step * self.size, (step + 1) * self.size
        everyone = len(here) == len(self.trainees)
        if self.capture and everyone and last <= len(self.images) and self._recorded():
            self.start.fill_(first)
            self.replay()
        else:
            batch = self.batch(slice(first, last))
            for team in self.teams:
                if here.issuperset(team.trainees):
                    team(batch)
                else:
                    PlainStep([t for t in team.trainees if t in here], self.run.settings.amp)(batch)
        for trainee in here:
            trainee.step += 1

    def _recorded(self) -> bool:
        """Record the step of a whole batch, if it is not yet; whether it can be."""
        if self.replay:
            return True
        try:
            self.replay = record(self._whole_batch, self._tensors, self.capture)
        except RuntimeError as error:
            why = reason(error)
            note(f"this step cannot be recorded ({why}): its kernels are launched one by one")
            # A failed capture leaves traces in torch's allocator: no other of this process tries.
            CAPTURE.pop(self.run.device.type, None)
            self.capture = None
        return self.replay is not None

    def _whole_batch(self) -> None:
        """One step of every cell on the `size` images from `start` on."""
        batch = self.batch(self.start + torch.arange(self.size, device=self.start.device))
        for team in self.teams:
            team(batch)

    def _tensors(self) -> list[Tensor]:
        return [tensor for trainee in self.trainees for tensor in trainee.tensors()]

    def batch(self, part: slice | Tensor) -> Batch:
        """Pixels, labels and the teacher's word on them, made once for all cells."""
        run, views = self.run, self.views[part]
        logits = self.logits[part] if self.logits is not None else None
        weight = len(views) / self.size if run.settings.last_batch == "weigh" else 1.0
        pixels, stages = gather(self.images, views), None
        if self.taught_stages:
            _, stages = run.teacher(pixels, stages=True)
        x = normalise(pixels, run.data.mean, run.data.std)
        return Batch(x, self.images.labels[views.index], logits, stages, weight, views.index)

    def predictor(self, chosen: list[Trainee]) -> measure.Predict:
        """What some of the trainees say of images, in the order that they have in the pass."""
        which = set(chosen)
        return lambda x: [logits for team in self.teams for logits in team.predict(x, which)]
