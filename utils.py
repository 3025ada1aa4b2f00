"""For every part: errors, randomness, atomic writes, checkpoints."""

import contextlib
import hashlib
import io
import math
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import filelock
import numpy as np
import torch

ROOT = Path(__file__).resolve().parent


class UserError(Exception):
    """One line for the user; the scripts print it and exit with status 2."""


class Diverged(UserError):
    """Some cells' losses became non-finite; every other cell has its row."""


class OwnError(UserError):
    """A UserError of this rank only, which the lead under torchrun does not have."""


class Interrupted(Exception):
    """A signal asked the run to stop; its state is saved. `status` is the exit status to leave."""

    def __init__(self, status: int):
        super().__init__(status)
        self.status = status


def run_script(main: Callable[[], None]) -> None:
    """Run a script's main: a UserError becomes one line on stderr and exit status 2."""
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115 (closed by our parent)
    if isinstance(sys.stdout, io.TextIOWrapper):  # characters that the terminal's encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main()
    except UserError as error:
        # Under torchrun every rank has it and one prints it, but for a rank's own error.
        if is_lead() or isinstance(error, OwnError):
            print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Interrupted as stop:
        print("stopped; the same command goes on from here", file=sys.stderr)
        raise SystemExit(stop.status) from None
    if process_count() > 1:
        # Everything is written, but torch's threads race the interpreter's shutdown: 1 rank in 75
        # aborted there, and torchrun reported the command as failed.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def stream(seed: int, epoch: int, purpose: str) -> np.random.Generator:
    """The random numbers for one purpose: a pure function of (seed, epoch, purpose)."""
    key = np.random.SeedSequence((seed, epoch, zlib.crc32(purpose.encode())))
    return np.random.Generator(np.random.PCG64(key))


def checksum(files: Iterable[Path]) -> int:
    """CRC-32 of the files' contents, one after another."""
    return zlib.crc32(b"".join(file.read_bytes() for file in files))


def is_lead() -> bool:
    """Whether this process prints and writes rows: the only one, or rank 0 under torchrun."""
    return process_count() == 1 or os.environ["RANK"] == "0"


def process_count() -> int:
    """How many processes the command has: more than one only under torchrun.

    Schedulers set some of torchrun's variables, so all of them are required.
    """
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    rank, world, *_ = (os.environ.get(name, "") for name in names)
    whole = all(map(os.environ.get, names)) and rank.isdigit() and world.isdigit()
    return int(world) if whole else 1


def brief(error: Exception) -> str:
    """An exception's message, as part of one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def listed(names: list[str], most: int = 3) -> str:
    """`a, b, c and 5 more`, or `none`."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more or "none"


def say(line: str) -> None:
    """A line on stdout. Training goes on where the pipe is closed (`| head`)."""
    try:
        print(line, flush=True)
    except OSError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def note(line: str) -> None:
    """A line on stderr, from the lead rank alone."""
    if is_lead():
        print(line, file=sys.stderr, flush=True)


# ---------------------------------------------------------------- files


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file atomically: a kill leaves the old content or the new, never a part.

    Raises UserError if the folder cannot be written.
    """
    path = Path(os.path.realpath(path))  # a link stays a link
    temporary = path.with_name(f".{path.name}.{unique()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UserError(
            f"cannot write {path} ({error.strerror}): free it or write elsewhere"
        ) from None


def acquired(lock: Path, timeout: float = -1) -> contextlib.AbstractContextManager:
    """Lock a file now; the end of the `with` releases it. Timeout in seconds, -1: for ever.

    Raises filelock.Timeout where another process holds it, and UserError where it cannot be locked.
    """
    try:
        return filelock.FileLock(lock, mode=0o666).acquire(timeout)  # other users may lock it, too
    except filelock.Timeout:
        raise
    except (OSError, NotImplementedError) as error:
        raise UserError(
            f"cannot lock {lock} ({brief(error)}): remove it or move elsewhere"
        ) from None


def check_writable(folder: Path) -> None:
    """Make the folder and check that it can be written, before hours of training. UserError."""
    probe = folder / f".writable.{unique()}"
    write_atomic(probe, b"")
    probe.unlink(missing_ok=True)


def unique() -> str:
    """Part of a file's name that no other process has: in containers many have the same number."""
    return f"{os.getpid()}.{os.urandom(4).hex()}"


# ---------------------------------------------------------------- checkpoints


CHECKPOINT = {"run_id": str, "model": str, "width": int, "classes": int, "mean": list, "std": list}
TEACHES = ("model", "width", "classes", "class_names", "image_size", "mean", "std")
WEIGHTS = "weights"  # known_by of a checkpoint that is known by TEACHES and them, not as a file
OLD_SIZE = 32  # pixels a side, where a checkpoint of an older version does not say
CHECKPOINT |= {"cell": dict, "data": int, "state": dict}
SAFE_NAME = re.compile(r"[\w+-][\w.+-]*", re.ASCII)  # a file's name, from an untrusted file
LARGEST = 2**63 - 1  # whole number that CSV, tensors and TensorBoard can hold


def save_checkpoint(path: Path, content: dict) -> None:
    """Save tensors and plain values, readable with torch.load(weights_only=True)."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomic(path, buffer.getvalue())


def load_checkpoint(path: Path) -> dict:
    """Read a checkpoint onto the CPU; `sha` is added: the first 12 hex digits of a SHA-256.

    It is that of the weights, so that one trained again to the same ones is the same teacher; of
    the file where an older version wrote it. An older one's `image_size` is filled in. Raises
    UserError if it is missing, truncated or not a checkpoint of this project.
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
    except Exception:  # torch raises half a dozen kinds for a broken file
        raise UserError(
            f"{path} is truncated or not a checkpoint of this project: train it again, with "
            "--overwrite"
        ) from None
    if wrong := what_is_wrong(content):
        raise UserError(f"{path} is not a checkpoint of this project (docs/columns.md): {wrong}")
    content["sha"] = hashlib.sha256(raw).hexdigest()[:12]
    content.setdefault("image_size", OLD_SIZE)
    if content.get("known_by") == WEIGHTS:
        with contextlib.suppress(Exception):  # not tensors: whoever builds the network says so
            content["sha"] = weights_sha(content)
    return content


def weights_sha(content: dict) -> str:
    """The first 12 hex digits of the SHA-256 of what a checkpoint's network computes with."""
    found = hashlib.sha256(repr([content.get(name) for name in TEACHES]).encode())
    for name, value in content["state"].items():
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:12]


def what_is_wrong(content: object) -> str | None:
    """Why a file that torch can read is no checkpoint, in words; None where it is one.

    It may be untrusted, and parts of it become file names.
    """
    if not isinstance(content, dict):
        return f"it holds a {type(content).__name__}"
    if content and all(isinstance(value, torch.Tensor) for value in content.values()):
        return "it holds weights alone, and not whose: the network, its classes and normalisation"
    if lacking := CHECKPOINT.keys() - content.keys():
        return f"it lacks {', '.join(sorted(lacking))}"
    for name, kind in CHECKPOINT.items():
        if not isinstance(content[name], kind):
            return f"its {name} is a {type(content[name]).__name__}"
    seed, names = content["cell"].get("seed"), content.get("class_names") or []
    size, classes = content.get("image_size", OLD_SIZE), content["classes"]
    moments = content["mean"], content["std"]
    for fine, what in (
        (SAFE_NAME.fullmatch(content["run_id"]), f"its run_id is {content['run_id'][:80]!r}"),
        (type(seed) is int and 0 <= seed <= LARGEST, "its cell has no seed"),
        (all(map(three_numbers, moments)), "its mean and std are not three numbers each"),
        (0 not in content["std"], "its std has a 0"),
        (isinstance(names, list), "its class_names are no list"),
        (type(classes) is int and 0 < classes < 2**20, f"its classes are {classes}"),
        (type(size) is int and 0 < size <= 4096, f"its image_size is {str(size)[:80]}"),
    ):
        if not fine:
            return what
    return None


def three_numbers(values: list) -> bool:
    """Whether it has a finite number for each of three channels."""
    return len(values) == 3 and all(isinstance(x, float) and math.isfinite(x) for x in values)
