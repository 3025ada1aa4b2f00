"""What TensorBoard shows: the curves of every run, its columns under HPARAMS, the pictures."""

import io
import shlex
import shutil
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboard.plugins.hparams import summary_v2 as hparams
from torch.utils.tensorboard import SummaryWriter

from engine.cells import Cell, Settings, ending, run_id
from models import default_width
from utils import check_writable

SCALARS = {
    "loss/train": "loss",
    "loss/hard": "hard",
    "loss/soft": "soft",
    "acc/train": "train_acc",
    "acc/test": "test_acc",
    "acc/best_test": "best_test_acc",
    "acc/val": "val_acc",
    "lr": "lr",
}
# HPARAMS sorts its columns by name, which the numbers are for, and ticks the first five. All else
# is the same in all of a folder.
ORDER = ("alpha", "temperature", "method", "seed", "network")
ORDER += ("beta", "scale_t2", "lr", "weight_decay", "teacher_seed")
# Without a domain, as no list has all of them: kd+sp, resnet18 w8, a file of one's own.
WORDS = ("method", "network")
COLUMNS = {
    name: hparams.HParam(
        f"{place:02} {name}",
        None if name in WORDS else hparams.RealInterval(0.0, 100.0),
        display_name=name,
    )
    for place, name in enumerate(ORDER)
}
METRICS = [hparams.Metric(tag, display_name=SCALARS[tag]) for tag in ("acc/test", "acc/best_test")]
SHOWN = 700  # pixels, a picture's width


def curves_folder(out_dir: Path, cell: Cell, settings: Settings) -> Path:
    """runs/<protocol>/<cell>: the run id in two, so that names in a folder say what differs."""
    protocol = ending(cell, settings)
    own = run_id(cell, settings).removesuffix(protocol)
    return out_dir / "runs" / (protocol[1:] or "reference") / own


class Curves:
    """The event file of one run: scalars per epoch, and its entry under HPARAMS from the start on.

    `beta` is what the cell is trained with, `history` the records of the epochs done. Raises
    UserError where the folder cannot be written.
    """

    def __init__(self, out_dir: Path, cell: Cell, settings: Settings, beta: float | None,
                 history: list[dict[str, float]]):  # fmt: skip
        folder = curves_folder(out_dir, cell, settings)
        check_writable(folder)
        # An overwritten run's curves are removed when this one is done, also an older version's.
        older = out_dir / "runs" / run_id(cell, settings)
        old = [*folder.glob("events.out.*"), *older.glob("events.out.*")]
        self.old = [] if history else old
        self.best = 0.0
        # purge_step hides what a killed try wrote of later epochs.
        self.writer = SummaryWriter(str(folder), purge_step=len(history) + 1)
        for summary in (
            # The tab takes its columns from any one run.
            hparams.hparams_config_pb(COLUMNS.values(), METRICS),
            hparams.hparams_pb(entry(cell, beta), f"{folder.name}, {folder.parent.name}"),
        ):
            self.writer.file_writer.add_summary(summary)
        if old:
            self.best = max((r["test_acc"] for r in history if "test_acc" in r), default=0.0)
        else:  # of a shorter run, whose curves are in a folder of their own
            for epoch, record in enumerate(history, 1):
                self.write(epoch, record)

    def write(self, epoch: int, record: dict[str, float]) -> None:
        """One epoch's scalars; epochs count from 1."""
        if "test_acc" in record:
            self.best = max(self.best, record["test_acc"])
            record = record | {"best_test_acc": self.best}
        for tag, name in SCALARS.items():
            if name in record:
                self.writer.add_scalar(tag, record[name], epoch)
        self.writer.flush()

    def close(self, has_row: bool) -> None:
        """End; the curves of a run that this one's row has overwritten go."""
        self.writer.close()
        for file in self.old if has_row else ():
            file.unlink(missing_ok=True)


def entry(cell: Cell, beta: float | None) -> dict[hparams.HParam, float | str]:
    """A cell's line under HPARAMS; blank is what it does not have."""
    width = f" w{cell.width}" if cell.width != default_width(cell.model) else ""
    values = asdict(cell) | {"beta": beta, "network": cell.model + width}
    return {
        column: values[name] if name in WORDS else float(values[name])
        for name, column in COLUMNS.items()
        if values[name] is not None
    }


def commands(out_dir: Path) -> dict[str, str]:
    """What shows the curves (of the folder with most runs: its names are short), and pictures."""
    protocols = Counter(path.parent for path in (out_dir / "runs").glob("*/*") if path.is_dir())
    where = {"pictures": out_dir / "runs-summary"}
    if protocols:
        where = {"curves": max(sorted(protocols), key=protocols.get)} | where
    return {
        what: f"tensorboard --logdir {shlex.quote(str(at))}"
        for what, at in where.items()
        if at.exists()
    }


def log_images(out_dir: Path, images: dict[str, bytes]) -> None:
    """PNG files for the IMAGES tab, in runs-summary/: beside more than 40 runs they are unticked.

    The tab shows them 350 pixels wide and leaves pixels out; it stays legible with one of two.
    """
    for old in (out_dir / "runs" / "summary", out_dir / "runs-summary"):  # an older version's
        shutil.rmtree(old, ignore_errors=True)
    check_writable(out_dir / "runs-summary")
    with SummaryWriter(str(out_dir / "runs-summary" / "report")) as writer:
        for name, png in images.items():
            picture = Image.open(io.BytesIO(png)).convert("RGB")
            picture = picture.resize((SHOWN, round(SHOWN * picture.height / picture.width)))
            writer.add_image(name, np.asarray(picture), dataformats="HWC")
