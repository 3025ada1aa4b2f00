"""The disk and the terminal: errors, files that are whole or absent, the CSV, TensorBoard."""

import contextlib
import datetime
import functools
import hashlib
import io
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import filelock
import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from cells import COLUMNS, ROLES

ROOT = Path(__file__).resolve().parent


class UserError(Exception):
    """One line for the person at the terminal; the scripts print it and exit with status 2."""


class OwnError(UserError):
    """A UserError of this rank alone: under torchrun the lead does not know of it."""


class Interrupted(Exception):
    """A signal asked the run to stop; its state is saved. `status` is the exit status to leave."""

    def __init__(self, status: int):
        super().__init__(status)
        self.status = status


def run_script(main: Callable[[], None]) -> None:
    """Run a script's main: a UserError becomes one line on stderr and exit status 2."""
    try:
        main()
    except UserError as error:
        # Under torchrun every rank has it, and one says it; but for a rank's own error.
        if os.environ.get("RANK", "0") == "0" or isinstance(error, OwnError):
            print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Interrupted as stop:
        print("stopped; the same command goes on from here", file=sys.stderr)
        raise SystemExit(stop.status) from None


# ---------------------------------------------------------------- whole files


def write_atomic(path: Path, content: bytes, keep_previous: bool = False) -> None:
    """Write a file so that a kill at any moment leaves the old one or the new one, not a torn one.

    With `keep_previous` the file that stood there survives as `<name>.previous`.
    Raises UserError if the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if keep_previous and path.exists():
            path.replace(previous(path))
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UserError(
            f"cannot write {path} ({error.strerror}): free it or choose --out-dir"
        ) from None


def previous(path: Path) -> Path:
    """Where `keep_previous` leaves the older file."""
    return path.with_name(path.name + ".previous")


def check_writable(folder: Path) -> None:
    """Fail before hours of training rather than after. Raises UserError."""
    probe = folder / f".writable.{os.getpid()}"
    write_atomic(probe, b"")
    probe.unlink()


# ---------------------------------------------------------------- checkpoints


CHECKPOINT = {"run_id", "model", "width", "classes", "mean", "std", "cell", "data", "state"}


def save_checkpoint(path: Path, content: dict) -> None:
    """Save tensors and plain values, readable with torch.load(weights_only=True)."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomic(path, buffer.getvalue())


def load_checkpoint(path: Path) -> dict:
    """Read a checkpoint onto the CPU; `sha` is added: the first 12 hex digits of its SHA-256.

    Raises UserError if it is missing, truncated or not a checkpoint of this project.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"no teacher checkpoint at {path} ({error.strerror}): run train_teacher.py first, "
            "or give --teacher"
        ) from None
    try:
        content = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
        if not content.keys() >= CHECKPOINT:
            raise KeyError
    except Exception:  # torch raises half a dozen kinds for a broken file
        raise UserError(
            f"{path} is truncated or not a checkpoint of this project: train it again "
            "(train_teacher.py --overwrite)"
        ) from None
    content["sha"] = hashlib.sha256(raw).hexdigest()[:12]
    return content


def save_state(path: Path, content: dict) -> None:
    """Save an unfinished run: a SHA-256, then the torch file; the save before it is kept."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    raw = buffer.getvalue()
    write_atomic(path, hashlib.sha256(raw).digest() + raw, keep_previous=True)


def load_state(path: Path) -> dict | None:
    """The newest whole save of an unfinished run, or None: a torn one falls back to the last."""
    for candidate in (path, previous(path)):
        with contextlib.suppress(OSError):
            raw = candidate.read_bytes()
            if hashlib.sha256(raw[32:]).digest() == raw[:32]:
                return torch.load(io.BytesIO(raw[32:]), map_location="cpu", weights_only=True)
            print(f"{candidate} is torn; falling back to the save before it", file=sys.stderr)
    return None


def load_states(folder: Path) -> list[dict]:
    """The newest whole save of every rank that left one."""
    names = {file.name.removesuffix(".previous") for file in folder.glob("rank*.state*")}
    return [state for name in sorted(names) if (state := load_state(folder / name))]


def remove_states(folder: Path) -> None:
    """Forget an unfinished run."""
    for file in folder.glob("rank*.state*"):
        file.unlink(missing_ok=True)


def claim(folder: Path) -> filelock.FileLock:
    """Hold a folder for this process until release. Raises UserError where another has it."""
    check_writable(folder)
    lock = filelock.FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise UserError(
            f"another process is training these cells ({folder}): wait for it"
        ) from None
    return lock


# ---------------------------------------------------------------- the CSV


def csv_path(out_dir: Path) -> Path:
    """The one CSV of an --out-dir."""
    return out_dir / "results" / "results.csv"


def read_rows(path: Path) -> pd.DataFrame:
    """results.csv as a frame, one row a finished run; empty if there is no file yet.

    Raises UserError if it cannot be read or is not this project's CSV.
    """
    if not path.exists():
        return pd.DataFrame(columns=COLUMNS)
    advice = "mend it, move it away, or choose another --out-dir"
    try:
        rows = pd.read_csv(path, dtype={"torch": str, "commit": str, "teacher_sha": str})
    except (OSError, ValueError, pd.errors.ParserError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"cannot read {path} ({reason}): {advice}") from None
    if list(rows.columns) != COLUMNS:
        odd = sorted(set(COLUMNS) ^ set(rows.columns)) or ["their order"]
        raise UserError(f"{path} has not this version's columns ({', '.join(odd)}): {advice}")
    if rows.run_id.isna().any() or rows.run_id.duplicated().any():
        raise UserError(f"{path} has a run_id that is empty or there twice: {advice}")
    if not rows.role.isin(ROLES).all():
        raise UserError(f"{path} has a role that is none of {', '.join(ROLES)}: {advice}")
    for name in ("seed", "alpha", "temperature", "test_acc", "best_test_acc"):
        if not pd.api.types.is_numeric_dtype(rows[name]) and rows[name].notna().any():
            raise UserError(f"{path} has something that is no number under {name}: {advice}")
    return rows


def write_rows(out_dir: Path, new: Iterable[dict]) -> None:
    """Add finished runs to the CSV, under a lock and in one atomic replacement.

    A row with the run_id of a new one is replaced. Raises UserError as read_rows does.
    """
    path = csv_path(out_dir)
    new = pd.DataFrame(list(new), columns=COLUMNS)
    with locked(path):
        old = read_rows(path)
        if len(old):  # as the very text they are: a number read and written again may change
            old = pd.read_csv(path, dtype=str, keep_default_na=False)
        old = old[~old.run_id.isin(new.run_id)]
        lines = [frame.to_csv(index=False, header=False) for frame in (old, new) if len(frame)]
        header = ",".join(COLUMNS) + "\n"
        write_atomic(path, (header + "".join(lines)).encode())


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold `<path>.lock`, waiting for whoever has it."""
    check_writable(path.parent)
    with filelock.FileLock(str(path) + ".lock"):
        yield


# ---------------------------------------------------------------- stopping and saving


class Keeper:
    """Says when to save: about every `seconds`, and at once after Ctrl-C or SIGTERM.

    Signals only set a mark, so that what is saved is never a step half done. A second Ctrl-C does
    not wait.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.last = time.monotonic()
        self.signal = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.mark)

    def mark(self, number: int, frame: object) -> None:
        # torchrun passes on to its ranks what they have had from the terminal already.
        if self.signal and "RANK" not in os.environ:
            raise KeyboardInterrupt
        self.signal = self.signal or number

    def due(self) -> bool:
        """Whether the state should be saved now."""
        return bool(self.signal) or time.monotonic() - self.last >= self.seconds

    def saved(self) -> None:
        """The state is safe. Raises Interrupted where a signal asked to stop."""
        self.last = time.monotonic()
        if self.signal:
            raise Interrupted(128 + self.signal)


def remove_tree(folder: Path) -> None:
    """Remove a folder and all in it, if it is there."""
    shutil.rmtree(folder, ignore_errors=True)


# ---------------------------------------------------------------- TensorBoard


class Curves:
    """The event file of one run, runs/<run_id>/: scalars per epoch and one HParams entry."""

    SCALARS = {
        "loss/train": "loss",
        "loss/hard": "hard",
        "loss/soft": "soft",
        "acc/train": "train_acc",
        "acc/test": "test_acc",
        "acc/val": "val_acc",
        "lr": "lr",
    }
    HPARAMS = ("role", "model", "method", "alpha", "temperature", "seed", "epochs", "t_max", "lr")

    def __init__(self, out_dir: Path, run_id: str, epochs_done: int):
        folder = out_dir / "runs" / run_id
        # What an overwritten run left goes when this one is done, and stays if it fails.
        self.old = [] if epochs_done else list(folder.glob("events.out.*"))
        # What a killed try wrote of later epochs is hidden by purge_step.
        self.writer = SummaryWriter(str(folder), purge_step=epochs_done + 1)

    def write(self, epoch: int, record: dict[str, float]) -> None:
        """One epoch's scalars; epochs count from 1."""
        for tag, name in self.SCALARS.items():
            if name in record:
                self.writer.add_scalar(tag, record[name], epoch)
        self.writer.flush()

    def close(self, row: dict) -> None:
        """The HParams entry, so that the HPARAMS tab can sort the runs."""
        chosen = {name: row[name] for name in self.HPARAMS if row.get(name) is not None}
        metrics = {f"hparam/{name}": row[name] for name in ("test_acc", "best_test_acc")}
        # run_name "." keeps the entry in this run's own folder.
        self.writer.add_hparams(chosen, metrics, run_name=".")
        self.writer.close()
        for file in self.old:
            file.unlink(missing_ok=True)


def log_images(out_dir: Path, images: dict[str, bytes]) -> None:
    """PNG files for TensorBoard's IMAGES tab, in runs/summary/."""
    folder = out_dir / "runs" / "summary"
    remove_tree(folder)
    with SummaryWriter(str(folder)) as writer:
        for name, png in images.items():
            pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
            writer.add_image(name, pixels, dataformats="HWC")


# ---------------------------------------------------------------- where and with what


def provenance(device: str, threads: int, ranks: int) -> dict:
    """The columns that say where and with what a run was made."""
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


@functools.cache
def code_checksum() -> int:
    """CRC-32 of the files that say what a step computes: a loss mended in mid-run is another."""
    names = ("cells", "data", "engine", "fused", "losses", "stage_losses", "teacher", "trainee")
    files = [ROOT / f"{name}.py" for name in names] + sorted((ROOT / "models").glob("*.py"))
    return zlib.crc32(b"".join(file.read_bytes() for file in files))
