"""All student CNNs of a group in one step, for GPUs.

45 small students one after another are thousands of kernel launches a step; stacked, a few dozen.
It agrees with the loop over `student_step` (a test: to 1e-10 in float64). For the CNN and methods
on logits or labels only.

The trainees' own parameters become views into the stacks, so evaluation, saving and the loop work
on the same memory.
"""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.optimise import by_cell, kept, step_stack
from engine.trainee import Batch, Trainee, mix
from losses import Method, hard_loss
from models import CNN
from utils import note

Losses = Callable[[Batch], tuple[Tensor, Tensor, Tensor, Tensor]]


def can_fuse(trainees: list[Trainee]) -> bool:
    """Whether these cells can be stacked: all CNNs, none with a method on activations."""
    return len(trainees) > 1 and all(type(t.model) is CNN and not t.launched for t in trainees)


class FusedStep:
    """One step of all `trainees` at once, cells of one width."""

    def __init__(self, trainees: list[Trainee]):
        self.trainees = trainees
        names = [name for name, _ in trainees[0].model.named_parameters()]
        self.stacks = {name: self._stack(name) for name in names}  # name -> [C, ...]
        self.settings = trainees[0].settings
        self.kept = {name: self._kept(name) for name in names}
        self.lr = self._column(t.cell.lr for t in trainees)
        decay = [t.cell.weight_decay for t in trainees]
        self.decay = self._column(decay) if any(decay) else None
        self.sums = torch.stack([t.sums for t in trainees])  # [C, 5]
        for trainee, row in zip(trainees, self.sums, strict=True):
            trainee.sums = row
        self.hard = self._column(t.cell.hard for t in trainees)
        self.alpha = self._column(t.cell.alpha for t in trainees)
        self.weight = self._column(t.soft_weight(t.epoch) for t in trainees)
        self.temperature = self._column(t.cell.temperature or 1.0 for t in trainees)
        # Method -> places in the stack of the cells that have it.
        places: dict[Method, list[int]] = {}
        for place, trainee in enumerate(trainees):
            if trainee.on_logits:
                places.setdefault(trainee.on_logits, []).append(place)
        self.methods = {m: torch.tensor(p, device=self.lr.device) for m, p in places.items()}
        self.compiled: Losses | None = None
        self.compiled_size = 0

    def _column(self, values: Iterable[float]) -> Tensor:
        """A value a cell, [C]."""
        head = self.stacks["head.weight"]
        return torch.tensor(list(values), device=head.device, dtype=head.dtype)

    def _stack(self, name: str) -> nn.Parameter:
        own = [t.model.get_parameter(name) for t in self.trainees]
        stack = nn.Parameter(torch.stack([p.detach().contiguous() for p in own]))
        for parameter, row in zip(own, stack.detach(), strict=True):
            parameter.data = row
        return stack

    def _kept(self, name: str) -> dict[str, Tensor]:
        """The cells' optimiser state of a parameter, stacked; its rows become theirs."""
        states = [t.optimiser.state[t.model.get_parameter(name)] for t in self.trainees]
        found = {}
        for what in kept(self.settings):
            stack = torch.zeros_like(self.stacks[name], requires_grad=False)
            found[what] = stack if what != "step" else stack.new_zeros(len(states)).float()
            for own, row in zip(states, found[what], strict=True):
                if own.get(what) is not None:
                    row.copy_(own[what])
                own[what] = row
        return found

    def anneal(self, epoch: int) -> None:
        """Set the learning rates and soft losses' weights of an epoch, from 0."""
        for trainee in self.trainees:
            trainee.anneal(epoch)
        self.lr.copy_(self._column(t.lr_at(epoch) for t in self.trainees))
        self.weight.copy_(self._column(t.soft_weight(epoch) for t in self.trainees))

    def logits(self, x: Tensor) -> Tensor:
        """Images [B, 3, S, S] to every student's logits [C, B, K]; CNN.forward, stacked.

        The shapes here are those of S = 32.
        """
        p, cells, batch = self.stacks, len(self.trainees), len(x)
        width = p["conv1.weight"].shape[1]
        # All cells have the same input: their first convolutions are one, with C * w channels.
        h = F.conv2d(x, p["conv1.weight"].flatten(0, 1), p["conv1.bias"].flatten(), 2, 1)
        h = F.leaky_relu(h, 0.2).permute(0, 2, 3, 1)  # [B, 16, 16, C * w], as it lies in memory
        h = first_max(first_max(h, 2), 1)
        # In the second, inputs and weights differ: im2col and a bmm over the cells, with a patch's
        # channels innermost, as in memory.
        patches = taps(taps(h, 1), 3).unflatten(5, (cells, width))  # [B, 8, 3, 8, 3, C, w]
        patches = patches.permute(5, 0, 1, 3, 2, 4, 6)
        kernel = p["conv2.weight"].permute(0, 3, 4, 2, 1).flatten(1, 3)  # [C, 9w, 2w]
        h = torch.bmm(patches.reshape(cells, -1, 9 * width), kernel)
        h = (h + p["conv2.bias"][:, None]).view(cells, batch, -1)
        return torch.baddbmm(p["head.bias"][:, None], h, p["head.weight"].transpose(1, 2))

    def predict(self, x: Tensor, chosen: set[Trainee]) -> list[Tensor]:
        """The logits [B, K] of the `chosen` among its cells."""
        pairs = zip(self.trainees, self.logits(x), strict=True)
        return [logits for trainee, logits in pairs if trainee in chosen]

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Every student's logits [C, B, K], and its loss, hard and soft loss, [C] each."""
        logits = self.logits(batch.x)
        hard = torch.vmap(hard_loss, (0, None))(logits, batch.labels)  # [C]
        soft = torch.zeros_like(hard)
        for method, cells in self.methods.items():
            loss = torch.vmap(method.loss, (0, None, None, 0))
            mine = logits.index_select(0, cells), batch.logits, batch.labels
            own = loss(*mine, self.temperature.index_select(0, cells))
            soft = soft.index_copy(0, cells, own)
        return logits, mix(hard, soft, self.hard, self.alpha, self.weight), hard, soft

    def compile_for(self, size: int) -> None:
        """From now on compile the steps of `size` images with torch.compile."""
        self.compiled_size = size

    def _learn(self, batch: Batch) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Losses and gradients, compiled after `compile_for`, but for smaller batches."""
        if len(batch.labels) == self.compiled_size:
            try:
                if not self.compiled:
                    self.compiled = torch.compile(self.losses, dynamic=False)
                return self._differentiate(self.compiled, batch)
            except RuntimeError as error:  # no C compiler, no Triton, a Python too new
                why = (str(error).splitlines() or [type(error).__name__])[0]
                note(f"this step cannot be compiled ({why}): it takes torch's own kernels")
                self.compiled, self.compiled_size = None, 0
        return self._differentiate(self.losses, batch)

    def _differentiate(
        self, losses: Losses, batch: Batch
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        found = losses(batch)
        # No parameter is in two cells' losses.
        total = found[1].sum() * batch.weight
        return found, torch.autograd.grad(total, list(self.stacks.values()))

    def __call__(self, batch: Batch) -> None:
        """The same step as `student_step` for each trainee."""
        (logits, loss, hard, soft), gradients = self._learn(batch)
        with torch.no_grad():
            if self.settings.clip:
                gradients = clipped(gradients, self.settings.clip)
            for (name, stack), gradient in zip(self.stacks.items(), gradients, strict=True):
                step_stack(stack, gradient, self.kept[name], self.lr, self.decay, self.settings)
            correct = (logits.argmax(2) == batch.labels).to(loss.dtype).mean(1)
            means = torch.stack([loss, hard, soft, correct, torch.ones_like(correct)], 1)
            self.sums += means.double() * len(batch.labels)


def shifted(h: Tensor, dim: int, by: int, filled: float) -> Tensor:
    """h shifted by one along `dim` (-1: back); `filled` where nothing moved in."""
    return F.pad(h, (0, 0) * (h.ndim - 1 - dim) + (by, -by), value=filled)


def first_max(h: Tensor, dim: int) -> Tensor:
    """The larger of each entry and the next along `dim`; of equal ones the first, as F.max_pool2d.

    Along rows and then columns it is the 2x2 max-pool of stride 1, gradient included, but
    element-wise, so torch.compile fuses it into one kernel.
    """
    following = shifted(h, dim, -1, float("-inf"))
    return torch.where(following > h, following, h)


def taps(h: Tensor, dim: int) -> Tensor:
    """The inputs of a convolution of 3, stride 2, padding 1 along `dim`: [..., 2n, ...] to n, 3.

    Output i has inputs 2i - 1, 2i and 2i + 1. (Tensor.unfold's gradient took a fifth of a step.)
    """
    if h.shape[dim] % 2:  # the last output has one more zero
        h = F.pad(h, (0, 0) * (h.ndim - 1 - dim) + (0, 1))
    even, odd = h.unflatten(dim, (-1, 2)).unbind(dim + 1)
    return torch.stack([shifted(odd, dim, 1, 0.0), even, odd], dim + 1)


def clipped(gradients: Iterable[Tensor], max_norm: float) -> list[Tensor]:
    """Gradients [C, ...], each cell's clipped as torch.nn.utils.clip_grad_norm_ does."""
    squares = [gradient.flatten(1).square().sum(1) for gradient in gradients]
    scale = (max_norm / (torch.stack(squares).sum(0).sqrt() + 1e-6)).clamp(max=1)  # [C]
    return [gradient * by_cell(scale, gradient) for gradient in gradients]
