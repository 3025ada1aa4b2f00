"""The training steps of a group: the batch, which cells are stacked, and on a GPU the CUDA graph.

On a CPU cells are stepped one by one (`student_step`). On a GPU they are stacked where possible
(fused.py), a full batch's step, from its views to the new weights, is recorded as a CUDA graph and
replayed (graph.py), and in a long run the stacks are compiled. Results agree up to rounding. Cells
whose steps cannot be recorded are teams of their own beside those.
"""

from collections.abc import Callable
from itertools import groupby

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

# How a device records a step; on others every kernel is launched by itself.
CAPTURE: dict[str, Callable] = {"cuda": cuda_graph}
FUSES = {"cuda"}  # devices on which stacking pays: a CPU gains nothing by fewer, larger kernels
COMPILE_FROM = 20_000  # steps, from which on compiling saves more time than it takes
STACK = 64  # cells in a stack at most: bounds the memory of a wide grid


class PlainStep:
    """Cells one after another: the reference that FusedStep, with the same methods, agrees with."""

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


Team = PlainStep | FusedStep


def teams(trainees: list[Trainee], device: torch.device, amp: bool) -> list[Team]:
    """The cells, in stacks of one width where the device gains by it."""
    found: list[Team] = []
    kind = lambda t: (t.launched, t.cell.model, t.cell.width)  # noqa: E731
    for _, group in groupby(sorted(trainees, key=kind), kind):
        alike = list(group)
        for start in range(0, len(alike), STACK):
            part = alike[start : start + STACK]
            stacked = device.type in FUSES and can_fuse(part)
            found.append(FusedStep(part) if stacked else PlainStep(part, amp))
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
    """The training steps of this rank's cells."""

    def __init__(self, trainees: list[Trainee], run: Run):
        self.trainees, self.run = trainees, run
        self.images, self.size = run.data.train, run.settings.batch_size
        self.count = steps_in(len(self.images), run.settings)
        self.taught_stages = any(t.on_stages for t in trainees)
        self.epoch, self.views, self.logits = 0, None, None
        self.teams = teams(trainees, run.device, run.settings.amp)
        self.launched = [team for team in self.teams if team.trainees[0].launched]
        self.recorded = [team for team in self.teams if team not in self.launched]
        self.capture = CAPTURE.get(run.device.type) if self.recorded else None
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
        if self.replay:  # it reads from fixed memory, that of the epoch it was recorded in
            for old, new in zip(vars(self.views).values(), vars(views).values(), strict=True):
                old.copy_(new)
            if logits is not None:
                self.logits.copy_(logits)
        else:
            self.views, self.logits = views, logits

    def take(self, step: int) -> None:
        """Step number `step` of the epoch, for the cells whose position this is."""
        here = {t for t in self.trainees if (t.epoch, t.step) == (self.epoch, step)}
        if not here:
            return
        first, last = step * self.size, (step + 1) * self.size
        complete = len(here) == len(self.trainees)
        if self.capture and complete and last <= len(self.images) and self._recorded():
            self.start.fill_(first)
            self.replay()
            self._launch(self.launched, slice(first, last), here)
        else:
            self._launch(self.teams, slice(first, last), here)
        for trainee in here:
            trainee.step += 1

    def _launch(self, teams: list[Team], part: slice, here: set[Trainee]) -> None:
        """Step those cells of the teams that are `here`, kernel by kernel."""
        if not teams:
            return
        batch = self.batch(part, self.taught_stages)
        for team in teams:
            if here.issuperset(team.trainees):
                team(batch)
            else:
                PlainStep([t for t in team.trainees if t in here], self.run.settings.amp)(batch)

    def _recorded(self) -> bool:
        """Record the step of a full batch unless that is done; False where it cannot be."""
        if self.replay:
            return True
        try:
            self.replay = record(self._whole_batch, self._tensors, self.capture)
        except RuntimeError as error:
            why = reason(error)
            note(f"this step cannot be recorded ({why}): its kernels are launched one by one")
            # A failed capture leaves traces in torch's allocator: this process tries no other.
            CAPTURE.pop(self.run.device.type, None)
            self.capture = None
        return self.replay is not None

    def _whole_batch(self) -> None:
        """What is recorded: one step of its cells on the `size` images from `start` on."""
        batch = self.batch(self.start + torch.arange(self.size, device=self.start.device))
        for team in self.recorded:
            team(batch)

    def _tensors(self) -> list[Tensor]:
        return [x for team in self.recorded for t in team.trainees for x in t.tensors()]

    def batch(self, part: slice | Tensor, with_stages: bool = False) -> Batch:
        """Images, labels and the teacher's logits and stages, prepared once for all cells."""
        run, views = self.run, self.views[part]
        logits = self.logits[part] if self.logits is not None else None
        weight = len(views) / self.size if run.settings.last_batch == "weigh" else 1.0
        pixels, stages = gather(self.images, views), None
        if with_stages:
            _, stages = run.teacher(pixels, stages=True)
        x = normalise(pixels, run.data.mean, run.data.std)
        return Batch(x, self.images.labels[views.index], logits, stages, weight, views.index)

    def predictor(self, chosen: list[Trainee]) -> measure.Predict:
        """A function of images to the logits of the `chosen`, in their order."""
        which = set(chosen)
        order = [t for team in self.teams for t in team.trainees if t in which]

        def predict(x: Tensor) -> list[Tensor]:
            found = [logits for team in self.teams for logits in team.predict(x, which)]
            of = dict(zip(order, found, strict=True))
            return [of[trainee] for trainee in chosen]

        return predict
