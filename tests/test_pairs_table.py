"""The table of methods by pairs: figures by hand, when it appears, the published figures."""

import numpy as np
import pandas as pd
import pytest
from summary_rows import named, row, run, save, synthetic, texts

import summarize
from engine.rows import COLUMNS
from losses import is_method
from models import MODELS, NETWORKS
from reporting import pairs, stats

RECIPE = {"dataset": "cifar100", "epochs": 240, "batch_size": 64, "lr": 0.05, "momentum": 0.9}
RECIPE |= {"weight_decay": 5e-4, "schedule": "step", "milestones": "150 180 210", "t_max": 200}
RECIPE |= {"recipe": "crd", "width": np.nan}
PLAIN = RECIPE | {"recipe": "reference"}
ALONE = (0.60, 0.61, 0.62)


def teacher(network, acc=0.72, seed=0, **changes):
    known = {"role": "teacher", "model": network, "alpha": np.nan, "scale_t2": np.nan}
    run_id = f"{network}-teacher-s{seed}-cifar100"
    return row(run_id, acc, **RECIPE | known | {"seed": seed} | changes)


def alone(student, accuracies, **changes):
    rows = enumerate(accuracies)
    return [
        row(f"{student}-s{s}", acc, model=student, seed=s, **RECIPE | changes) for s, acc in rows
    ]


def taught(pair, method, accuracies, tail="", **changes):
    """A run a seed; pair is `teacher:student`."""
    network, student = pair.split(":")
    known = {"role": "distill", "model": student, "method": method, "alpha": 1.0}
    known |= {"teacher": f"{network}-teacher-s0-cifar100", "teacher_acc": 0.72, "teacher_seed": 0}
    stem = f"{student}-{method}{tail}-s%d-t_{network}"
    known = RECIPE | known | changes
    return [row(stem % s, acc, seed=s, **known) for s, acc in enumerate(accuracies)]


def kd(pair, accuracies, **changes):
    weights = {"alpha": 0.9, "temperature": 4.0, "scale_t2": True}
    return taught(pair, "kd", accuracies, **weights | changes)


def frame(*parts):
    rows = [each for part in parts for each in ([part] if isinstance(part, dict) else part)]
    return pd.DataFrame(rows).reindex(columns=COLUMNS)


def tables(*parts):
    return pairs.tables(summarize.compared(frame(*parts))[0])


def lines(markdown):
    """A Markdown table's lines by (method, setting), without its rule; the first is its header."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.split("\n")]
    return {tuple(cells[:2]): cells[2:] for cells in rows if ":--" not in cells[0]}


# ---------------------------------------------------------------- figures by hand


def test_mean_std_and_holms_marks_by_hand():
    """With n = 3 the paired t-test's p is 1 - t / sqrt(t² + 2)."""
    first = kd("resnet56:resnet20", (0.607, 0.620, 0.633))  # + 0.7, 1.0, 1.3: t² = 33.3, p = 0.029
    other = kd("vgg13:vgg8", (0.61, 0.63, 0.65))  # + 1, 2, 3: t² = 12, p = 0.074
    (one,) = tables(alone("resnet20", ALONE), first)
    assert one.tests.p.iloc[0] == pytest.approx(1 - (100 / 3 / (100 / 3 + 2)) ** 0.5)
    assert lines(pairs.accuracies(one)) == {
        ("method", "setting"): ["resnet56 → resnet20"],
        ("teacher", ""): ["72.00"],
        ("student alone", ""): ["61.00 ± 1.00"],
        ("kd", "α 0.9, T 4, × T²"): ["62.00 ± 1.30 †"],
    }
    (both,) = tables(alone("resnet20", ALONE), first, alone("vgg8", ALONE), other)
    assert sorted(both.tests.p) == pytest.approx([0.0287, 0.0742], abs=1e-4)
    # Holm's first step doubles 0.029: nothing is left, and all is within one table.
    assert lines(pairs.accuracies(both))["kd", "α 0.9, T 4, × T²"] == [
        "62.00 ± 1.30",
        "63.00 ± 2.00",
    ]
    assert pairs.minus(both, "kd") == ""
    minus = lines(pairs.minus(both, "alone"))["kd", "α 0.9, T 4, × T²"]
    # t's 97.5 % quantile on 2 degrees of freedom is 4.303; 0.3 / sqrt 3 = 0.173, 1 / sqrt 3 = 0.577
    assert minus == ["+1.00 [+0.25, +1.75]", "+2.00 [−0.48, +4.48]"]


def column(*methods):
    """resnet56:resnet20 with the student alone, kd and methods of (accuracies, changes)."""
    parts = [kd("resnet56:resnet20", (0.62, 0.631, 0.639))]
    for name, accuracies, changes in methods:
        parts.append(taught("resnet56:resnet20", name, accuracies, **changes))
    return [alone("resnet20", ALONE), *parts]


def test_above_kd_and_above_the_student_alone_are_one_family():
    better, like = (0.66, 0.671, 0.681), (0.621, 0.630, 0.640)
    (table,) = tables(*column(("sp", better, {"beta": 3000}), ("at", like, {"beta": 1000})))
    values = pd.DataFrame({"alone": ALONE, "kd": (0.62, 0.631, 0.639), "sp": better, "at": like})
    versus = [("kd", "alone"), ("sp", "alone"), ("at", "alone"), ("sp", "kd"), ("at", "kd")]
    expected = stats.holm(stats.contrasts(values, versus).p)
    found = table.tests.set_index(["method", "over"]).p_holm[versus]
    np.testing.assert_allclose(found, expected)
    assert (expected <= 0.05).tolist() == [True, True, True, True, False]
    text = {line[0]: cells for line, cells in lines(pairs.accuracies(table)).items()}
    assert text["sp"] == ["67.07 ± 1.05 † ↑"] and text["at"] == ["63.03 ± 0.95 †"]
    assert text["kd"][0].endswith(" †")


def test_a_line_is_one_setting_and_above_kd_is_above_every_line_of_kd():
    second = kd("resnet56:resnet20", (0.655, 0.672, 0.679), tail="-T8", temperature=8.0)
    sp = [("sp", (0.66, 0.671, 0.681), {"beta": 3000}), ("sp", (0.61, 0.62, 0.64), {"beta": 300})]
    sp[1][2]["tail"] = "-b300"
    (table,) = tables(*column(*sp), second)
    found = lines(pairs.accuracies(table))
    assert list(found)[3:] == [("kd", "α 0.9, T 4, × T²"), ("kd", "α 0.9, T 8, × T²"),
                               ("sp", "α 1, β 300"), ("sp", "α 1, β 3000")]  # fmt: skip
    assert found["sp", "α 1, β 3000"] == ["67.07 ± 1.05 †"]  # above kd at T 4, not at T 8
    assert pairs.several_kd(table) and pairs.minus(table, "kd") == ""


def test_the_order_of_lines_and_what_has_no_teacher_is_in_every_column():
    rows = [taught(pair, name, (0.6, 0.63), beta=1.0)
            for pair in ("resnet56:resnet20", "resnet110:resnet20")
            for name in ("kd+sp", "crd", "fitnet", "dkd")]  # fmt: skip
    rows += [alone("resnet20", (0.6, 0.61, 0.62))]
    rows += [row(f"resnet20-smooth-s{s}", 0.6 + s / 100, model="resnet20", seed=s, method="smooth",
                 alpha=0.1, **RECIPE) for s in range(2)]  # fmt: skip
    (table,) = tables(*rows)
    found = lines(pairs.accuracies(table))
    names = [line[0] for line in found]
    assert names == [
        "method",
        "teacher",
        "student alone",
        "dkd",
        "smooth",
        "fitnet",
        "crd",
        "kd+sp",
    ]
    assert found["student alone", ""] == ["61.00 ± 1.00 (n 3)"] * 2  # the others have two seeds
    assert found["smooth", "α 0.1"] == ["60.50 ± 0.71"] * 2


def test_several_teachers_of_one_network_are_lines_of_their_own():
    other = {"teacher": "resnet56-teacher-s1-cifar100", "teacher_seed": 1, "teacher_acc": 0.74}
    rows = column(("sp", (0.62, 0.63, 0.64), {"beta": 1.0}))
    rows.append(taught("resnet56:resnet20", "sp", (0.63, 0.65), tail="-ts1", beta=1.0, **other))
    (table,) = tables(*rows)
    found = lines(pairs.accuracies(table))
    assert found["teacher", ""] == ["73.00 ± 1.41"]
    own = [
        found["sp", f"α 1, β 1, teacher resnet56-teacher-s{seed}-cifar100"][0] for seed in (0, 1)
    ]
    assert own[0].startswith("63.00 ± 1.00") and own[1].startswith("64.00 ± 1.41 (n 2)")


def test_a_row_without_its_teachers_accuracy_takes_it_from_the_teacher():
    rows = kd("resnet56:resnet20", (0.62, 0.63), teacher_acc=np.nan)
    (table,) = tables(teacher("resnet56", 0.7234), rows)
    assert lines(pairs.accuracies(table))["teacher", ""] == ["72.34"]
    assert ("student alone", "") not in lines(pairs.accuracies(table))


def test_the_weight_of_the_hard_loss_tells_settings_apart():
    """It is in a line's setting; elsewhere only where a student's method has several."""
    both = [("sp", (0.62, 0.63, 0.64), {"hard_weight": 1.0, "beta": 1.0}),
            ("sp", (0.60, 0.61, 0.62), {"tail": "-h", "beta": 1.0})]  # fmt: skip
    for methods, variants in ((both[:1], {"sp, β 1"}), (both, {"sp, β 1", "sp, hard × 1, β 1"})):
        (table,) = tables(*column(*methods))
        assert ("sp", "α 1, hard × 1, β 1") in lines(pairs.accuracies(table))
        (results,) = table.members
        assert {variant for _, variant in results.grids if "sp" in variant} == variants
        assert not results.protocol.left_out


# ---------------------------------------------------------------- when it appears


def some(pair, *methods, **changes):
    gains = [(0.6, 0.61 + len(name) / 500) for name in methods]
    return [
        taught(pair, name, accuracies, **PLAIN | changes)
        for name, accuracies in zip(methods, gains, strict=True)
    ]


@pytest.mark.parametrize("rows, there", [
    (some("resnet56:resnet20", "kd", recipe="crd"), True),
    (some("resnet56:resnet20", "kd", "sp"), False),
    (some("resnet56:resnet20", "kd", "sp", "at"), True),
    (some("resnet18:cnn", "kd", "sp", "at"), False),
    (some("resnet56:resnet20", "kd", "sp") + some("vgg13:vgg8", "kd", "sp"), True),
    (some("resnet56:resnet20", "kd", "sp") + some("vgg13:vgg8", "kd"), False),
    (some("resnet56:resnet20", "kd", "sp") + some("vgg13:vgg8", "kd", "sp", lr=0.01), True),
    (some("resnet56:resnet20", "kd", "sp") + some("vgg13:vgg8", "kd", "sp", epochs=5), False),
    ([alone("resnet20", ALONE)], False),
])  # fmt: skip
def test_when_there_is_a_table(rows, there):
    assert len(tables(*rows)) == there


def test_a_reference_s_grid_of_several_methods_has_none():
    rows = synthetic(2, alphas=(0.5,), ts=(5,), methods=("kd", "sp", "at"))
    assert pairs.tables(summarize.compared(rows)[0]) == []


# ---------------------------------------------------------------- the page


def test_the_report_has_the_table_in_place_of_its_sections_of_methods(tmp_path, monkeypatch):
    """From a CSV to the page; two learning rates, images held out."""
    held = {"val_size": 5000, "train_size": 45000}
    rows = [alone("resnet20", ALONE, **PLAIN | held)]
    rows += [alone("mobilenetv2", ALONE, **PLAIN | held | {"lr": 0.01})]
    for pair, rate in (("resnet56:resnet20", 0.05), ("vgg13:mobilenetv2", 0.01)):
        rows += some(pair, "kd", "fitnet", "dkd", lr=rate, **held)
    rows = frame(*rows)
    save(tmp_path, rows)
    assert run(tmp_path, monkeypatch) == 0
    text = (tmp_path / "results" / "REPORT.md").read_text()
    table = (tmp_path / "results" / "table.md").read_text()
    for page in (text, table):
        assert page.count("## Methods by pairs: ") == 1 and "Methods: " not in page
        assert "lr 0.01 or 0.05" in page and "vgg13 → mobilenetv2, lr 0.01" in page
        assert "No network was trained on the 5,000 held-out training images" in page
        assert "the best of 1 cell" not in page and "Beside the published figures" not in page
        assert "Holm's correction over the 10 comparisons of this table" in page
    assert named(text) == set(rows.run_id)
    opening = [line for line in text.split("\n## ")[0].splitlines()[1:] if line]
    assert len(opening) <= 8 and any("**Methods by pairs**" in line for line in opening)


# ---------------------------------------------------------------- published figures


def test_published_figures_name_networks_methods_epochs_and_sources():
    found = pairs.read_published()
    not_here = {"resnet50", "shufflenetv1"}  # of Tian et al.; no network of this project
    assert {*found.teacher, *found.student} - {*MODELS, *NETWORKS} == not_here
    assert all(name == "teacher" or is_method(name) for name in found.method.unique())
    assert set(found.dataset) == {"cifar100"} and set(found.epoch) == {"last", "best"}
    assert found.source.str.len().min() > 10 and found.accuracy.between(50, 80).all()
    assert not found.duplicated(["dataset", "teacher", "student", "method", "epoch"]).any()
    tian = found[found.source.str.startswith("RepDistiller")]
    assert len(tian[["teacher", "student"]].drop_duplicates()) == 13
    assert set(tian.groupby(["teacher", "student"]).method.nunique()) == {14, 15}  # fsp: 6 pairs
    assert set(tian.epoch) == {"last"} and set(found[found.epoch == "best"].method) == {"dkd"}
    # One network alone is one figure.
    for role, method in (("teacher", "teacher"), ("student", "none")):
        assert tian[tian.method == method].groupby(role).accuracy.nunique().max() == 1


@pytest.mark.parametrize(
    "teacher, student, method, alike",
    [
        ("wrn-40-2", "shufflenetv2", "kd", True),
        ("vgg13", "vgg8", "sp", True),  # the last block's output, there as here
        ("wrn-40-2", "wrn-16-2", "sp", False),
        ("resnet56", "resnet20", "vid", True),
        ("vgg13", "vgg8", "vid", False),
        ("resnet32x4", "resnet8x4", "dkd", True),  # 8 times NCKD, as here
        ("resnet56", "resnet20", "dkd", False),
        ("resnet56", "resnet20", "fitnet", False),
    ],
)
def test_which_published_figures_are_of_the_same_cell(teacher, student, method, alike):
    assert pairs.is_alike([teacher, student], method) is alike


def test_published_figures_stand_beside_the_recipe_at_full_length_only():
    recipes = {"beta": 1.0, "temperature": 4.0, "soft_warmup": 20, "hard_weight": 1.0}
    own = [recipes, recipes | {"beta": 3.0, "tail": "-b3"}, {"beta": 1.0, "tail": "-h"}]
    rows = column(*[("dkd", (0.71, 0.72, 0.73), each) for each in own])
    rows.append(kd("resnet56:resnet20", (0.65, 0.66, 0.67), tail="-T1", temperature=1.0))
    smooth = {"method": "smooth", "alpha": 0.1}
    rows.append([each | {"run_id": each["run_id"] + "-smooth"} | smooth for each in rows[0]])
    # Of this pair nothing has the recipe's weights.
    rows += [alone("vgg8", ALONE), kd("vgg13:vgg8", (0.65, 0.66, 0.67), alpha=0.5)]
    parts = [frame(*rows)]
    for change in ({"epochs": 30}, {"dataset": "cifar10"}, {"train_size": 5000}, {"clip": 1.0}):
        parts.append(parts[0].assign(run_id=parts[0].run_id + f"-{len(parts)}", **change))
    every = pairs.tables(summarize.compared(pd.concat(parts))[0])
    table, *others = sorted(every, key=lambda each: not pairs.beside_published(each))
    assert len(others) == 4 and not any(pairs.beside_published(each) for each in others)
    assert lines(pairs.beside_published(table)) == {
        ("method", "setting"): ["resnet56 → resnet20", "epoch"],
        ("teacher", ""): ["72.34 (−0.34)", "last"],
        ("student alone", ""): ["69.06 (−8.06)", "last"],
        ("kd", "α 0.9, T 4, × T²"): ["70.66 (−7.66)", "last"],
        ("dkd", "α 1, hard × 1, T 4, β 1, warm-up 20"): ["71.97 (+0.03) ≠", "best"],
    }
    page = texts(parts[0])[1]
    assert "best: mdistiller README" in page and "last: RepDistiller README" in page
