"""crd: contrast with a bank of all training images."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stage_losses import Stages, pooled, unit
from utils import stream

SIZE, NEGATIVES, TEMPERATURE, MOMENTUM = 128, 16384, 0.07, 0.5  # RepDistiller's


@dataclass(frozen=True)
class Moment:
    """Which training images a batch is of, int64 [B], and when it is seen."""

    index: Tensor
    seed: int
    epoch: int  # from 0
    step: int  # of the epoch, from 0


class Bank(nn.Module):
    """Both networks' embeddings, trained along, and what they last said of each training image."""

    def __init__(self, student_size: int, teacher_size: int, labels: Tensor):
        super().__init__()
        self.student, self.teacher = nn.Linear(student_size, SIZE), nn.Linear(teacher_size, SIZE)
        reach = (3 / SIZE) ** 0.5  # rows that have length 1 on average
        for name in ("of_student", "of_teacher"):
            self.register_buffer(name, torch.empty(len(labels), SIZE).uniform_(-reach, reach))
        # Of either side log(Z / N), which the first batch says.
        self.register_buffer("level", torch.full((2,), torch.nan))
        self.register_buffer("labels", labels.cpu(), persistent=False)

    def negatives(self, moment: Moment) -> Tensor:
        """Which images a batch is contrasted with: NEGATIVES of them, or all, int64 [M]."""
        draw = stream(moment.seed, moment.epoch, f"negatives of step {moment.step}")
        count = len(self.labels)
        chosen = draw.choice(count, min(count, NEGATIVES), replace=False, shuffle=False)
        return torch.from_numpy(chosen).to(moment.index.device)

    @torch.no_grad()
    def remember(self, index: Tensor, *embedded: Tensor) -> None:
        """Move the images' rows half the way to what was just said of them."""
        for bank, new in zip((self.of_student, self.of_teacher), embedded, strict=True):
            moved = MOMENTUM * bank[index] + (1 - MOMENTUM) * new.to(bank.dtype)
            bank.index_copy_(0, index, unit(moved))


def crd_bank(student: Stages, teacher: Stages, labels: Tensor) -> nn.Module:
    """The Bank for the `pooled` features of a probe. Raises UserError where there are none."""
    sizes = pooled(student, "student").shape[1], pooled(teacher, "teacher").shape[1]
    return Bank(*sizes, labels)


def crd(student_stages: Stages, teacher_stages: Stages, module: Bank, moment: Moment) -> Tensor:
    """Contrastive representation distillation (Tian et al. 2020, ICLR), equations 18 and 19.

    Both networks' `pooled` [B, D] are embedded in 128 numbers of length 1 by linear layers trained
    along. For either side's embedding x of an image, with y of the other side's bank,
    -log h(x, y) - sum over M negatives y' of log(1 - h(x, y')), batch mean, both sides added, where
    h(x, y) = p / (p + M / N), p = exp(x . y / 0.07) / Z, of N training images; Z is N times the
    mean of exp(x . y / 0.07) in the first batch. Then the banks' rows of the batch move by half.
    Negatives are images of other classes. Drawn are 16,384 images a step, as many as the paper's,
    but one draw for the whole batch (the authors: one for each of its images, hundreds of times the
    memory), of which an image leaves out those of its own class; so M is smaller by that share. Of
    fewer training images each is drawn once (the authors: again and again).
    The authors add 1e-7 to p + M / N, which is left out: 4e-6 of the value.
    Their code, RepDistiller, minimises CE + 0.8 times it: alpha = 0.5 and the default beta = 0.8.
    Checked against the formula in float64 NumPy, bank and all, which equals RepDistiller's CRDLoss
    of the same negatives. Raises UserError.
    """
    s = unit(module.student(pooled(student_stages, "student")))
    t = unit(module.teacher(pooled(teacher_stages, "teacher")))
    chosen = module.negatives(moment)
    others = module.labels[moment.index, None] != module.labels[chosen]  # [B, M]
    count = others.sum(1, dtype=s.dtype)  # [B], M of each
    total, levels = 0.0, []
    sides = zip((s, t), (module.of_teacher, module.of_student), module.level, strict=True)
    for x, bank, known in sides:
        near = (x * bank[moment.index]).sum(1) / TEMPERATURE  # [B]
        far = (x @ bank[chosen].T) / TEMPERATURE  # [B, M]
        sums = near.exp().sum() + torch.where(others, far.exp(), 0.0).sum()
        first = (sums / (len(x) + count.sum())).log().detach()
        levels.append(torch.where(known.isnan(), first, known))
        threshold = count.log() + levels[-1]  # [B]: h is the sigmoid of what lies above it
        total = total - F.logsigmoid(near - threshold).mean()
        rest = F.logsigmoid(threshold[:, None] - far)
        total = total - torch.where(others, rest, 0.0).sum(1).mean()
    if module.training:
        module.level.copy_(torch.stack(levels))
        module.remember(moment.index, s, t)
    return total
