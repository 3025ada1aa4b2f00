"""The fair trial's last stage: which test images the fresh runs of the winners are right on.

One file a place, results/right/<images>x<width>.npz: `run_id`, `test_acc` (of the row), `right`
(packed bits, a line a run, in the test set's order) and `count`, the number of test images.
"""

import argparse
import io
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd

from engine import measure, parallel
from engine.grid import load_in_turn, settings_on
from engine.portable import open_checkpoint
from engine.rows import csv_path, locked
from models.registry import NAMED
from utils import UserError, brief, note, say, write_atomic

ROUNDING = 0.001  # of the test images: a GPU rounds otherwise for one network than for a stack
DAMAGED = zipfile.BadZipFile, zlib.error
Right = dict[str, np.ndarray]  # by run id, bool (test images,)


def path_of(out_dir: Path, images: float, width: float) -> Path:
    """The file of a place."""
    return csv_path(out_dir).parent / "right" / f"{images:.0f}x{width:.0f}.npz"


def known(path: Path, rows: pd.DataFrame) -> Right:
    """What the file has of these rows' runs; empty where there is none.

    A run whose bits are not those of its row's accuracy is left out. Raises UserError for a file
    that cannot be read.
    """
    if not path.exists():
        return {}
    try:
        with np.load(path) as stored:
            bits = np.unpackbits(stored["right"], axis=1, count=int(stored["count"])).astype(bool)
            accuracy = dict(zip(stored["run_id"].tolist(), stored["test_acc"], strict=True))
    except (OSError, ValueError, KeyError, EOFError, *DAMAGED) as error:
        raise UserError(f"cannot read {path} ({brief(error)}): remove it, and run again") from None
    now = dict(zip(rows.run_id, rows.test_acc, strict=True))
    return {
        name: right
        for (name, then), right in zip(accuracy.items(), bits, strict=True)
        if name in now and np.isclose(now[name], then, atol=1e-9) and agrees(right, now[name])
    }


def agrees(right: np.ndarray, accuracy: float) -> bool:
    return abs(right.mean() - accuracy) <= ROUNDING


def everywhere(out_dir: Path, rows: pd.DataFrame) -> Right:
    """`known` of all places of the rows."""
    places = rows.groupby(["train_size", "width"])
    return {
        n: b for place, part in places for n, b in known(path_of(out_dir, *place), part).items()
    }


def evaluate(wanted: pd.DataFrame, here: pd.DataFrame, args: argparse.Namespace) -> None:
    """Add to a place's file the `wanted` of its rows, `here`, from their checkpoints.

    Runs without a checkpoint are left out. Raises UserError for what cannot be read or written.
    """
    path = path_of(args.out_dir, args.images, args.width)
    there = known(path, here)
    lacking = wanted[~wanted.run_id.isin(list(there))]
    if len(lacking) < len(wanted):
        note(f"{len(wanted) - len(lacking)} of {len(wanted)} runs are in {path} already: skipped")
    files = {name: args.out_dir / "checkpoints" / f"{name}.pt" for name in lacking.run_id}
    lost = sum(not file.exists() for file in files.values())
    if lost:
        note(f"{lost} of {len(wanted)} fresh runs have no checkpoint here: not measured by image")
    if lost == len(files):
        return
    ranks, device = parallel.start(args.device, args.threads)
    data = load_in_turn(settings_on(device, args), args.data_dir, device, ranks)
    found: Right = {}
    for row in lacking.itertuples() if ranks.lead else ():
        if files[row.run_id].exists():
            network = open_checkpoint(files[row.run_id], NAMED.get(args.student))[0].model
            predict = measure.one_by_one([network.to(device)], row.amp in (True, "True"))
            [logits] = measure.all_logits(predict, data.test, data)
            right = (logits.argmax(1) == data.test.labels).cpu().numpy()
            if agrees(right, row.test_acc):
                found[row.run_id] = right
            else:
                note(f"{files[row.run_id]} has not the accuracy of its row: left out")
    parallel.stop()
    if found:
        add(path, here, found)
        say(f"{path}: which test images {len(found)} more runs are right on")


def add(path: Path, here: pd.DataFrame, found: Right) -> None:
    """Write them into the file, beside what it has of the rows `here`."""
    with locked(path):
        found = dict(sorted((known(path, here) | found).items()))
        content, accuracy = io.BytesIO(), here.set_index("run_id").test_acc
        np.savez_compressed(
            content,
            run_id=list(found),
            test_acc=accuracy[list(found)].to_numpy(float),
            right=np.packbits(np.stack(list(found.values())), axis=1),
            count=len(next(iter(found.values()))),
        )
        write_atomic(path, content.getvalue())
