"""Hard and soft loss and their mixture: against numbers worked by hand, torch and float64."""

import math

import pytest
import torch
import torch.nn.functional as F

from engine.trainee import mix
from losses import METHODS, hard_loss, soft_loss

# Two samples, two classes, T = 2.
STUDENT = torch.tensor([[0.0, 2 * math.log(3)], [1.0, 1.0]])
TEACHER = torch.tensor([[5.0, 5.0], [2 * math.log(4), 0.0]])
LABELS = torch.tensor([1, 0])
# hard: softmax of the first row is (1, 9) / 10, of the second (1, 1) / 2, so the mean of
# -ln 0.9 = 0.1053605 and -ln 0.5 = 0.6931472.
HARD = 0.3992538
# soft, first row: student (0, ln 3) -> (1/4, 3/4), teacher (2.5, 2.5) -> (1/2, 1/2):
# -1/2 ln 1/4 - 1/2 ln 3/4 = 0.8369882. Second: student (1/2, 1/2), any teacher: ln 2 = 0.6931472.
SOFT = 0.7650677


def test_worked_by_hand():
    assert hard_loss(STUDENT, LABELS).item() == pytest.approx(HARD, abs=1e-6)
    assert soft_loss(STUDENT, TEACHER, 2.0).item() == pytest.approx(SOFT, abs=1e-6)


def test_gradient_worked_by_hand():
    # d soft / d s = (softmax(s / T) - softmax(t / T)) / (T B): first row (1/4 - 1/2) / 4 = -1/16,
    # second (1/2 - 4/5) / 4 = -3/40; the other class has the opposite.
    student = STUDENT.clone().requires_grad_()
    soft_loss(student, TEACHER, 2.0).backward()
    expected = torch.tensor([[-1 / 16, 1 / 16], [-3 / 40, 3 / 40]])
    torch.testing.assert_close(student.grad, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("temperature", [1.0, 2.5, 50.0])
def test_against_torch(temperature):
    torch.manual_seed(0)
    s, t, labels = 4 * torch.randn(9, 10), 4 * torch.randn(9, 10), torch.randint(10, (9,))
    # One-hot soft targets are the hard loss.
    one_hot = F.one_hot(labels, 10).float()
    by_torch = F.cross_entropy(s, one_hot)
    assert hard_loss(s, labels).item() == pytest.approx(by_torch.item(), rel=1e-6)
    # And in float64, with no softmax of torch's.
    p = torch.exp(t.double() / temperature)
    q = torch.exp(s.double() / temperature)
    p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
    plain = -(p * q.log()).sum(1).mean()
    assert soft_loss(s, t, temperature).item() == pytest.approx(plain.item(), rel=1e-6)


def test_full_cross_entropy_and_no_square_of_t():
    # At s = t a KL would be 0 and this is the entropy: ln 10 at equal logits, whatever T.
    equal = torch.zeros(3, 10)
    for temperature in (1.0, 10.0):
        soft = soft_loss(equal, equal, temperature)
        assert soft.item() == pytest.approx(math.log(10), rel=1e-6)


@pytest.mark.parametrize("alpha, expected", [(0.0, HARD), (1.0, SOFT), (0.25, None)])
def test_alpha_from_hard_only_to_soft_only(alpha, expected):
    student = STUDENT.clone().requires_grad_()
    hard, soft = hard_loss(student, LABELS), METHODS["kd"].loss(student, TEACHER, LABELS, 2.0)
    total = mix(hard, soft, 1 - alpha, alpha, 1.0)
    expected = 0.75 * HARD + 0.25 * SOFT if expected is None else expected
    assert total.item() == pytest.approx(expected, abs=1e-6)
    (total_gradient,) = torch.autograd.grad(total, student, retain_graph=True)
    (hard_gradient,) = torch.autograd.grad(hard, student, retain_graph=True)
    (soft_gradient,) = torch.autograd.grad(soft, student)
    mixed = (1 - alpha) * hard_gradient + alpha * soft_gradient
    torch.testing.assert_close(total_gradient, mixed)


def test_gradients_in_float64():
    torch.manual_seed(0)
    s = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    t = torch.randn(4, 5, dtype=torch.float64)
    labels = torch.tensor([0, 4, 2, 2])
    assert torch.autograd.gradcheck(lambda x: hard_loss(x, labels), s)
    assert torch.autograd.gradcheck(lambda x: soft_loss(x, t, 3.0), s)
