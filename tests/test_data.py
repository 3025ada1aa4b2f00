"""Views, splits and sources."""

import numpy as np
import pytest
import torch
from conftest import CPU, make_images, random_split
from PIL import Image
from torchvision.transforms.functional import crop, hflip, normalize, pad, to_tensor

from images import sources
from images.cifar import CIFAR10
from images.sources import load, split_off
from images.views import Views, epoch_views, gather, normalise, partners, plain
from utils import UserError


def test_all_162_views_are_torchvisions(tmp_path):
    split = random_split(3, 5)
    views = [(dy, dx, flip) for dy in range(9) for dx in range(9) for flip in (False, True)]
    dy, dx, flip = (torch.tensor(column) for column in zip(*views, strict=True))
    index = torch.arange(len(views)) % 3
    pixels = gather(split, Views(index, dy, dx, flip))
    ours = normalise(pixels, sources.REFERENCE_MEAN, sources.REFERENCE_STD)
    for i, (top, left, flipped) in enumerate(views):
        image = Image.fromarray(split.padded[i % 3, 4:36, 4:36].numpy())
        theirs = crop(pad(image, 4), top, left, 32, 32)
        theirs = to_tensor(hflip(theirs) if flipped else theirs)
        theirs = normalize(theirs, sources.REFERENCE_MEAN, sources.REFERENCE_STD)
        assert torch.equal(ours[i], theirs)


def test_batches_are_channels_last():
    split = random_split(8, 5)
    x = normalise(gather(split, epoch_views(0, 0, split)), (0.5,) * 3, (0.2,) * 3)
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain(split, slice(0, 8))[3, 1], split.padded[3, 4:36, 4:36, 1])


def test_views_are_a_function_of_seed_and_epoch():
    split = random_split(500, 5)
    first, again = epoch_views(3, 7, split), epoch_views(3, 7, split)
    for name in ("index", "dy", "dx", "flip"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert not torch.equal(first.index, epoch_views(3, 8, split).index)
    assert not torch.equal(first.index, epoch_views(4, 7, split).index)


def test_an_epoch_has_every_image_once_and_every_view():
    views = epoch_views(0, 0, random_split(20_000, 5))
    assert torch.equal(views.index.sort().values, torch.arange(20_000))
    kinds = torch.bincount(views.dy * 18 + views.dx * 2 + views.flip, minlength=162)
    # 123.5 expected of each; a count beyond six standard deviations means a view is favoured.
    assert kinds.min() > 123.5 - 6 * 11.1 and kinds.max() < 123.5 + 6 * 11.1


TEN = [f"class {i}" for i in range(10)]


def test_splits_are_balanced_disjoint_and_fixed():
    labels = np.repeat(np.arange(10), 50)
    train, val = split_off(labels, 100, 200, TEN)
    assert set(np.bincount(labels[val])) == {10} and set(np.bincount(labels[train])) == {20}
    assert not set(train) & set(val)
    everything, same = split_off(labels, 100, 0, TEN)
    assert np.array_equal(val, same) and len(everything) == 400
    assert sorted([*everything, *val]) == list(range(500))


@pytest.mark.parametrize(("val", "train"), [(0, 501), (500, 0), (499, 100)])
def test_sizes_beyond_the_data_are_refused(val, train):
    with pytest.raises(UserError, match="class-balanced"):
        split_off(np.repeat(np.arange(10), 50), val, train, TEN)


def test_another_draw_has_other_training_images_and_the_same_held_out_ones():
    labels = np.repeat(np.arange(10), 50)
    (first, val), (other, same) = (split_off(labels, 100, 100, TEN, draw) for draw in (0, 1))
    assert np.array_equal(val, same) and set(np.bincount(labels[other])) == {10}
    assert len(set(first) & set(other)) < 50 and not set(other) & set(val)
    with pytest.raises(UserError, match="every draw has all 400"):
        split_off(labels, 100, 400, TEN, draw=1)


def test_partners_are_other_images_of_the_class_by_the_seed_alone():
    split = random_split(200, 5)
    split.labels[0] = 10  # the only one of its class
    found, again, other = (partners(seed, split) for seed in (3, 3, 4))
    assert torch.equal(found, again) and not torch.equal(found, other)
    assert torch.equal(split.labels[found], split.labels)
    assert torch.equal(found.sort().values, torch.arange(200))
    assert (found == torch.arange(200)).nonzero().tolist() == [[0]]
    views = epoch_views(0, 0, split)
    assert torch.equal(views.index[views.places], torch.arange(200))


def test_moments_are_the_pixels_own():
    images = np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3), dtype=np.uint8)
    labels = np.zeros(50, np.int64)
    split = sources.to_device(images, labels, slice(None), CPU, 32, pad=4, flips=2)
    mean, std = sources.channel_moments(split)
    np.testing.assert_allclose(mean, (images / 255).mean((0, 1, 2)))
    np.testing.assert_allclose(std, (images / 255).std((0, 1, 2)))


def test_a_class_with_too_few_images_is_named():
    labels = np.delete(np.repeat(np.arange(10), 50), np.arange(150, 198))
    with pytest.raises(UserError, match="the subset: class cat has 2; ask for fewer"):
        split_off(labels, 0, 30, CIFAR10.classes)


def test_validation_images_are_never_trained_on(tmp_path):
    make_images(tmp_path, train=3, test=3)
    loaded = load("folder", tmp_path, CPU, val_size=2)
    trained = {image.numpy().tobytes() for image in loaded.train.padded}
    held = {image.numpy().tobytes() for image in loaded.val.padded}
    assert len(trained) == 4 and len(held) == 2 and not trained & held
