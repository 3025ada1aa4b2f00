"""--beta auto: the weight at which a method pulls as hard as the labels do, on the first batch."""

import copy
import math

import torch
from torch import Tensor

from engine.cells import label
from engine.resume import Run
from engine.trainee import Batch, Trainee, terms_of
from images.views import epoch_views, gather, normalise
from utils import UserError, say


def balance(trainees: list[Trainee], run: Run) -> None:
    """Give the trainees that look for their beta the one that the first batch says, with a line.

    A trainee that goes on from a save has it already. Raises UserError where a gradient is 0 or not
    finite.
    """
    seekers = [t for t in trainees if t.cell.auto_beta and t.beta is None]
    if not seekers:
        return
    images = run.data.train
    views = epoch_views(seekers[0].cell.seed, 0, images)[: run.settings.batch_size]
    pixels = gather(images, views)
    logits, stages = run.teacher(pixels, stages=True)
    x = normalise(pixels, run.data.mean, run.data.std)
    batch = Batch(x, images.labels[views.index], logits, stages, index=views.index)
    for trainee in seekers:
        hard, soft = gradient_norms(trainee, batch)
        if not (math.isfinite(hard / soft if soft else math.inf) and hard):
            raise UserError(
                f"{label(trainee.cell)}: --beta auto finds gradients of {hard:g} and {soft:g} on "
                "the first batch and no weight between them: give --beta a number"
            )
        trainee.beta = hard / soft
        say(f"{label(trainee.cell)}: beta {trainee.beta:.4g}, by the first batch's gradients")


def gradient_norms(trainee: Trainee, batch: Batch) -> tuple[float, float]:
    """Norms, over all the student's weights, of the gradients of the hard loss and of the term
    that beta weighs, on a copy, so that the trainee is as it was."""
    probe = copy.deepcopy(trainee)
    _, hard, terms = terms_of(probe, batch)
    weights = [p for p in probe.model.parameters() if p.requires_grad]

    def norm(loss: Tensor) -> float:
        found = torch.autograd.grad(loss, weights, retain_graph=True, materialize_grads=True)
        return torch.stack([g.double().square().sum() for g in found]).sum().sqrt().item()

    return norm(hard), norm(terms[-1])
