"""A trained network is taken elsewhere and says the same there; predict.py names classes."""

import importlib.util
import json
import os
import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, make_images, script
from PIL import Image

import export
import predict
import train_student
import train_teacher
from engine.portable import open_checkpoint

ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with the checkpoints student.pt, student.best.pt and teacher.pt, and images/."""
    out = tmp_path_factory.mktemp("trained")
    make_images(out / "images", 8, 4)
    data = ("--dataset", "folder", "--data-dir", out / "images", "--out-dir", out)
    data += ("--epochs", 2, "--batch-size", 8, "--device", "cpu", "--width", 4)
    assert script(train_student.main, *data, "--lr", 0.05, "--keep", "best") == 0
    assert script(train_teacher.main, *data, "--lr", 0.05) == 0
    for role, pattern in (("student.best", "cnn*.best.pt"), ("teacher", "resnet18*.pt")):
        next((out / "checkpoints").glob(pattern)).rename(out / f"{role}.pt")
    next((out / "checkpoints").glob("cnn*.pt")).rename(out / "student.pt")
    return out


def test_a_program_says_elsewhere_what_the_checkpoint_says_here(trained, tmp_path, capsys):
    """By the three lines of docs/networks.md, in a process that has nothing of this project."""
    image = trained / "images" / "test" / "light" / "0.png"
    names = ["student", "teacher"]
    data = ("--dataset", "folder", "--data-dir", trained / "images")
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "image.png").write_bytes(image.read_bytes())
        assert script(export.main, "--checkpoint", trained / f"{name}.pt", "--format", "pt2",
                      "--out", tmp_path / name / "student.pt2", *data) == 0  # fmt: skip
        assert "checked on 8 test images of folder" in capsys.readouterr().out
    [lines] = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "networks.md").read_text(), re.S)
    assert lines.count("\n") == 3
    code = f"""import importlib.util, json, numpy, os, torch
from PIL import Image
assert not importlib.util.find_spec("engine")
for name in {names}:
    os.chdir({str(tmp_path)!r} + "/" + name)
    exec({lines!r}.replace("print(", "said = ("))
    print(json.dumps(said.tolist()))
    torch.export.load("student.pt2", extra_files=(stored := {{"classes.json": ""}}))
    assert json.loads(stored["classes.json"]) == ["dark", "light"]
    assert network(torch.rand(7, 3, 32, 32)).shape == (7, 2)
"""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    elsewhere = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, text=True,
                               capture_output=True)  # fmt: skip
    assert elsewhere.returncode == 0, elsewhere.stderr
    for name, line in zip(names, elsewhere.stdout.splitlines(), strict=True):
        network, _, size = open_checkpoint(trained / f"{name}.pt")
        wanted = network(predict.read(image, size)).softmax(1)
        torch.testing.assert_close(torch.tensor(json.loads(line)), wanted, rtol=1e-5, atol=1e-6)


def test_size_and_time_beside_the_teachers(trained, tmp_path, capsys):
    """Of the best epoch's weights."""
    out = tmp_path / "student.pt2"
    assert script(export.main, "--checkpoint", trained / "student.best.pt", "--format", "pt2",
                  "--out", out, "--teacher", trained / "teacher.pt") == 0  # fmt: skip
    first, *lines = capsys.readouterr().out.splitlines()
    assert "64 images of random pixels" in first
    (small, fast), (large, slow) = (re.findall(r"([\d.]+) (?:MB|ms)", line) for line in lines)
    assert float(small) == pytest.approx(out.stat().st_size / 1e6, abs=0.01)
    assert float(small) < float(large) and float(fast) < float(slow)


@pytest.mark.skipif(ONNX, reason="onnx is installed")
def test_onnx_says_what_it_takes(trained, tmp_path, capsys):
    assert script(export.main, "--checkpoint", trained / "student.pt", "--format", "onnx",
                  "--out", tmp_path / "student.onnx") == 2  # fmt: skip
    said = capsys.readouterr().err
    assert "pip install onnx onnxscript" in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not ONNX, reason="onnx is not installed")
def test_onnx(trained, tmp_path, capsys):
    import onnx

    out = tmp_path / "student.onnx"
    checkpoint = trained / "teacher.pt"
    assert script(export.main, "--checkpoint", checkpoint, "--format", "onnx", "--out", out) == 0
    installed = importlib.util.find_spec("onnxruntime")
    assert ("checked on 64" if installed else "not checked") in capsys.readouterr().out
    model = onnx.load(out)
    assert {p.key: p.value for p in model.metadata_props}["classes"] == '["dark", "light"]'
    shape = model.graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in shape] == ["batch", 3, 32, 32]


def test_a_file_that_is_there_stays(trained, tmp_path, capsys):
    out = tmp_path / "student.pt2"
    out.write_text("mine")
    command = ("--checkpoint", trained / "student.pt", "--format", "pt2", "--out", out)
    assert script(export.main, *command) == 2
    assert out.read_text() == "mine" and "--overwrite" in capsys.readouterr().err
    assert script(export.main, *command, "--overwrite") == 0
    assert out.stat().st_size > 1000 and list(tmp_path.iterdir()) == [out]


def test_predictions(trained, tmp_path, capsys):
    """A line an image, whatever its size and mode; those that are none have one on stderr."""
    large = tmp_path / "large grey.png"
    Image.new("L", (50, 90), 200).save(large)
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "cut.png").write_bytes(large.read_bytes()[:60])
    small = trained / "images" / "test" / "light" / "1.png"
    odd = [tmp_path / "text.png", tmp_path / "cut.png", tmp_path / "none.png", tmp_path]
    command = ("--checkpoint", trained / "student.pt")
    assert script(predict.main, *command, small, *odd, large) == 1
    said = capsys.readouterr()
    lines = [line.split("\t") for line in said.out.splitlines()]
    assert [line[0] for line in lines] == [str(small), str(large)]
    network, classes, _ = open_checkpoint(trained / "student.pt")
    for path, name, probability in lines:
        said_here = network(predict.read(path, 32)).softmax(1)[0]
        assert name == classes[said_here.argmax()]
        assert float(probability) == pytest.approx(said_here.max().item(), abs=1e-4)
    errors = said.err.splitlines()
    assert all(str(path) in line for path, line in zip(odd, errors, strict=True))
    assert script(predict.main, *command, small) == 0


def test_mistakes_are_one_line(trained, tmp_path, capsys):
    student = trained / "student.pt"
    weights, cut = tmp_path / "weights.pt", tmp_path / "cut.pt"
    torch.save({"w": torch.zeros(2)}, weights)
    cut.write_bytes(student.read_bytes()[:1000])
    (tmp_path / "file").write_text("")
    out = tmp_path / "new.pt2"
    for checkpoint, out_and_more, expected in (
        (tmp_path / "none.pt", [out], "no checkpoint at"),
        (tmp_path, [out], "no checkpoint at"),
        (weights, [out], "holds weights alone"),
        (cut, [out], "truncated"),
        (student, [tmp_path], "is there already"),
        (student, [tmp_path, "--overwrite"], "cannot write"),
        (student, [tmp_path / "file" / "new.pt2"], "cannot write"),
        (student, [out, "--teacher", tmp_path / "none.pt"], "no checkpoint at"),
        (student, [out, "--dataset", "folder", "--data-dir", tmp_path], "no image folder"),
    ):
        argv = ("--checkpoint", checkpoint, "--format", "pt2", "--out", *out_and_more)
        assert script(export.main, *argv) == 2
        said = capsys.readouterr().err
        assert expected in said and said.count("\n") == 1, said
    assert not out.exists()
    for argv, expected in (
        (("--checkpoint", tmp_path / "none.pt", "image.png"), "no checkpoint at"),
        (("--checkpoint", student), "image"),
    ):
        assert script(predict.main, *argv) == 2
        said = capsys.readouterr().err
        assert expected in said and said.count("\n") == 1, said
