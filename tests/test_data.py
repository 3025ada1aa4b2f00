"""Views, splits and sources."""

import os
import time

import numpy as np
import pytest
import torch
from conftest import CPU, random_split
from PIL import Image
from torchvision.transforms.functional import crop, hflip, normalize, pad, to_tensor

from images import sources
from images.sources import load, split_off
from images.views import Views, epoch_views, gather, normalise, plain
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
    x = normalise(gather(split, epoch_views(0, 0, 8, CPU)), (0.5,) * 3, (0.2,) * 3)
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain(split, slice(0, 8))[3, 1], split.padded[3, 4:36, 4:36, 1])


def test_views_are_a_function_of_seed_and_epoch():
    first, again = epoch_views(3, 7, 500, CPU), epoch_views(3, 7, 500, CPU)
    for name in ("index", "dy", "dx", "flip"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert not torch.equal(first.index, epoch_views(3, 8, 500, CPU).index)
    assert not torch.equal(first.index, epoch_views(4, 7, 500, CPU).index)


def test_an_epoch_has_every_image_once_and_every_view():
    views = epoch_views(0, 0, 20_000, CPU)
    assert torch.equal(views.index.sort().values, torch.arange(20_000))
    kinds = torch.bincount(views.dy * 18 + views.dx * 2 + views.flip, minlength=162)
    # 123.5 expected of each; a count beyond six standard deviations means a view is favoured.
    assert kinds.min() > 123.5 - 6 * 11.1 and kinds.max() < 123.5 + 6 * 11.1


def test_splits_are_balanced_disjoint_and_fixed():
    labels = np.repeat(np.arange(10), 50)
    train, val = split_off(labels, 100, 200, 10)
    assert set(np.bincount(labels[val])) == {10} and set(np.bincount(labels[train])) == {20}
    assert not set(train) & set(val)
    everything, same = split_off(labels, 100, 0, 10)
    assert np.array_equal(val, same) and len(everything) == 400
    assert sorted([*everything, *val]) == list(range(500))


@pytest.mark.parametrize(("val", "train"), [(0, 501), (500, 0), (499, 100)])
def test_sizes_beyond_the_data_are_refused(val, train):
    with pytest.raises(UserError, match="class-balanced"):
        split_off(np.repeat(np.arange(10), 50), val, train, 10)


def test_moments_are_the_pixels_own():
    images = np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3), dtype=np.uint8)
    mean, std = sources.channel_moments(images)
    np.testing.assert_allclose(mean, (images / 255).mean((0, 1, 2)))
    np.testing.assert_allclose(std, (images / 255).std((0, 1, 2)))


# ---------------------------------------------------------------- image folders


@pytest.fixture
def tree(tmp_path):
    draw = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in ("ant", "bee"):
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            for i in range(3):
                pixels = draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path


def test_folder_is_read_and_cached(tree, monkeypatch):
    first = load("folder", tree, CPU)
    assert first.classes == ["ant", "bee"] and len(first.train) == 6 and len(first.test) == 6
    image = np.asarray(Image.open(tree / "train" / "bee" / "1.png"))
    assert np.array_equal(plain(first.train, slice(4, 5))[0].permute(1, 2, 0).numpy(), image)
    monkeypatch.setattr(sources, "decode", None)  # a second decoding would fail
    again = load("folder", tree, CPU)
    assert torch.equal(first.train.padded, again.train.padded)
    assert first.fingerprint == again.fingerprint


@pytest.mark.parametrize("change", ["rewrite", "add", "remove", "move"])
def test_cache_notices_a_changed_tree(tree, change):
    before = load("folder", tree, CPU)
    target = tree / "train" / "ant" / "1.png"
    if change == "rewrite":
        Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(target)
        later = time.time_ns() + 10**9
        os.utime(target, ns=(later, later))
    elif change == "add":
        Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(target.with_name("9.png"))
    elif change == "remove":
        target.unlink()
    else:
        target.rename(tree / "train" / "bee" / "7.png")
    after = load("folder", tree, CPU)
    assert after.fingerprint != before.fingerprint


def test_a_broken_cache_is_made_again(tree):
    before = load("folder", tree, CPU)
    cache = tree / ".kd-arrays.npz"
    cache.write_bytes(cache.read_bytes()[:1000])
    assert load("folder", tree, CPU).fingerprint == before.fingerprint


def test_cifar10_is_the_same_as_archive_and_as_files(tree, monkeypatch):
    arrays, classes = sources.folder(tree)
    backwards = {name: (images[::-1], labels[::-1]) for name, (images, labels) in arrays.items()}
    crc = sources.checksums({name: sources.by_content(*arrays[name]) for name in arrays})
    monkeypatch.setattr(sources, "CIFAR10_CRC", crc)
    monkeypatch.setattr(sources, "cifar10_archive", lambda _: (backwards, classes))
    files, archive = load("cifar10", tree, CPU), load("cifar10", tree / "nowhere", CPU)
    assert files.fingerprint == archive.fingerprint
    assert torch.equal(files.test.padded, archive.test.padded)
    assert files.train.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_other_images_are_not_taken_for_cifar10(tree):
    with pytest.raises(UserError, match="not CIFAR-10.*--dataset folder"):
        load("cifar10", tree, CPU)


def test_other_sizes_and_modes_are_resized(tree):
    Image.new("L", (64, 48), 200).save(tree / "train" / "ant" / "0.png")
    pixels = plain(load("folder", tree, CPU).train, slice(0, 1))
    assert (pixels == 200).all()


def test_folder_mistakes_are_one_line(tree):
    (tree / "train" / "cat").mkdir()
    with pytest.raises(UserError, match="cat"):
        load("folder", tree, CPU)
    Image.new("RGB", (32, 32)).save(tree / "train" / "cat" / "0.png")
    with pytest.raises(UserError, match="differ in the class folders.*cat"):
        load("folder", tree, CPU)
    (tree / "train" / "cat" / "0.png").unlink()
    (tree / "train" / "cat").rmdir()
    (tree / "train" / "ant" / "0.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="0.png"):
        load("folder", tree, CPU)
    with pytest.raises(UserError, match="no image folder"):
        load("folder", tree / "nowhere", CPU)


def test_validation_images_are_never_trained_on(tree):
    loaded = load("folder", tree, CPU, val_size=2)
    trained = {image.numpy().tobytes() for image in loaded.train.padded}
    held = {image.numpy().tobytes() for image in loaded.val.padded}
    assert len(trained) == 4 and len(held) == 2 and not trained & held
