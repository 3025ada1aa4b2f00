"""How the soft loss is put together: two methods in one, its weight, and what it keeps."""

from dataclasses import replace

import pytest
import torch
from conftest import CPU, TINY, Countdown, make_images, script, small_teacher, train_all

import distill
import summarize
from contrast_loss import Bank, Moment
from engine.balance import balance
from engine.cells import Cell
from engine.fused import FusedStep
from engine.loop import train
from engine.rows import read_rows
from engine.trainee import Batch, Trainee, initial_model, student_step, terms_of
from images.views import epoch_views, gather, normalise
from losses import METHODS, ON_STAGES
from utils import Interrupted

BOTH = Cell("cnn", 4, 0, "kd+sp", 0.4, 3.0, 2.0, True, lr=0.2, teacher_seed=0)


@pytest.fixture(scope="module")
def flags(tmp_path_factory) -> list:
    root = tmp_path_factory.mktemp("images")
    make_images(root, train=20, test=4)
    common = ["--dataset", "folder", "--data-dir", root, "--epochs", 1, "--batch-size", 16]
    return [*common, "--lr", 0.01, "--device", "cpu"]


@pytest.fixture(scope="module")
def teacher(flags, tmp_path_factory):
    return small_teacher(tmp_path_factory.mktemp("teacher"), *flags)


def first_batch(data, teacher) -> Batch:
    """The first 32 views of seed 0, and what the teacher says of them."""
    views = epoch_views(0, 0, data.train)[:32]
    pixels = gather(data.train, views)
    logits, stages = teacher(pixels, stages=True)
    x, labels = normalise(pixels, data.mean, data.std), data.train.labels[views.index]
    return Batch(x, labels, logits, stages, index=views.index)


def met(cell: Cell, data, batch: Batch) -> Trainee:
    """A trainee before its first step."""
    trainee = Trainee(cell, TINY, 10, CPU)
    if trainee.on_stages:
        taught = {name: x[:2] for name, x in batch.stages.items()}
        trainee.meet(batch.x[:2], taught, data.train.labels)
    return trainee


def gradients(model, loss) -> list[torch.Tensor]:
    return torch.autograd.grad(
        loss, list(model.parameters()), retain_graph=True, materialize_grads=True
    )


# ---------------------------------------------------------------- two methods in one


def test_two_methods_are_the_sum_of_what_each_has_alone(tiny_data, tiny_teacher):
    """0.6 hard + 0.4 (9 kd + 2 sp), by autograd on a fresh copy."""
    batch = first_batch(tiny_data, tiny_teacher)
    trainee, copy = (met(BOTH, tiny_data, batch) for _ in range(2))
    student_step(trainee, batch)
    with copy.stages.watch() as seen:
        logits = copy.model(batch.x)
    hard = -logits.log_softmax(1)[torch.arange(32), batch.labels].mean()
    kd = -((batch.logits / 3).softmax(1) * (logits / 3).log_softmax(1)).sum(1).mean()
    soft = 9 * kd + 2 * METHODS["sp"].loss(seen, batch.stages, None)
    (0.6 * hard + 0.4 * soft).backward()
    for moved, old in zip(trainee.model.parameters(), copy.model.parameters(), strict=True):
        torch.testing.assert_close(moved.detach(), (old - 0.2 * old.grad).detach())
    found = trainee.sums[:3] / 32
    expected = torch.stack([0.6 * hard + 0.4 * soft, hard, soft]).double()
    torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-5)


def test_beside_a_method_of_weight_0_kd_is_kd(make_run):
    kd = Cell("cnn", 4, 0, "kd", 0.4, 3.0, lr=0.05, teacher_seed=0)
    both = replace(kd, method="kd+fitnet", beta=0.0)
    first, second = (list(train_all([c], make_run(c.method)).values()) for c in (kd, both))
    assert first == second


def test_the_first_of_two_keeps_its_paper_s_weight(tiny_data, tiny_teacher):
    batch = first_batch(tiny_data, tiny_teacher)
    trainee = met(replace(BOTH, method="ls+sp", scale_t2=False), tiny_data, batch)
    assert trainee.soft([torch.tensor(1.0), torch.tensor(1.0)]).item() == 10 + 2


def test_two_methods_from_the_command_line_to_the_report(flags, teacher, tmp_path, capsys):
    out = ["--out-dir", tmp_path, "--teacher", teacher]
    argv = [*flags, *out, "--alone", "--method", "kd+sp", "--temperature", 2, 4, "--beta", 5]
    assert script(distill.main, *argv, "--scale-t2") == 0
    assert script(distill.main, *flags, *out, "--method", "dkd+fitnet") == 0
    rows = read_rows(tmp_path / "results" / "results.csv").set_index("run_id")
    both = rows[rows.method == "kd+sp"]
    assert list(both.index.str.slice(0, 27)) == [f"cnn-kd+sp-a0.5-T{t}-b5-t2-s0-" for t in (2, 4)]
    assert list(both.temperature) == [2, 4] and set(both.beta) == {5}
    assert rows[rows.method == "dkd+fitnet"].beta.item() == METHODS["fitnet"].beta
    assert len(list(teacher.parent.glob("*.sheet"))) == 1
    assert script(summarize.main, "--out-dir", tmp_path) == 0
    report = (tmp_path / "results" / "REPORT.md").read_text()
    assert "kd+sp × T², β 5" in report
    capsys.readouterr()
    for wrong in ("kd+dkd", "sp+kd", "kd+", "smooth+sp", "kd+sp+at", "none+sp", "sq"):
        assert script(distill.main, *argv, "--method", wrong) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert f"'{wrong}' is none of" in line


# ---------------------------------------------------------------- its weight


@pytest.mark.parametrize("method", ["sp", "mse", "kd+at", "crd"])
def test_beta_auto_makes_the_gradients_as_long(tiny_data, tiny_teacher, make_run, method, capsys):
    """Of the hard loss and of beta times the term, on the first batch of 32, by hand."""
    cell = Cell("cnn", 4, 0, method, 0.5, 2.0 if "kd" in method else None, lr=0.05,
                teacher_seed=0, auto_beta=True)  # fmt: skip
    batch = first_batch(tiny_data, tiny_teacher)
    trainee = met(cell, tiny_data, batch)
    before = [p.clone() for p in trainee.learned()]
    balance([trainee], make_run("out"))
    assert all(map(torch.equal, before, trainee.learned())) and not trainee.model.conv1.weight.grad
    assert f"beta {trainee.beta:.4g}" in capsys.readouterr().out
    _, hard, terms = terms_of(trainee, batch)
    lengths = [
        torch.cat([g.flatten() for g in gradients(trainee.model, loss)]).norm().item()
        for loss in (hard, trainee.beta * terms[-1])
    ]
    assert lengths[0] == pytest.approx(lengths[1], rel=1e-4) and lengths[0] > 0


def test_beta_auto_stays_after_a_stop(make_run):
    cells = [
        Cell("cnn", 4, 0, "sp", a, lr=0.05, teacher_seed=0, auto_beta=True) for a in (0.1, 0.5)
    ]
    whole = train_all(cells, make_run("whole"))
    run = make_run("stopped", keeper=Countdown(7))
    with pytest.raises(Interrupted):
        train(cells, cells, run)
    run.keeper = Countdown(10**9)
    assert train_all(cells, run) == whole
    betas = [
        read_rows(make_run(name).out_dir / "results" / "results.csv").beta.tolist()
        for name in ("whole", "stopped")
    ]
    assert betas[0] == betas[1] and betas[0][0] > 0


def test_beta_auto_from_the_command_line_to_the_report(flags, teacher, tmp_path, capsys):
    out = ["--out-dir", tmp_path, "--teacher", teacher]
    argv = [*flags, *out, "--method", "at", "--beta", "auto", 7, "--seed", 0, 1]
    assert script(distill.main, *argv, "--soft-warmup", 20) == 0
    rows = read_rows(tmp_path / "results" / "results.csv")
    auto = rows[rows.auto_beta]
    assert len(auto) == 2 and auto.beta.nunique() == 2 and set(rows.soft_warmup) == {20}
    assert auto.run_id.str.startswith("cnn-at-a0.5-bauto-sw20-s").all()
    assert script(summarize.main, "--out-dir", tmp_path) == 0
    report = (tmp_path / "results" / "REPORT.md").read_text()
    assert "at, β auto, warm-up 20" in report and "at, β 7, warm-up 20" in report
    capsys.readouterr()
    assert script(distill.main, *flags, *out, "--beta", "auto") == 2
    assert "--method kd has no weight of its own" in capsys.readouterr().err
    assert script(distill.main, *flags, *out, "--method", "none", "--soft-warmup", 3) == 2


def test_the_soft_loss_comes_in_over_the_epochs(tiny_data, tiny_teacher):
    """A third, two thirds, and then the whole of its weight, stacked as in the loop."""
    cells = [
        Cell("cnn", 4, 0, "dkd", a, 4.0, 1.0, teacher_seed=0, soft_warmup=3) for a in (0.3, 0.6)
    ]
    batch = first_batch(tiny_data, tiny_teacher)
    loop, stacked = ([met(cell, tiny_data, batch) for cell in cells] for _ in range(2))
    fused = FusedStep(stacked)
    for epoch, weight in enumerate((1 / 3, 2 / 3, 1, 1)):
        for trainee in (*loop, *stacked):
            trainee.epoch = epoch
            trainee.sums.zero_()
        fused.anneal(epoch)
        fused(batch)
        for one, other in zip(loop, stacked, strict=True):
            one.anneal(epoch)
            student_step(one, batch)
            loss, hard, soft = (one.sums[:3] / 32).tolist()
            alpha = one.cell.alpha
            assert loss == pytest.approx((1 - alpha) * hard + alpha * weight * soft, rel=1e-5)
            torch.testing.assert_close(one.sums, other.sums, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- what a method keeps


CRD = Cell("cnn", 4, 0, "crd", 0.5, beta=0.8, lr=0.05, teacher_seed=0)


def test_crd_goes_on_with_its_bank(make_run):
    """Stopped in either epoch it ends with the same bits, the bank's among them."""
    settings = replace(TINY, momentum=0.9)

    def banks(run):
        [path] = (run.out_dir / "checkpoints").glob("*.pt")
        return torch.load(path, weights_only=True)["regressor"]

    whole = make_run("whole", settings)
    expected = train_all([CRD], whole)
    for chances in (3, 7):
        run = make_run(f"stopped {chances}", settings, keeper=Countdown(chances))
        with pytest.raises(Interrupted):
            train([CRD], [CRD], run)
        run.keeper = Countdown(10**9)
        assert train_all([CRD], run) == expected
        for name, value in banks(run).items():
            assert torch.equal(value, banks(whole)[name])


def test_crds_bank_remembers_the_batch(tiny_data, tiny_teacher):
    """Rows of the batch's images move by half towards what was said of them; no other does."""
    batch = first_batch(tiny_data, tiny_teacher)
    trainee = met(CRD, tiny_data, batch)
    before = trainee.regressor.of_teacher.clone()
    said = trainee.regressor.teacher(batch.stages["pooled"]).detach()
    moved = 0.5 * before[batch.index] + 0.5 * said / said.norm(dim=1, keepdim=True)
    student_step(trainee, batch)
    after = trainee.regressor.of_teacher
    expected = moved / moved.norm(dim=1, keepdim=True)
    torch.testing.assert_close(after[batch.index], expected)
    others = torch.ones(100, dtype=torch.bool)
    others[batch.index] = False
    assert torch.equal(after[others], before[others]) and trainee.regressor.level.isfinite().all()


def test_crds_negatives_depend_on_seed_epoch_and_step_alone():
    bank = Bank(3, 5, torch.arange(20_000) % 10)
    moments = [Moment(torch.arange(4), *when) for when in ((0, 0, 0), (1, 0, 0), (0, 1, 0))]
    moments += [Moment(torch.arange(4), 0, 0, 1), Moment(torch.arange(9), 0, 0, 0)]
    first, *others, again = (bank.negatives(moment) for moment in moments)
    assert len(first.unique()) == 16384 and torch.equal(first, again)
    assert not any(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("method", [n for n, m in METHODS.items() if m.family in ON_STAGES])
def test_small_resnets_take_every_method_on_layers(make_run, method):
    """resnet8 of a resnet20, whose stages have the same channels."""
    model = initial_model(Cell("resnet20", 4, 0, teaches=True), 10).eval().requires_grad_(False)
    settings = replace(TINY, epochs=1, batch_size=64)
    run = make_run("out", settings)
    run.teacher = replace(run.teacher, model=model, stages=None)
    cell = Cell("resnet8", 4, 0, method, 0.5, beta=0.01, teacher_seed=0)
    assert len(train_all([cell], run)) == 1


def test_batch_norms_that_train_along_do_not_learn_from_one_image(tmp_path, teacher, capsys):
    make_images(tmp_path / "odd", train=9, test=4)  # 18 images: batches of 17 and 1
    argv = ["--dataset", "folder", "--data-dir", tmp_path / "odd", "--epochs", 1, "--lr", 0.01]
    argv += ["--batch-size", 17, "--teacher", teacher, "--out-dir", tmp_path, "--device", "cpu"]
    argv += ["--method", "reviewkd", "--student-width", 4]
    assert script(distill.main, *argv, "--batch-size", 1) == 2
    assert "every batch is of 1 image: --batch-size" in capsys.readouterr().err
    assert script(distill.main, *argv) == 2
    assert "ends with 1 image: --last-batch drop" in capsys.readouterr().err
    assert script(distill.main, *argv, "--last-batch", "drop") == 0


@pytest.mark.parametrize("method", ["ft", "vid"])
def test_the_paraphraser_learns_as_fast_whatever_the_weight(tiny_data, tiny_teacher, method):
    """ft's autoencoder has its own error's gradient; vid's guesses have the weighted one."""
    batch, moves = first_batch(tiny_data, tiny_teacher), []
    for beta in (1.0, 100.0):
        cell = Cell("cnn", 4, 0, method, 0.5, beta=beta, lr=0.01, teacher_seed=0)
        trainee = met(cell, tiny_data, batch)
        own = trainee.regressor.recall if method == "ft" else trainee.regressor
        before = [p.clone() for p in own.parameters()]
        student_step(trainee, batch)
        moves.append(
            torch.cat([(p - q).flatten() for p, q in zip(own.parameters(), before, strict=True)])
        )
    assert moves[0].abs().max() > 0 and torch.equal(*moves) == (method == "ft")
