"""Images of other sizes and other augmentations, and what is as it was at 32 pixels."""

import re
import zlib
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CPU, TINY, script
from PIL import Image

import distill
import summarize
import train_student
import train_teacher
from engine.cells import Cell, run_id
from engine.fused import FusedStep
from engine.sheet import AUTO_BYTES, open_sheet
from engine.trainee import Trainee
from images import folder
from images.sources import load, to_device
from images.views import Views, epoch_views, gather, plain
from models import build
from utils import UserError

QUICK = ["--epochs", 1, "--batch-size", 20, "--lr", 0.01, "--device", "cpu", "--threads", 1]


def rows_in(out) -> pd.DataFrame:
    return pd.read_csv(out / "results" / "results.csv").set_index("run_id")


def one_line(err: str) -> str:
    [line] = err.splitlines()
    assert line.startswith("error: ")
    return line


# ---------------------------------------------------------------- views


@pytest.mark.parametrize("size, pad, flips", [(48, 6, 2), (48, 0, 2), (48, 0, 1), (13, 1, 2)])
def test_views_are_crops_and_flips(size, pad, flips):
    pixels = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    split = to_device(pixels, np.zeros(3, np.int64), slice(None), CPU, size, pad, flips)
    assert (split.size, split.views) == (size, (2 * pad + 1) ** 2 * flips)
    views = Views.numbered(torch.arange(3 * split.views), split)
    assert torch.equal(views.numbers(split), torch.arange(3 * split.views))
    padded = np.pad(pixels, [(0, 0), (pad, pad), (pad, pad), (0, 0)])
    found = gather(split, views).permute(0, 2, 3, 1).numpy()
    columns = (column.tolist() for column in vars(views).values())
    for own, (image, dy, dx, flip) in zip(found, zip(*columns, strict=True), strict=True):
        expected = padded[image, dy : dy + size, dx : dx + size]
        assert np.array_equal(own, expected[:, ::-1] if flip else expected)
    assert np.array_equal(plain(split, slice(None)).permute(0, 2, 3, 1).numpy(), pixels)
    drawn = epoch_views(0, 0, split)
    assert drawn.flip.any() == (flips == 2) and drawn.dy.max() <= 2 * pad


def test_at_32_pixels_all_is_as_it_was(tmp_path):
    """Recorded before images could have another size; none of it depends on the machine."""
    data = load("shapes", tmp_path, CPU, train_size=300, val_size=20)
    assert (data.fingerprint, data.measured_on) == (226033401, 902172740)
    seen = 0
    for epoch in range(3):
        pixels = gather(data.train, epoch_views(1, epoch, data.train)).permute(0, 2, 3, 1)
        seen = zlib.crc32(pixels.numpy(), seen)
    assert seen == 3288668944
    numbers = epoch_views(1, 0, data.train).numbers(data.train)
    assert zlib.crc32(numbers.numpy()) == 2675909853
    assert run_id(Cell("cnn", 16, 0), TINY) == "cnn-s0-shapes-e2-b32-tmax2"


def test_the_fingerprint_is_of_the_images_and_not_of_their_views(photos):
    """Or a teacher could not teach a student that is trained with other views."""
    root, _ = photos
    found = [
        load("folder", root / "images", CPU, image_size=20, augment=augment)
        for augment in ("crop-flip", "flip", "none")
    ]
    assert len({(data.fingerprint, data.measured_on) for data in found}) == 1
    assert [data.train.views for data in found] == [2 * 5**2, 2, 1]


# ---------------------------------------------------------------- networks


@pytest.mark.parametrize("size, head", [(32, 64), (64, 256), (30, 64), (50, 169)])
def test_stacked_cnns_are_the_lone_ones_at_any_size(size, head):
    settings = replace(TINY, image_size=size)
    trainees = [Trainee(Cell("cnn", 4, seed), settings, 10, CPU) for seed in range(2)]
    assert trainees[0].model.head.in_features == 2 * 4 * head
    x = torch.randn(3, 3, size, size).to(memory_format=torch.channels_last)
    alone = [trainee.model(x) for trainee in trainees]
    stacked = FusedStep(trainees).logits(x)
    torch.testing.assert_close(stacked, torch.stack(alone))


# ---------------------------------------------------------------- a folder, from the outside


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of images of 64 pixels, and its out-dir with a teacher."""
    root = tmp_path_factory.mktemp("photos")
    draw = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 5)):
        for label, top in (("dark", 130), ("light", 256)):
            (root / "images" / split / label).mkdir(parents=True)
            for i in range(count):
                pixels = draw.integers(0, top, (64, 64, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / "images" / split / label / f"{i}.png")
    flags = ["--dataset", "folder", "--data-dir", root / "images", "--out-dir", root / "out"]
    assert script(train_teacher.main, *flags, *QUICK, "--width", 4, "--image-size", 64) == 0
    return root, [*flags, *QUICK]


def test_a_folder_of_64_pixels_to_a_row_and_a_report(photos, capfd):
    root, flags = photos
    grid = ["--alpha", 0.5, "--temperature", 2, 4]
    assert script(distill.main, *flags, "--image-size", 64, *grid) == 0
    assert "resized" not in capfd.readouterr().err
    row = rows_in(root / "out").loc["cnn-kd-a0.5-T2-s0-folder-e1-b20-lr0.01-px64"]
    assert (row.image_size, row.augment) == (64, "crop-flip")
    assert row.params == 16 * 28 + 32 * 145 + 2 * (32 * 16**2 + 1)
    [sheet] = (root / "out").rglob("*.sheet")
    assert sheet.stat().st_size == 4096 + (2 * 17**2) * 40 * 4 * 3
    assert sheet.stat().st_blocks * 512 > 40 * 4 * 3  # and written
    stored = torch.load(root / "out" / "checkpoints" / f"{row.name}.pt", weights_only=True)
    names = ("model", "width", "classes", "image_size")
    build(*(stored[name] for name in names)).load_state_dict(stored["state"])
    assert script(summarize.main, "--out-dir", root / "out") == 0
    assert "image_size 64" in (root / "out" / "results" / "REPORT.md").read_text()


def test_another_size_is_another_cache_and_needs_its_teacher(photos, capfd):
    root, flags = photos
    teacher = root / "out" / "checkpoints" / "resnet18w4-teacher-s0-folder-px64.pt"
    assert script(distill.main, *flags) == 2
    resized, error = capfd.readouterr().err.split("error: ")
    assert re.search("40 of 40 .*not 32x32 .*most of them 64x64.*bicubic.*--image-size", resized)
    assert "no teacher checkpoint" in error and "--image-size" in error
    assert script(distill.main, *flags, "--teacher", teacher) == 2
    line = one_line(capfd.readouterr().err)
    assert "trained on images of 64 pixels a side and these have 32" in line
    for cache in (".kd-arrays.npz", ".kd-arrays-64.npz"):
        assert (root / "images" / cache).exists()


def test_a_teacher_may_have_been_trained_on_other_views(photos, capfd):
    root, flags = photos
    for augment, views in (("flip", 2), ("none", 1)):
        argv = [*flags, "--image-size", 64, "--augment", augment]
        assert script(distill.main, *argv, "--alpha", 0.5, "--temperature", 4) == 0
        name = f"cnn-kd-a0.5-T4-s0-folder-e1-b20-lr0.01-px64-aug{augment}"
        assert rows_in(root / "out").loc[name].augment == augment
        sizes = {path.stat().st_size for path in (root / "out").rglob("*.sheet")}
        assert 4096 + views * 40 * 4 * 3 in sizes


# ---------------------------------------------------------------- what does not fit


def test_images_that_do_not_fit_are_one_line(photos, monkeypatch):
    root, _ = photos
    monkeypatch.setattr(folder, "free_bytes", lambda device: 10 * 3 * 224**2)
    with pytest.raises(UserError, match=r"50 images of 224 pixels take 0.01 GiB .*at most 10 fit"):
        load("folder", root / "images", CPU, image_size=224)
    assert not (root / "images" / ".kd-arrays-224.npz").exists()  # before they are decoded
    monkeypatch.setattr(folder, "free_bytes", lambda device: 200_000)
    with pytest.raises(UserError, match=r"50 images of 32 pixels \(40 with padding\).* 41 fit"):
        load("folder", root / "images", CPU)


def test_a_sheet_too_large_for_what_it_saves_is_a_line(tiny_data, tiny_teacher, tmp_path, capsys):
    assert AUTO_BYTES == 20e9
    assert open_sheet(tmp_path, tiny_teacher, tiny_data, "here", most=700_000) is None
    assert "162 views an image" in capsys.readouterr().err and not list(tmp_path.iterdir())
    assert open_sheet(tmp_path, tiny_teacher, tiny_data, "here")


@pytest.mark.parametrize("size", ["7", "4097", "64.5", "0", ""])
def test_sizes_that_are_none(size, capsys):
    assert script(train_student.main, "--image-size", size) == 2
    assert "from 8 to 4096" in one_line(capsys.readouterr().err)
