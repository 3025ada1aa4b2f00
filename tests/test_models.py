"""The networks are the reference's."""

import hashlib

import pytest
import torch
import torch.nn.functional as F
from conftest import CPU, ROOT

from engine.teacher import load_teacher
from images.cifar import CIFAR10
from models import MODELS, autocast, build, find, parameter_count
from models.cnn import Pool
from models.resnet import Projection


@pytest.mark.parametrize(("name", "count"), [("resnet18", 11_173_962), ("cnn", 25_578)])
def test_parameter_counts(name, count):
    assert parameter_count(build(name, MODELS[name].DEFAULT_WIDTH, 10)) == count


def test_cnn_is_the_keras_network():
    """Layer by layer with explicit padding: pool windows reach beyond the right and bottom only."""
    torch.manual_seed(0)
    model = build("cnn", 16, 10)
    x = torch.randn(3, 3, 32, 32)
    h = F.leaky_relu(F.conv2d(x, model.conv1.weight, model.conv1.bias, 2, 1), 0.2)
    pooled = torch.empty_like(h)
    for row in range(16):
        for column in range(16):
            pooled[:, :, row, column] = h[:, :, row : row + 2, column : column + 2].amax((2, 3))
    h = F.conv2d(pooled, model.conv2.weight, model.conv2.bias, 2, 1)
    expected = model.head(h.permute(0, 2, 3, 1).reshape(3, 2048))  # and no activation before it
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("name", ["resnet18", "cnn"])
def test_stages_are_where_the_network_ends_a_size(name):
    model = build(name, 4, 7).eval()
    x = torch.randn(2, 3, 32, 32)
    with find(model, x).watch() as stages:
        logits = model(x)
    assert torch.equal(logits, model(x)) and logits.shape == (2, 7)
    if name == "cnn":
        h = model.pool(F.leaky_relu(model.conv1(x), 0.2))
        expected = {"stage1": h, "stage2": model.conv2(h)}
        expected["pooled"] = expected["stage2"].permute(0, 2, 3, 1).flatten(1)
    else:
        h, expected = model.stem(x), {}
        for stage in ("stage1", "stage2", "stage3", "stage4"):
            h = expected[stage] = getattr(model, stage)(h)
        expected["pooled"] = h.mean((2, 3))
    assert list(stages) == list(expected)
    assert all(torch.equal(stages[stage], expected[stage]) for stage in expected)


@pytest.mark.parametrize("channels", [4, 5, 8, 16])
@pytest.mark.parametrize("maps", [torch.contiguous_format, torch.channels_last])
def test_a_projection_is_the_strided_convolution(channels, maps):
    """Float32 against float64, gradients included: a narrow one in channels_last crashed there."""
    torch.manual_seed(0)
    plain = torch.nn.Conv2d(channels, 2 * channels, 1, 2, bias=False).double()
    narrow = Projection(channels, 2 * channels, 2)
    narrow.load_state_dict(plain.state_dict())
    narrow.to(memory_format=maps)
    x = torch.randn(20, channels, 32, 32, dtype=torch.double, requires_grad=True)
    given = x.detach().float().contiguous(memory_format=maps).requires_grad_()
    expected, out = plain(x), narrow(given)
    expected.square().sum().backward()
    out.square().sum().backward()
    for got, wanted in ((out, expected), (given.grad, x.grad)):
        torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(narrow.weight.grad.double(), plain.weight.grad, rtol=1e-4, atol=1e-2)


def test_the_pool_is_the_same_with_and_without_gradients():
    """Ties and odd sizes included, and the bits."""
    for size in (16, 16), (3, 2), (1, 1):
        h = torch.randint(-3, 3, (4, 5, *size), generator=torch.Generator().manual_seed(0)).float()
        for maps in (h, h.contiguous(memory_format=torch.channels_last)):
            with torch.no_grad():
                assert torch.equal(Pool()(maps), pool_of_torch(maps))
            assert torch.equal(Pool()(maps), pool_of_torch(maps))


def pool_of_torch(h: torch.Tensor) -> torch.Tensor:
    return F.max_pool2d(F.pad(h, (0, 1, 0, 1), value=float("-inf")), 2, stride=1)


def test_the_teacher_at_hand_is_the_one_its_note_describes():
    path = ROOT / "teachers" / "cifar10-resnet18w32.pt"
    teacher = load_teacher(path, CIFAR10.classes, False, CPU)
    sha = hashlib.sha256(path.read_bytes()).hexdigest()
    assert sha in (path.parent / "README.md").read_text() and sha.startswith(teacher.sha)
    assert parameter_count(build("resnet18", 32, 10)) == 2_797_610
    logits = teacher(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    assert logits.shape == (2, 10) and logits.isfinite().all()


def test_the_resnets_logits_are_float32_where_it_runs_in_bfloat16():
    """Rounded to bfloat16 they are tied or change places, and a student learns from them."""
    torch.manual_seed(0)
    model = build("resnet18", 8, 10).eval()
    x = torch.randn(8, 3, 32, 32)
    with torch.no_grad(), autocast(model, CPU, True), find(model, x).watch() as stages:
        logits = model(x)
    assert stages["stage4"].dtype is torch.bfloat16 and logits.dtype is torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())
    assert model.double()(x.double()).dtype is torch.float64
