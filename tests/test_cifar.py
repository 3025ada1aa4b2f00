"""CIFAR from each form on the disk to a row in the CSV, with nothing replaced in between.

What is set is what belongs to these images alone: MD5s and the pixels' checksums.
"""

import functools
import hashlib
import http.server
import os
import pickle
import re
import subprocess
import sys
import threading

import cifar_archive
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CPU, ROOT, script

import distill
import train_student
import train_teacher
from images import cifar
from images.cifar import CIFAR10, CIFAR100
from images.sources import load
from utils import UserError

ARRAYS = cifar_archive.draw(train=8, test=2)
ARCHIVE = cifar_archive.archive(ARRAYS)
HUNDRED = cifar_archive.draw(train=2, test=1, classes=100)


@pytest.fixture(autouse=True)
def checksums(monkeypatch):
    monkeypatch.setattr(CIFAR10, "crc", cifar_archive.known_by(ARRAYS))
    monkeypatch.setattr(CIFAR10, "sources", [])  # whoever asks one has overlooked what is there


@pytest.fixture
def mirror(tmp_path):
    """The address of the archive on a server of this machine."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    (folder / "copy.tar.gz").write_bytes(ARCHIVE)
    (folder / "cifar100").write_bytes(cifar_archive.archive(HUNDRED, CIFAR100))
    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield f"http://127.0.0.1:{server.server_port}/copy.tar.gz"
        server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def exp_sh(cwd, modules, env: dict[str, str]) -> None:
    """exp.sh from the folder `cwd`, to its end; `modules` has a sitecustomize.py."""
    env |= {"PYTHON": sys.executable, "PYTHONPATH": f"{modules}:{ROOT}", "no_proxy": "*"}
    argv = ["sh", str(ROOT / "exp.sh")]
    done = subprocess.run(argv, cwd=cwd, env=os.environ | env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_exp_sh_from_the_download_to_the_report(mirror, tmp_path):
    """The main command, as somebody runs it who has nothing yet; from a folder of their own."""
    (tmp_path / "sitecustomize.py").write_text(
        "from images.cifar import CIFAR10\n"
        f"CIFAR10.crc = {CIFAR10.crc}\n"
        f"CIFAR10.md5 = {hashlib.md5(ARCHIVE).hexdigest()!r}\n"
    )
    home = tmp_path / "a home"
    home.mkdir()
    env = {
        "CIFAR10_URL": mirror,
        "DATA_DIR": "my data",
        "OUT_DIR": "my runs",
        "EPOCHS": "1",
        "T_MAX": "1",
        "SEEDS": "0 1",
        "ALPHAS": "0.5",
        "TEMPERATURES": "1 4",
        "RANKS": "1",
        "RESNET_SEEDS": "",
        "FLAGS": "--batch-size 20 --lr 0.01 --device cpu --threads 1",
        "TEACHER_FLAGS": "--width 4",
        "STUDENT_FLAGS": "--student-width 8",
    }
    exp_sh(home, tmp_path, env)
    assert {p.name for p in home.iterdir()} == {"my data", "my runs"}
    assert (home / "my data" / CIFAR10.archive).read_bytes() == ARCHIVE
    rows = pd.read_csv(home / "my runs" / "results" / "results.csv")
    assert rows.role.value_counts().to_dict() == {"distill": 4, "student": 4, "teacher": 1}
    assert set(rows.width[rows.role != "teacher"]) == {8}
    assert set(rows.test_acc.between(0, 1)) == {True} and rows.data.nunique() == 1
    report = (home / "my runs" / "results" / "REPORT.md").read_text()
    assert "**cifar10, 80 training images, 1 epoch, T_max 1" in report
    assert not list((home / "my runs").rglob("*.state"))


def forms(root) -> dict:
    """Each form on the disk that CIFAR-10 may have, and what --data-dir may name of it."""
    for name in ("archive", "folder", "named", "bare", "files", "both", "repickled"):
        (root / name).mkdir()
    for name in ("archive", "both"):
        (root / name / CIFAR10.archive).write_bytes(ARCHIVE)
    (root / "named" / "any name.tar.gz").write_bytes(ARCHIVE)
    published = {n: cifar_archive.python2(c) for n, c in cifar_archive.batches(ARRAYS).items()}
    anew = {  # by Python 3, in another order, keys as text, all training images in one file
        split: (images[::-1], labels[::-1]) for split, (images, labels) in ARRAYS.items()
    }
    repickled = {
        name: pickle.dumps({k.decode(): v for k, v in content.items()}, protocol=5)
        for name, content in cifar_archive.batches(anew, parts=1).items()
    }
    for place, files in (
        (root / "folder" / CIFAR10.folder, published),
        (root / "bare" / "batches", published),
        (root / "repickled" / CIFAR10.folder, repickled),
    ):
        place.mkdir()
        for name, raw in files.items():
            (place / name).write_bytes(raw)
    cifar_archive.as_files(ARRAYS, root / "files")
    named = {name: root / name for name in ("archive", "folder", "files", "both", "repickled")}
    return named | {"named": root / "named" / "any name.tar.gz", "bare": root / "bare" / "batches"}


def test_every_form_gives_the_same_row_and_is_left_as_it_is(tmp_path):
    rows = {}
    (tmp_path / "data").mkdir()
    for name, data_dir in forms(tmp_path / "data").items():
        before = {p: p.stat().st_mtime_ns for p in data_dir.rglob("*") if p.is_file()}
        out = tmp_path / "out" / name
        argv = "--epochs 1 --batch-size 20 --device cpu --threads 1 --lr 0.01".split()
        for again in ([], ["--overwrite"]):  # the second time from the cache, where there is one
            argv = [*argv, "--data-dir", data_dir, "--out-dir", out, *again]
            assert script(train_student.main, *argv) == 0
            row = pd.read_csv(out / "results" / "results.csv").iloc[0]
            rows[name, bool(again)] = (row.data, row.test_data, row.test_loss, row.train_acc)
        assert before.items() <= {p: p.stat().st_mtime_ns for p in data_dir.rglob("*")}.items()
    assert len(set(rows.values())) == 1, rows


def test_pixels_and_labels_are_those_of_the_archive(tmp_path):
    (tmp_path / CIFAR10.archive).write_bytes(ARCHIVE)
    data = load("cifar10", tmp_path, CPU)
    assert data.classes[3] == "cat" and len(data.classes) == 10
    for split, (images, labels) in ARRAYS.items():
        found = getattr(data, split)
        pixels = found.padded[:, 4:36, 4:36].numpy()
        theirs = {(image.tobytes(), label) for image, label in zip(images, labels, strict=True)}
        pairs = zip(pixels, found.labels.tolist(), strict=True)
        assert {(image.tobytes(), label) for image, label in pairs} == theirs


def test_classes_are_cifars_whatever_the_folders_are_called(tmp_path):
    cifar_archive.as_files(ARRAYS, tmp_path)
    for split in ("train", "test"):
        for label, name in enumerate(CIFAR10.classes):
            (tmp_path / split / name).rename(tmp_path / split / str(label))
    assert load("cifar10", tmp_path, CPU).classes == CIFAR10.classes


def test_photos_beside_the_archive_are_left_alone(tmp_path):
    """Both are in data/ unless --data-dir says otherwise."""
    others = {split: (images ^ 255, labels) for split, (images, labels) in ARRAYS.items()}
    cifar_archive.as_files(others, tmp_path)
    with pytest.raises(UserError, match="train are not CIFAR-10's .*name another --data-dir"):
        load("cifar10", tmp_path, CPU)
    (tmp_path / CIFAR10.archive).write_bytes(ARCHIVE)
    assert len(load("cifar10", tmp_path, CPU).train) == len(ARRAYS["train"][0])


class Evil:
    def __reduce__(self):
        return os.system, ("touch ran",)


@pytest.mark.parametrize(
    "kind", ["torn", "no archive", "other images", "evil", "lacking", "labels", "empty"]
)
def test_what_is_not_cifar10_is_one_line_and_stays(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place, folder = tmp_path / CIFAR10.archive, tmp_path / CIFAR10.folder
    if kind == "torn":
        place.write_bytes(ARCHIVE[:-100])
    elif kind == "no archive":
        place.write_bytes(b"<html>not found</html>")
    elif kind == "other images":
        place.write_bytes(cifar_archive.archive(cifar_archive.draw(8, 3)))
    else:
        folder.mkdir()
        content = cifar_archive.batches(ARRAYS) if kind == "evil" else {}
        if kind == "lacking":
            content = {"data_batch_1": cifar_archive.batches(ARRAYS)["data_batch_1"]}
        if kind == "labels":
            content = cifar_archive.batches(ARRAYS)
            content["test_batch"][b"labels"].pop()
        for name, what in content.items():
            (folder / name).write_bytes(
                pickle.dumps(what | ({b"x": Evil()} if kind == "evil" else {}))
            )
    before = {p: p.is_file() and p.read_bytes() for p in tmp_path.rglob("*")}
    with pytest.raises(UserError) as caught:
        load("cifar10", tmp_path, CPU)
    assert re.search("other images|move it away", str(caught.value))
    assert "\n" not in str(caught.value) and not (tmp_path / "ran").exists()
    left = {p: p.is_file() and p.read_bytes() for p in tmp_path.rglob("*")}
    assert before.items() <= left.items()


def test_an_archive_that_is_not_there_is_no_new_folder(tmp_path):
    with pytest.raises(UserError, match="there is no archive"):
        load("cifar10", tmp_path / "copy.tar.gz", CPU)
    assert not list(tmp_path.iterdir())


def test_views_of_channels_first_batches_are_hashed_as_images():
    """torchvision's CIFAR10.data is such a view, too; once it crashed the main command."""
    images, labels = ARRAYS["train"]
    view = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    assert not view.flags.c_contiguous
    for one, other in zip(
        cifar.by_content(images, labels), cifar.by_content(view, labels), strict=True
    ):
        assert np.array_equal(one, other) and one.flags.c_contiguous
    assert torch.from_numpy(cifar.by_content(view, labels)[0]).is_contiguous()


# ---------------------------------------------------------------- CIFAR-100


def test_cifar100_is_known_as_torchvision_knows_it():
    from torchvision.datasets import CIFAR100 as THEIRS

    ours = CIFAR100.archive, CIFAR100.md5, CIFAR100.folder, CIFAR100.sources[-1]
    assert ours == (THEIRS.filename, THEIRS.tgz_md5, THEIRS.base_folder, THEIRS.url)
    assert CIFAR100.md5_of == dict([*THEIRS.train_list, *THEIRS.test_list])
    assert len(CIFAR100.classes) == 100 and CIFAR100.classes == sorted(CIFAR100.classes)


@pytest.fixture
def hundred(monkeypatch) -> dict[str, bytes]:
    """CIFAR-100 as if these were its files."""
    files = cifar_archive.cifar100(HUNDRED)
    known = {name: hashlib.md5(files[name]).hexdigest() for name in CIFAR100.md5_of}
    monkeypatch.setattr(CIFAR100, "md5_of", known)
    monkeypatch.setattr(CIFAR100, "sources", [])
    return files


def test_cifar100_from_the_server_to_rows(mirror, hundred, tmp_path, monkeypatch, capfd):
    archive = (tmp_path / "mirror" / "cifar100").read_bytes()
    monkeypatch.setattr(CIFAR100, "md5", hashlib.md5(archive).hexdigest())
    monkeypatch.setenv("CIFAR100_URL", mirror.replace("copy.tar.gz", "cifar100"))
    monkeypatch.setenv("no_proxy", "*")
    common = ["--dataset", "cifar100", "--data-dir", tmp_path / "data", "--out-dir", tmp_path]
    common += "--epochs 1 --batch-size 20 --device cpu --threads 1 --lr 0.01".split()
    assert script(train_teacher.main, *common, "--width", 4) == 0
    monkeypatch.delenv("CIFAR100_URL")  # from here on it is there
    assert script(distill.main, *common, "--alpha", 0.5, "--temperature", 4, "--alone") == 0
    rows = pd.read_csv(tmp_path / "results" / "results.csv").set_index("run_id")
    row = rows.loc["cnn-kd-a0.5-T4-s0-cifar100-e1-b20-lr0.01"]
    assert (row.train_size, row.params) == (200, 16 * 28 + 32 * 145 + 100 * 2049)
    assert rows.data.nunique() == 1 and len(rows) == 3
    assert {p.name for p in (tmp_path / "data").glob("*cifar*")} == {
        "cifar-100-python.tar.gz",
        ".cifar-100.lock",
        ".kd-cifar100.npz",
    }
    found = torch.load(next((tmp_path / "checkpoints").glob("cnn-s0*")), weights_only=True)
    assert found["class_names"] == CIFAR100.classes and found["mean"] == [0.5071, 0.4867, 0.4408]
    assert found["std"] == [0.2675, 0.2565, 0.2761]
    # The same from the folder that it unpacks to, with the fine labels.
    (tmp_path / "unpacked" / CIFAR100.folder).mkdir(parents=True)
    for name, raw in hundred.items():
        (tmp_path / "unpacked" / CIFAR100.folder / name).write_bytes(raw)
    data = load("cifar100", tmp_path / "unpacked", CPU)
    assert data.fingerprint == row.data
    assert data.train.labels.tolist() == sorted(HUNDRED["train"][1].tolist())


def test_the_fields_table_from_the_server_to_the_report(mirror, hundred, tmp_path):
    """RECIPE=crd, as somebody runs it who has nothing yet: pairs, methods on layers, a bank."""
    archive = (tmp_path / "mirror" / "cifar100").read_bytes()
    known = {name: hashlib.md5(hundred[name]).hexdigest() for name in CIFAR100.md5_of}
    (tmp_path / "sitecustomize.py").write_text(
        "from images.cifar import CIFAR100\n"
        f"CIFAR100.md5 = {hashlib.md5(archive).hexdigest()!r}\n"
        f"CIFAR100.md5_of = {known}\n"
    )
    env = {
        "CIFAR100_URL": mirror.replace("copy.tar.gz", "cifar100"),
        "OUT_DIR": str(tmp_path / "out"),
        "DATA_DIR": str(tmp_path / "data"),
        "RECIPE": "crd",
        "PAIRS": "resnet14:resnet8 resnet8:resnet8",
        "METHODS": "kd kd+crd",
        "EPOCHS": "2",
        "SEEDS": "0 1",
        "RANKS": "1",
        "FLAGS": "--device cpu --threads 1",
    }
    exp_sh(tmp_path, tmp_path, env)
    rows = pd.read_csv(tmp_path / "out" / "results" / "results.csv").set_index("run_id")
    assert rows.role.value_counts().to_dict() == {"distill": 8, "teacher": 2, "student": 2}
    assert set(rows.recipe) == {"crd"} and set(rows.epochs) == {2} and set(rows.batch_size) == {64}
    row = rows.loc["resnet8-kd-a0.9-T4-t2-s1-t_resnet14-cifar100-e2-crd"]
    assert (row.teacher, row.lr, row.weight_decay) == ("resnet14-teacher-s0-cifar100", 0.05, 5e-4)
    row = rows.loc["resnet8-kd+crd-a1-T4-b0.8-t2-h1-s0-t_resnet8-cifar100-e2-crd"]
    assert (row.alpha, row.hard_weight, row.milestones) == (1, 1, "1 2")


def test_what_is_not_cifar100_is_one_line_and_stays(hundred, tmp_path):
    folder = tmp_path / CIFAR100.folder
    folder.mkdir()
    for name, raw in hundred.items():
        (folder / name).write_bytes(raw)
    (folder / "test").write_bytes(hundred["train"])  # a stranger's pickle is not even opened
    with pytest.raises(UserError, match="cannot read CIFAR-100 .*MD5 of test"):
        load("cifar100", tmp_path, CPU)
    (folder / "test").unlink()
    with pytest.raises(UserError, match="cannot read CIFAR-100 .*'test'"):
        load("cifar100", folder, CPU)
    cifar_archive.as_files(ARRAYS, tmp_path / "files")
    with pytest.raises(UserError, match="--dataset folder reads them"):
        load("cifar100", tmp_path / "files", CPU)
    with pytest.raises(UserError, match=r"no source has CIFAR-100 .*MD5 eb9058.*CIFAR100_URL"):
        load("cifar100", tmp_path / "nothing", CPU)
