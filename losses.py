"""The losses on logits, and every distillation method by name. Tensors in, one scalar out.

A cell minimises, whatever its method,

    L = (1 - alpha) * hard_loss + alpha * beta * term                    (the engine forms it)

where `term` is the method's loss and beta its weight, by default its paper's (Method.beta). Of two
methods, as kd+sp, each has the term it has alone, and beta is the second's:

    L = (1 - alpha) * hard_loss + alpha * (first + beta * second)

--hard-weight puts another number in place of 1 - alpha. A paper that writes CE + w * term is
--hard-weight 1 with alpha = 1 and beta = w (or alpha = 0.5 with twice the learning rate and half
the weight decay); one that trains on its term alone is alpha = 1. RepDistiller's
gamma CE + alpha' kd + beta' second is hard weight gamma, alpha = alpha', beta = beta' / alpha'
and --scale-t2. Each docstring says where its paper's setting lies.

Inputs are float32 (or float64): leave autocast first, bfloat16 logits make coarse losses. Nothing
here branches on a value, so torch.func.vmap may run over cells. The losses on layers, not logits,
are in stage_losses.py, feature_losses.py and contrast_loss.py; to add a method write its function
and its line in METHODS.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import contrast_loss
import feature_losses
import stage_losses

ROUNDING = 1e-6  # a row that varies by less than this, relative to its length, is constant


def hard_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of logits [B, K] with integer labels [B], the mean over the batch."""
    return F.cross_entropy(logits, labels)


def soft_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Cross entropy of the softened student with the softened teacher, the mean over the batch.

    CE(softmax(t / T), softmax(s / T)) for logits s, t [B, K]. It is the full cross entropy, not KL
    (they differ by the teacher's entropy, a constant), and has no T^2 (Hinton et al. 2015, section
    2, and the reference's form).
    """
    return F.cross_entropy(student / temperature, (teacher / temperature).softmax(1))


# ---------------------------------------------------------------- response: on logits
# All take student and teacher logits [B, K], labels [B] and T (None where a method has none).


def kd(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Knowledge distillation (Hinton, Vinyals & Dean 2015, NeurIPS workshop): soft_loss.

    It has no weight of its own: L = (1 - alpha) * hard + alpha * soft. --scale-t2 multiplies the
    term by T^2, as section 2 of the paper advises where alpha and T are varied independently.
    Checked against torchdistill's KDLoss, a KL divergence, plus the teacher's entropy.
    """
    return soft_loss(student, teacher, temperature)


NON_TARGET_WEIGHT = 8.0  # the paper tunes its beta by pair of networks; the largest, of ResNets


def dkd(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Decoupled knowledge distillation (Zhao et al. 2022, CVPR), times T^2.

    T^2 * (TCKD + 8 NCKD), batch mean: TCKD = KL(b_t || b_s) over b = (p_target, 1 - p_target) and
    NCKD = KL(q_t || q_s) over the softmax of the K - 1 other logits, all at temperature T. (With
    the teacher's 1 - p_target in place of 8 it is T^2 KL, the paper's starting point.)
    The paper minimises CE + DKD, so alpha = 0.5 and the default beta = 1; its T is 4. The authors
    multiply by T^2 in their code, and let the term come in over 20 epochs (--soft-warmup 20). On
    CIFAR-100 their scripts have 2 or 6 in place of 8 for some pairs; here it is 8 for all.
    torchdistill has none: checked against the paper's formula in float64 NumPy, which equals
    mdistiller's dkd_loss.
    """
    s_target, s_others = split_target(student / temperature, labels)
    t_target, t_others = split_target(teacher / temperature, labels)
    # 1 - p by logsumexp: at confident logits 1 - p itself is 0, and its log -inf.
    s_binary = torch.stack([s_target, s_others.logsumexp(1)], dim=1)  # [B, 2]
    t_binary = torch.stack([t_target, t_others.logsumexp(1)], dim=1)
    target_term = kl_divergence(t_binary, s_binary)
    others_term = kl_divergence(t_others, s_others)
    return temperature**2 * (target_term + NON_TARGET_WEIGHT * others_term)


def dist(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """DIST, from a stronger teacher (Huang et al. 2022, NeurIPS).

    inter + intra for P = softmax(. / T) [B, K]: inter is the mean over the B rows, intra over the K
    columns, of 1 - Pearson correlation of student and teacher.
    The paper minimises CE + beta inter + gamma intra with beta = gamma = 2: alpha = 0.5 and the
    default beta = 2; its T is 4 on CIFAR-100 and 1 on ImageNet.
    torchdistill's DISTLoss, like later copies of the authors' code, multiplies by T^2, which no
    equation of the paper does (a correlation does not fade with T as KL does): checked against it
    divided by T^2. Their weight at T = 4 is --beta 32 here.
    The authors add 1e-8 to the product of norms, which counts where columns hardly vary: up to 0.17
    in value with a batch of 2. Here a column that varies by less than 1e-12 has correlation 0, and
    no other has an epsilon.
    """
    s = (student / temperature).softmax(1)
    t = (teacher / temperature).softmax(1)
    return 1 - pearson(s, t).mean() + 1 - pearson(s.T, t.T).mean()


def ls(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Logit standardisation (Sun et al. 2024, CVPR): KD on z-scores.

    T^2 KL(softmax(Z(t) / T) || softmax(Z(s) / T)), batch mean, Z(z) = (z - mean) / std over the K
    logits of a row.
    The paper's 0.1 CE + 9 T^2 KL is alpha = 0.9 with the default beta = 10; its T is 2.
    The paper's std divides by K. torchdistill's LogitStdKDLoss, like the authors' code, divides by
    K - 1, the same as another temperature: checked against it at T sqrt((K - 1) / K).
    """
    s, t = standardise(student) / temperature, standardise(teacher) / temperature
    return temperature**2 * kl_divergence(t, s)


def mse(student: Tensor, teacher: Tensor, labels: Tensor, temperature: None = None) -> Tensor:
    """Logit regression (Ba & Caruana 2014, NeurIPS): 1/2 ||s - t||^2, batch mean.

    The paper trains on it alone: alpha = 1 and the default beta = 1. It has no temperature.
    Checked against K / 2 times torchdistill's SimpleLossWrapper of MSELoss, a mean over K as well.
    """
    return 0.5 * (student - teacher).square().sum(1).mean()


def smooth(student: Tensor, teacher: None, labels: Tensor, temperature: None = None) -> Tensor:
    """Label smoothing (Szegedy et al. 2016, CVPR, section 7): CE(uniform, softmax(s)), batch mean.

    No teacher: a baseline for the methods. The paper's epsilon is alpha, 0.1 there. Checked against
    F.cross_entropy's label_smoothing.
    """
    return -student.log_softmax(1).mean(1).mean()


# ---------------------------------------------------------------- helpers


def kl_divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(softmax(teacher) || softmax(student)) of logits [B, K], the mean over the batch."""
    # By hand: F.kl_div has no batching rule, and the engine runs vmap over cells.
    log_p, log_q = teacher.log_softmax(1), student.log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1).mean()


def split_target(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [B, K] into those of the labels [B] and those of the other classes [B, K - 1]."""
    label = labels[:, None]
    column = torch.arange(logits.shape[1] - 1, device=logits.device).expand(len(logits), -1)
    others = column + (column >= label)  # 0 .. K - 1 without the label
    return logits.gather(1, label)[:, 0], logits.gather(1, others)


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Pearson correlation of each row of a with that of b, [B, K] to [B]; 0 for a constant row."""
    return (direction(a) * direction(b)).sum(1)


def standardise(logits: Tensor) -> Tensor:
    """Z-score of each row of [B, K], with the population's std; 0 for a constant row."""
    return direction(logits) * logits.shape[1] ** 0.5


def direction(x: Tensor) -> Tensor:
    """Rows of [B, K] less their mean, scaled to length 1; a constant row is 0, with gradient 0.

    An epsilon in the denominator would leave such a row a gradient of 1e6 times the usual one.
    """
    centred = x - x.mean(1, keepdim=True)
    length = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
    noise = ROUNDING * torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return torch.where(length > noise, centred * stage_losses.inverse(length), 0.0)


# ---------------------------------------------------------------- the registry


@dataclass(frozen=True)
class Method:
    """One line of the registry: what is minimised, and what the engine must know about it.

    response: loss(student_logits, teacher_logits, labels, temperature).
    feature and relation: loss(student_stages, teacher_stages, regressor), the stages as
    models.stages finds them, the regressor None unless the method trains a module along.
    """

    family: str  # response | feature | relation; labels: without a teacher
    loss: Callable[..., Tensor]
    paper: str
    temperature: bool = False  # has a T to sweep
    beta: float | None = None  # its paper's weight; None: it has none of its own
    # (student_stages, teacher_stages, training labels [N]) -> a module to train along; the stages
    # are those of a few images
    regressor: Callable[[stage_losses.Stages, stage_losses.Stages, Tensor], nn.Module] | None = None
    moment: bool = False  # its loss is given a contrast_loss.Moment as well


METHODS: dict[str, Method] = {
    "kd": Method("response", kd, "Hinton et al. 2015, NeurIPS workshop", temperature=True),
    "dkd": Method("response", dkd, "Zhao et al. 2022, CVPR", temperature=True, beta=1.0),
    "dist": Method("response", dist, "Huang et al. 2022, NeurIPS", temperature=True, beta=2.0),
    "ls": Method("response", ls, "Sun et al. 2024, CVPR", temperature=True, beta=10.0),
    "mse": Method("response", mse, "Ba & Caruana 2014, NeurIPS", beta=1.0),
    "smooth": Method("labels", smooth, "label smoothing, Szegedy et al. 2016, CVPR, no teacher"),
    "fitnet": Method(
        "feature",
        stage_losses.fitnet,
        "Romero et al. 2015, ICLR",
        beta=1.0,
        regressor=stage_losses.fitnet_regressor,
    ),
    "at": Method("feature", stage_losses.at, "Zagoruyko & Komodakis 2017, ICLR", beta=1000.0),
    "sp": Method("relation", stage_losses.sp, "Tung & Mori 2019, ICCV", beta=3000.0),
    "rkd": Method("relation", stage_losses.rkd, "Park et al. 2019, CVPR", beta=25.0),
    "pkt": Method("relation", stage_losses.pkt, "Passalis & Tefas 2018, ECCV", beta=1.0),
    "cc": Method("relation", stage_losses.cc, "Peng et al. 2019, ICCV", beta=0.003),
    "nst": Method("feature", feature_losses.nst, "Huang & Wang 2017, arXiv 1707.01219", beta=50.0),
    "vid": Method(
        "feature",
        feature_losses.vid,
        "Ahn et al. 2019, CVPR",
        beta=1.0,
        regressor=feature_losses.vid_guesses,
    ),
    "reviewkd": Method(
        "feature",
        feature_losses.reviewkd,
        "Chen et al. 2021, CVPR",
        beta=5.0,
        regressor=feature_losses.reviewkd_fusions,
    ),
    "ab": Method(
        "feature",
        feature_losses.ab,
        "Heo et al. 2019, AAAI",
        beta=0.003,
        regressor=feature_losses.ab_connectors,
    ),
    "ft": Method(
        "feature",
        feature_losses.ft,
        "Kim et al. 2018, NeurIPS",
        beta=500.0,
        regressor=feature_losses.ft_factors,
    ),
    "fsp": Method(
        "feature",
        feature_losses.fsp,
        "Yim et al. 2017, CVPR",
        beta=50.0,
        regressor=feature_losses.fsp_widths,
    ),
    "crd": Method(
        "relation",
        contrast_loss.crd,
        "Tian et al. 2020, ICLR",
        beta=0.8,
        regressor=contrast_loss.crd_bank,
        moment=True,
    ),
}


ON_LOGITS, ON_STAGES = ("response", "labels"), ("feature", "relation")  # families


def parts(method: str) -> list[Method]:
    """The registry's lines for a method's name: of kd+sp two, of none no line."""
    return [METHODS[name] for name in method.split("+")] if method != "none" else []


def is_method(name: str) -> bool:
    """Whether a name is none, a method, or a response method and one on layers, as kd+sp."""
    if name in ("none", *METHODS):
        return True
    families = [METHODS[one].family for one in name.split("+") if one in METHODS]
    both = name.count("+") == 1 and len(families) == 2
    return both and families[0] == "response" and families[1] in ON_STAGES


def is_taught(method: str) -> bool:
    """Whether a teacher has a part in it; `none` and methods on labels alone have none."""
    return any(part.family != "labels" for part in parts(method))
