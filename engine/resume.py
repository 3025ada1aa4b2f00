"""An unfinished run: when it is saved, what is saved, and what counts as the same run.

Saved are each cell's weights, optimiser, position, sums and history (`Trainee.state`). Random
numbers come from seed and epoch, the teacher's logits from its sheet.
"""

import contextlib
import dataclasses
import functools
import hashlib
import io
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import filelock
import torch

from engine.cells import OPTIMISER, SETTINGS, Cell, Settings, defaults, run_id
from engine.parallel import Left, Ranks, from_lead, lead_first
from engine.sheet import Sheet
from engine.teacher import Teacher
from engine.trainee import Trainee
from images.sources import Data
from models import code_of
from utils import (
    ROOT,
    Interrupted,
    UserError,
    acquired,
    check_writable,
    checksum,
    load_checkpoint,
    note,
    write_atomic,
)

GLANCE = 3.0  # seconds that a command of other cells may take to see that nobody trains these


class Keeper:
    """Says when to save: about every `seconds`, and at once after Ctrl-C or another signal to stop.

    SIGUSR1 is a scheduler's warning, SIGHUP a closed terminal. Signals only set a flag, so that
    no half-done step is saved. A second Ctrl-C ends at once.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.last = time.monotonic()
        self.signal = 0
        self.before = {}
        for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"):
            number = getattr(signal, name, None)  # Windows lacks the last two
            if not number or (name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN):
                continue  # under nohup
            self.before[number] = signal.signal(number, self.mark)

    def close(self) -> None:
        """Leave signals to those that had them: in a notebook the process lives on."""
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def mark(self, number: int, frame: object) -> None:
        # torchrun forwards to its ranks a signal that they have from the terminal already.
        if self.signal == number == signal.SIGINT and "RANK" not in os.environ:
            raise KeyboardInterrupt
        self.signal = self.signal or number

    def due(self, told: int) -> bool:
        """Whether the state should be saved now; `told` is the signal to obey, or 0."""
        return bool(told) or time.monotonic() - self.last >= self.seconds

    def saved(self, told: int) -> None:
        """The state is saved. Raises Interrupted where a signal asked to stop."""
        self.last = time.monotonic()
        if told:
            raise Interrupted(128 + told)


@dataclass
class Run:
    """What cells are trained with, besides themselves."""

    settings: Settings
    data: Data
    teacher: Teacher | None
    out_dir: Path
    device: torch.device
    ranks: Ranks
    keeper: Keeper
    overwrite: bool = False
    keep_best: bool = False
    sheet: Sheet | None = None
    eval_every: int = 1  # epochs from one measurement to the next; the last is always measured
    weights: dict[str, torch.Tensor] | None = None  # a teacher's first, of --weights


class Unfinished:
    """The saved state of a group's cells (of one seed), and its clock.

    `group` names the folder: all cells of the command, pending or not, since a kill may come after
    some rows were written. `trainees` are this rank's.
    """

    def __init__(self, group: list[Cell], trainees: list[Trainee], run: Run):
        self.folder = folder_of(group, run.settings, run.out_dir)
        self.trainees, self.run = trainees, run
        self.group, self.taught = group, any(cell.taught for cell in group)
        self.seconds_before, self.begun = 0.0, time.monotonic()
        self.restored = False  # before that, to save would write first weights over trained ones
        self.spent: list[Path] = []  # folders of other groups whose cells all go on here

    def elapsed(self) -> float:
        """Seconds of training so far, over all tries."""
        return self.seconds_before + time.monotonic() - self.begun

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Lock the folder. Raises UserError where another process has it."""
        mine = lead_first(self.run.ranks, lambda: claim(self.folder, GLANCE))
        with mine or contextlib.nullcontext():
            try:
                yield
            except Left:  # ranks wait between steps, so this one's state is whole
                if self.restored:
                    self.save()
                self.run.keeper.saved(self.run.keeper.signal)
                raise

    def save_if_due(self) -> None:
        """Save about once a minute; save and leave where a signal asked for it."""
        told = self.run.keeper.signal
        if self.run.keeper.due(told):
            self.save()
            self.run.keeper.saved(told)

    def save(self) -> None:
        """Save this rank's cells."""
        content = {
            "basis": self.basis(),
            "cells": {t.run_id: t.state() for t in self.trainees},
            "seconds": self.elapsed(),
        }
        save_state(self.folder / f"rank{self.run.ranks.rank}.state", content)

    def restore(self) -> None:
        """Load what an earlier try saved, on however many ranks.

        Raises UserError where its basis is another; with --overwrite it is removed.
        """
        run, shards = self.run, []
        if run.ranks.lead:
            shards = load_states(self.folder)
            if run.overwrite and any(self.other_basis(shard["basis"]) for shard in shards):
                for file in self.folder.glob("rank*.state*"):
                    file.unlink(missing_ok=True)
                shards = []
            shards += [] if run.overwrite else self.of_other_groups()
        shards = from_lead(run.ranks, shards)  # all ranks use what the lead could read
        states: dict[str, dict] = {}
        for shard in shards:
            if other := self.other_basis(shard["basis"]):
                raise UserError(
                    f"the unfinished run in {self.folder} was made with other settings "
                    f"({'; '.join(other)}): go on with those, or start afresh with --overwrite"
                )
            self.seconds_before = max(self.seconds_before, shard["seconds"])
            for name, state in shard["cells"].items():
                kept = states.get(name)
                if not kept or (kept["epoch"], kept["step"]) < (state["epoch"], state["step"]):
                    states[name] = state
        for trainee in self.trainees:
            state = states.get(trainee.run_id) or self.shorter_run(trainee)
            if state and run.keep_best and lacks_best(state):
                note(f"{trainee.run_id} was not begun with --keep best: it starts afresh")
            elif state:
                # Without --keep best it would go stale: there is none from here on.
                trainee.load(state if run.keep_best else state | {"best": None})
        self.restored = True

    def of_other_groups(self) -> list[dict]:
        """What commands with other cells have saved of ours, so that a wider grid goes on with it.

        A line names states that cannot be used; they stay where they are.
        """
        mine, found = {run_id(cell, self.run.settings) for cell in self.group}, []
        for folder in sorted(self.folder.parent.iterdir()):
            if folder == self.folder:
                continue
            with contextlib.suppress(UserError):  # unless another process has it
                with claim(folder):
                    pass  # no longer: its own command may be about to begin
                shards = load_states(folder)
                theirs = {name for shard in shards for name in shard["cells"]}
                other = {word for shard in shards for word in self.other_basis(shard["basis"])}
                if other and mine & theirs:
                    note(
                        f"{folder} has {len(mine & theirs)} of these cells unfinished, but with "
                        f"other settings ({'; '.join(sorted(other))}): they start afresh"
                    )
                elif mine & theirs:
                    found += shards
                    self.spent += [folder] * (theirs <= mine)
        return found

    @functools.cached_property
    def lengths(self) -> list[int]:
        """The numbers of epochs below ours that run ids in the out-dir name, the largest first."""
        names = " ".join(path.name for path in (self.run.out_dir / "checkpoints").glob("*.pt"))
        short = SETTINGS["epochs"].metadata["short"]
        found = {int(e) for e in re.findall(rf"-{short}(\d+)", names)}
        found.add(defaults(self.run.settings.recipe, "")["epochs"])  # which a run id leaves out
        return sorted((e for e in found if e < self.run.settings.epochs), reverse=True)

    def shorter_run(self, trainee: Trainee) -> dict | None:
        """The end of the longest finished run that differs only in its number of epochs.

        With the same t_max or milestones the learning rate was the same up to there. Not for a
        teacher, whose run id does not have the epochs: `pending_cells` refuses.
        """
        settings, cell = self.run.settings, trainee.cell
        for epochs in self.lengths if not cell.teaches else ():
            name = run_id(cell, dataclasses.replace(settings, epochs=epochs))
            path = self.run.out_dir / "checkpoints" / f"{name}.pt"
            stored = {}
            with contextlib.suppress(UserError):
                stored = load_checkpoint(path) if path.exists() else {}
            if "basis" not in stored:  # there is none, or it is of an older version
                continue
            ours = {"epochs": settings.epochs, "eval_every": self.run.eval_every}
            if not self.other_basis(stored["basis"] | ours):
                note(f"{trainee.run_id} goes on from {name}")
                both = {"model": stored["state"], "regressor": stored.get("regressor")}
                return stored["progress"] | both
        return None

    def finished(self) -> None:
        """All rows are written: remove the saved states."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for folder in self.spent:
            remove(folder)

    def basis(self) -> dict:
        """All that the bits depend on and a run id does not have."""
        run = self.run
        return {
            "teacher": run.teacher.sha if self.taught else "none",
            "data": run.data.fingerprint,
            "test data": run.data.measured_on,
            "eval_every": run.eval_every,  # of the best epoch, not of the weights
            "torch": str(torch.__version__),
            "device": run.device.type,
            # On a GPU they do not change the bits, and a node with other cores may go on.
            "threads": torch.get_num_threads() if run.device.type == "cpu" else 0,
            "code": code_checksum(),
            "network": " ".join(sorted({code_of(cell.model) for cell in self.group})),
            "teacher's network": run.teacher.code if self.taught else "",
            **asdict(run.settings),
            # A student's run id has the cell's own settings, a teacher's does not.
            **{
                n: [getattr(c, n) for c in self.group if c.teaches] for n in (*OPTIMISER, "weights")
            },
        }

    def other_basis(self, saved: dict) -> list[str]:
        """What differs from a saved basis, in words."""
        now = self.basis()
        return [f"{n} {saved.get(n)}, now {now[n]}" for n in now if saved.get(n) != now[n]]


def lacks_best(state: dict) -> bool:
    """Whether epochs were measured without the best one's weights being kept."""
    return state.get("best") is None and any("test_acc" in record for record in state["history"])


def folder_of(group: list[Cell], settings: Settings, out_dir: Path) -> Path:
    """Where a group's state is saved: named by its cells, so that the same command finds it."""
    ids = sorted(run_id(cell, settings) for cell in group)
    name = hashlib.sha256("\n".join(ids).encode()).hexdigest()[:12]
    return out_dir / "checkpoints" / "unfinished" / name


def remove(folder: Path) -> None:
    """Remove a group's saved state, unless another process has it."""
    if folder.exists():
        with contextlib.suppress(UserError), claim(folder):
            shutil.rmtree(folder, ignore_errors=True)


def claim(folder: Path, seconds: float = 0) -> contextlib.AbstractContextManager:
    """Lock a folder for the `with`. Raises UserError where another process has it for so long."""
    check_writable(folder)
    try:
        return acquired(folder / "lock", timeout=seconds)
    except filelock.Timeout:
        raise UserError(
            f"another process is training these cells ({folder}): wait for it"
        ) from None


@functools.cache
def code_checksum() -> int:
    """CRC-32 of the files that decide what a step computes; a run resumes only with the same."""
    engine = ("cells", "loop", "steps", "trainee", "optimise", "teacher", "sheet")
    engine += ("fused", "graph", "balance")
    files = [ROOT / "engine" / f"{name}.py" for name in engine]
    others = ("losses.py", "stage_losses.py", "feature_losses.py", "contrast_loss.py")
    others += ("utils.py", "images/views.py")
    files += [ROOT / name for name in others]
    files += sorted((ROOT / "models").glob("*.py"))
    return checksum(files)


# ---------------------------------------------------------------- files


def save_state(path: Path, content: dict) -> None:
    """Save an unfinished run: a SHA-256, then the torch file."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    raw = buffer.getvalue()
    write_atomic(path, hashlib.sha256(raw).digest() + raw)


def load_state(path: Path) -> dict | None:
    """A save of an unfinished run; None, with a line, where it is damaged."""
    with contextlib.suppress(Exception):  # unreadable, or of another version of torch
        raw = path.read_bytes()
        if hashlib.sha256(raw[32:]).digest() == raw[:32]:
            return torch.load(io.BytesIO(raw[32:]), map_location="cpu", weights_only=True)
    note(f"{path} is damaged: what it held starts afresh")
    return None


def load_states(folder: Path) -> list[dict]:
    """The undamaged saves in a folder, one a rank."""
    return [state for file in sorted(folder.glob("rank*.state")) if (state := load_state(file))]
