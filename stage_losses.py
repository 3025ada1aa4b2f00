"""The losses on layers: feature methods compare activations, relation methods pairs of samples.

All take (student_stages, teacher_stages, regressor): the activations that models.stages finds,
[B, C, H, W] from shallow to deep and `pooled` [B, D]; the regressor is None unless the method has
one. Student and teacher may differ in every size but B. losses.py registers them and explains
alpha and beta.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import widest
from utils import UserError

# A vector shorter than this counts as zero. Features are far longer, and float32 can still hold the
# square of its inverse, which a gradient needs.
TINY = 1e-12

Stages = dict[str, Tensor]


# ---------------------------------------------------------------- which stages are compared


def layer_pairs(student_stages: Stages, teacher_stages: Stages) -> list[tuple[str, str]]:
    """Pairs (student stage, teacher stage) of equal height and width, from shallow to deep.

    Where the teacher has several of that size, it is the deepest.
    Raises UserError if there is no such pair.
    """
    student, teacher = maps(student_stages), maps(teacher_stages)
    pairs = []
    for name, size in student.items():
        same = [other for other, other_size in teacher.items() if other_size == size]
        if same:
            pairs.append((name, same[-1]))
    if not pairs:
        raise UserError(
            "this method needs a stage of the same height and width in both models, and "
            f"the student's {listing(student)} meet none of the teacher's {listing(teacher)}: "
            "choose a method of another family, or other models"
        )
    return pairs


def hint_pair(student_stages: Stages, teacher_stages: Stages) -> tuple[str, str]:
    """The pair that fitnet compares: the middle one (the shallower of two). Raises UserError.

    Romero et al. 2015, section 2.2: hint and guided layer are the middle ones of either network,
    for a deeper one leaves the student less freedom. For `cnn` and `resnet18` that is the student's
    stage1 and the teacher's stage2.
    """
    pairs = layer_pairs(student_stages, teacher_stages)
    return pairs[(len(pairs) - 1) // 2]


def maps(stages: Stages) -> dict[str, tuple[int, int]]:
    """Height and width of each stage that has them."""
    return {name: (x.shape[2], x.shape[3]) for name, x in stages.items() if x.dim() == 4}


def listing(sizes: dict[str, tuple[int, int]]) -> str:
    return ", ".join(f"{name} {h}x{w}" for name, (h, w) in sizes.items()) or "no convolution"


def deepest(stages: Stages, who: str) -> Tensor:
    """The last convolution's activations, one row a sample [B, C * H * W]. Raises UserError."""
    names = list(maps(stages))
    if not names:
        raise UserError(f"sp compares last convolutions, and the {who} has none: choose another")
    return stages[names[-1]].flatten(1)


def pooled(stages: Stages, who: str) -> Tensor:
    """The input of the linear head, [B, D]. Raises UserError."""
    if "pooled" not in stages:
        raise UserError(f"this method compares the layer `pooled`, and the {who} has none")
    return stages["pooled"]


# ---------------------------------------------------------------- feature


def hint_regressor(
    student_channels: int, teacher_channels: int, negative: bool = False
) -> nn.Module:
    """Student's stage to teacher's for fitnet, [B, C_s, H, W] to [B, C_t, H, W].

    A convolution whose kernel takes the one map's size to the other's (Romero et al. 2015, section
    2.2): 1x1, as they are equal. Then the ReLU, since hint and guess are to have the same one; none
    where the hint has `negative` values, which no ReLU can guess.
    """
    convolution = nn.Conv2d(student_channels, teacher_channels, 1)
    return nn.Sequential(convolution, *[] if negative else [nn.ReLU()])


def fitnet_regressor(student: Stages, teacher: Stages, labels: Tensor) -> nn.Module:
    """The regressor for the stages of a probe of both networks. Raises UserError."""
    guided, hint = hint_pair(student, teacher)
    channels = student[guided].shape[1], teacher[hint].shape[1]
    return hint_regressor(*channels, bool((teacher[hint] < 0).any()))


def fitnet(student_stages: Stages, teacher_stages: Stages, regressor: nn.Module) -> Tensor:
    """FitNets' hint (Romero et al. 2015, ICLR), equation 3: 1/2 ||u - r(v)||^2.

    u [B, C_t, H, W] and v [B, C_s, H, W] are hint_pair's activations and r the regressor, trained
    along. The norm is over the channels, then the mean over samples and positions, as in the
    authors' code: the weight then does not depend on the size of the map.
    The paper gives the term no weight but trains on it alone first, then by kd: alpha = 1 and the
    default beta = 1 are that first stage. Here it stands beside the hard loss from the start.
    RepDistiller's regressor has a batch norm too, and its script 100 times the mean over channels
    as well, which is beta = 200 / C_t here.
    Checked against C_t / 2 times torchdistill's SimpleLossWrapper of MSELoss. Raises UserError.
    """
    guided, hint = hint_pair(student_stages, teacher_stages)
    error = teacher_stages[hint] - regressor(student_stages[guided])  # [B, C_t, H, W]
    return 0.5 * error.square().sum(1).mean()


def at(student_stages: Stages, teacher_stages: Stages, regressor: None = None) -> Tensor:
    """Attention transfer (Zagoruyko & Komodakis 2017, ICLR), by activations, with p = 2.

    1/2 sum over layer_pairs of 1/(H W) * ||q_s - q_t||, batch mean. The attention map q [B, H * W]
    is the sum over channels of the squares [B, C, H, W], scaled to length 1.
    The paper minimises CE + beta / 2 * sum of norms with beta = 1000 / (number of elements of the
    map and batch); the 1/(H W) and the batch mean stand here, so alpha = 0.5 and the default
    beta = 1000.
    Checked against torchdistill's ATLoss(mode="paper"). Its mode="code", like the authors' code,
    squares the norm and drops the 1/2. Raises UserError.
    """
    total = 0.0
    for name, other in layer_pairs(student_stages, teacher_stages):
        s, t = attention(student_stages[name]), attention(teacher_stages[other])
        # Equal maps have the gradient 0 here, as vector_norm defines it, where a sqrt's is inf.
        distance = torch.linalg.vector_norm(s - t, dim=1)  # [B]
        total = total + 0.5 * distance.mean() / s.shape[1]
    return total


def attention(x: Tensor) -> Tensor:
    """Activations [B, C, H, W] to their map of attention [B, H * W], of length 1."""
    return unit(x.square().sum(1).flatten(1))


# ---------------------------------------------------------------- relation


def sp(student_stages: Stages, teacher_stages: Stages, regressor: None = None) -> Tensor:
    """Similarity-preserving distillation (Tung & Mori 2019, ICCV).

    ||G_s - G_t||_F^2 / B^2 with G = A A^T [B, B], each row scaled to length 1, where A [B, C H W]
    are the activations of the last convolution.
    The paper minimises CE + gamma * term with gamma = 3000: alpha = 0.5 and the default beta.
    torchdistill's SPKDLoss scales rows to a sum of magnitudes of 1 (it passes F.normalize a 1 that
    is the norm's order): checked against the paper's formula in float64 NumPy. Raises UserError.
    """
    s, t = deepest(student_stages, "student"), deepest(teacher_stages, "teacher")
    return (unit(s @ s.T) - unit(t @ t.T)).square().mean()


def rkd(student_stages: Stages, teacher_stages: Stages, regressor: None = None) -> Tensor:
    """Relational distillation (Park et al. 2019, CVPR), distance and angle.

    D + 2 A. D: Huber loss of the distances of all pairs of `pooled` [B, D], in units of their mean;
    A: Huber loss of the cosines at x_i in all triangles (x_i, x_j, x_k). Means over the B^2 and B^3
    entries, as in the authors' code, where the paper has sums.
    The paper's image classification has the weights 25 D + 50 A: alpha = 0.5, the default beta =
    25. The authors' code for it scales rows to length 1 first and adds kd; neither is done here,
    for the equations do not.
    Checked against torchdistill's RKDLoss(dist_factor=1, angle_factor=2). Raises UserError.
    """
    s, t = pooled(student_stages, "student"), pooled(teacher_stages, "teacher")
    # In float64, for the cosines of close rows are differences of nearly equal numbers.
    wide = widest(s.device)
    s_distance, t_distance = distances(s.to(wide)), distances(t.to(wide))
    distance_term = F.smooth_l1_loss(in_units_of_mean(s_distance), in_units_of_mean(t_distance))
    angle_term = F.smooth_l1_loss(cosines(s_distance), cosines(t_distance))
    return (distance_term + 2 * angle_term).to(s.dtype)


def distances(x: Tensor) -> Tensor:
    """Euclidean distances of the rows of [B, D], [B, B].

    By differences, not by the faster |a|^2 + |b|^2 - 2ab: that leaves rounding noise where rows are
    equal, and the gradient of its root is noise without bound. Here both are exactly 0.
    """
    return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")


def in_units_of_mean(distance: Tensor) -> Tensor:
    """Distances [B, B] divided by the mean of those off the diagonal."""
    pairs = len(distance) * (len(distance) - 1)
    return distance * inverse(distance.sum() / max(pairs, 1))


def cosines(distance: Tensor) -> Tensor:
    """Cosine of the angle at i between j and k, [B, B, B], from distances [B, B].

    By the law of cosines, which needs B^3 numbers where the differences of all pairs of rows need
    B^2 D. An angle of which a side is zero counts as cosine 0, as in the authors' code.
    """
    square = distance.square()
    sides = inverse(distance)
    dot = 0.5 * (square[:, :, None] + square[:, None, :] - square[None, :, :])
    return dot * sides[:, :, None] * sides[:, None, :]


def pkt(student_stages: Stages, teacher_stages: Stages, regressor: None = None) -> Tensor:
    """Probabilistic knowledge transfer (Passalis & Tefas 2018, ECCV), cosine kernel.

    sum_i KL(p_i || q_i), p of the teacher and q of the student: p_i(j) = K(x_i, x_j) /
    sum_(k != i) K(x_i, x_k) for j != i, with K = (1 + cosine) / 2 and x the rows of `pooled`.
    The paper trains on it alone: alpha = 1 and the default beta = 1.
    torchdistill's PKTLoss, like the authors' code, counts j = i too and takes the mean of the B^2
    terms in place of their sum: checked against the paper's formula in float64 NumPy. RepDistiller
    has 30000 times that mean, which is beta = 30000 / B^2 here. Raises UserError.
    """
    p = conditional(pooled(teacher_stages, "teacher"))
    q = conditional(pooled(student_stages, "student"))
    # The clamps only keep log(0) away: at j = i, and at opposite features.
    return (p * (p.clamp(min=TINY).log() - q.clamp(min=TINY).log())).sum()


def conditional(x: Tensor) -> Tensor:
    """Features [B, D] to probabilities [B, B] that a row picks another; 0 on the diagonal."""
    u = unit(x)
    others = 1 - torch.eye(len(x), dtype=x.dtype, device=x.device)
    kernel = others * (1 + u @ u.T) / 2
    return kernel / kernel.sum(1, keepdim=True).clamp(min=TINY)


CC_GAMMA, CC_ORDER = 0.4, 2  # the values of the paper's experiments


def cc(student_stages: Stages, teacher_stages: Stages, regressor: None = None) -> Tensor:
    """Correlation congruence (Peng et al. 2019, ICCV).

    ||C_s - C_t||_F^2 / B^2 with C(x, y) = exp(-2 g) sum_(p=0..2) (2 g)^p / p! (x . y)^p, the Taylor
    form of the Gaussian kernel exp(-g |x - y|^2), g = 0.4, of the rows of `pooled` at length 1.
    The paper first takes both networks' features to 128 numbers by a trained linear layer. C is
    [B, B] whatever the features' size, so there is none here.
    The paper minimises CE, kd and 0.003 times the term: beta = 0.003, so small that alpha = 0.5 is
    nearly the student alone without kd; raise it by --beta.
    The authors' code and RepDistiller's Correlation are another loss: with d = |s - t|, row by row
    of the embedded features, the mean over i of d_i . d_(i+1), neighbours in the batch.
    torchdistill's CCKDLoss takes the norm where the paper has its square, and leaves rows at their
    length: checked against the square of it, for rows of length 1. Raises UserError.
    """
    s = kernel_matrix(pooled(student_stages, "student"))
    t = kernel_matrix(pooled(teacher_stages, "teacher"))
    return (s - t).square().mean()


def kernel_matrix(x: Tensor) -> Tensor:
    """The truncated Gaussian kernel of all pairs of rows of [B, D], [B, B]."""
    u = unit(x)
    dot = u @ u.T
    orders = range(CC_ORDER + 1)
    series = sum((2 * CC_GAMMA) ** p / math.factorial(p) * dot**p for p in orders)
    return math.exp(-2 * CC_GAMMA) * series


# ---------------------------------------------------------------- helpers


def inverse(length: Tensor) -> Tensor:
    """1 / length, and 0 with the gradient 0 where the length is zero: no direction, no pull."""
    return torch.where(length > TINY, 1 / length.clamp(min=TINY), 0.0)


def unit(x: Tensor) -> Tensor:
    """Rows of [B, D] scaled to length 1; a row of zeros stays one, and has the gradient 0.

    F.normalize gives such a row a gradient of 1e12 times the loss's, which ends a run.
    """
    return x * inverse(torch.linalg.vector_norm(x, dim=1, keepdim=True))
