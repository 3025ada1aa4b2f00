"""Every method's loss, value and gradient, against code or formulas nobody wrote for it here."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
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
from method_peers import PAPERS, PEERS

from losses import METHODS, hard_loss


def assert_equal(ours, theirs, tolerance):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# In float32 to 1e-6; in float64 all but the last digits.
PRECISION = [(torch.float32, 1e-6), (torch.float64, 1e-11)]


def compare_logits(name, s, t, labels, temperature, tolerance):
    """Value and gradient of ours and of torchdistill's."""
    ours = with_gradient(lambda x: METHODS[name].loss(x, t, labels, temperature), s)
    theirs = with_gradient(lambda x: PEERS[name](x, t, temperature), s)
    # ls is T^2 times a small difference of logarithms, so T^2 times their rounding.
    unit = temperature**2 if name == "ls" else 1
    assert_equal([x / unit for x in ours], [x / unit for x in theirs], tolerance)


def compare_stages(name, student, teacher, tolerance):
    """Value and gradients of ours and of torchdistill's."""
    regressor = make_regressor(name, student, teacher)
    ours = on_stages(lambda s, t: stage_loss(name, s, t, regressor), student, teacher)
    theirs = on_stages(lambda s, t: PEERS[name](s, t, regressor), student, teacher)
    assert_equal(ours, theirs, tolerance)


@pytest.mark.parametrize("dtype, tolerance", PRECISION)
@pytest.mark.parametrize("name", [name for name in RESPONSE if name in PEERS])
def test_response_equals_torchdistill(name, dtype, tolerance):
    for seed in range(20):
        compare_logits(name, *random_logits(seed, dtype), tolerance)


@pytest.mark.parametrize("dtype, tolerance", PRECISION)
@pytest.mark.parametrize("name", [name for name in STAGED if name in PEERS])
def test_stages_equal_torchdistill(name, dtype, tolerance):
    for seed in range(20):
        compare_stages(name, *random_stages(seed, dtype), tolerance)


# Left out: constant rows or columns, which have no z-score and no correlation. Here they have the
# gradient 0; torchdistill's is rounding over its eps.
CONSTANT = [("ls", "constant student"), ("ls", "all zero"), ("dist", "opposed")]
CONSTANT += [("dist", "constant student"), ("dist", "all zero"), ("dist", "equal rows")]


@pytest.mark.parametrize(
    "name, edge", [(n, e) for n in RESPONSE if n in PEERS for e in EDGES if (n, e) not in CONSTANT]
)
def test_response_equals_torchdistill_in_corners(name, edge):
    s, t = EDGES[edge](torch.Generator().manual_seed(0))
    labels = torch.zeros(len(s), dtype=torch.long)
    for temperature in (1.0, 50.0):
        compare_logits(name, s, t, labels, temperature, 1e-6)


# Left out: torchdistill's RKDLoss is nan for a batch of one, takes the noise between equal rows for
# a distance and pulls them apart with 1e12; F.normalize before its CCKDLoss does so with zeros.
CORNERS = {
    "fitnet": list(HOLES),
    "at": list(HOLES),
    "rkd": ["as drawn", "a row of zeros", "large"],
    "cc": ["as drawn", "two equal rows", "equal rows", "large"],
}


@pytest.mark.parametrize("name, hole", [(name, hole) for name in CORNERS for hole in CORNERS[name]])
def test_stages_equal_torchdistill_in_corners(name, hole):
    for batch in (5,) if name == "rkd" else (1, 5):
        student, teacher = random_stages(1, batch=batch)
        compare_stages(name, edit(student, HOLES[hole]), teacher, 1e-6)


# ---------------------------------------------------------------- the papers' formulas


def test_every_method_is_checked():
    assert set(PEERS) | set(PAPERS) == set(METHODS)


def test_smoothing_is_torchs():
    """A cell of alpha 0.1 minimises what F.cross_entropy calls label_smoothing=0.1."""
    s, _, labels, _ = random_logits(3, torch.float64)
    mixed = 0.9 * hard_loss(s, labels) + 0.1 * METHODS["smooth"].loss(s, None, labels)
    expected = F.cross_entropy(s, labels, label_smoothing=0.1)
    torch.testing.assert_close(mixed, expected, rtol=1e-12, atol=0)


def slope(function, x, direction, step=1e-5):
    """Central difference of a function of one array, along a direction."""
    return (function(x + step * direction) - function(x - step * direction)) / (2 * step)


@pytest.mark.parametrize("name", [name for name in RESPONSE if name in PAPERS])
def test_response_equals_paper(name):
    for seed in range(20):
        s, t, labels, temperature = random_logits(seed)
        if s.shape[1] == 2 and name == "dist":
            continue  # two probabilities are always perfectly correlated, up to sign

        def paper(x, t=t, labels=labels, temperature=temperature):
            return PAPERS[name](x, t.double().numpy(), labels.numpy(), temperature)

        value, gradient = with_gradient(lambda x: METHODS[name].loss(x, t, labels, temperature), s)  # noqa: B023
        unit = 1 if name == "dist" else temperature**2
        x = s.double().numpy()
        assert value.item() / unit == pytest.approx(paper(x) / unit, rel=1e-6, abs=1e-6)
        direction = np.random.default_rng(seed).standard_normal(x.shape)
        along = (gradient.double().numpy() * direction).sum()
        assert along / unit == pytest.approx(slope(paper, x, direction) / unit, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("name", [name for name in STAGED if name in PAPERS])
def test_stages_equal_paper(name):
    for seed in range(20):
        student, teacher = random_stages(seed)
        regressor = make_regressor(name, student, teacher)
        value, *gradients = on_stages(
            lambda s, t: stage_loss(name, s, t, regressor),  # noqa: B023
            student,
            teacher,
        )
        s, t = ({k: x.double().numpy() for k, x in side.items()} for side in (student, teacher))
        more = [regressor] if regressor is not None else []
        assert value.item() == pytest.approx(PAPERS[name](s, t, *more), rel=1e-6, abs=1e-6)
        rng = np.random.default_rng(seed)
        direction = {k: rng.standard_normal(x.shape) for k, x in s.items()}

        def paper(amount, s=s, t=t, direction=direction, more=more):
            return PAPERS[name]({k: x + amount * direction[k] for k, x in s.items()}, t, *more)

        along = sum(
            (g.double().numpy() * d).sum()
            for g, d in zip(gradients, direction.values(), strict=True)
        )
        assert along == pytest.approx(slope(paper, 0.0, 1.0), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_gradient_in_float64(name):
    if name in RESPONSE:
        s, t, labels, temperature = random_logits(3, torch.float64)
        loss, inputs = (lambda x: METHODS[name].loss(x, t, labels, temperature)), [s]
    else:
        student, teacher = random_stages(3, torch.float64, batch=3)
        regressor = make_regressor(name, student, teacher)
        names, inputs = list(student), list(student.values())
        loss = lambda *xs: stage_loss(name, dict(zip(names, xs, strict=True)), teacher, regressor)  # noqa: E731
    assert torch.autograd.gradcheck(loss, [x.requires_grad_() for x in inputs])
