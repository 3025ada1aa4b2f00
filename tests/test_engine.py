"""The engine's promises: the same bits alone and in company, fused as in the loop, going on."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import CPU, GRID, TINY, Countdown, of_response, train_all, weights

from engine import grid, resume
from engine import teacher as teacher_module
from engine.cells import Cell, run_id
from engine.grid import grouped
from engine.loop import train
from engine.measure import calibration_error
from engine.resume import Keeper, Unfinished, claim, folder_of, load_state, remove, save_state
from engine.rows import csv_path, read_rows
from engine.trainee import Batch, Trainee, student_step
from images.sources import to_device
from images.views import epoch_views, gather, normalise, plain
from losses import METHODS
from utils import Interrupted, UserError


@pytest.mark.parametrize(
    ("found", "name", "expected"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, "Intel(R) Xeon(R)", True),
        ({"avx512_bf16": True}, "Intel(R) Xeon(R)", False),
        ({"avx512_bf16": True}, "AMD EPYC", True),
        ({}, "AMD EPYC", False),
    ],
)
def test_bfloat16_only_where_it_is_faster(monkeypatch, found, name, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    monkeypatch.setattr(grid, "machine", lambda device: name)
    assert grid.bfloat16_is_faster(CPU) is expected


def test_same_seed_same_bits_other_seed_others(make_run):
    cell = GRID[0]
    first = train_all([cell], make_run("a"))
    assert first == train_all([cell], make_run("b"))
    other = train_all([replace(cell, seed=1)], make_run("c"))
    assert list(first.values()) != list(other.values())


def of_method(method: str) -> list[Cell]:
    """Two cells of a method that learns from activations."""
    return [Cell("cnn", 4, 0, method, a, beta=1.0, lr=0.05, teacher_seed=0) for a in (0.1, 0.9)]


FAMILIES = {"response": GRID, "feature": of_method("fitnet"), "relation": of_method("sp")}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cell_is_the_same_in_any_company(make_run, family):
    cells = FAMILIES[family]
    together = train_all(cells, make_run("together"))
    backwards = train_all(cells[::-1], make_run("backwards"))
    assert together == backwards and len(set(together.values())) == len(cells)
    for cell in cells:
        alone = train_all([cell], make_run(f"alone {run_id(cell, TINY)}"))
        assert alone.items() <= together.items()


def test_shuffled_answers_are_those_to_another_image_of_the_class(make_run, tiny_data):
    """Where a class is ten times one image they are as good as its own; kd is not disturbed."""
    kd = GRID[0]
    shuffled = replace(kd, answers="shuffled")
    ids = [run_id(cell, TINY) for cell in (kd, shuffled)]
    both, lone = (train_groups(c, make_run(c[-1].answers + "o")) for c in ([kd, shuffled], [kd]))
    assert both[ids[0]] == lone[ids[0]] != both[ids[1]]

    pixels = tiny_data.test.padded[:10, 4:36, 4:36].numpy()
    labels = np.arange(100) % 10
    split = to_device(pixels[labels], labels, slice(None), CPU, 32, pad=0, flips=1)
    found = train_groups([kd, shuffled], make_run("alike", data=replace(tiny_data, train=split)))
    assert found[ids[0]] == found[ids[1]]


def train_groups(cells: list[Cell], run) -> dict[str, bytes]:
    for group in grouped(cells):
        assert train(group, group, run) == []
    return weights(run.out_dir)


def test_batch_norm_students_do_not_touch_each_other(make_run):
    cells = [Cell("resnet18", 2, 0, "kd", a, 4.0, lr=0.05, teacher_seed=0) for a in (0.2, 0.8)]
    settings = replace(TINY, epochs=1)
    together = train_all(cells, make_run("together", settings))
    assert train_all(cells[1:], make_run("alone", settings)).items() <= together.items()


def test_one_step_by_hand(tiny_data, tiny_teacher):
    """The step is the formula of the reference, by autograd on a fresh copy."""
    cell = Cell("cnn", 4, 0, "kd", 0.3, 5.0, lr=0.2, teacher_seed=0)
    trainee, copy = (Trainee(cell, TINY, 10, CPU) for _ in range(2))
    views = epoch_views(0, 0, tiny_data.train)[:32]
    pixels = gather(tiny_data.train, views)
    x = normalise(pixels, tiny_data.mean, tiny_data.std)
    labels, taught = tiny_data.train.labels[views.index], tiny_teacher(pixels)
    student_step(trainee, Batch(x, labels, taught))
    log_p = copy.model(x).log_softmax(1)
    hard = -log_p[torch.arange(32), labels].mean()
    soft = -((taught / 5).softmax(1) * (copy.model(x) / 5).log_softmax(1)).sum(1).mean()
    (0.7 * hard + 0.3 * soft).backward()
    for moved, old in zip(trainee.model.parameters(), copy.model.parameters(), strict=True):
        torch.testing.assert_close(moved.detach(), (old - 0.2 * old.grad).detach())
    loss = trainee.sums / trainee.sums[4]
    expected = torch.stack([0.7 * hard + 0.3 * soft, hard, soft]).double()
    torch.testing.assert_close(loss[:3], expected.detach(), rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- killed and going on


# A response method has two epochs of four chunks, four steps and a record each: 18 chances to stop.
@pytest.mark.parametrize(
    ("family", "moments"), [("response", range(1, 19)), ("feature", [3, 5, 9]), ("relation", [7])]
)
def test_stopped_anywhere_ends_with_the_same_bits(make_run, monkeypatch, family, moments):
    monkeypatch.setitem(teacher_module.CHUNK, "cpu", 30)
    settings, cells = replace(TINY, momentum=0.9), FAMILIES[family][:2]
    whole = train_all(cells, make_run("whole", settings))
    for chances in moments:
        run = make_run(f"stopped {chances}", settings, keeper=Countdown(chances))
        with pytest.raises(Interrupted):
            train(cells, cells, run)
        assert not weights(run.out_dir)
        run.keeper = Countdown(10**9)
        assert train_all(cells, run) == whole


def test_the_regressor_is_trained_and_saved(make_run):
    cells = FAMILIES["feature"][:1]
    run = make_run("out")
    train_all(cells, run)
    [path] = (run.out_dir / "checkpoints").glob("*.pt")
    stored = torch.load(path, weights_only=True)["regressor"]
    fresh = make_run("fresh", replace(TINY, epochs=1))
    train_all([replace(cells[0], lr=1e-30)], fresh)
    [path] = (fresh.out_dir / "checkpoints").glob("*.pt")
    first = torch.load(path, weights_only=True)["regressor"]
    assert stored.keys() == first.keys() and not torch.equal(stored["0.weight"], first["0.weight"])


@pytest.mark.parametrize("method", METHODS)
def test_resnet_students_take_every_method(make_run, method):
    cell = replace(of_response(method, 0.5, 4.0), model="resnet18", width=2)
    assert len(train_all([cell], make_run("out", replace(TINY, epochs=1)))) == 1


def test_a_damaged_state_is_a_fresh_start(make_run, capsys):
    whole = train_all(GRID[:2], make_run("whole"))
    run = make_run("damaged", keeper=Countdown(4))
    with pytest.raises(Interrupted):
        train(GRID[:2], GRID[:2], run)
    [state] = (run.out_dir / "checkpoints").glob("unfinished/*/rank0.state")
    state.write_bytes(state.read_bytes()[:-100])
    run.keeper = Keeper(1e9)
    assert train_all(GRID[:2], run) == whole
    assert "is damaged" in capsys.readouterr().err


def test_other_settings_are_refused(make_run):
    run = make_run("out", keeper=Countdown(3))
    with pytest.raises(Interrupted):
        train(GRID, GRID, run)
    run.teacher = replace(run.teacher, sha="f" * 12)
    run.keeper = Keeper(1e9)
    with pytest.raises(UserError, match="teacher 000000000000, now ffffffffffff"):
        train(GRID, GRID, run)
    run.overwrite = True
    assert len(train_all(GRID, run)) == len(GRID)


def test_a_mended_loss_does_not_go_on_from_the_old_ones_weights(make_run, monkeypatch):
    run = make_run("out", keeper=Countdown(3))
    with pytest.raises(Interrupted):
        train(GRID, GRID, run)
    monkeypatch.setattr(resume, "code_checksum", lambda: 1)
    run.keeper = Keeper(1e9)
    with pytest.raises(UserError, match="code .*, now 1"):
        train(GRID, GRID, run)


def test_threads_are_part_of_a_run_on_the_cpu_only(make_run, monkeypatch):
    """On a GPU a node with other cores may go on."""
    found = {}
    for device in ("cpu", "cuda"):
        state = Unfinished(GRID, [], make_run("out", device=torch.device(device)))
        monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
        saved = state.basis()
        monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
        found[device] = state.other_basis(saved)
    assert found == {"cpu": ["threads 8, now 2"], "cuda": []}


def test_clearing_up_leaves_a_run_that_is_under_way(make_run):
    run = make_run("out")
    folder = folder_of(GRID, run.settings, run.out_dir)
    with claim(folder):
        remove(folder)
        assert folder.exists()
    remove(folder)
    assert not folder.exists()


def test_two_at_once_are_refused(make_run):
    run = make_run("out")
    with (
        claim(folder_of(GRID, run.settings, run.out_dir)),
        pytest.raises(UserError, match="another process"),
    ):
        train(GRID, GRID, run)
    assert len(train_all(GRID, run)) == len(GRID)


def test_the_last_save_counts(tmp_path):
    path = tmp_path / "a.state"
    for i in range(3):
        save_state(path, {"i": i})
    assert load_state(path)["i"] == 2
    assert [file.name for file in tmp_path.iterdir()] == ["a.state"]
    path.write_bytes(b"")
    assert load_state(path) is None


# ---------------------------------------------------------------- what a run leaves


def test_a_diverged_cell_leaves_no_row_and_the_others_do(make_run):
    run = make_run("out", replace(TINY, epochs=3))
    wild = replace(GRID[0], beta=1e30)
    complaints = train([wild, GRID[1]], [wild, GRID[1]], run)
    assert len(complaints) == 1 and "non-finite in epoch" in complaints[0]
    rows = read_rows(run.out_dir / "results" / "results.csv")
    assert len(rows) == 1 and rows.temperature[0] == GRID[1].temperature
    assert len(weights(run.out_dir)) == 1


def test_rows_say_what_was_measured(make_run, tiny_data, tiny_teacher):
    run = make_run("out", val := replace(TINY, val_size=0))
    train_all(GRID, run)
    rows = read_rows(run.out_dir / "results" / "results.csv").set_index("run_id")
    row = rows.loc[run_id(GRID[0], val)]
    curve = [float(value) for value in row.test_curve.split()]
    assert len(curve) == 2 and row.test_acc == pytest.approx(curve[-1], abs=1e-6)
    assert row.best_test_acc == pytest.approx(max(curve)) and row.params == 5_538
    assert curve[row.best_epoch - 1] == max(curve)
    state = torch.load(run.out_dir / "checkpoints" / f"{row.name}.pt", weights_only=True)
    model = Trainee(GRID[0], val, 10, CPU).model
    model.load_state_dict(state["state"])
    x = normalise(plain(tiny_data.test, slice(0, 40)), *[(0.5,) * 3, (0.25,) * 3])
    with torch.no_grad():
        logits = model.eval()(x)
    assert row.test_acc == pytest.approx((logits.argmax(1) == tiny_data.test.labels).float().mean())
    taught = tiny_teacher(plain(tiny_data.test, slice(0, 40)))
    assert row.agreement == pytest.approx((taught.argmax(1) == logits.argmax(1)).float().mean())
    p, q = taught.double().softmax(1), logits.double().softmax(1)
    assert row.teacher_kl == pytest.approx((p * (p / q).log()).sum(1).mean().item())


def test_calibration_error_by_hand():
    """Four images in two of 15 bins: |1 - 0.9| and |0.5 - 0.55| weighted 2 : 2."""
    p = torch.tensor([0.9, 0.9, 0.55, 0.55], dtype=torch.float64)
    logits = torch.stack([p.log(), (1 - p).log()], 1)
    labels = torch.tensor([0, 0, 0, 1])
    assert calibration_error(logits, labels) == pytest.approx(0.5 * 0.1 + 0.5 * 0.05)


def test_measuring_now_and_then_leaves_the_weights_and_the_last_epoch(make_run):
    settings = replace(TINY, epochs=5)
    always = train_all(GRID[:2], make_run("always", settings))
    assert train_all(GRID[:2], make_run("seldom", settings, eval_every=2)) == always
    rows = [read_rows(csv_path(make_run(name).out_dir)) for name in ("always", "seldom")]
    assert rows[0].test_acc.equals(rows[1].test_acc)
    for all_epochs, some in zip(rows[0].test_curve, rows[1].test_curve, strict=True):
        kept = [v if epoch in (2, 4, 5) else "nan" for epoch, v in enumerate(all_epochs.split(), 1)]
        assert some.split() == kept
    assert set(rows[1].best_epoch) <= {2, 4, 5}
