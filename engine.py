"""The one training loop.

A group is the cells of a command that share a seed and a network, and so see the same views. An
epoch of a group is: the epoch's views (a pure function of seed and epoch); the teacher's logits for
all of them; then, batch by batch, one step of every cell; then one record a cell. Cells share the
batch and nothing else, so a cell ends with the same bits in any company (on a GPU, where cells in
company are computed by other kernels than a lone one, with the same numbers up to rounding).

Every cell carries its own position (epoch, step). A run that goes on after a kill starts at the
earliest position of all, and a cell that is ahead waits for the others.
"""

import contextlib
import hashlib
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import measure
from cells import Cell, Settings, label, run_id, settings_dict
from data import Data, Views, epoch_views, gather, normalise, plain
from fused import FusedStep, can_fuse
from parallel import Ranks, from_lead, largest, lead_first, share, total
from teacher import EpochAhead, Teacher, plain_logits
from trainee import Batch, Trainee, cosine_lr, student_step
from utils import (
    Curves,
    Keeper,
    UserError,
    claim,
    code_checksum,
    load_states,
    provenance,
    remove_states,
    remove_tree,
    save_checkpoint,
    save_state,
    write_rows,
)


@dataclass
class Run:
    """What a group needs besides its cells."""

    settings: Settings
    data: Data
    teacher: Teacher | None
    out_dir: Path
    device: torch.device
    ranks: Ranks
    keeper: Keeper
    overwrite: bool = False


def train(cells: list[Cell], pending: list[Cell], run: Run) -> list[str]:
    """Train the `pending` ones of a group's `cells` (one seed, one network) and write their rows.

    Returns one line for each cell whose loss became non-finite; those leave no row. Raises
    UserError where another process is at it or an unfinished run of other settings is in the way.
    """
    group = Group(cells, pending, run)
    lock = lead_first(run.ranks, lambda: claim(group.folder))
    try:
        return group.train()
    except RuntimeError:
        # Another rank has left at a signal, which this one could not see while it waited for it.
        # That happens between steps, so this rank's state is whole. (A teacher's ranks agree.)
        if run.keeper.signal and not group.data_parallel:
            group.save_if_due()
        raise
    finally:
        if lock:
            lock.release()


def clear(cells: list[Cell], run: Run) -> None:
    """Remove what a kill after the rows were written has left, unless someone is at it."""
    folder = unfinished(cells, run)
    if folder.exists():
        with contextlib.suppress(UserError), claim(folder):
            remove_tree(folder)


def unfinished(cells: list[Cell], run: Run) -> Path:
    """Where a group's state is saved: named by all its cells, so that the same command finds it.

    By all, pending or not: a kill may come after some rows were written.
    """
    ids = sorted(run_id(cell, run.settings) for cell in cells)
    name = hashlib.sha256("\n".join(ids).encode()).hexdigest()[:12]
    return run.out_dir / "checkpoints" / "unfinished" / name


class Group:
    """This rank's share of a group's cells, their training and their saved state."""

    def __init__(self, cells: list[Cell], pending: list[Cell], run: Run):
        self.run = run
        self.seed = cells[0].seed
        self.folder = unfinished(cells, run)
        ranks = run.ranks
        # A single large network is split by images (DDP); the cells of a grid are dealt out.
        self.data_parallel = ranks.world > 1 and len(pending) == 1 and pending[0].teaches
        mine = pending if self.data_parallel else pending[ranks.rank :: ranks.world]
        classes = len(run.data.classes)
        self.trainees = [Trainee(cell, run.settings, classes, run.device) for cell in mine]
        self.cells_in_pass = len(pending)
        self.taught = any(cell.method != "none" for cell in pending)
        # The same at every rank, whatever its share: the teacher's pass is everyone's.
        self.ahead = EpochAhead({})
        self.seconds_before, self.begun = 0.0, time.monotonic()
        self.fused: FusedStep | None = None

    def train(self) -> list[str]:
        """All that is left to do, from wherever the cells stand."""
        run, settings = self.run, self.run.settings
        self.meet_teacher()
        self.restore()
        if run.device.type == "cuda" and can_fuse(self.trainees):
            self.fused = FusedStep(self.trainees)
        if self.data_parallel:
            for trainee in self.trainees:
                trainee.forward = DistributedDataParallel(trainee.model)
                trainee.total = total
        if run.ranks.lead or not self.data_parallel:
            for trainee in self.trainees:
                trainee.curves = Curves(run.out_dir, trainee.run_id, trainee.epoch)
        steps = math.ceil(len(run.data.train) / settings.batch_size)
        asks = any(share(run.ranks, any(t.learns_from_logits for t in self.trainees)))
        first = min(share(run.ranks, min((t.epoch for t in self.trainees), default=10**9)))
        quiet = None if run.ranks.lead else True  # None: a bar where stderr is a terminal
        with tqdm(total=settings.epochs * steps, disable=quiet, unit="step") as bar:
            bar.update(first * steps)
            for epoch in range(first, settings.epochs):
                views = epoch_views(self.seed, epoch, len(run.data.train), run.device)
                logits = self.ask_ahead(views, epoch, bar) if asks else None
                self.steps(epoch, steps, views, logits, bar)
                self.record(epoch, bar)
                if not any(share(run.ranks, any(not t.diverged for t in self.trainees))):
                    break
        return self.finish()

    def meet_teacher(self) -> None:
        """Let methods on activations see theirs and the teacher's once, before anything is written.

        Raises UserError where the networks lack the layers that a method compares.
        """
        run, learners = self.run, [t for t in self.trainees if t.learns_from_stages]
        if learners:
            pixels = plain(run.data.test, slice(0, 2))
            _, taught = run.teacher(pixels, stages=True)
            for trainee in learners:
                trainee.meet(normalise(pixels, run.data.mean, run.data.std), taught)

    # ------------------------------------------------------------ an epoch

    def ask_ahead(self, views: Views, epoch: int, bar: tqdm) -> Tensor:
        """The teacher's logits for all views of the epoch, [N, K]."""
        run = self.run
        bar.set_description(f"epoch {epoch + 1}, teacher")
        logits = self.ahead.logits(
            run.teacher, run.data.train, views, epoch, run.ranks, self.save_if_due
        )
        return logits.to(run.device)

    def steps(self, epoch: int, steps: int, views: Views, logits: Tensor | None, bar: tqdm) -> None:
        """One step of every cell for every batch of the epoch."""
        bar.set_description(f"epoch {epoch + 1}")
        size, settings = self.run.settings.batch_size, self.run.settings
        lr = cosine_lr(settings.lr, epoch, settings.t_max)
        start = min((t.step for t in self.trainees if t.epoch == epoch), default=steps)
        bar.update(start)
        for step in range(start, steps):
            part = slice(step * size, (step + 1) * size)
            here = [t for t in self.trainees if (t.epoch, t.step) == (epoch, step)]
            if here:
                batch = self.batch(views[part], logits[part] if logits is not None else None)
                self.step(here, batch, lr)
            bar.update()
            self.save_if_due()

    def step(self, here: list[Trainee], batch: Batch, lr: float) -> None:
        """One step of the cells that are here; a diverged one only goes along."""
        if self.fused and len(here) == len(self.trainees):
            self.fused(batch, lr)
        else:
            for trainee in here:
                if not trainee.diverged:
                    student_step(trainee, batch, lr)
        for trainee in here:
            trainee.step += 1

    def batch(self, views: Views, logits: Tensor | None) -> Batch:
        """Pixels, labels and the teacher's word on them, made once for all cells."""
        run, weight = self.run, 1.0
        if self.data_parallel:
            whole, world = len(views), run.ranks.world
            own = views[slice(run.ranks.rank, None, world)]
            # A last batch with fewer images than ranks: DDP needs every rank, so it takes an image
            # along that counts for nothing.
            weight = len(own) * world / whole
            views = own if len(own) else views[:1]
        pixels = gather(run.data.train, views)
        stages = None
        if any(t.learns_from_stages for t in self.trainees):
            _, stages = run.teacher(pixels, stages=True)
        return Batch(
            x=normalise(pixels, run.data.mean, run.data.std),
            labels=run.data.train.labels[views.index],
            logits=logits,
            stages=stages,
            weight=weight,
        )

    def record(self, epoch: int, bar: tqdm) -> None:
        """Measure the cells that have just finished the epoch, and write it down."""
        run = self.run
        here = [t for t in self.trainees if t.epoch == epoch]
        sound = [t for t in here if not t.diverged]
        measured = self.measure(sound) if run.ranks.lead or not self.data_parallel else []
        if self.data_parallel:
            measured = from_lead(run.ranks, measured)
        for trainee, record in zip(sound, measured, strict=True):
            loss, hard, soft, correct, images = trainee.sums.tolist()
            record |= {"loss": loss / images, "hard": hard / images, "soft": soft / images}
            record["train_acc"] = correct / images
            record["lr"] = cosine_lr(run.settings.lr, epoch, run.settings.t_max)
            trainee.history.append(record)
            if not all(map(math.isfinite, record.values())):
                trainee.diverged = epoch + 1
            elif trainee.curves:
                trainee.curves.write(epoch + 1, record)
        for trainee in here:
            trainee.epoch, trainee.step = epoch + 1, 0
            trainee.sums.zero_()
        if sound:
            last = sound[0].history[-1]
            bar.set_postfix_str(f"loss {last['loss']:.3f}, accuracy {last['test_acc']:.4f}")
        self.save_if_due()

    def measure(self, trainees: list[Trainee]) -> list[dict[str, float]]:
        """Accuracy and loss on the test set, and on the validation images where there are any."""
        data, amp, models = self.run.data, self.run.settings.amp, [t.model for t in trainees]
        records = []
        for logits in measure.all_logits(models, data.test, data, amp):
            accuracy = measure.accuracy(logits, data.test.labels)
            loss = measure.loss(logits, data.test.labels)
            records.append({"test_acc": accuracy, "test_loss": loss})
        if data.val:
            logits = measure.all_logits(models, data.val, data, amp)
            for record, own in zip(records, logits, strict=True):
                record["val_acc"] = measure.accuracy(own, data.val.labels)
        return records

    # ------------------------------------------------------------ the end

    def finish(self) -> list[str]:
        """Checkpoints, rows, and the unfinished state gone. Returns a line per diverged cell."""
        run = self.run
        rows, complaints = [], []
        if run.ranks.lead or not self.data_parallel:
            sound = [t for t in self.trainees if not t.diverged]
            rows = self.rows(sound)
            for trainee, row in zip(sound, rows, strict=True):
                path = run.out_dir / "checkpoints" / f"{trainee.run_id}.pt"
                save_checkpoint(path, self.checkpoint(trainee))
                trainee.curves.close(row)
            complaints = [
                f"{label(t.cell)}: the loss became non-finite in epoch {t.diverged}"
                for t in self.trainees
                if t.diverged
            ]
        everyone = share(run.ranks, (rows, complaints))
        if run.ranks.lead:
            rows = [row for theirs, _ in everyone for row in theirs]
            write_rows(run.out_dir, rows)
            for row in rows:
                print(
                    f"{row['run_id']}: test accuracy {row['test_acc']:.4f}, "
                    f"best {row['best_test_acc']:.4f} in epoch {row['best_epoch']}, "
                    f"{row['seconds']:.0f} s"
                )
            remove_tree(self.folder)
        return [line for _, theirs in everyone for line in theirs]

    def rows(self, trainees: list[Trainee]) -> list[dict]:
        """One row of the CSV for each."""
        run, data, settings = self.run, self.run.data, self.run.settings
        teacher = run.teacher
        models = [t.model for t in trainees]
        logits = measure.all_logits(models, data.test, data, settings.amp)
        taught = plain_logits(teacher, data.test) if teacher and trainees else None
        common = settings_dict(settings) | {"train_size": len(data.train)}
        common["data"] = data.fingerprint
        common |= provenance(str(run.device), torch.get_num_threads(), run.ranks.world)
        # A cell's seconds are its share of the pass, so that a column of them adds up.
        share_of_pass = self.elapsed() / self.cells_in_pass
        common |= {"cells": self.cells_in_pass, "seconds": round(share_of_pass, 2)}
        rows = []
        for trainee, own in zip(trainees, logits, strict=True):
            row = common | trainee.columns()
            row["ece"] = measure.calibration_error(own, data.test.labels)
            if teacher:
                row |= {"teacher": teacher.run_id, "teacher_sha": teacher.sha}
                row["agreement"] = measure.agreement(own, taught)
                row["teacher_kl"] = measure.divergence(own, taught)
            rows.append(row)
        return rows

    def checkpoint(self, trainee: Trainee) -> dict:
        """Everything another program needs to use the network, and how it came about."""
        data, cell = self.run.data, trainee.cell
        return {
            "run_id": trainee.run_id,
            "model": cell.model,
            "width": cell.width,
            "classes": len(data.classes),
            "class_names": data.classes,
            "data": data.fingerprint,
            "normalization": self.run.settings.normalization,
            "mean": list(data.mean),
            "std": list(data.std),
            "settings": settings_dict(self.run.settings),
            "cell": settings_dict(cell),
            "state": on_cpu(trainee.model.state_dict()),
            "regressor": on_cpu(trainee.regressor.state_dict()) if trainee.regressor else None,
        }

    # ------------------------------------------------------------ saving and going on

    def save_if_due(self) -> None:
        """Save about once a minute; save and leave where a signal asked for it."""
        keeper = self.run.keeper
        if self.data_parallel:  # all leave at the same step, or one would wait for the others
            keeper.signal = largest(self.run.ranks, keeper.signal, self.run.device)
        if not keeper.due():
            return
        if self.run.ranks.lead or not self.data_parallel:
            content = {
                "basis": self.basis(),
                "cells": {t.run_id: t.state() for t in self.trainees},
                "chunks": self.ahead.chunks,
                "seconds": self.elapsed(),
            }
            save_state(self.folder / f"rank{self.run.ranks.rank}.state", content)
        keeper.saved()

    def restore(self) -> None:
        """Take up what an earlier try saved, on however many ranks.

        Raises UserError where it was made with other settings; with --overwrite that is forgotten.
        """
        run, shards = self.run, []
        if run.ranks.lead:
            shards = load_states(self.folder)
            if run.overwrite and any(self.other_basis(shard["basis"]) for shard in shards):
                remove_states(self.folder)
                shards = []
        shards = from_lead(run.ranks, shards)  # what the lead can read decides, for all ranks
        states: dict[str, dict] = {}
        for shard in shards:
            if other := self.other_basis(shard["basis"]):
                raise UserError(
                    f"the unfinished run in {self.folder} was made with other settings "
                    f"({'; '.join(other)}): go on with those, or start afresh with --overwrite"
                )
            self.seconds_before = max(self.seconds_before, shard["seconds"])
            for epoch, chunks in shard["chunks"].items():
                self.ahead.chunks.setdefault(epoch, {}).update(chunks)
            for name, state in shard["cells"].items():
                kept = states.get(name)
                if not kept or (kept["epoch"], kept["step"]) < (state["epoch"], state["step"]):
                    states[name] = state
        for trainee in self.trainees:
            if trainee.run_id in states:
                trainee.load(states[trainee.run_id])

    def basis(self) -> dict:
        """What the bits depend on and a run id does not say."""
        run = self.run
        return {
            "teacher": run.teacher.sha if self.taught else "none",
            "data": run.data.fingerprint,
            "device": run.device.type,
            "threads": torch.get_num_threads(),
            "DDP ranks": run.ranks.world if self.data_parallel else 1,
            "code": code_checksum(),
            **settings_dict(run.settings),
        }

    def other_basis(self, saved: dict) -> list[str]:
        """What of a saved basis is not so now, in words."""
        now = self.basis()
        return [f"{n} {saved.get(n)}, now {now[n]}" for n in now if saved.get(n) != now[n]]

    def elapsed(self) -> float:
        """Seconds of training so far, over all tries."""
        return self.seconds_before + time.monotonic() - self.begun


def on_cpu(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of its own: a fused student's tensors are views of everybody's."""
    return {name: value.detach().cpu().clone() for name, value in state.items()}
