"""What is measured of a network: accuracy, loss, calibration, agreement with its teacher."""

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.teacher import chunk_size
from images.sources import Data
from images.views import Split, normalise, plain
from models import autocast, widest

CHUNK = 500  # images of 32 pixels a forward pass
BINS = 15


Predict = Callable[[Tensor], Iterable[Tensor]]  # images [B, 3, S, S] to logits [B, K], by model


def one_by_one(models: Sequence[nn.Module], amp: bool) -> Predict:
    """A function of images to each model's logits, in eval mode."""

    def predict(x: Tensor) -> list[Tensor]:
        found = []
        for model in models:
            with autocast(model.eval(), x.device, amp):
                found.append(model(x))
        return found

    return predict


@torch.no_grad()
def all_logits(predict: Predict, split: Split, data: Data) -> list[Tensor]:
    """Each model's logits for a split, [N, K] each; the images are prepared once for all."""
    parts = []
    size = chunk_size(split, CHUNK)
    for start in range(0, len(split), size):
        x = normalise(plain(split, slice(start, start + size)), data.mean, data.std)
        parts.append([logits.float() for logits in predict(x)])
    return [torch.cat(logits) for logits in zip(*parts, strict=True)]


def record(predict: Predict, data: Data) -> list[dict[str, float]]:
    """Each model's accuracy and loss on the test set, and its accuracy on the held-out images."""
    labels = data.test.labels
    records = [
        {"test_acc": accuracy(own, labels), "test_loss": loss(own, labels)}
        for own in all_logits(predict, data.test, data)
    ]
    if data.val:
        for one, own in zip(records, all_logits(predict, data.val, data), strict=True):
            one["val_acc"] = accuracy(own, data.val.labels)
    return records


def wide(x: Tensor) -> Tensor:
    """In the device's widest float type, see models.widest."""
    return x.to(widest(x.device))


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Fraction of the rows of logits [N, K] whose argmax is the label [N]."""
    return wide(logits.argmax(1) == labels).mean().item()


def loss(logits: Tensor, labels: Tensor) -> float:
    """Mean cross entropy, nats."""
    return F.cross_entropy(wide(logits), labels).item()


def calibration_error(logits: Tensor, labels: Tensor, bins: int = BINS) -> float:
    """Expected calibration error: the mean over images of |accuracy - confidence| of their bin.

    Equal-width bins (b/n, (b+1)/n] of the largest probability (Guo et al., ICML 2017, equation 3).
    Logits [N, K], labels [N].
    """
    confidence, guess = wide(logits).softmax(1).max(1)
    gap = wide(guess == labels) - confidence
    bin_of = (confidence * bins).ceil().long().clamp(1, bins) - 1
    sums = torch.zeros(bins, dtype=gap.dtype, device=logits.device)
    return sums.index_add_(0, bin_of, gap).abs().sum().item() / len(labels)


def divergence(student: Tensor, teacher: Tensor) -> float:
    """Mean KL(teacher || student) of the unsoftened predictions, nats; logits [N, K]."""
    s, t = wide(student).log_softmax(1), wide(teacher).log_softmax(1)
    return F.kl_div(s, t, reduction="batchmean", log_target=True).item()
