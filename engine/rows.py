"""What a finished run leaves: its row in the CSV and its checkpoint."""

import contextlib
import datetime
import io
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from engine import measure
from engine.cells import REFERENCE, SETTINGS, label
from engine.parallel import all_gather
from engine.resume import Run, Unfinished
from engine.teacher import plain_logits
from engine.trainee import Trainee
from models import code_of, parameter_count
from utils import (
    ROOT,
    WEIGHTS,
    UserError,
    acquired,
    brief,
    check_writable,
    listed,
    save_checkpoint,
    say,
    write_atomic,
)

# pandas 2 by default reads some numbers of 16 digits as their neighbours.
EXACT = {"float_precision": "round_trip"} if pd.__version__.startswith("2.") else {}
ROLES = ("teacher", "student", "distill")
FIRST = (
    ["run_id", "role", "model", "teacher", "method", "alpha", "temperature", "scale_t2", "seed"]
    + ["dataset", "train_size", "epochs", "batch_size", "lr", "t_max", "momentum", "weight_decay"]
    + ["normalization", "test_acc", "test_loss", "best_test_acc", "best_epoch", "train_acc"]
    + ["params", "seconds", "device", "torch", "commit", "finished_at"]
)
# New columns go to the end, so that reading by position still works. A CSV of an older version may
# lack them: settings then have the reference's value, all else is blank.
LATER = (
    ["width", "amp", "beta", "val_size", "val_acc", "best_val_acc", "best_val_epoch"]
    + ["teacher_seed", "teacher_sha", "agreement", "teacher_kl", "ece", "test_curve"]
    + ["machine", "threads", "ranks", "cells", "python", "numpy", "data", "last_batch", "clip"]
    + ["test_data", "teacher_acc", "student_layers", "teacher_layers", "weights", "code"]
)
LATER += ["schedule", "milestones", "gamma", "warmup", "nesterov", "optimizer"]
LATER += ["image_size", "augment", "auto_beta", "soft_warmup", "hard_weight", "answers"]
LATER += [name for name in SETTINGS if name not in FIRST + LATER]  # a new setting is the last
COLUMNS = FIRST + LATER
# Text that may look like a number: a commit, a single milestone, a layer of a Sequential.
TEXT = ["torch", "commit", "teacher_sha", "weights", "code", "student_layers", "teacher_layers"]
TEXT += [name for name, value in REFERENCE.items() if isinstance(value, str)]


# ---------------------------------------------------------------- from a network to its row


def leave(trainees: list[Trainee], run: Run, state: Unfinished, cells: int) -> list[str]:
    """Write checkpoints, then rows. Returns a line for each cell that diverged, of all ranks."""
    sound, basis = [t for t in trainees if not t.diverged], state.basis()
    rows = rows_of(sound, run, state.elapsed(), cells)
    for trainee in sound:
        path = run.out_dir / "checkpoints" / f"{trainee.run_id}.pt"
        content = checkpoint_of(trainee, run, basis)
        save_checkpoint(path, content)
        if run.keep_best:
            best = min(best_epoch(trainee.history) + 1, run.settings.epochs)
            best = {"state": trainee.best, "epoch": best}
            save_checkpoint(best_path(path), content | best | {"progress": None})
    rest = len(run.data.train) % run.settings.batch_size
    small = run.settings.last_batch == "keep" and 0 < rest < run.settings.batch_size / 2
    hint = f" (an epoch's last step is on {rest} images and as long: --last-batch weigh?)"
    complaints = [
        f"{label(t.cell)}: the loss became non-finite in epoch {t.diverged}" + hint * small
        for t in trainees
        if t.diverged
    ]
    gathered = all_gather(run.ranks, (rows, complaints))
    if run.ranks.lead:
        rows = [row for theirs, _ in gathered for row in theirs]
        write_rows(run.out_dir, rows)
        for row in rows:
            say(
                f"{row['run_id']}: test accuracy {row['test_acc']:.4f}, "
                f"best {row['best_test_acc']:.4f} in epoch {row['best_epoch']}, "
                f"{row['seconds']:.0f} s"
            )
    for trainee in trainees:
        trainee.curves.close(trainee in sound)
    return [line for _, theirs in gathered for line in theirs]


def rows_of(trainees: list[Trainee], run: Run, seconds: float, cells: int) -> list[dict]:
    """The rows of trained cells, in the order of `trainees`, measured on the test set.

    `seconds` were spent on training `cells` cells together: each row has an equal part of them.
    """
    if not trainees:
        return []
    data, settings, teacher = run.data, run.settings, run.teacher
    predict = measure.one_by_one([t.model for t in trainees], settings.amp)
    logits = measure.all_logits(predict, data.test, data)
    taught = plain_logits(teacher, data.test) if teacher else None
    common = asdict(settings) | {"train_size": len(data.train)}
    common |= {"data": data.fingerprint, "test_data": data.measured_on}
    common |= provenance(str(run.device), torch.get_num_threads(), run.ranks.world)
    common |= {"cells": cells, "seconds": round(seconds / cells, 2)}
    rows = []
    for trainee, own in zip(trainees, logits, strict=True):
        row = common | cell_columns(trainee) | epoch_columns(trainee.history, settings.epochs)
        row["ece"] = measure.calibration_error(own, data.test.labels)
        if teacher:
            row |= {"teacher": teacher.run_id, "teacher_sha": teacher.sha}
            row["agreement"] = measure.accuracy(own, taught.argmax(1))
            row["teacher_kl"] = measure.divergence(own, taught)
            row["teacher_acc"] = measure.accuracy(taught, data.test.labels)
        rows.append(row)
    return rows


def cell_columns(trainee: Trainee) -> dict:
    """What was trained."""
    columns = asdict(trainee.cell)
    teaches = columns.pop("teaches")
    taught = trainee.cell.taught
    role = "teacher" if teaches else "distill" if taught else "student"
    columns["beta"] = trainee.beta
    columns |= {"run_id": trainee.run_id, "role": role, "params": parameter_count(trainee.model)}
    columns["code"] = code_of(trainee.cell.model)
    return columns | ({"alpha": None} if teaches else {})


def epoch_columns(history: list[dict[str, float]], epochs: int) -> dict:
    """The last epoch's figures, and the best epochs', chosen on the test set and on validation.

    Without epochs `history` is one record, and the best epoch is 0.
    """
    last, best = history[-1], best_epoch(history, "test_acc")
    columns = {name: last.get(name) for name in ("test_acc", "test_loss", "train_acc")}
    columns |= {"best_test_acc": history[best]["test_acc"], "best_epoch": min(best + 1, epochs)}
    curve = history[:epochs]
    columns["test_curve"] = " ".join(f"{record.get('test_acc', nan):.6g}" for record in curve)
    if "val_acc" in last:
        best = best_epoch(history, "val_acc")
        columns |= {"val_acc": last["val_acc"], "best_val_acc": history[best]["val_acc"]}
        columns["best_val_epoch"] = min(best + 1, epochs)
    return columns


def best_epoch(history: list[dict[str, float]], figure: str | None = None) -> int:
    """The first epoch, from 0, with the highest figure, of those that have one.

    Unless it is named, that is the accuracy on held-out images, or else on the test set.
    """
    figure = figure or ("val_acc" if any("val_acc" in one for one in history) else "test_acc")
    measured = [epoch for epoch, record in enumerate(history) if figure in record]
    return max(measured, key=lambda epoch: (history[epoch][figure], -epoch), default=-1)


def best_path(checkpoint: Path) -> Path:
    """Where the best epoch's weights are, beside the last one's."""
    return checkpoint.with_suffix(".best.pt")


def checkpoint_of(trainee: Trainee, run: Run, basis: dict) -> dict:
    """Everything another program needs to use the network, and what it was trained with.

    With `progress` and `basis` a longer run goes on from it (`Unfinished.shorter_run`).
    """
    data, cell, state = run.data, trainee.cell, on_cpu(trainee.state())
    return {
        "run_id": trainee.run_id,
        "model": cell.model,
        "width": cell.width,
        "classes": len(data.classes),
        "class_names": data.classes,
        "image_size": run.settings.image_size,
        "data": data.fingerprint,
        "normalization": run.settings.normalization,
        "mean": list(data.mean),
        "std": list(data.std),
        "settings": asdict(run.settings),
        "cell": asdict(cell),
        "state": state.pop("model"),
        "known_by": WEIGHTS,
        "regressor": state.pop("regressor"),
        "progress": state,
        "basis": basis,
    }


def on_cpu(item: Any) -> Any:
    """Its tensors copied to the CPU: a stacked student's are views into the stack."""
    if isinstance(item, Tensor):
        return item.detach().cpu().clone()
    if isinstance(item, dict):
        return {key: on_cpu(value) for key, value in item.items()}
    return [on_cpu(value) for value in item] if isinstance(item, list) else item


# ---------------------------------------------------------------- the CSV


def csv_path(out_dir: Path) -> Path:
    """The one CSV of an --out-dir."""
    return out_dir / "results" / "results.csv"


def read_rows(path: Path) -> pd.DataFrame:
    """results.csv as a frame, one row a finished run; empty if there is no file yet.

    Raises UserError if it cannot be read or is not this project's CSV.
    """
    return parse_rows(path, path) if path.exists() else pd.DataFrame(columns=COLUMNS)


def parse_rows(source: Path | io.BytesIO, path: Path) -> pd.DataFrame:
    """A CSV's rows, from the file itself or from what is to become it. Raises UserError."""
    advice = "mend it, move it away, or choose another --out-dir"
    try:
        rows = pd.read_csv(source, dtype=dict.fromkeys(TEXT, str), **EXACT)
    except (OSError, ValueError, pd.errors.ParserError) as error:
        raise UserError(f"cannot read {path} ({brief(error)}): {advice}") from None
    if [name for name in COLUMNS if name in rows] != list(rows) or not set(FIRST) <= set(rows):
        more, fewer = sorted(set(rows) - set(COLUMNS)), sorted(set(FIRST) - set(rows))
        odd = [f"it lacks {listed(fewer)}"] * bool(fewer) + [f"it has {listed(more)}"] * bool(more)
        odd = ["none separated by a comma"] if len(rows.columns) == 1 else odd or ["their order"]
        raise UserError(f"{path} has not this version's columns ({'; '.join(odd)}): {advice}")
    rows = with_later(rows)
    if rows.run_id.isna().any():
        lines = ", ".join(str(number + 2) for number in rows.index[rows.run_id.isna()])
        raise UserError(f"{path} has no run_id in line {lines}: {advice}")
    if rows.run_id.duplicated().any():
        twice = listed(rows.run_id[rows.run_id.duplicated()].unique())
        raise UserError(f"{path} has {twice} more than once: {advice}")
    if not rows.role.isin(ROLES).all():
        raise UserError(f"{path} has a role that is none of {', '.join(ROLES)}: {advice}")
    numbers = ("seed", "alpha", "temperature", "test_acc", "best_test_acc", "seconds")
    numbers += tuple(name for name in SETTINGS if type(REFERENCE[name]) in (int, float))
    for name in (*numbers, "data", "test_data"):
        if not pd.api.types.is_numeric_dtype(rows[name]) and rows[name].notna().any():
            raise UserError(f"{path} has something that is no number under {name}: {advice}")
    return rows


def with_later(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with all COLUMNS: settings an older version lacks have the reference's value."""
    return rows.assign(**{n: REFERENCE.get(n) for n in LATER if n not in rows})[COLUMNS]


def write_rows(out_dir: Path, new: Iterable[dict]) -> None:
    """Add finished runs to the CSV, under a lock and in one atomic replacement.

    A row with the run_id of a new one is replaced. Raises UserError as read_rows does.
    """
    path = csv_path(out_dir)
    new = pd.DataFrame(list(new), columns=COLUMNS)
    with locked(path):
        old = read_rows(path)
        if len(old):  # keep the original text: a number that is parsed and printed may change
            old = pd.read_csv(path, dtype=str, keep_default_na=False)
            old = with_later(old)
        old = old[~old.run_id.isin(new.run_id)]
        lines = [frame.to_csv(index=False, header=False) for frame in (old, new) if len(frame)]
        content = (",".join(COLUMNS) + "\n" + "".join(lines)).encode()
        parse_rows(io.BytesIO(content), path)  # never write a CSV that read_rows would refuse
        write_atomic(path, content)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold `<path>.lock`, waiting until it is free."""
    check_writable(path.parent)
    with acquired(Path(f"{path}.lock")):
        yield


# ---------------------------------------------------------------- where and with what


def provenance(device: str, threads: int, ranks: int) -> dict:
    """Hardware and software versions of a run, as columns."""
    return {
        "device": device,
        "machine": machine(device),
        "threads": threads,
        "ranks": ranks,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "commit": commit(),
        "finished_at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def machine(device: str) -> str:
    """The name of the GPU, or of the processor and its core count."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    return f"{name}, {os.cpu_count()} cores"


def commit() -> str:
    """This checkout's commit, with a `+` where the working tree differs from it."""
    try:
        git = ["git", "-C", str(ROOT)]
        sha = subprocess.run(git + ["rev-parse", "--short=10", "HEAD"], capture_output=True)
        dirty = subprocess.run(git + ["diff", "--quiet", "HEAD", "--", "*.py"], capture_output=True)
    except OSError:
        return ""
    return sha.stdout.decode().strip() + ("+" if dirty.returncode == 1 else "")
