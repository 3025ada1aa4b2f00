"""Where a network's stages are found, and what looking for them leaves behind."""

import pytest
import torch
from test_networks import HEAD, NET
from torch import nn
from torch.func import functional_call, stack_module_state

import models
from models.stages import find
from stage_losses import hint_regressor
from utils import UserError


def shapes(model: nn.Module, layers=(), size: int = 32) -> dict[str, tuple]:
    stages, x = find(model, torch.randn(2, 3, size, size), layers), torch.randn(3, 3, size, size)
    with stages.watch() as seen:
        model(x)
    modules = {name: place[0] for name, place in stages.places.items()} | {"pooled": stages.head}
    return {name: (modules[name], *out.shape[1:]) for name, out in seen.items()}


def test_the_stages_of_torchvisions():
    assert shapes(models.build("torchvision:resnet18", 0, 10)) == {
        "stage1": ("relu", 64, 16, 16),
        "stage2": ("layer1", 64, 8, 8),
        "stage3": ("layer2", 128, 4, 4),
        "stage4": ("layer3", 256, 2, 2),
        "pooled": ("fc", 512),
    }
    assert shapes(models.build("torchvision:mobilenet_v2", 0, 10)) == {
        "stage1": ("features.1", 16, 16, 16),
        "stage2": ("features.3", 24, 8, 8),
        "stage3": ("features.6", 32, 4, 4),
        "stage4": ("features.13", 96, 2, 2),
        "pooled": ("classifier.1", 1280),
    }


def test_named_layers_are_the_stages_in_their_order():
    model = models.build("torchvision:resnet18", 0, 10)
    found = shapes(model, ["layer3", "layer1.0.conv2", "avgpool"])
    assert [place[0] for place in found.values()] == ["layer3", "layer1.0.conv2", "avgpool", "fc"]
    with pytest.raises(UserError, match="no layer 'layer9': it has conv1, bn1, .*, fc"):
        shapes(model, ["layer9"])
    with pytest.raises(UserError, match=r"no output \[B, C, H, W\]"):
        shapes(model, ["fc"])


@pytest.mark.parametrize(
    ("model", "layer"), [("cnn", "conv1"), ("resnet8", "stage1.0.bn1"), ("vgg8", "stage1.0.1")]
)
def test_a_named_layer_is_seen_as_it_was_left_whatever_follows_in_place(model, layer):
    """Methods on pre-activations name such layers."""
    network, kept = models.build(model, models.default_width(model), 10), []
    network.get_submodule(layer).register_forward_hook(lambda *args: kept.append(args[2].clone()))
    with find(network, torch.randn(2, 3, 32, 32), [layer]).watch() as seen:
        network(torch.randn(2, 3, 32, 32))
    assert torch.equal(seen["stage1"], kept[-1]) and seen["stage1"].min() < -0.5


def make_net(names={}) -> nn.Module:  # noqa: B006 (of one class)
    if not names:
        exec(HEAD + NET, names)
    return names["Net"]()


def test_looking_for_stages_leaves_no_trace():
    model = make_net()
    model.norm.eval()  # as somebody may freeze it
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes, random = [m.training for m in model.modules()], torch.get_rng_state()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    stages = find(model, x)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert modes == [m.training for m in model.modules()]
    assert torch.equal(random, torch.get_rng_state())
    assert not any(m._forward_hooks for m in model.modules())
    # One ReLU makes both: what counts is its last output of either size.
    with stages.watch() as seen:
        model.eval()(x)
    first = torch.relu(model.norm(model.conv1(x)))
    assert torch.equal(seen["stage1"], first)
    assert torch.equal(seen["stage2"], torch.relu(model.conv2(first)))
    assert torch.equal(seen["pooled"], seen["stage2"].flatten(1))


def test_stages_are_seen_under_vmap():
    torch.manual_seed(0)
    nets, x = [make_net().eval() for _ in range(3)], torch.randn(2, 3, 32, 32)
    state, stages = stack_module_state(nets), find(nets[0], x)

    def call(parameters, buffers):
        with stages.watch() as seen:
            logits = functional_call(nets[0], (parameters, buffers), (x,))
        return logits, seen

    _, stacked = torch.vmap(call)(*state)
    for i, net in enumerate(nets):
        with find(net, x).watch() as seen:
            net(x)
        for name, value in seen.items():
            torch.testing.assert_close(stacked[name][i], value)


def test_a_layer_that_a_step_leaves_out_is_said():
    model = make_net()
    with (
        pytest.raises(UserError, match="relu was not called"),
        find(model, torch.randn(2, 3, 32, 32)).watch(),
    ):
        model.conv1(torch.randn(2, 3, 32, 32))


def test_a_regressor_guesses_negative_values_only_without_a_relu():
    x = torch.randn(2, 3, 4, 4)
    assert (hint_regressor(3, 8, False)(x) >= 0).all() and (hint_regressor(3, 8, True)(x) < 0).any()
