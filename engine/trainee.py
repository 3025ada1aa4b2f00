"""One cell in training, and its step."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from contrast_loss import Moment
from engine.board import Curves
from engine.cells import Cell, Settings, run_id
from engine.optimise import learning_rate, optimiser
from losses import ON_LOGITS, ON_STAGES, Method, hard_loss, parts
from models import (
    Stages,
    at_least_float32,
    autocast,
    build,
    check_logits,
    find,
    on_device,
    widest,
)
from utils import UserError, stream


@dataclass
class Batch:
    """One batch, the same for every cell of a group."""

    x: Tensor  # float32 [B, 3, S, S], normalised, channels last
    labels: Tensor  # int64 [B]
    logits: Tensor | None = None  # the teacher's, float32 [B, K]
    stages: dict[str, Tensor] | None = None  # the teacher's activations
    weight: float = 1.0  # of its loss: below 1 for a small last batch
    index: Tensor | None = None  # int64 [B], which training images they are


def initial_model(cell: Cell, classes: int, image_size: int = Settings.image_size) -> nn.Module:
    """The cell's network with its first weights: a pure function of the network and the seed.

    All cells of a seed start from the same weights, so their differences are paired.
    """
    with first_weights(cell.seed, cell.model):
        return build(cell.model, cell.width, classes, image_size)


@functools.cache
def draws(model: str, width: int, classes: int, image_size: int, images: int = 2) -> bool:
    """Whether a training step of the network draws random numbers, as dropout does.

    Raises UserError where it cannot take such a step, as on so many `images`, or cannot be measured
    on another number of them: no logits come out, or there is nothing to train.
    """
    size, first = (images + 1, 3, image_size, image_size), torch.Generator().manual_seed(0)
    # A user's own file may have set another dtype as torch's default.
    x = torch.randn(size, generator=first, dtype=torch.float32)
    with first_weights(0, model):
        network = build(model, width, classes, image_size)
        if not any(p.requires_grad for p in network.parameters()):
            raise UserError(f"{model} has no weights to train")
        before = torch.get_rng_state()
        check_logits(network.train(), x[:images], classes, model)
        between = torch.get_rng_state()
        check_logits(network.eval(), x, classes, model)
        if not torch.equal(between, torch.get_rng_state()):
            raise UserError(
                f"{model} draws random numbers in eval mode, too, so nothing it says is twice the "
                "same: F.dropout takes training=self.training"
            )
        return not torch.equal(before, between)


@contextmanager
def first_weights(seed: int, name: str) -> Iterator[None]:
    """Modules built inside get first weights that are a pure function of the seed and the name."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(stream(seed, 0, f"weights of {name}").integers(2**62)))
        yield


class Trainee:
    """A cell's network, optimiser, position, sums of the current epoch and history."""

    def __init__(self, cell: Cell, settings: Settings, classes: int, device: torch.device):
        self.cell = cell
        self.run_id = run_id(cell, settings)
        self.amp = settings.amp
        self.draws = draws(cell.model, cell.width, classes, settings.image_size)
        methods = parts(cell.method)
        self.on_logits: Method | None = next((m for m in methods if m.family in ON_LOGITS), None)
        self.on_stages: Method | None = next((m for m in methods if m.family in ON_STAGES), None)
        self.model = on_device(initial_model(cell, classes, settings.image_size), device)
        self.beta = cell.beta  # with --beta auto, what the first batch says
        self.regressor: nn.Module | None = None
        self.stages: Stages | None = None  # for a method on activations, set by `meet`
        # On a GPU the learning rate is a tensor, so that a recorded step can use its new value.
        on_gpu = device.type == "cuda"
        self.lr = torch.tensor(cell.lr, device=device) if on_gpu else cell.lr
        weight = self.soft_weight(0)  # of the soft loss, likewise
        self.weight = torch.tensor(weight, device=device) if on_gpu else weight
        self.settings = settings
        self.optimiser = optimiser(self.model.parameters(), self.lr, cell, settings)
        self.epoch = 0  # epochs done
        self.step = 0  # steps done in the current epoch
        # Over the epoch's images so far: loss, hard, soft, correct, images.
        self.sums = torch.zeros(5, dtype=widest(device), device=device)
        self.history: list[dict[str, float]] = []  # one record an epoch
        self.best: dict[str, Tensor] | None = None  # weights of the best epoch, with --keep best
        self.curves: Curves | None = None  # its TensorBoard curves, on the rank that trains it
        self.diverged = 0  # the epoch in which the loss became non-finite, from 1; 0: none

    def soft_weight(self, epoch: int) -> float:
        """What the soft loss is multiplied by in an epoch, from 0, beside alpha.

        Of two methods `soft` has applied the weights already.
        """
        warm = min(1.0, (epoch + 1) / self.cell.soft_warmup) if self.cell.soft_warmup else 1.0
        if self.on_logits and self.on_stages:
            return warm
        beta = self.beta if self.beta is not None else 1.0
        return beta * self.t_squared * warm

    @property
    def t_squared(self) -> float:
        """T^2 with --scale-t2, or else 1."""
        temperature = self.cell.temperature
        return temperature * temperature if self.cell.scale_t2 else 1.0

    @property
    def launched(self) -> bool:
        """Whether a GPU cannot record its step.

        So it is with the teacher's activations, which are too large to copy, and with dropout,
        which is seeded on the CPU.
        """
        return self.draws or bool(self.on_stages)

    def lr_at(self, epoch: int) -> float:
        """The learning rate of an epoch, from 0."""
        return learning_rate(self.cell.lr, epoch, self.settings)

    def anneal(self, epoch: int) -> None:
        """Set the learning rate and the soft loss's weight to those of an epoch, from 0."""
        for name, value in (("lr", self.lr_at(epoch)), ("weight", self.soft_weight(epoch))):
            own = getattr(self, name)
            setattr(self, name, own.fill_(value) if isinstance(own, Tensor) else value)
        for group in self.optimiser.param_groups:
            group["lr"] = self.lr

    def learned(self) -> list[nn.Parameter]:
        """All parameters of the optimiser."""
        return [p for group in self.optimiser.param_groups for p in group["params"]]

    def tensors(self) -> list[Tensor]:
        """All that a step changes, not copied."""
        modules = [self.model, *([self.regressor] if self.regressor else [])]
        kept = [value for module in modules for value in module.state_dict().values()]
        kept += [value for own in self.optimiser.state.values() for value in own.values()]
        return [*(value for value in kept if isinstance(value, Tensor)), self.sums]

    @torch.no_grad()
    def meet(self, x: Tensor, taught: dict[str, Tensor], labels: Tensor) -> None:
        """Before the first step of a method on activations: images x and the teacher's stages.

        Builds the module that the method trains along with the student, where it has one; `labels`
        [N] are those of the training images. Raises UserError where the two networks lack the
        layers that the method compares.
        """
        layers = self.cell.student_layers.split()
        self.stages = find(self.model, x, layers, self.cell.model)
        with self.stages.watch() as own:
            self.model.eval()(x)
        if self.on_stages.regressor:
            with first_weights(self.cell.seed, "the regressor"):
                regressor = self.on_stages.regressor(own, taught, labels)
            self.regressor = regressor.to(x.device, memory_format=torch.channels_last).eval()
            self.optimiser.add_param_group({"params": self.regressor.parameters()})
        self.compare(own, taught, torch.zeros(len(x), dtype=torch.int64, device=x.device))

    def compare(self, own: dict[str, Tensor], taught: dict[str, Tensor], index: Tensor) -> Tensor:
        """The term of its method on activations, for the training images `index` [B]."""
        moment = Moment(index, self.cell.seed, self.epoch, self.step)
        more = [moment] if self.on_stages.moment else []
        return self.on_stages.loss(own, taught, self.regressor, *more)

    def soft(self, terms: list[Tensor]) -> Tensor:
        """The terms of its method or two methods as one soft loss."""
        if len(terms) == 1:
            return terms[0]
        first = self.on_logits.beta if self.on_logits.beta is not None else 1.0
        return first * self.t_squared * terms[0] + self.beta * terms[1]

    def state(self) -> dict:
        """All that training resumes from, but random numbers, which come from seed and epoch."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "beta": self.beta,
            "model": self.model.state_dict(),
            "regressor": self.regressor.state_dict() if self.regressor else None,
            "optimiser": self.optimiser.state_dict(),
            "sums": self.sums,
            "history": self.history,
            "diverged": self.diverged,
            "best": self.best,
        }

    def load(self, state: dict) -> None:
        """Load a saved state."""
        self.epoch, self.step, self.beta = state["epoch"], state["step"], state["beta"]
        self.model.load_state_dict(state["model"])
        if self.regressor is not None:
            self.regressor.load_state_dict(state["regressor"])
        self.optimiser.load_state_dict(state["optimiser"])
        # A stack's momentum may have another memory layout than a lone cell's weights, and torch's
        # fused optimisers on a GPU need the two in one. AdamW's count is copied, as torch shares it
        # with whoever's state this is.
        for parameter, own in self.optimiser.state.items():
            for name, value in own.items():
                if isinstance(value, Tensor):
                    like = parameter if value.shape == parameter.shape else value
                    own[name] = torch.empty_like(like, requires_grad=False).copy_(value)
        self.sums.copy_(state["sums"])
        self.history, self.diverged = state["history"], state["diverged"]
        self.best = state.get("best")


def student_step(trainee: Trainee, batch: Batch) -> None:
    """One step of one cell: L = (1 - alpha, or --hard-weight) hard + alpha (weight) soft."""
    logits, hard, terms = terms_of(trainee, batch)
    soft = trainee.soft(terms) if terms else torch.zeros_like(hard)
    cell = trainee.cell
    loss = mix(hard, soft, cell.hard, cell.alpha, trainee.weight)
    trainee.optimiser.zero_grad()
    (loss * batch.weight).backward()
    if trainee.settings.clip:
        nn.utils.clip_grad_norm_(trainee.learned(), trainee.settings.clip)
    trainee.optimiser.step()
    with torch.no_grad():
        correct = (logits.argmax(1) == batch.labels).to(trainee.sums.dtype).mean()
        means = torch.stack([loss, hard, soft, correct, torch.ones_like(correct)])
        trainee.sums += means.to(trainee.sums.dtype) * len(batch.labels)


def terms_of(trainee: Trainee, batch: Batch) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The student's logits [B, K], the hard loss, and the terms of its methods."""
    trainee.model.train()
    if trainee.regressor:
        trainee.regressor.train()
    if trainee.draws:  # all cells of a seed drop the same units, after any kill too
        purpose = f"dropout in step {trainee.step}"
        torch.manual_seed(int(stream(trainee.cell.seed, trainee.epoch, purpose).integers(2**62)))
    watched = trainee.stages.watch() if trainee.stages else nullcontext()
    with autocast(trainee.model, batch.x.device, trainee.amp), watched as stages:
        logits = trainee.model(batch.x)
    logits = at_least_float32(logits)
    hard, terms = hard_loss(logits, batch.labels), []
    if trainee.on_logits:
        temperature = trainee.cell.temperature
        terms.append(trainee.on_logits.loss(logits, batch.logits, batch.labels, temperature))
    if trainee.on_stages:
        stages = {name: at_least_float32(stage) for name, stage in stages.items()}
        terms.append(trainee.compare(stages, batch.stages, batch.index))
    return logits, hard, terms


Weight = float | Tensor


def mix(hard: Tensor, soft: Tensor, hard_weight: Weight, alpha: Weight, weight: Weight) -> Tensor:
    """L = hard_weight hard + alpha weight soft; the reference's has 1 - alpha and weight 1."""
    return hard_weight * hard + alpha * weight * soft
