"""Image folders as people have them: odd files, odd trees, odd pixels, and the cache."""

import os
import random
import re
import shutil
import struct
import tempfile
import time
from pathlib import Path
from zlib import compress, crc32

import numpy as np
import pytest
import torch
from conftest import CPU, ROOT, command
from PIL import Image

from images import folder
from images.sources import load
from images.views import plain
from utils import UserError


@pytest.fixture
def tree(tmp_path):
    draw = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in ("ant", "bee"):
            place = tmp_path / split / label
            place.mkdir(parents=True)
            for i in range(3):
                pixels = draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{i}.png")
    return tmp_path


def first_image(tree: Path) -> np.ndarray:
    """train/ant/0 as a run sees it, [32, 32, 3]."""
    return plain(load("folder", tree, CPU).train, slice(0, 1))[0].permute(1, 2, 0).numpy()


def sizes(tree: Path) -> tuple[int, int]:
    data = load("folder", tree, CPU)
    return len(data.train), len(data.test)


# ---------------------------------------------------------------- the cache


def test_folder_is_read_and_cached(tree, monkeypatch):
    first = load("folder", tree, CPU)
    assert first.classes == ["ant", "bee"] and len(first.train) == 6 and len(first.test) == 6
    image = np.asarray(Image.open(tree / "train" / "bee" / "1.png"))
    assert np.array_equal(plain(first.train, slice(4, 5))[0].permute(1, 2, 0).numpy(), image)
    monkeypatch.setattr(folder, "decode", None)  # a second decoding would fail
    again = load("folder", tree, CPU)
    assert torch.equal(first.train.padded, again.train.padded)
    assert first.fingerprint == again.fingerprint
    monkeypatch.chdir(tree.parent)  # however the path is spelled
    for spelled in (Path(tree.name), tree / ".." / tree.name):
        assert load("folder", spelled, CPU).fingerprint == first.fingerprint


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
    whole, rng = cache.read_bytes(), random.Random(0)
    cut = [whole[:1000], b"", whole[:-1]]
    headers = [i for i in range(len(whole)) if whole[i : i + 2] == b"PK"]  # most fragile there
    for i in rng.choices(headers, k=150):
        at = min(i + rng.randrange(64), len(whole) - 1)
        cut.append(whole[:at] + bytes([rng.randrange(256)]) + whole[at + 1 :])
    for raw in cut:
        cache.write_bytes(raw)
        assert load("folder", tree, CPU).fingerprint == before.fingerprint


# ---------------------------------------------------------------- odd trees


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


def test_one_class_is_nothing_to_learn(tree):
    for split in ("train", "test"):  # one level too deep
        (tree / split).rename(tree / "images")
        (tree / split).mkdir()
        (tree / "images").rename(tree / split / "images")
    with pytest.raises(UserError, match=r"1 class folders \(images\).*one level down are ant, bee"):
        load("folder", tree, CPU)
    with pytest.raises(UserError, match=r"0 class folders \(none\)"):
        (tree / "empty" / "train").mkdir(parents=True)
        load("folder", tree / "empty", CPU)


def test_what_systems_hide_is_no_class_and_no_image(tree, capfd):
    before = load("folder", tree, CPU)
    for split in ("train", "test"):
        for name in (".ipynb_checkpoints", "@eaDir", "__MACOSX", "ant/.ipynb_checkpoints"):
            shutil.copytree(tree / split / "bee", tree / split / name)
        shutil.copy(tree / split / "ant" / "0.png", tree / split / "ant" / "._0.png")
    after = load("folder", tree, CPU)
    assert after.classes == ["ant", "bee"] and after.fingerprint == before.fingerprint
    assert capfd.readouterr().err == ""


def test_what_is_left_out_is_said(tree, capfd):
    ant = tree / "train" / "ant"
    for name in ("a.gif", "b.GIF", "c.jfif", "notes", "d.png.part"):
        (ant / name).touch()
    (ant / "gone.png").symlink_to("nowhere.png")
    os.mkfifo(ant / "pipe.png")
    assert sizes(tree) == (6, 6)
    assert capfd.readouterr().err == (
        f"{tree}/train: left out 2 .gif, 1 .jfif, 1 .part, 1 broken link, 1 pipe or device, "
        "1 without an ending\n"
    )


def test_links_are_followed_and_loops_are_not(tree):
    ant = tree / "train" / "ant"
    (ant / "loop").symlink_to(".")
    (ant / "other loop").symlink_to("..", target_is_directory=True)  # would be all classes
    assert sizes(tree) == (9, 6)  # bee's three, once, through the link
    (ant / "other loop").unlink()
    (tree / "more").mkdir()
    Image.new("RGB", (32, 32)).save(tree / "more" / "9.png")
    (ant / "more").symlink_to(tree / "more")
    (ant / "again").symlink_to(tree / "more")
    assert sizes(tree) == (7, 6)


def test_names_that_are_no_text(tree):
    odd = os.fsencode(tree / "train" / "ant") + b"/\xff\xfe.png"
    shutil.copy(tree / "train" / "ant" / "0.png", odd)
    assert sizes(tree) == (7, 6) and sizes(tree) == (7, 6)  # decoded, then from the cache


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs another user")
def test_what_may_not_be_read_is_said(tree, capfd):
    """As another user, since nothing is closed to root."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(shutil.copytree(tree, Path(place) / "data"))
        os.chmod(place, 0o755)
        os.chmod(root, 0o777)
        for split in ("train", "test"):
            shutil.copytree(root / split / "ant", root / split / "ant" / "nested")
        os.chmod(root / "train" / "ant" / "nested", 0o600)
        os.seteuid(65534)
        try:
            assert sizes(root) == (6, 9)
            assert "left out 1 in a folder that cannot be read" in capfd.readouterr().err
            os.seteuid(0)
            os.chmod(root / "test" / "bee", 0o644)  # its names can be listed, its files not opened
            os.seteuid(65534)
            with pytest.raises(UserError, match="no image in the class folders bee"):
                load("folder", root, CPU)
        finally:
            os.seteuid(0)


# ---------------------------------------------------------------- odd pixels


def test_other_sizes_and_modes_are_resized_and_it_is_said(tree, capfd):
    Image.new("L", (64, 48), 200).save(tree / "train" / "ant" / "0.png")
    assert (first_image(tree) == 200).all()
    err = capfd.readouterr().err
    assert re.search(r"train: 1 of 6 images are not 32x32 \(most of them 64x48\)", err)
    load("folder", tree, CPU)
    assert capfd.readouterr().err == ""  # from the cache: said once


def save(tree: Path, image: Image.Image, ending: str, **how) -> None:
    """The image in place of train/ant/0.png."""
    target = tree / "train" / "ant" / "0.png"
    target.unlink()
    image.save(target.with_suffix(ending), **how)


RAMP = np.arange(1024).reshape(32, 32)


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_sixteen_bits_are_scaled(tree, ending):
    save(tree, Image.fromarray((RAMP * 64).astype(np.uint16)), ending)
    assert np.array_equal(first_image(tree)[..., 1], np.rint(RAMP * 64 / 257))


def test_floats_from_0_to_1_are_scaled_and_others_refused(tree):
    save(tree, Image.fromarray((RAMP / 1023).astype(np.float32)), ".tif")
    assert np.abs(first_image(tree)[..., 0] - RAMP / 1023 * 255).max() <= 0.501
    for wrong in (RAMP.astype(np.float32), RAMP.astype(np.int32) - 1, RAMP.astype(np.int32) // 5):
        Image.fromarray(wrong).save(tree / "train" / "ant" / "0.tif")
        with pytest.raises(UserError, match=r"0\.tif.*pixels from .* to .*: save 8 bits"):
            load("folder", tree, CPU)


def test_clear_parts_lie_on_white(tree):
    """A black drawing on nothing, which would be black on black."""
    alpha = np.zeros((32, 32), np.uint8)
    alpha[8:24, 8:24] = 255
    alpha[0, 0] = 51  # a fifth black
    drawing = np.zeros((32, 32, 4), np.uint8)
    drawing[..., 3] = alpha
    expected = 255 - alpha
    for image in (Image.fromarray(drawing), Image.fromarray(drawing[..., 2:], "LA")):
        save(tree, image, ".png")
        assert np.array_equal(first_image(tree)[..., 2], expected)
    palette = Image.fromarray((alpha > 100).astype(np.uint8), "P")
    palette.putpalette([9, 9, 9, 0, 0, 0])
    save(tree, palette, ".png", transparency=0)
    assert np.array_equal(first_image(tree)[..., 0], np.where(alpha > 100, 0, 255))


def test_a_turned_photograph_is_upright(tree):
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it a quarter clockwise
    save(tree, Image.fromarray(pixels), ".png", exif=exif)
    assert np.array_equal(first_image(tree), np.rot90(pixels, -1))


def test_a_file_that_only_claims_to_be_an_image(tree):
    raw = bytearray((tree / "train" / "ant" / "0.png").read_bytes())
    rng = random.Random(1)
    target = tree / "train" / "ant" / "0.png"
    for _ in range(40):  # whatever a decoder raises is one line
        raw[rng.randrange(8, len(raw))] ^= 1 << rng.randrange(8)
        target.write_bytes(raw)
        try:
            load("folder", tree, CPU)
        except UserError as error:
            assert "0.png" in str(error) and "\n" not in str(error)


# ---------------------------------------------------------------- from the command line


def test_a_folder_from_its_files_to_a_row(tree):
    (tree / "train" / "ant" / "odd.gif").touch()
    argv = ["train_student.py", "--dataset", "folder", "--data-dir", tree, "--out-dir", tree / "o"]
    done = command(*argv, *"--epochs 1 --batch-size 4 --device cpu --threads 1".split())
    assert done.returncode == 0 and "test accuracy" in done.stdout, done.stderr
    assert done.stderr == f"{tree}/train: left out 1 .gif\n"
    assert not (ROOT / "o").exists() and (tree / "o" / "results" / "results.csv").exists()


def test_an_odd_link_leaves_out_itself_alone(tree, capfd):
    ant = tree / "train" / "ant"
    (ant / "0a.png").symlink_to("0a.png")  # to itself
    (ant / "0b.png").symlink_to(ant / "0.png" / "below a file")
    (ant / "0c.png").symlink_to("x" * 300)
    (tree / "train" / "zzz").symlink_to("zzz")
    (ant / "@home.png").touch()
    (tree / "train" / "@class").mkdir()
    assert sizes(tree) == (6, 6)
    assert (
        "left out 1 beside the class folders, 3 broken link, 2 with a name that begins with @"
        in (capfd.readouterr().err)
    )


def test_files_that_change_places_are_noticed(tree):
    """Of one size and one time, as a tar leaves them."""
    one, other = tree / "train" / "ant" / "1.bmp", tree / "train" / "bee" / "1.bmp"
    for path, value in ((one, 10), (other, 200)):
        Image.new("RGB", (32, 32), (value,) * 3).save(path)
        os.utime(path, ns=(10**18, 10**18))
    before = load("folder", tree, CPU)
    one.rename(tree / "moved")
    other.rename(one)
    (tree / "moved").rename(other)
    assert load("folder", tree, CPU).fingerprint != before.fingerprint


def test_sixteen_bits_that_hold_fewer_are_said(tree, capfd):
    save(tree, Image.fromarray((RAMP * 4).astype(np.uint16)), ".png")
    load("folder", tree, CPU)
    assert "no pixel of the 1 images with 16 bits goes beyond 4092 of 65535" in (
        capfd.readouterr().err
    )
    save(tree, Image.fromarray((RAMP // 5).astype(np.uint16)), ".png")
    with pytest.raises(UserError, match="pixels from 0 to 204: save 8 bits"):
        load("folder", tree, CPU)


def test_colours_of_sixteen_bits_that_hold_fewer_are_said(tree, capfd):
    """Pillow reads their high byte alone, so that those of 12 bits are nearly black."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc32(kind + data))

    for top, said in ((4095, True), (65535, False)):
        pixels = np.linspace(0, top, 32 * 32 * 3).astype(">u2").reshape(32, 32 * 3)
        lines = b"".join(b"\0" + row.tobytes() for row in pixels)
        header = struct.pack(">IIBBBBB", 32, 32, 16, 2, 0, 0, 0)  # 16 bits, RGB
        parts = ((b"IHDR", header), (b"IDAT", compress(lines)), (b"IEND", b""))
        png = b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)
        (tree / "train" / "ant" / "0.png").write_bytes(png)
        load("folder", tree, CPU)
        assert ("no pixel of the 1 images with 16 bits" in capfd.readouterr().err) == said


def test_all_images_that_cannot_be_read_are_named_at_once(tree):
    for number in range(5):
        (tree / "train" / "ant" / f"bad{number}.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"cannot read 5 images, .*bad0.*bad1.*bad2.* and 2 more"):
        load("folder", tree, CPU)


def test_either_byte_order_is_read(tree):
    found = []
    for number, order in enumerate(("<u2", ">u2")):
        for path in (tree / "train" / "ant").glob("0.*"):
            path.unlink()
        pixels = (RAMP * 64).astype(order)
        raw = Image.frombytes("I;16B" if number else "I;16", (32, 32), pixels.tobytes())
        raw.save(tree / "train" / "ant" / "0.tif")
        found.append(first_image(tree))
    assert np.array_equal(*found)


def test_images_beside_the_class_folders_are_said(tree, capfd):
    for number in range(5):
        Image.new("RGB", (32, 32)).save(tree / "train" / f"{number}.png")
    assert sizes(tree) == (6, 6)
    assert f"{tree}/train: left out 5 beside the class folders\n" in capfd.readouterr().err


def test_postscript_is_no_image(tree):
    (tree / "train" / "ant" / "0.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    with pytest.raises(UserError, match="0.png"):
        load("folder", tree, CPU)


def test_one_folder_as_train_and_test_is_said(tree, capfd):
    shutil.rmtree(tree / "test")
    (tree / "test").symlink_to("train")
    load("folder", tree, CPU)
    assert "train/ and test/ are one folder" in capfd.readouterr().err


def test_test_images_that_are_training_images_are_said(tree, capfd):
    copies = sorted((tree / "train").rglob("*.*"))[:2]
    for number, path in enumerate(copies):
        shutil.copy(path, sorted((tree / "test").iterdir())[-1] / f"again{number}.png")
    for _ in range(2):  # from the cache, too
        load("folder", tree, CPU)
        err = capfd.readouterr().err
        count = len([*(tree / "test").rglob("*.*")])
        assert err.count(f"2 of {count} test images are among the training images") == 1
