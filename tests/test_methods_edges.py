"""Every method where its formula has a hole, and as the engine uses it."""

import pytest
import torch
from method_inputs import (
    EDGES,
    HOLES,
    RESPONSE,
    STAGED,
    edit,
    make_regressor,
    on_stages,
    random_logits,
    random_stages,
    stage_loss,
    with_gradient,
)

import models
import stage_losses
from losses import METHODS
from utils import UserError

# ---------------------------------------------------------------- where a formula has a hole


def assert_finite(value, *gradients):
    assert value.isfinite()
    for gradient in gradients:
        assert gradient.isfinite().all()


@pytest.mark.parametrize("temperature", [1.0, 50.0])
@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("name", RESPONSE)
def test_response_is_finite(name, edge, temperature):
    s, t = EDGES[edge](torch.Generator().manual_seed(0))
    for labels in (torch.zeros(len(s), dtype=torch.long), torch.arange(len(s)) % s.shape[1]):
        loss = METHODS[name].loss
        assert_finite(*with_gradient(lambda x: loss(x, t, labels, temperature), s))  # noqa: B023


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("hole", HOLES)
@pytest.mark.parametrize("name", STAGED)
def test_stages_are_finite(name, hole, batch):
    student, teacher = random_stages(1, batch=batch)
    regressor = make_regressor(name, student, teacher)
    edited = edit(student, HOLES[hole])
    for s, t in ((edited, teacher), (student, edit(teacher, HOLES[hole])), (edited, edited)):
        if regressor is not None and t is edited:
            continue  # the regressor was made for the teacher's channels
        assert_finite(*on_stages(lambda s, t: stage_loss(name, s, t, regressor), s, t))


@pytest.mark.parametrize("edge", ["constant student", "constant teacher", "equal rows", "all zero"])
@pytest.mark.parametrize("name", RESPONSE)
def test_constant_logits_leave_gradients_of_their_size(name, edge):
    loss, labels = METHODS[name].loss, torch.arange(6)
    draw = torch.Generator().manual_seed(0)
    s, t = EDGES[edge](draw)
    usual = torch.randn(6, 10, generator=draw), torch.randn(6, 10, generator=draw)
    _, largest = with_gradient(lambda x: loss(x, usual[1], labels, 4.0), usual[0])
    _, edge = with_gradient(lambda x: loss(x, t, labels, 4.0), s)
    assert edge.abs().max() < 20 * largest.abs().max()


@pytest.mark.parametrize("temperature", [1.0, 50.0])
def test_equal_rows_are_to_dist_as_one(temperature):
    """Their columns are constant, but for the rounding of a mean over six."""
    s, t = EDGES["equal rows"](torch.Generator().manual_seed(0))
    loss, labels = METHODS["dist"].loss, torch.zeros(6, dtype=torch.long)
    six, slopes = with_gradient(lambda x: loss(x, t, labels, temperature), s)
    one, slope = with_gradient(lambda x: loss(x, t[:1], labels[:1], temperature), s[:1])
    torch.testing.assert_close(six, one, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(slopes, slope.expand(6, -1) / 6, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", STAGED)
def test_close_rows_have_the_gradients_of_float64(name):
    student, teacher = random_stages(1, batch=5)
    student = edit(student, HOLES["two close rows"])
    regressor = make_regressor(name, student, teacher)
    _, *coarse = on_stages(lambda s, t: stage_loss(name, s, t, regressor), student, teacher)
    student, teacher = (edit(stages, lambda x: x.double()) for stages in (student, teacher))
    regressor = make_regressor(name, student, teacher)
    _, *fine = on_stages(lambda s, t: stage_loss(name, s, t, regressor), student, teacher)
    for one, other in zip(coarse, fine, strict=True):
        assert (one - other).abs().max() <= 1e-3 * other.abs().max()


@pytest.mark.parametrize("hole", ["a row of zeros", "two equal rows"])
@pytest.mark.parametrize("name", [n for n in STAGED if METHODS[n].regressor is None])
def test_a_dead_or_doubled_sample_leaves_gradients_of_their_size(name, hole):
    # Finite is not enough: an epsilon in a denominator gives 1e12 here, and one step ends the run.
    student, teacher = random_stages(1, batch=5)
    loss = METHODS[name].loss
    _, *usual = on_stages(lambda s, t: loss(s, t, None), student, teacher)
    _, *edge = on_stages(lambda s, t: loss(s, t, None), edit(student, HOLES[hole]), teacher)
    largest = max(gradient.abs().max() for gradient in usual)
    assert max(gradient.abs().max() for gradient in edge) < 20 * largest


NOT_ZERO = {"kd", "smooth"}  # whose minimum is not 0: cross entropies keep the target's entropy


@pytest.mark.parametrize(
    "name", [n for n in METHODS if n not in NOT_ZERO and METHODS[n].regressor is None]
)
def test_nothing_to_learn_from_oneself(name):
    if name in RESPONSE:
        s, _, labels, temperature = random_logits(2)
        value, *gradients = with_gradient(
            lambda x: METHODS[name].loss(x, s, labels, temperature), s
        )
    else:
        student, _ = random_stages(2)
        value, *gradients = on_stages(lambda s, t: METHODS[name].loss(s, t, None), student, student)
    assert value.item() == pytest.approx(0, abs=2e-6)
    assert max(gradient.abs().max() for gradient in gradients) < 1e-5


# ---------------------------------------------------------------- as the engine uses them


@pytest.mark.parametrize("name", METHODS)
def test_many_cells_at_once(name):
    # vmap over cells, the teacher shared, the temperature a tensor: the same as one by one.
    if name in RESPONSE:
        _, t, labels, _ = random_logits(5)
        s, temperatures = torch.randn(3, *t.shape), torch.tensor([1.0, 4.0, 20.0])
        loss = METHODS[name].loss
        together = torch.vmap(loss, (0, None, None, 0))(s, t, labels, temperatures)
        alone = [loss(s[i], t, labels, temperatures[i].item()) for i in range(3)]
    else:
        cells = [random_stages(5)[0] for _ in range(3)]
        teacher = random_stages(5)[1]
        regressor = make_regressor(name, cells[0], teacher)
        cells = [edit(cell, lambda x, i=i: x + i) for i, cell in enumerate(cells)]
        stacked = {k: torch.stack([cell[k] for cell in cells]) for k in cells[0]}
        together = torch.vmap(lambda s: stage_loss(name, s, teacher, regressor))(stacked)
        alone = [stage_loss(name, cell, teacher, regressor) for cell in cells]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-5, atol=1e-6)


def stages_of(name, width, batch=4):
    torch.manual_seed(0)
    with torch.random.fork_rng():
        model = models.build(name, width, 10)
    x = torch.randn(batch, 3, 32, 32)
    with models.find(model, x).watch() as stages:
        model(x)
    return model, stages


@pytest.mark.parametrize("student_name", ["cnn", "resnet18"])
@pytest.mark.parametrize("name", STAGED)
def test_reaches_the_student(name, student_name):
    student, s = stages_of(student_name, 4)
    _, t = stages_of("resnet18", 6)
    t = {k: x.detach() for k, x in t.items()}
    regressor = make_regressor(name, s, t)
    stage_loss(name, s, t, regressor).backward()
    gradient = student.get_parameter("conv1.weight" if student_name == "cnn" else "stem.0.weight")
    assert gradient.grad.abs().max() > 0
    if regressor is not None:
        assert all(p.grad.abs().max() > 0 for p in regressor.parameters())


def test_which_layers_meet():
    _, cnn = stages_of("cnn", 4)
    _, resnet = stages_of("resnet18", 4)
    assert stage_losses.layer_pairs(cnn, resnet) == [("stage1", "stage2"), ("stage2", "stage3")]
    assert stage_losses.hint_pair(cnn, resnet) == ("stage1", "stage2")
    same = [(f"stage{i}", f"stage{i}") for i in (1, 2, 3, 4)]
    assert stage_losses.layer_pairs(resnet, resnet) == same
    assert stage_losses.hint_pair(resnet, resnet) == ("stage2", "stage2")


@pytest.mark.parametrize("name", ["fitnet", "at"])
def test_no_layers_meet(name):
    student = {"stage1": torch.zeros(2, 3, 5, 5), "pooled": torch.zeros(2, 3)}
    _, teacher = stages_of("resnet18", 4)
    with pytest.raises(UserError, match="stage1 5x5.*stage4 4x4"):
        METHODS[name].loss(student, teacher, None)


@pytest.mark.parametrize("name", ["sp", "rkd", "pkt", "cc"])
def test_no_such_layer(name):
    whole, bare = random_stages(0)[0], {"flat": torch.zeros(2, 3)}
    with pytest.raises(UserError, match="the student has none"):
        METHODS[name].loss(bare, whole, None)
    with pytest.raises(UserError, match="the teacher has none"):
        METHODS[name].loss(whole, bare, None)


def test_deepest_of_several_stages_meets():
    student, teacher = random_stages(0)
    teacher["stage5"] = teacher["stage3"][:, :1]  # 2x2 once more, as in a network without stride
    met = stage_losses.layer_pairs(student, teacher)
    assert met == [("stage1", "stage2"), ("stage2", "stage5")]


def test_regressor_ends_like_the_hint():
    # The teacher's stages end in a ReLU, and so must what is compared with them.
    torch.manual_seed(0)
    x = torch.randn(4, 3, 6, 6)
    out = stage_losses.hint_regressor(3, 7)(x)
    assert out.shape == (4, 7, 6, 6)
    assert out.min() == 0 and out.max() > 0
