"""The student: two strided convolutions and a linear layer, 25,578 parameters at 32 pixels."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CNN(nn.Module):
    """The reference's student (Tootouch 2021, after the Keras distillation example).

    It has no activation after the second convolution; with a ReLU there it is several points
    better. The head's weights are in the order height, width, channel.
    """

    DEFAULT_WIDTH = 16
    AUTOCAST = False  # too small: casting costs more than bfloat16 saves

    def __init__(self, width: int = DEFAULT_WIDTH, classes: int = 10, image_size: int = 32):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.pool = Pool()
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        side = -(-image_size // 4)  # each stride of 2 rounds up
        self.head = nn.Linear(2 * width * side * side, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, 3, S, S] to logits [B, classes]; the shapes here are those of S = 32."""
        h = self.pool(F.leaky_relu(self.conv1(x), 0.2, inplace=True))  # [B, w, 16, 16]
        h = self.conv2(h)  # [B, 2w, 8, 8]
        # Flattened pixel by pixel, channels innermost: in channels_last a view, not a copy.
        return self.head(h.permute(0, 2, 3, 1).flatten(1))


class Pool(nn.Module):
    """2x2 max-pool of stride 1, [..., H, W] to [..., H, W].

    Keras' padding 'same': one row below and one column on the right.
    """

    def forward(self, h: Tensor) -> Tensor:
        h = F.pad(h, (0, 1, 0, 1), value=float("-inf"))
        if torch.is_grad_enabled():
            return F.max_pool2d(h, 2, stride=1)
        # The same without the indices that a gradient needs: on a CPU a quarter of the time.
        h = torch.maximum(h[..., :-1], h[..., 1:])
        return torch.maximum(h[..., :-1, :], h[..., 1:, :])
