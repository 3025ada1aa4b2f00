"""More losses on layers, of the methods in RepDistiller (Tian et al. 2020) and of ReviewKD.

All take (student_stages, teacher_stages, module) as those of stage_losses.py do, whose layer_pairs
says which layers meet. `module` is what the method trains along with the student; its maker, the
function above the loss, gets the stages of a probe of both networks and the training labels [N].

RepDistiller pools where two maps differ in size; here stages of equal size meet. Its weights are
those that Tian et al. chose for CIFAR-100, from its scripts/run_cifar_distill.sh.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stage_losses import Stages, layer_pairs, unit

# ---------------------------------------------------------------- the selectivity of neurons


def nst(student_stages: Stages, teacher_stages: Stages, module: None = None) -> Tensor:
    """Neuron selectivity transfer (Huang & Wang 2017, arXiv 1707.01219), polynomial kernel.

    MMD^2 of the two sets of channels, equation 6 with k(a, b) = (a . b)^2, d = 2 and c = 0:
    mean k(t, t') + mean k(s, s') - 2 mean k(t, s), over all pairs of channels, each a map [H * W]
    of length 1; batch mean, summed over layer_pairs.
    The paper minimises CE + lambda / 2 MMD^2 of one layer. RepDistiller has CE + 50 times the sum
    over its stages, as here: alpha = 0.5 and the default beta = 50.
    torchdistill has none: checked against the formula in float64 NumPy. Raises UserError.
    """
    total = 0.0
    for name, other in layer_pairs(student_stages, teacher_stages):
        s, t = channels(student_stages[name]), channels(teacher_stages[other])
        total = total + (kernel_mean(t, t) + kernel_mean(s, s) - 2 * kernel_mean(t, s)).mean()
    return total


def channels(x: Tensor) -> Tensor:
    """Activations [B, C, H, W] to channels' maps of length 1, [B, C, H * W]."""
    flat = x.flatten(2)
    return unit(flat.flatten(0, 1)).view(flat.shape)


def kernel_mean(a: Tensor, b: Tensor) -> Tensor:
    """The mean of (a_i . b_j)^2 over all pairs of rows, [B, C, D] and [B, C', D] to [B]."""
    return (a @ b.mT).square().mean((1, 2))


# ---------------------------------------------------------------- mutual information

VID_VARIANCE, VID_LEAST = 5.0, 1e-5  # the authors' first variance, and what is added to it


class Guess(nn.Module):
    """What vid thinks of a teacher's stage: its mean, from the student's, and its variance."""

    def __init__(self, student_channels: int, teacher_channels: int):
        super().__init__()
        layers = [nn.Conv2d(student_channels, teacher_channels, 1, bias=False)]
        for _ in range(2):
            layers += [nn.ReLU(), nn.Conv2d(teacher_channels, teacher_channels, 1, bias=False)]
        self.mean = nn.Sequential(*layers)
        first = torch.full((teacher_channels, 1, 1), VID_VARIANCE - VID_LEAST)
        self.spread = nn.Parameter(first.expm1().log())  # softplus of it is the variance

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, C_s, H, W] to the mean [B, C_t, H, W] and the variance [C_t, 1, 1]."""
        return self.mean(x), F.softplus(self.spread) + VID_LEAST


def vid_guesses(student: Stages, teacher: Stages, labels: Tensor) -> nn.Module:
    """A Guess for each of layer_pairs."""
    pairs = layer_pairs(student, teacher)
    return nn.ModuleList(Guess(student[s].shape[1], teacher[t].shape[1]) for s, t in pairs)


def vid(student_stages: Stages, teacher_stages: Stages, module: nn.Module) -> Tensor:
    """Variational information distillation (Ahn et al. 2019, CVPR), equations 5 and 6.

    -log q(t | s), sum over layer_pairs of the mean of (t - m(s))^2 / (2 v) + log(v) / 2 over batch,
    channels and positions: m three 1x1 convolutions, v = softplus(a) + 1e-5 a channel, both trained
    along. Negative where v is small.
    The paper sums over channels and positions; the authors' code and RepDistiller take means, with
    CE + 1 times it: alpha = 0.5 and the default beta = 1.
    Checked against torchdistill's VIDLoss. Raises UserError.
    """
    total = 0.0
    pairs = layer_pairs(student_stages, teacher_stages)
    for (name, other), guess in zip(pairs, module, strict=True):
        mean, variance = guess(student_stages[name])
        square = (teacher_stages[other] - mean).square()
        total = total + 0.5 * (square / variance + variance.log()).mean()
    return total
