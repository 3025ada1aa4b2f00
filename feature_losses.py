"""More losses on layers, of the methods in RepDistiller (Tian et al. 2020) and of ReviewKD.

All take (student_stages, teacher_stages, module) as those of stage_losses.py do, whose layer_pairs
says which layers meet. `module` is what the method trains along with the student; its maker, the
function above the loss, gets the stages of a probe of both networks and the training labels [N].

RepDistiller pools where two maps differ in size; here stages of equal size meet. Its weights are
those of its scripts/run_cifar_distill.sh, for CIFAR-100. It trains on ab or fsp alone for 30 epochs
and without them after, so that script's weights of the two (1 and 50) change nothing there.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stage_losses import Stages, layer_pairs, unit
from utils import UserError

# ---------------------------------------------------------------- the selectivity of neurons


def nst(student_stages: Stages, teacher_stages: Stages, module: None = None) -> Tensor:
    """Neuron selectivity transfer (Huang & Wang 2017, arXiv 1707.01219), polynomial kernel.

    MMD^2 of the two sets of channels with k(a, b) = (a . b)^2, d = 2 and c = 0:
    mean k(t, t') + mean k(s, s') - 2 mean k(t, s), over all pairs of channels, each a map [H * W]
    of length 1; batch mean, summed over layer_pairs.
    The paper minimises CE + lambda / 2 MMD^2 of one layer. RepDistiller has CE + 50 times the sum
    over its stages, as here: alpha = 0.5 and the default beta = 50.
    torchdistill has none: checked against the formula in float64 NumPy, which equals RepDistiller's
    NSTLoss. Raises UserError.
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
    """Variational information distillation (Ahn et al. 2019, CVPR).

    -log q(t | s), sum over layer_pairs of the mean of (t - m(s))^2 / (2 v) + log(v) / 2 over batch,
    channels and positions: m three 1x1 convolutions, v = softplus(a) + 1e-5 a channel, both trained
    along. Negative where v is small.
    The paper sums over channels and positions; RepDistiller, whose VIDLoss is the authors', takes
    means, with CE + 1 times it: alpha = 0.5 and the default beta = 1.
    Checked against torchdistill's VIDLoss. Raises UserError.
    """
    total = 0.0
    pairs = layer_pairs(student_stages, teacher_stages)
    for (name, other), guess in zip(pairs, module, strict=True):
        mean, variance = guess(student_stages[name])
        square = (teacher_stages[other] - mean).square()
        total = total + 0.5 * (square / variance + variance.log()).mean()
    return total


# ---------------------------------------------------------------- knowledge review

REVIEW_WIDEST = 512  # channels at most between the fusions, as in the authors' code


class Fusion(nn.Module):
    """The attention based fusion of reviewkd: a student's stage and what deeper ones have left."""

    def __init__(self, channels: int, between: int, guessed: int, last: bool):
        super().__init__()
        before, after = nn.Conv2d(channels, between, 1, bias=False), nn.BatchNorm2d(between)
        guess = nn.Conv2d(between, guessed, 3, padding=1, bias=False)
        for convolution in (before, guess):
            nn.init.kaiming_uniform_(convolution.weight, a=1)
        self.enter = nn.Sequential(before, after)
        self.leave = nn.Sequential(guess, nn.BatchNorm2d(guessed))
        self.attention = None if last else nn.Conv2d(2 * between, 2, 1)

    def forward(self, x: Tensor, deeper: Tensor | None) -> tuple[Tensor, Tensor]:
        """[B, C, H, W] and [B, M, h, w] to a guess [B, C_t, H, W] and what is left [B, M, H, W]."""
        x = self.enter(x)
        if self.attention is not None:
            deeper = F.interpolate(deeper, x.shape[2:])
            share = self.attention(torch.cat([x, deeper], 1)).sigmoid()  # [B, 2, H, W]
            x = x * share[:, :1] + deeper * share[:, 1:]
        return self.leave(x), x


def reviewed(student: Stages, teacher: Stages) -> list[tuple[Tensor, Tensor]]:
    """The maps [B, C, H, W] that reviewkd pairs, from deep to shallow; `pooled` is one of 1x1."""
    pairs = [(student[s], teacher[t]) for s, t in layer_pairs(student, teacher)]
    if "pooled" in student and "pooled" in teacher:
        pairs.append((student["pooled"][:, :, None, None], teacher["pooled"][:, :, None, None]))
    return pairs[::-1]


def reviewkd_fusions(student: Stages, teacher: Stages, labels: Tensor) -> nn.Module:
    """A Fusion for each pair, from deep to shallow."""
    sizes = [(s.shape[1], t.shape[1]) for s, t in reviewed(student, teacher)]
    deepest = layer_pairs(student, teacher)[-1][0]  # whose channels are the authors' `pooled`, too
    between = min(REVIEW_WIDEST, student[deepest].shape[1])
    return nn.ModuleList(Fusion(c, between, g, i == 0) for i, (c, g) in enumerate(sizes))


def reviewkd(student_stages: Stages, teacher_stages: Stages, module: nn.Module) -> Tensor:
    """Knowledge review (Chen et al. 2021, CVPR), equation 11, with section 3.3's ABF and HCL.

    From the deepest stage to the shallowest the student's, fused with what the deeper ones have
    left (Fusion), guesses the teacher's. A guess's loss is its mean square error on the whole map
    and, with weights 1/2, 1/4 and 1/8, on maps pooled to 4x4, 2x2 and 1x1 where these are smaller,
    over the sum of the weights; the pairs' losses are added. Pairs are layer_pairs and `pooled`.
    The authors minimise CE + lambda times it, lambda 0.6 to 8 by pair of networks; five of their
    eight on CIFAR-100 have 5: alpha = 0.5 and the default beta = 5. They compare activations before
    the ReLU (here they are what models.stages finds), fuse on as many channels as
    `pooled` has (here as the deepest stage that meets one), and let the term come in over 20 epochs
    (--soft-warmup).
    Checked against torchdistill's HierarchicalContextLoss and fusion. Raises UserError.
    """
    total, left = 0.0, None
    for (s, t), fusion in zip(reviewed(student_stages, teacher_stages), module, strict=True):
        guess, left = fusion(s, left)
        terms, weights = [(guess - t).square().mean()], [1.0]
        for size in (side for side in (4, 2, 1) if side < t.shape[2]):
            error = F.adaptive_avg_pool2d(guess, size) - F.adaptive_avg_pool2d(t, size)
            weights.append(weights[-1] / 2)
            terms.append(weights[-1] * error.square().mean())
        total = total + sum(terms) / sum(weights)
    return total


# ---------------------------------------------------------------- the boundaries of activations

AB_MARGIN = 1.0  # the authors'


def ab_connectors(student: Stages, teacher: Stages, labels: Tensor) -> nn.Module:
    """For each of layer_pairs a 1x1 convolution and batch norm to the teacher's channels."""
    sizes = [(student[s].shape[1], teacher[t].shape[1]) for s, t in layer_pairs(student, teacher)]
    return nn.ModuleList(
        nn.Sequential(nn.Conv2d(mine, theirs, 1), nn.BatchNorm2d(theirs)) for mine, theirs in sizes
    )


def ab(student_stages: Stages, teacher_stages: Stages, module: nn.Module) -> Tensor:
    """Activation boundaries (Heo et al. 2019, AAAI), the alternative loss.

    sum over layer_pairs, n of them, of 2^(i - n) times the sum over channels and positions, batch
    mean, of (x + 1)^2 where x > -1 and the teacher's neuron is silent (t <= 0), and of (x - 1)^2
    where x <= 1 and it is active; x is the student's stage through a convolution and batch norm
    trained along.
    The authors train on it alone first, and on CE or kd after; here it stands beside the hard loss
    from the start. Their student's activations are from before the ReLU, and where channels agree
    they have no connector; here there always is one, for what has passed a ReLU. Its convolution
    has a bias, as RepDistiller's.
    Their code's weight on CIFAR-10, 3 / 1000 (also RepDistiller's), is the default beta = 0.003.
    Checked against torchdistill's AltActTransferLoss. Raises UserError.
    """
    pairs, total = layer_pairs(student_stages, teacher_stages), 0.0
    for i, ((name, other), connector) in enumerate(zip(pairs, module, strict=True), 1):
        x, active = connector(student_stages[name]), teacher_stages[other] > 0
        excess = torch.where(active, F.relu(AB_MARGIN - x), F.relu(AB_MARGIN + x))
        total = total + 2.0 ** (i - len(pairs)) * excess.square().flatten(1).sum(1).mean()
    return total


# ---------------------------------------------------------------- factors

PARAPHRASE = 0.5  # the authors' k: a factor's channels by the teacher's


class Factors(nn.Module):
    """ft's paraphraser of the teacher's stage and translator of the student's."""

    def __init__(self, student_channels: int, teacher_channels: int):
        super().__init__()
        few = max(1, int(PARAPHRASE * teacher_channels))
        many = teacher_channels
        self.paraphrase = layers(nn.Conv2d, [many, many, few, few])
        self.recall = layers(nn.ConvTranspose2d, [few, few, many, many])
        self.translate = layers(nn.Conv2d, [student_channels, student_channels, few, few], True)


def layers(kind: type[nn.Module], channels: list[int], norm: bool = False) -> nn.Module:
    """3x3 convolutions from each number of channels to the next, with a leaky ReLU after each."""
    found = []
    for before, after in zip(channels, channels[1:], strict=False):
        found += [kind(before, after, 3, padding=1), *[nn.BatchNorm2d(after)] * norm]
        found.append(nn.LeakyReLU(0.1))
    return nn.Sequential(*found)


def ft_factors(student: Stages, teacher: Stages, labels: Tensor) -> nn.Module:
    """The Factors of the deepest of layer_pairs."""
    name, other = layer_pairs(student, teacher)[-1]
    return Factors(student[name].shape[1], teacher[other].shape[1])


def ft(student_stages: Stages, teacher_stages: Stages, module: Factors) -> Tensor:
    """Factor transfer (Kim et al. 2018, NeurIPS), with p = 1.

    The mean of |f_t / ||f_t|| - f_s / ||f_s||| over batch and entries: f_t the paraphraser's factor
    of the teacher's deepest stage of layer_pairs, of half its channels, f_s the translator's of the
    student's, both flattened.
    The authors train the paraphraser first, as an autoencoder of the teacher's stage. Here it
    learns along: its mean square error has gradient but adds 0 to the value, and no weight changes
    how fast it learns, not that of a small last batch either; the transfer's gradient does not
    reach it.
    The authors' code has CE + 500 times this mean, the default beta, and no batch norm in the
    translator. RepDistiller, whose translator is the one here, compares not factors but, as
    attention does, the means of their squares over channels, with a weight of 200.
    Checked against torchdistill's FTLoss. Raises UserError.
    """
    name, other = layer_pairs(student_stages, teacher_stages)[-1]
    t = module.paraphrase(teacher_stages[other])
    s, u = module.translate(student_stages[name]), t.detach()
    distance = (unit(s.flatten(1)) - unit(u.flatten(1))).abs().mean()
    error = (module.recall(t) - teacher_stages[other]).square().mean()
    if error.requires_grad:
        error.register_hook(torch.ones_like)  # whatever alpha and beta are
    return distance + (error - error.detach())


# ---------------------------------------------------------------- the flow between layers


def fsp_widths(student: Stages, teacher: Stages, labels: Tensor) -> nn.Module:
    """For each of layer_pairs a 1x1 convolution to the teacher's channels, where they differ."""
    sizes = [(student[s].shape[1], teacher[t].shape[1]) for s, t in layer_pairs(student, teacher)]
    return nn.ModuleList(
        nn.Identity() if mine == theirs else nn.Conv2d(mine, theirs, 1, bias=False)
        for mine, theirs in sizes
    )


def fsp(student_stages: Stages, teacher_stages: Stages, module: nn.Module) -> Tensor:
    """Flow of the solution procedure (Yim et al. 2017, CVPR), equations 1 and 2.

    sum over neighbours in layer_pairs of the mean square of G_s - G_t, G [B, C, C'] the mean over
    positions of one stage's channels times the next one's, the larger map max-pooled to the smaller
    one's size.
    Equation 2 has the sum of squares, RepDistiller the mean, of maps pooled by the mean where the
    paper has the maximum. The default beta = 50 is its script's.
    Both train on it alone first and on CE without it after, so that nobody has tuned a weight
    beside CE, as it stands here (--beta auto). The paper's two networks have equal channels; where
    they differ a convolution trained along takes the student's to the teacher's.
    Checked against the formula in float64 NumPy. Raises UserError where fewer than two pairs meet.
    """
    pairs = layer_pairs(student_stages, teacher_stages)
    if len(pairs) < 2:
        raise UserError("fsp compares the flow between two stages, and the networks share one size")
    s = [widen(student_stages[name]) for (name, _), widen in zip(pairs, module, strict=True)]
    t = [teacher_stages[other] for _, other in pairs]
    flows = zip(s, s[1:], t, t[1:], strict=False)
    return sum((flow(a, b) - flow(c, d)).square().mean() for a, b, c, d in flows)


def flow(first: Tensor, second: Tensor) -> Tensor:
    """The FSP matrix [B, C, C'] of maps [B, C, H, W] and [B, C', H', W']."""
    size = [min(sides) for sides in zip(first.shape[2:], second.shape[2:], strict=True)]
    a, b = (F.adaptive_max_pool2d(x, size).flatten(2) for x in (first, second))
    return a @ b.mT / a.shape[2]
