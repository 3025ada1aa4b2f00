"""What is measured of a network: accuracy, loss, calibration, agreement with its teacher."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.sources import Data
from datasets.views import Split, normalise, plain
from models import autocast

CHUNK = 500  # images a forward pass
BINS = 15


@torch.no_grad()
def all_logits(models: Sequence[nn.Module], split: Split, data: Data, amp: bool) -> list[Tensor]:
    """Each model's logits for a split, [N, K] each: the images are prepared once for all."""
    parts: list[list[Tensor]] = [[] for _ in models]
    for model in models:
        model.eval()
    for start in range(0, len(split), CHUNK):
        x = normalise(plain(split, slice(start, start + CHUNK)), data.mean, data.std)
        for model, logits in zip(models, parts, strict=True):
            with autocast(model, x.device, amp):
                logits.append(model(x).float())
    return [torch.cat(logits) for logits in parts]


def record(models: Sequence[nn.Module], data: Data, amp: bool) -> list[dict[str, float]]:
    """Each model's accuracy and loss on the test set, and its accuracy on the held-out images."""
    test = all_logits(models, data.test, data, amp)
    labels = data.test.labels
    records = [{"test_acc": accuracy(own, labels), "test_loss": loss(own, labels)} for own in test]
    if data.val:
        for one, own in zip(records, all_logits(models, data.val, data, amp), strict=True):
            one["val_acc"] = accuracy(own, data.val.labels)
    return records


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of the rows of logits [N, K] whose largest entry is the label [N]'s."""
    return (logits.argmax(1) == labels).double().mean().item()


def loss(logits: Tensor, labels: Tensor) -> float:
    """Mean cross entropy, nats."""
    return F.cross_entropy(logits.double(), labels).item()


def calibration_error(logits: Tensor, labels: Tensor, bins: int = BINS) -> float:
    """Expected calibration error: the mean over images of |accuracy - confidence| of their bin.

    Equal-width bins (b/n, (b+1)/n] of the largest probability (Guo et al., ICML 2017, equation 3).
    Logits [N, K], labels [N].
    """
    confidence, guess = logits.double().softmax(1).max(1)
    gap = (guess == labels).double() - confidence
    bin_of = (confidence * bins).ceil().long().clamp(1, bins) - 1
    sums = torch.zeros(bins, dtype=torch.float64, device=logits.device)
    return sums.index_add_(0, bin_of, gap).abs().sum().item() / len(labels)


def agreement(student: Tensor, teacher: Tensor) -> float:
    """Share of images for which student and teacher name the same class; logits [N, K]."""
    return (student.argmax(1) == teacher.argmax(1)).double().mean().item()


def divergence(student: Tensor, teacher: Tensor) -> float:
    """Mean KL(teacher || student) of the unsoftened predictions, nats; logits [N, K]."""
    s, t = student.double().log_softmax(1), teacher.double().log_softmax(1)
    return F.kl_div(s, t, reduction="batchmean", log_target=True).item()
