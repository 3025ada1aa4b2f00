"""The one training loop.

`train` is given the cells of a command that share a seed, and so see the same views.
An epoch is: its views (a pure function of seed and epoch); the teacher's logits for all of them;
then, batch by batch, one step of every cell; then one record a cell. Cells share the batch and
nothing else, so a cell's bits do not depend on which others are trained with it (on a GPU, where
stacked cells use other kernels than a lone one, equal up to rounding).

Every cell has its own position (epoch, step). A run that resumes starts at the earliest of them,
and a cell that is ahead waits for the others.
"""

import math

from torch import nn

from engine import measure
from engine.balance import balance
from engine.board import Curves
from engine.cells import Cell, label
from engine.parallel import agreed, all_gather
from engine.progress import Progress
from engine.resume import Run, Unfinished
from engine.rows import best_epoch, leave, on_cpu
from engine.sheet import epoch_logits
from engine.steps import Steps
from engine.trainee import Trainee, draws
from images.views import epoch_views, normalise, partners, plain
from utils import UserError, is_lead


def train(group: list[Cell], pending: list[Cell], run: Run) -> list[str]:
    """Train the `pending` ones of a group's cells (of one seed) and write their rows.

    Returns one line for each cell whose loss became non-finite; those leave no row. Raises
    UserError where another process trains them or an unfinished run has other settings.
    """
    ranks, settings, images = run.ranks, run.settings, run.data.train
    mine = pending[ranks.rank :: ranks.world]
    trainees = [Trainee(cell, settings, len(run.data.classes), run.device) for cell in mine]
    state = Unfinished(group, trainees, run)
    if run.weights:
        for trainee in trainees:
            trainee.model.load_state_dict(run.weights, strict=False)  # fitting has compared them
    with state.claimed():
        agreed(ranks, lambda: introduce(trainees, run))
        state.restore()
        agreed(ranks, lambda: balance(trainees, run))
        steps = Steps(trainees, run)
        for trainee in trainees:
            own = trainee.beta, trainee.history
            trainee.curves = Curves(run.out_dir, trainee.cell, settings, *own)
        uses_logits = any(all_gather(ranks, any(t.cell.learns_from_logits for t in trainees)))
        first = min(all_gather(ranks, min((t.epoch for t in trainees), default=settings.epochs)))
        progress = Progress(together(mine, pending), settings.epochs, steps.count, first, is_lead())

        def tick(share: float) -> None:
            progress.taught(share)
            state.save_if_due()

        if not settings.epochs:  # --weights as they are
            measure_untrained(trainees, steps, run)
        shuffled = group[0].answers == "shuffled"  # then all of them, by grid.grouped
        partner = partners(group[0].seed, images) if shuffled else None
        for epoch in range(first, settings.epochs):
            progress.doing(epoch + 1)
            views = epoch_views(group[0].seed, epoch, images)
            logits = None
            if uses_logits:
                progress.taught(0.0)
                logits = epoch_logits(run.teacher, images, views, run.sheet, ranks, tick)
                logits = logits.to(run.device)
                if shuffled:  # what it said in this epoch, of the other image
                    logits = logits[views.places[partner[views.index]]]
                progress.doing(epoch + 1)
            steps.begin(epoch, views, logits)
            here = [t for t in trainees if t.epoch == epoch]
            start = min((t.step for t in here), default=steps.count)
            progress.step(start)
            for step in range(start, steps.count):
                steps.take(step)
                progress.step()
                state.save_if_due()
            record(here, epoch, steps, run, progress)
            state.save_if_due()
            if not any(all_gather(ranks, any(not t.diverged for t in trainees))):
                break
        progress.close()
        complaints = leave(trainees, run, state, len(pending))
        if ranks.lead:
            state.finished()
        return complaints


def together(mine: list[Cell], pending: list[Cell]) -> str:
    """The cells that are trained together, in words; `mine` are this rank's."""
    if len(pending) == 1:
        return label(pending[0])
    part = f"{len(mine)} of " if len(mine) < len(pending) else ""
    return f"{part}{len(pending)} cells, seed {pending[0].seed}"


def introduce(trainees: list[Trainee], run: Run) -> None:
    """Have methods on activations find both networks' stages, before anything is written.

    Raises UserError where the networks lack the layers that a method compares, or one cannot learn
    from an epoch's last batch.
    """
    settings, rest = run.settings, len(run.data.train) % run.settings.batch_size
    ends = rest == 1 and settings.last_batch != "drop"
    lone = "every batch is of 1 image: --batch-size" if settings.batch_size == 1 else ""
    if ends:
        lone = "an epoch ends with 1 image: --last-batch drop"
    for cell in {t.cell for t in trainees if lone}:
        try:
            draws(cell.model, cell.width, len(run.data.classes), settings.image_size, images=1)
        except UserError as error:  # batch norm, with one value a channel
            raise UserError(f"{error} ({lone})") from None
    learners = [t for t in trainees if t.on_stages]
    if learners:
        pixels = plain(run.data.test, slice(0, 2))
        _, taught = run.teacher(pixels, stages=True)
        x = normalise(pixels, run.data.mean, run.data.std)
        for trainee in learners:
            trainee.meet(x, taught, run.data.train.labels)
            modules = trainee.regressor.modules() if trainee.regressor else ()
            norms = any(isinstance(m, nn.BatchNorm2d) for m in modules)
            if norms and lone:
                what = f"what {trainee.cell.method} trains along has batch norms"
                raise UserError(f"{what}, and {lone}")


def measure_untrained(trainees: list[Trainee], steps: Steps, run: Run) -> None:
    """The one record of networks that no epoch is to change."""
    measured = measure.record(steps.predictor(trainees), run.data)
    for trainee, found in zip(trainees, measured, strict=True):
        trainee.history = [found]
        if run.keep_best:
            trainee.best = on_cpu(trainee.model.state_dict())
        trainee.curves.write(0, found)


def record(here: list[Trainee], epoch: int, steps: Steps, run: Run, progress: Progress) -> None:
    """Measure the cells that have just finished the epoch, and write it down."""
    sound = [t for t in here if not t.diverged]
    measured: list[dict[str, float]] = [{} for _ in sound]
    due = (epoch + 1) % run.eval_every == 0 or epoch + 1 == run.settings.epochs
    if due and sound:
        measured = measure.record(steps.predictor(sound), run.data)
    for trainee, found in zip(sound, measured, strict=True):
        loss, hard, soft, correct, images = trainee.sums.tolist()
        found |= {"loss": loss / images, "hard": hard / images, "soft": soft / images}
        found |= {"train_acc": correct / images, "lr": trainee.lr_at(epoch)}
        trainee.history.append(found)
        if run.keep_best and best_epoch(trainee.history) == epoch:
            trainee.best = on_cpu(trainee.model.state_dict())
        if not all(map(math.isfinite, found.values())):
            trainee.diverged = epoch + 1
        else:
            trainee.curves.write(epoch + 1, found)
    for trainee in here:
        trainee.epoch, trainee.step = epoch + 1, 0
        trainee.sums.zero_()
    if sound:
        last = [t.history[-1] for t in sound]
        accuracies = [found["test_acc"] for found in last if "test_acc" in found]
        progress.epoch(epoch + 1, [found["loss"] for found in last], accuracies)
