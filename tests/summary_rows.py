"""Rows as the training scripts leave them, for the tests of the summary.

`python tests/summary_rows.py` writes the golden files anew; read their diff before keeping them.
"""

import re
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import summarize
import utils
from engine.cells import REFERENCE as PROTOCOL
from engine.rows import COLUMNS, csv_path, read_rows
from reporting import report

GOLDEN = Path(__file__).resolve().parent / "golden"
SHORT = {"epochs": 6, "t_max": 6}  # fully annealed
REFERENCE = {"epochs": 100, "t_max": 200}
PICTURES = ["heatmap", "curves"]


def row(run_id, acc, **changes):
    """One finished run; `acc` is the last epoch's, and the best's unless said otherwise."""
    blank = dict.fromkeys(COLUMNS, np.nan) | PROTOCOL
    what = {"run_id": run_id, "role": "student", "model": "cnn", "width": 16, "method": "none"}
    what |= {"alpha": 0.0, "scale_t2": False, "seed": 0, "dataset": "cifar10", "epochs": 6}
    what |= {"train_size": 50000, "t_max": 6}
    what |= {"test_acc": acc, "best_test_acc": acc, "best_epoch": 6, "test_loss": 1.1}
    what |= {"train_acc": 0.6, "ece": 0.021, "params": 25578, "seconds": 60.0}
    where = {"device": "cpu", "machine": "a CPU, 2 cores", "threads": 1, "ranks": 1}
    where |= {"torch": "2.11.0", "python": "3.11.7", "numpy": "2.4.0", "commit": "0123456789"}
    where |= {"finished_at": "2026-01-02T03:04:05+00:00"}
    return {**blank, **what, **where, **changes}


def teacher(acc=0.9154, **changes):
    known = {"role": "teacher", "model": "resnet18", "width": 64, "params": 11173962}
    known |= {"run_id": "resnet18-teacher-s0", "alpha": np.nan, "scale_t2": np.nan}
    return row(acc=acc, **known | changes)


def taught(alpha, temperature, seed, acc, tail="", **changes):
    """A distilled student; `tail` and `changes` as in `row`."""
    method = changes.get("method", "kd")
    known = {"role": "distill", "method": method, "alpha": alpha, "temperature": temperature}
    known |= {"teacher": "resnet18-teacher-s0", "teacher_seed": 0, "teacher_sha": "0123456789ab"}
    known |= {"agreement": round(acc + 0.05, 4), "teacher_kl": round(1.3 - acc, 4)}
    at_t = f"-T{temperature:g}" if temperature == temperature else ""
    run_id = f"{changes.get('model', 'cnn')}-{method}-a{alpha:g}{at_t}{tail}-s{seed}"
    return row(run_id, acc, seed=seed, **known | changes)


def alone(seed, acc, tail="", **changes):
    return row(f"cnn-s{seed}{tail}", acc, seed=seed, **changes)


def frame(rows):
    return pd.DataFrame(rows, columns=COLUMNS)


def with_curve(entry, rng, epochs):
    """The row with a test_curve that ends in its test_acc, and the best of it."""
    values = entry["test_acc"] - 0.2 * np.exp(-np.arange(epochs) / (epochs / 6))
    values = np.append((values + rng.normal(0, 0.003, epochs))[:-1], entry["test_acc"]).round(4)
    entry.update(best_test_acc=values.max(), best_epoch=values.argmax() + 1)
    return {**entry, "test_curve": " ".join(f"{value:.4f}" for value in values)}


def by_hand():
    """Two seeds, alpha 0.5 and 0.9, T 1 and 10, one cell missing; all figures easy."""
    return frame(
        [teacher(**SHORT), alone(0, 0.60), alone(1, 0.62)]
        + [taught(0.5, 1, 0, 0.61), taught(0.5, 1, 1, 0.63)]
        + [taught(0.5, 10, 0, 0.64), taught(0.5, 10, 1, 0.65)]
        + [taught(0.9, 10, 0, 0.66), taught(0.9, 10, 1, 0.60)]
    )


def run(out_dir, monkeypatch, *flags):
    """summarize.py's main in this process; the exit status."""
    monkeypatch.setattr(sys, "argv", ["summarize.py", "--out-dir", str(out_dir), *flags])
    try:
        utils.run_script(summarize.main)
    except SystemExit as stop:
        return stop.code
    return 0


def save(out_dir, rows):
    path = csv_path(out_dir)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(rows if isinstance(rows, str) else rows.to_csv(index=False))
    return path


def synthetic(seeds=5, alphas=(0.1, 0.25, 0.5, 0.75, 0.9), ts=(1, 2.5, 5, 7.5, 10, 20, 30, 40, 50),
              settings=None, ablation=False, val=0, tail="", methods=("kd",)):  # fmt: skip
    """A grid as exp.sh leaves it: paired seeds, a hump over T, noise of 0.15 points a run."""
    rng = np.random.default_rng(0)
    common = {**(settings or SHORT), "val_size": val, "train_size": 50000 - val}
    rows = [teacher(**common)]
    for seed in range(seeds):
        base = 0.6128 + rng.normal(0, 0.002)

        def noisy(gain, base=base):
            return round(base + gain + rng.normal(0, 0.0015), 4)

        rows.append(alone(seed, noisy(0), tail, **common))
        for alpha in alphas:
            for t, method in product(ts, methods):
                gain = 0.02 * alpha * np.exp(-(np.log(t / 8) ** 2) / 4) - 0.01 * alpha**6
                gain -= 0.003 * methods.index(method)
                rows.append(taught(alpha, t, seed, noisy(gain), tail, method=method, **common))
                if ablation:
                    scaled = {"scale_t2": True, **common}
                    rows.append(taught(alpha, t, seed, noisy(0.02 * alpha), "-t2" + tail, **scaled))
            if ablation:
                control = row(f"cnn-none-a{alpha:g}-s{seed}{tail}", noisy(-0.01 * alpha**4))
                rows.append({**control, "seed": seed, "alpha": alpha, **common})
    rows = [with_curve(entry, rng, common["epochs"]) for entry in rows]
    for entry in rows if val else []:
        curve = np.array(entry["test_curve"].split(), float)
        held = (curve + rng.normal(0, 0.004, len(curve))).round(4)
        entry.update(val_acc=held[-1], best_val_acc=held.max(), best_val_epoch=held.argmax() + 1)
    return frame(rows)


def golden_rows():
    """The reference's protocol, an annealed one with ablation, and one on validation, small."""
    some = {"alphas": (0.5, 0.9), "ts": (5, 10)}
    first = synthetic(seeds=3, settings=REFERENCE, ablation=True, tail="", **some)
    first["test_curve"] = np.nan
    second = synthetic(seeds=4, ablation=True, tail="-e6-tmax6", **some)
    third = synthetic(2, settings={"epochs": 8, "t_max": 20}, val=5000, tail="-val5000-e8-tmax20",
                      methods=("kd", "sp"), **some)  # fmt: skip
    students = [part[part.role != "teacher"] for part in (second, third)]
    resnet = [
        taught(alpha, t, 0, acc, model="resnet18", width=64, **REFERENCE)
        for alpha, t, acc in ((0.5, 10, 0.9031), (0.9, 5, 0.8899))
    ]
    return pd.concat([first, frame(resnet), *students], ignore_index=True)


def only(rows, metric=None):
    """The results of the one protocol of a frame."""
    (results,), _ = summarize.compared(rows, metric)
    return results


def versus(results, alpha, temperature, against="alone", variant="kd", student="cnn"):
    """One comparison."""
    return results.against((student, variant), against).loc[(alpha, temperature)]


def named(text):
    """The run ids that stand in a report, `s{0,1}` written out."""
    found = set()
    for span in re.findall(r"`([^`\n]*)`", text):
        if re.search(r"-s(\d|\{)", span):
            braces = re.search(r"\{([0-9,]+)\}", span)
            seeds = braces[1].split(",") if braces else [""]
            found |= {span.replace(braces[0], seed) if braces else span for seed in seeds}
    return found


def their_table():
    """The reference's, as summarize.py reads it."""
    return report.read_reference(utils.ROOT / "results" / "reference.csv")


def texts(rows, metric=None, pictures=()):
    """table.md and REPORT.md of a frame, as summarize.py makes them."""
    found = *summarize.compared(rows, metric), their_table()
    return report.write("table.md", *found), report.write("REPORT.md", *found, pictures)


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    # results.csv stays of an older version, which has to be read: golden_rows() made it.
    golden = texts(read_rows(GOLDEN / "results.csv"), pictures=PICTURES)
    for name, content in zip(("table.md", "REPORT.md"), golden, strict=True):
        (GOLDEN / name).write_bytes(content.encode())
