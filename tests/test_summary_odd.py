"""The summary of every odd and every broken CSV."""

import io
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from summary_rows import (
    REFERENCE,
    SHORT,
    alone,
    by_hand,
    frame,
    named,
    only,
    run,
    save,
    taught,
    teacher,
    texts,
)

import summarize
from engine.rows import read_rows
from reporting import pictures

# ---------------------------------------------------------------- odd CSVs


def again(rows):
    """The taught, by another teacher."""
    other = {"teacher": "resnet18-teacher-s1", "run_id": rows.run_id + "-ts1"}
    return rows.assign(**other)[rows.role == "distill"]


def odd_csvs():
    many = by_hand()
    lost = many.assign(test_acc=many.test_acc.where(many.seed == 0), best_test_acc=np.nan)
    return {
        "one cell": frame([taught(0.5, 10, 0, 0.6)]),
        "only a teacher": frame([teacher()]),
        "only the student": frame([alone(0, 0.6)]),
        "only controls": frame([alone(0, 0.6, alpha=0.5)]),
        "diverged seed": lost,
        "nothing measured": many.assign(test_acc=np.nan, best_test_acc=np.nan),
        "infinite": many.assign(test_acc=many.test_acc.where(many.seed == 0, np.inf)),
        "no width": many.assign(width=np.nan, amp=np.nan, beta=np.nan, val_size=np.nan),
        "unknown model": many.assign(model="mlp"),
        "no alone": many[many.role != "student"],
        "no T": frame([alone(0, 0.6), taught(0.5, np.nan, 0, 0.61, method="sp")]),
        "all equal": many.assign(test_acc=0.6, best_test_acc=0.6),
        "short curve": many.assign(test_curve="0.5 0.6", best_val_epoch=6),
        "uneven seeds": many.drop(index=[2, 4]),
        "no seed in common": many.assign(seed=many.seed + 5 * (many.role == "student")),
        "two teachers": pd.concat([many, again(many)]),
        "untested epochs": many.assign(test_curve="nan 0.5 nan nan nan 0.6"),
        "blank text": many.assign(machine=np.nan, commit=np.nan, finished_at=np.nan),
    }


@pytest.mark.parametrize("protocol", [SHORT, REFERENCE], ids=["short", "reference"])
@pytest.mark.parametrize("name", odd_csvs())
def test_odd_csvs_are_summarised(name, protocol, tmp_path):
    path = save(tmp_path, odd_csvs()[name].assign(**protocol))
    rows = read_rows(path)
    for text in texts(rows):
        assert not re.search(r"\b(nan|None|inf)\b", text)
        assert "| |" not in text
    assert set(rows.run_id) == named(texts(rows)[1])
    for png in pictures.pictures(summarize.compared(rows)[0]).values():
        Image.open(io.BytesIO(png)).verify()


def test_what_is_left_out_is_named():
    assert "- `cnn-kd-a0.5-T1-s1`: no accuracy" in texts(odd_csvs()["diverged seed"])[1]
    twice = [alone(0, 0.6), taught(0.5, 10, 0, 0.61), taught(0.5, 10, 0, 0.62, "-again")]
    results = only(frame(twice))
    assert results.cells.loc[("cnn", "kd", 0.5, 10)].n == 1
    said = "- `cnn-kd-a0.5-T10-s0`: same cell and seed as `cnn-kd-a0.5-T10-again-s0`"
    assert said in texts(frame(twice))[1]


def test_blanks_of_an_older_version_divide_nothing():
    """But where there were two test sets, a blank is neither of them."""
    rows = by_hand().assign(draw=0, data=1.0, test_data=2.0)
    rows.loc[3, ["draw", "test_data"]] = np.nan
    assert len(summarize.compared(rows)[0]) == 1
    rows.loc[4, "test_data"] = 5.0
    assert len(summarize.compared(rows)[0]) == 3


def broken_csvs():
    text = by_hand().astype(object).where(by_hand().notna(), "")
    good = text.to_csv(index=False)

    def changed(column, value):
        copy = text.copy()
        copy.loc[3, column] = value
        return copy.to_csv(index=False)

    return {
        "no file": None,
        "no rows": good.splitlines()[0] + "\n",
        "empty file": "",
        "not a CSV": '"\x00,"\n"a',
        "column missing": good.replace("best_test_acc", "best"),
        "no number": changed("test_acc", "high"),
        "no number elsewhere": changed("agreement", "high"),
        "percent": changed("test_acc", 61.28),
        "no such role": changed("role", "pupil"),
        "no seed": changed("seed", ""),
        "no run id": changed("run_id", ""),
        "bad curve": changed("test_curve", "0.5;0.6"),
        "True in another language": changed("scale_t2", "WAHR"),
    }


@pytest.mark.parametrize("name", broken_csvs())
def test_a_broken_csv_is_one_line(name, tmp_path, monkeypatch, capsys):
    content = broken_csvs()[name]
    if content is not None:
        save(tmp_path, content)
    assert run(tmp_path, monkeypatch) == 2
    output = capsys.readouterr()
    assert output.out == "" and len(output.err.splitlines()) == 1
    assert output.err.startswith("error: ")
    assert {path.name for path in tmp_path.rglob("*.*")} <= {"results.csv"}


def test_a_wrong_flag_is_one_line(tmp_path, monkeypatch, capsys):
    assert run(tmp_path, monkeypatch, "--metric", "worst") == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
