"""The summary of every odd and every broken CSV."""

import io

import numpy as np
import pytest
from PIL import Image
from summary_rows import REFERENCE, SHORT, alone, by_hand, frame, run, save, taught, teacher, texts

from engine.rows import read_rows
from reporting import groups, plots

# ---------------------------------------------------------------- odd CSVs


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
        "blank text": many.assign(machine=np.nan, commit=np.nan, finished_at=np.nan),
    }


@pytest.mark.parametrize("protocol", [SHORT, REFERENCE], ids=["short", "reference"])
@pytest.mark.parametrize("name", odd_csvs())
def test_odd_csvs_are_summarised(name, protocol, tmp_path):
    path = save(tmp_path, odd_csvs()[name].assign(**protocol))
    rows = read_rows(path)
    table, text = texts(rows)
    assert "nan" not in table + text
    if name in ("one cell", "diverged seed", "no alone", "short curve"):
        for png in plots.pictures(groups.split(rows)[0]).values():
            Image.open(io.BytesIO(png)).verify()
    if name in ("only a teacher", "only the student", "only controls"):
        assert "could be measured" in text or "nothing can be said" in text


def test_small_tables_say_what_is_missing():
    _, text = texts(odd_csvs()["diverged seed"])
    assert "No accuracy, and so in no figure: `cnn-kd-a0.5-T1-s1`" in text
    _, text = texts(odd_csvs()["no alone"])
    assert "no row of the student alone (role student, α 0), so no difference" in text
    assert "no control (no teacher, hard loss × (1 − α)) for α 0.5, 0.9" in text
    assert "No validation split" in text


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
