"""The families have the sizes that are published, and train like any network."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call, stack_module_state, vmap

from models import mobilenet, parameter_count, resnet_cifar, shufflenet, vgg, wide_resnet

FAMILIES = (resnet_cifar, wide_resnet, vgg, mobilenet, shufflenet)
NETWORKS = {name: build for family in FAMILIES for name, build in family.NETWORKS.items()}
SMALL = ("resnet8", "wrn-16-1", "vgg8", "mobilenetv2", "shufflenetv2")  # one of each family


def draw(name: str, classes: int, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return NETWORKS[name](classes)


@pytest.mark.parametrize(
    ("name", "millions"),
    # He et al. 2016, table 6; Zagoruyko & Komodakis 2017 (attention transfer), table 1.
    [("resnet20", 0.27), ("resnet32", 0.46), ("resnet44", 0.66), ("resnet56", 0.85)]
    + [("resnet110", 1.7), ("wrn-16-1", 0.2), ("wrn-16-2", 0.7), ("wrn-40-1", 0.6)]
    + [("wrn-40-2", 2.2)],
)
def test_parameters_of_the_papers(name, millions):
    """The ResNets' shortcuts aside: the paper's have no weights."""
    model = draw(name, 10)
    count = parameter_count(model)
    if name.startswith("resnet"):
        projections = [p for key, p in model.named_parameters() if ".shortcut." in key]
        count -= sum(p.numel() for p in projections)
    digits = len(str(millions)) - 2
    assert round(count / 1e6, digits) == millions


@pytest.mark.parametrize(
    ("name", "count"),
    # With 100 classes, those of the networks in github.com/HobbitLong/RepDistiller.
    [("resnet8x4", 1_233_540), ("resnet32x4", 7_433_860), ("resnet20", 278_324)]
    + [("resnet110", 1_736_564), ("wrn-16-2", 703_284), ("wrn-40-2", 2_255_156)]
    + [("vgg8", 3_965_028), ("vgg13", 9_462_180), ("mobilenetv2", 812_836)]
    + [("shufflenetv2", 1_355_528)],
)
def test_parameters_of_the_field(name, count):
    assert parameter_count(draw(name, 100)) == count


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_takes_images_of_any_size(name):
    model = draw(name, 7).eval().to(memory_format=torch.channels_last)
    with torch.no_grad():
        for size in ((32, 32), (64, 48)):
            assert model(torch.randn(2, 3, *size)).shape == (2, 7)


@pytest.mark.parametrize("name", SMALL)
def test_a_step_lowers_the_loss_and_moves_every_weight(name):
    model = draw(name, 5).to(memory_format=torch.channels_last)
    x, labels = torch.randn(16, 3, 32, 32), torch.arange(16) % 5
    before = F.cross_entropy(model(x), labels)
    before.backward()
    # A bias before batch norm does nothing: its gradient is rounding.
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
    with torch.no_grad():
        norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
        for p in model.parameters():
            p -= 0.05 * p.grad / norm
    assert F.cross_entropy(model(x), labels) < before


@pytest.mark.parametrize("name", ["wrn-16-1", "mobilenetv2", "shufflenetv2"])
def test_float32_in_channels_last_is_float64(name):
    """Gradients included: kernels for few channels were wrong there (models/resnet.py)."""
    exact = draw(name, 5).double()
    model = copy.deepcopy(exact).float().to(memory_format=torch.channels_last)
    x = torch.randn(8, 3, 32, 32, dtype=torch.double)
    given = x.float().contiguous(memory_format=torch.channels_last)
    for network, images in ((exact, x), (model, given)):
        F.cross_entropy(network(images), torch.arange(8) % 5).backward()
    torch.testing.assert_close(model(given).double(), exact(x), rtol=1e-3, atol=1e-3)
    for got, wanted in zip(model.parameters(), exact.parameters(), strict=True):
        # A ReLU that flips is a few hundredths; a wrong kernel would be another gradient.
        assert (got.grad - wanted.grad).norm() <= 0.1 * wanted.grad.norm() + 1e-4


@pytest.mark.parametrize("name", SMALL)
def test_weights_are_a_function_of_the_seed(name):
    one, again, other = (draw(name, 10, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[key], again[key]) for key in one)
    convolutions = [key for key in one if one[key].ndim == 4]
    assert not any(torch.equal(one[key], other[key]) for key in convolutions)


def test_a_stack_of_two_agrees_with_the_loop():
    """Logits, gradients and running statistics, float64."""
    models = [draw("resnet8", 10, seed).double() for seed in (0, 1)]
    x = torch.randn(2, 4, 3, 32, 32, dtype=torch.double)
    skeleton = copy.deepcopy(models[0]).to("meta")
    params, buffers = stack_module_state(models)
    stacked = vmap(lambda p, b, one: functional_call(skeleton, (p, b), one))(params, buffers, x)
    stacked.square().sum().backward()
    for i, model in enumerate(models):
        logits = model(x[i])
        logits.square().sum().backward()
        torch.testing.assert_close(stacked[i], logits, rtol=1e-11, atol=1e-11)
        for key, p in model.named_parameters():
            torch.testing.assert_close(params[key].grad[i], p.grad, rtol=1e-9, atol=1e-9)
        for key, buffer in model.named_buffers():
            torch.testing.assert_close(buffers[key][i], buffer, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", SMALL)
def test_logits_are_float32_where_the_network_runs_in_bfloat16(name):
    model = draw(name, 10).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = model(torch.randn(2, 3, 32, 32))
    assert logits.dtype is torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())
