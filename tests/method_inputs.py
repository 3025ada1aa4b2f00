"""What the tests of the methods feed them: logits and stages, at random and in corners."""

import torch

from contrast_loss import Moment
from losses import METHODS

STAGED = [name for name, method in METHODS.items() if method.family in ("feature", "relation")]
RESPONSE = [name for name in METHODS if name not in STAGED]  # on logits; one on labels alone


def random_logits(seed, dtype=torch.float32):
    """Student and teacher logits [B, K], labels [B], T, all of random size."""
    g = torch.Generator().manual_seed(seed)
    batch, classes = (int(torch.randint(low, 13, (), generator=g)) for low in (3, 2))
    student = 3 * torch.randn(batch, classes, generator=g)
    teacher = 3 * torch.randn(batch, classes, generator=g)
    labels = torch.randint(classes, (batch,), generator=g)
    return student.to(dtype), teacher.to(dtype), labels, [1.0, 2.5, 4.0, 20.0][seed % 4]


def random_stages(seed, dtype=torch.float32, batch=None):
    """Stages of a student and a teacher that share the sizes 4x4 and 2x2, channels at random."""
    g = torch.Generator().manual_seed(seed)
    size = [int(torch.randint(3, 13, (), generator=g)) for _ in range(9)]
    batch = batch or size[0]

    def draw(*shape):
        return torch.randn(batch, *shape, generator=g).to(dtype)

    student = {"stage1": draw(size[1], 4, 4), "stage2": draw(size[2], 2, 2)}
    teacher = {"stage1": draw(size[3], 8, 8), "stage2": draw(size[4], 4, 4)}
    teacher |= {"stage3": draw(size[5], 2, 2), "stage4": draw(size[6], 1, 1)}
    student["pooled"], teacher["pooled"] = draw(8 + size[7]), draw(8 + size[8])
    return student, teacher


def make_regressor(name, student, teacher):
    """The method's regressor for these stages, one step old and resting, or None."""
    if METHODS[name].regressor is None:
        return None
    torch.manual_seed(0)
    regressor = METHODS[name].regressor(student, teacher, torch.arange(50) % 3)
    regressor.to(student["pooled"].dtype)
    # Of every sample two: a batch norm learns nothing from one.
    twice = [edit(stages, lambda x: x.repeat_interleave(2, 0)) for stages in (student, teacher)]
    with torch.no_grad():
        stage_loss(name, *twice, regressor)
    return regressor.eval()


def stage_loss(name, student, teacher, regressor):
    """The loss of a method on stages, in the third step of the second epoch of seed 1."""
    index = torch.arange(len(student["pooled"])) * 2
    more = [Moment(index, 1, 1, 2)] if METHODS[name].moment else []
    return METHODS[name].loss(student, teacher, regressor, *more)


def with_gradient(function, *tensors):
    """The value, and the gradients by the tensors; zero by one that it does not depend on."""
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    value = function(*leaves)
    return value.detach(), *torch.autograd.grad(value, leaves, materialize_grads=True)


def on_stages(function, student, teacher):
    """with_gradient by every stage of the student."""
    names = list(student)
    return with_gradient(
        lambda *xs: function(dict(zip(names, xs, strict=True)), teacher), *student.values()
    )


# ---------------------------------------------------------------- corners

EDGES = {
    "batch of one": lambda g: (torch.randn(1, 10, generator=g), torch.randn(1, 10, generator=g)),
    "constant student": lambda g: (torch.full((6, 10), 0.3), torch.randn(6, 10, generator=g)),
    "constant teacher": lambda g: (torch.randn(6, 10, generator=g), torch.full((6, 10), 0.3)),
    "equal rows": lambda g: (
        torch.randn(1, 10, generator=g).repeat(6, 1),
        torch.randn(1, 10, generator=g).repeat(6, 1),
    ),
    "all zero": lambda g: (torch.zeros(6, 10), torch.zeros(6, 10)),
    "two classes": lambda g: (torch.randn(6, 2, generator=g), torch.randn(6, 2, generator=g)),
    "confident": lambda g: tuple(
        50.0 * torch.randint(2, (6, 10), generator=g).mul(2).sub(1) for _ in range(2)
    ),
    "opposed": lambda g: (100 * torch.eye(6, 10) - 50, 50 - 100 * torch.eye(6, 10)),
}


def edit(stages, change):
    return {name: change(x.clone()) for name, x in stages.items()}


def first_row_zero(x):
    x[0] = 0
    return x


def two_rows_equal(x):
    x[1:2] = x[:1]  # of a batch of one, nothing
    return x


def two_rows_close(x):
    x[1:2] = x[:1] * (1 + 1e-6)
    return x


HOLES = {
    "as drawn": lambda x: x,
    "zero": torch.zeros_like,
    "a row of zeros": first_row_zero,
    "two equal rows": two_rows_equal,
    "two close rows": two_rows_close,
    "equal rows": lambda x: x[:1].expand_as(x).clone(),
    "large": lambda x: 50 * x.sign(),
    "tiny": lambda x: 1e-20 * x,
}
