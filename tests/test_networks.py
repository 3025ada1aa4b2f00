"""Networks and teachers that are not of this project: by name, from a file, with their weights."""

import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import torchvision
from conftest import Countdown, make_images, script, train_all, weights
from torch import nn

import distill
import models
import summarize
import train_student
import train_teacher
from engine.cells import Cell
from engine.loop import train
from engine.rows import csv_path, read_rows
from engine.teacher import network_of
from utils import SAFE_NAME, Interrupted, UserError, load_checkpoint

FLAGS = "--dataset folder --epochs 1 --batch-size 16 --lr 0.01 --device cpu --threads 1".split()
SHUFFLE = "torchvision:shufflenet_v2_x0_5"
HEAD = "import torch\nfrom torch import nn\n"
# A `view` that channels_last does not allow, one ReLU for all sizes, dropout, a batch norm.
NET = """
class Net(nn.Module):
    def __init__(self, depth=2, num_classes=10):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 8, 3, 2, 1)
        self.norm, self.relu, self.drop = nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.1)
        self.fc = nn.Linear(8 * 64, num_classes)

    def forward(self, x):
        x = self.relu(self.conv2(self.relu(self.norm(self.conv1(x)))))
        return self.fc(self.drop(x.view(len(x), -1)))
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("networks")
    make_images(root, 25, 4)
    return root


@pytest.fixture
def run(images, tmp_path, monkeypatch):
    """Run a script's main on the images, in and below an empty folder of its own."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.chdir(tmp_path)
    return lambda main, *argv: script(
        main, *FLAGS, "--data-dir", images, "--out-dir", tmp_path / "out", *argv
    )


def one_line(capsys) -> str:
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1, captured.err
    return captured.err


def write(path: str, text: str) -> str:
    Path(path).write_text(HEAD + text)
    return path


def foreign_weights(path: str, classes: int = 2) -> dict:
    """Weights of torchvision's ShuffleNet, as they lie about."""
    torch.manual_seed(1)
    state = torchvision.models.shufflenet_v2_x0_5(num_classes=classes).state_dict()
    torch.save(state, path)
    return state


TAKEN = ["--model", SHUFFLE, "--epochs", 0, "--weights"]

# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("torchvision:resnet18", "torchvision-resnet18"),
        ("my_net.py:Net", "my_net-Net"),
        ("package.module:Net", "package.module-Net"),
        (".odd näme.py:Net", "odd-n-me-Net"),
    ],
)
def test_a_name_is_safe_in_run_ids(name, short):
    assert models.file_name(name) == short and SAFE_NAME.fullmatch(short)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("resnet81", "did you mean resnet8 or resnet18"),
        ("torchvision:resnet81", "did you mean resnet18"),
        ("torchvision:fcn_resnet50", "torchvision has no network"),  # one that segments
        ("nowhere.module:Net", "No module named 'nowhere'"),
        ("nowhere.py:Net", "there is no file nowhere.py"),
        (":Net", "is no path/to/file.py:Net"),
    ],
)
def test_a_name_that_is_none_is_one_line(run, capsys, name, says):
    assert run(train_student.main, "--student", name) == 2
    assert says in one_line(capsys)


def test_a_network_without_a_width_has_none(run, capsys):
    assert run(train_student.main, "--student", SHUFFLE, "--width", 8) == 2
    assert "has no width" in one_line(capsys)


def test_timm_is_asked_where_it_is_installed(run, capsys, monkeypatch):
    """And its own list decides, for timm fetches names of other forms."""
    monkeypatch.syspath_prepend(".")
    Path("timm.py").write_text(
        "from torchvision.models import get_model\n"
        "list_models = lambda: ['tiny']\n"
        "create_model = lambda name, num_classes: get_model('resnet18', num_classes=num_classes)\n"
    )
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    assert isinstance(models.build("timm:tiny", 0, 3), torchvision.models.ResNet)
    for name in ("timm:hf-hub:some/one", "timm:larger"):
        with pytest.raises(UserError, match="timm has no network"):
            models.build(name, 0, 3)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match="pip install timm"):
        models.build("timm:tiny", 0, 3)


# ---------------------------------------------------------------- a user's own file

HOSTILE = {
    "raises": ("def Net(classes): raise ValueError('no luck')", "raised ValueError: no luck"),
    "has none": ("class Nat: pass", "has no Net (did you mean Nat?)"),
    "is no code": ("class Net(:", "raised SyntaxError"),
    "leaves": ("raise SystemExit(3)", "raised SystemExit: 3"),
    "is a number": ("Net = 3", "is a int"),
    "returns a number": ("def Net(classes): return 3", "returns a int"),
    "downloads": (
        "import urllib.request\n"
        "def Net(classes): urllib.request.urlopen('http://127.0.0.1:9/weights')",
        "raised URLError",
    ),
    "has no weights": ("def Net(classes): return nn.Flatten()", "has no weights"),
    "gives a tuple": (NET.replace("return self.fc", "return x, self.fc"), "returns a tuple"),
    "gives a dict": (NET.replace("return self", "return {} or dict(a=1) or self"), "a dict"),
    "other classes": (NET.replace("8 * 64, num_classes", "8 * 64, 7"), "returns [2, 7] for 2"),
    "not finite": (NET.replace("return ", "return float('nan') * "), "not finite"),
    "other images": (NET.replace("8 * 64", "8 * 3136"), "raised RuntimeError"),
    "a tuple if measured": (
        NET.replace(
            "return self.fc", "return self.fc(x.flatten(1)) if self.training else 1, self.fc"
        ),
        "returns a tuple",
    ),
    "one batch size": (NET.replace("x.view(len(x)", "x.view(2"), "raised RuntimeError"),
    "no gradient": (NET.replace("-1)))", "-1))).detach()"), "no gradient comes back"),
    "probabilities": (
        NET.replace("return self.fc", "x = self.fc").replace(
            "-1)))", "-1)))\n        return x.softmax(1)"
        ),
        "returns probabilities",
    ),
    "train gives nothing": (
        NET + "    def train(self, mode=True):\n        super().train(mode)\n",
        "train that does not return self",
    ),
    "lazy": (NET.replace("nn.Linear(8 * 64, ", "nn.LazyLinear("), "has lazy layers"),
    "once": (
        NET + "net = Net(num_classes=2)\ndef Net(classes): return net",
        "returns the same module again",
    ),
    "scripted": (
        "def Net(classes):\n    parts = nn.Flatten(), nn.Linear(3072, classes)\n"
        "    return torch.jit.script(nn.Sequential(*parts))",
        "raised RuntimeError",
    ),
    "lazy buffers": (
        "def Net(classes):\n    norm = nn.LazyBatchNorm2d(affine=False)\n"
        "    return nn.Sequential(norm, nn.Flatten(), nn.Linear(3072, classes))",
        "has lazy layers",
    ),
    "a depth first": (
        NET.replace("num_classes", "k") + "def unused(): pass",
        "which argument of Net is the number of classes? Its first, depth, has a default",
    ),
    "a network": (NET + "Net = Net(num_classes=2)", "is a network already"),
    "draws if measured": (
        NET + "class Drop(Net):\n    def forward(self, x):\n"
        "        return nn.functional.dropout(super().forward(x))\nNet = Drop",
        "draws random numbers in eval mode",
    ),
    "another dtype": ("torch.set_default_dtype(torch.float64)" + NET, "raised RuntimeError"),
}


@pytest.fixture(autouse=True)
def as_it_was():
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_file_that_is_no_network_is_one_line(run, capsys, kind):
    text, says = HOSTILE[kind]
    name = "net_" + kind.replace(" ", "_")
    assert run(train_student.main, "--student", write(f"{name}.py", text) + ":Net") == 2
    assert says in one_line(capsys)
    assert not list(Path("out/checkpoints").glob("*.pt"))


def test_a_mask_of_infinities_is_no_damage(run, capsys):
    """As a teacher from weights elsewhere, and as a checkpoint of this project."""
    text = NET.replace("self.fc =", "self.register_buffer('mask', torch.full((2,), -torch.inf))\n"
                       "        self.fc =")  # fmt: skip
    net = write("masked.py", text) + ":Net"
    assert run(train_teacher.main, "--model", net) == 0
    [left] = Path("out/checkpoints").glob("*teacher*.pt")
    stored = torch.load(left, weights_only=True)["state"]
    assert not torch.isfinite(stored["mask"]).any()
    torch.save(stored, "theirs.pt")
    taken = ["--model", net, "--weights", "theirs.pt", "--epochs", 0, "--seed", 1]
    assert run(train_teacher.main, *taken) == 0
    assert run(distill.main, "--teacher-model", net, "--teacher-seed", 1) == 0
    torch.save(stored | {"mask": torch.tensor([1, torch.nan])}, "theirs.pt")
    capsys.readouterr()
    assert run(train_teacher.main, *taken, "--overwrite") == 2
    assert "not finite" in one_line(capsys)


def test_the_number_of_classes_goes_where_it_belongs(run):
    """The signature of many collections: the first argument is whether to load weights."""
    text = NET + "def zoo(pretrained=False, **how):\n    assert not pretrained\n"
    text += "    return Net(**how)\n"
    assert run(train_student.main, "--student", write("zoo.py", text) + ":zoo") == 0
    text = NET.replace("num_classes", "n_classes")
    assert run(train_student.main, "--student", write("other.py", text) + ":Net") == 0


def test_averaged_weights_are_those_of_their_network(run):
    state = foreign_weights("plain.pt")
    averaged = {"n_averaged": torch.tensor(7)} | {f"module.{n}": v for n, v in state.items()}
    torch.save(averaged, "averaged.pt")
    assert run(train_teacher.main, *TAKEN, "averaged.pt") == 0


def test_a_file_may_print_and_have_neighbours_and_no_convolution(run, capsys):
    foreign_weights("theirs.pt")
    assert run(train_teacher.main, *TAKEN, "theirs.pt") == 0
    Path("neighbour_of_talker.py").write_text("from torch.nn import Flatten, Linear, Sequential")
    text = "from neighbour_of_talker import *\nprint('hello')\n"
    text += "def Net(k): return Sequential(Flatten(), Linear(3072, k))"
    student = ["--student", write("talker.py", text) + ":Net"]
    assert run(distill.main, *student) == 0
    assert run(distill.main, *student, "--method", "rkd", "--beta", 0.1) == 0
    capsys.readouterr()
    for method, says in (("at", "no convolution"), ("sp", "the student has none")):
        assert run(distill.main, *student, "--method", method) == 2
        assert says in one_line(capsys)
    assert weights(Path("out")).keys() >= {
        "talker-Net-kd-a0.5-T10-s0-t_torchvision-shufflenet_v2_x0_5-folder-e1-b16-lr0.01"
    }


def test_a_changed_file_is_another_network(run, capsys, make_run):
    assert run(train_student.main, "--student", write("changing.py", NET) + ":Net") == 0
    [row] = read_rows(csv_path(Path("out"))).itertuples()
    assert row.model == "changing.py:Net" and row.width == 0 and len(row.code) == 8
    cells = [Cell("changing.py:Net", 0, 0, lr=0.05)]
    with pytest.raises(Interrupted):
        train(cells, cells, make_run("stopped", keeper=Countdown(3)))
    write("changing.py", NET.replace("0.1", "0.2"))
    assert run(train_student.main, "--student", "changing.py:Net") == 2
    assert f"code {row.code}, now " in one_line(capsys)
    with pytest.raises(UserError, match="network "):
        train(cells, cells, make_run("stopped"))


def test_a_checkpoint_has_no_file_imported(run, capsys):
    """Not even where it lies; and its weights must be those of the network that is named."""
    teacher = write("own.py", NET + "print('imported')\n") + ":Net"
    assert run(train_teacher.main, "--model", teacher) == 0
    models.registry.NAMED.clear()  # as in a process of its own
    capsys.readouterr()
    assert run(distill.main) == 2
    assert "name it with --teacher-model" in one_line(capsys)
    assert run(train_student.main) == 0  # nobody needs it
    assert read_rows(csv_path(Path("out"))).agreement.isna().all()
    assert "imported" not in capsys.readouterr().out
    assert run(distill.main, "--teacher-model", teacher) == 0
    assert "imported" in capsys.readouterr().out
    [sheet] = Path("out/checkpoints").glob("*.sheet")
    write("own.py", NET.replace("self.conv1(x)", "-self.conv1(x)"))
    assert run(distill.main, "--teacher-model", teacher, "--seed", 1) == 0
    assert len([*Path("out/checkpoints").glob("*.sheet")]) == 2  # the first says another's logits
    other = write("other.py", NET.replace("conv", "layer")) + ":Net"
    assert run(distill.main, "--teacher-model", other, "--seed", 2) == 2
    assert "weights are of another architecture than other.py:Net" in one_line(capsys)


def test_torchvisions_checkpoint_loads_by_itself_and_a_strangers_name_does_not(run):
    assert run(train_student.main, "--student", SHUFFLE) == 0
    [path] = Path("out/checkpoints").glob("*.pt")
    stored = load_checkpoint(path)
    assert isinstance(network_of(stored, path), torchvision.models.ShuffleNetV2)
    for name in ("torchvision:resnet18", "torchvision:x", "timm:hf-hub:x", "os:getcwd", "x.py:Net"):
        with pytest.raises(UserError):
            network_of(stored | {"model": name}, path)


# ---------------------------------------------------------------- foreign teachers


def test_from_foreign_weights_to_students_and_the_report(run, capsys):
    """Taken as they are, measured, and then a teacher as any; features between two strangers."""
    state = foreign_weights("theirs.pt")
    wrapped = {"net": {f"model.module.{name}": v for name, v in state.items()}, "epoch": 3}
    torch.save(wrapped, "wrapped.pt")
    moments = ["--mean", 0.485, 0.456, 0.406, "--std", 0.229, 0.224, 0.225]
    taken = *TAKEN, "wrapped.pt", *moments, "--keep", "best"
    assert run(train_teacher.main, *taken) == 0
    name = "torchvision-shufflenet_v2_x0_5-teacher-s0-folder"
    stored = load_checkpoint(Path(f"out/checkpoints/{name}.pt"))
    assert stored["mean"] == [0.485, 0.456, 0.406] and stored["std"][2] == 0.225
    assert all(torch.equal(stored["state"][key], state[key]) for key in state)
    best = torch.load(f"out/checkpoints/{name}.best.pt", weights_only=True)
    assert best["epoch"] == 0 and torch.equal(best["state"]["fc.bias"], state["fc.bias"])
    capsys.readouterr()
    assert run(train_teacher.main, *taken) == 0
    assert "1 of 1 runs" in capsys.readouterr().out
    assert run(train_teacher.main, *TAKEN, "theirs.pt", *moments) == 2  # other bytes
    assert "weights " in one_line(capsys)
    assert run(train_teacher.main, *TAKEN, "wrapped.pt") == 2
    assert "normalization 0.485 0.456 0.406/" in one_line(capsys)

    student = ["--student", write("learner.py", NET) + ":Net"]
    assert run(distill.main, *student, "--alone") == 0
    for method in ("at", "fitnet", "sp", "rkd"):
        assert run(distill.main, *student, "--method", method, "--beta", 0.01) == 0
    assert run(distill.main, "--student", SHUFFLE, "--method", "at", "--last-batch", "drop") == 0
    layers = ["--student-layers", "conv2", "--teacher-layers", "conv1", "maxpool"]
    assert run(distill.main, *student, "--method", "at", "--beta", 1, *layers) == 0
    assert run(distill.main, *student, "--method", "at", "--beta", 1) == 0
    rows = read_rows(csv_path(Path("out"))).set_index("run_id")
    teacher = rows.loc[name]
    assert teacher.epochs == teacher.best_epoch == 0 and teacher.test_acc == teacher.best_test_acc
    assert teacher.weights and pd.isna(teacher.test_curve)
    assert set(rows.teacher[rows.role == "distill"]) == {name} and len(rows) == 10
    layered = rows.loc[
        "learner-Net-at-a0.5-b1-s0-t_torchvision-shufflenet_v2_x0_5-sl_conv2-tl_conv1+maxpool-folder-e1-b16-lr0.01"
    ]
    assert layered.student_layers == "conv2" and layered.teacher_layers == "conv1 maxpool"
    assert (
        layered.test_loss
        != rows.loc[
            "learner-Net-at-a0.5-b1-s0-t_torchvision-shufflenet_v2_x0_5-folder-e1-b16-lr0.01"
        ].test_loss
    )
    capsys.readouterr()
    assert script(summarize.main, "--out-dir", "out") == 0
    told = capsys.readouterr().out
    assert "| at | α 0.5, β 1, student conv2, teacher conv1 maxpool |" in told
    assert f"| teacher | {SHUFFLE} |" in Path("out/results/REPORT.md").read_text()


def test_fine_tuning_begins_with_the_weights(run):
    foreign_weights("theirs.pt")
    tuned = *TAKEN, "theirs.pt", "--epochs", 1, "--lr", 1e-30
    assert run(train_teacher.main, *tuned) == 0
    stored = load_checkpoint(
        Path("out/checkpoints/torchvision-shufflenet_v2_x0_5-teacher-s0-folder.pt")
    )
    assert torch.equal(stored["state"]["fc.weight"], torch.load("theirs.pt")["fc.weight"])
    [row] = read_rows(csv_path(Path("out"))).itertuples()
    assert row.epochs == row.best_epoch == 1


def test_a_last_layer_of_other_classes_starts_afresh(run, capsys):
    foreign_weights("theirs.pt", 1000)
    assert run(train_teacher.main, *TAKEN, "theirs.pt", "--epochs", 1, "--lr", 1e-30) == 0
    assert "1000 classes apart and the data have 2: fc.weight, fc.bias" in capsys.readouterr().err
    stored = load_checkpoint(
        Path("out/checkpoints/torchvision-shufflenet_v2_x0_5-teacher-s0-folder.pt")
    )
    theirs = torch.load("theirs.pt")
    assert torch.equal(stored["state"]["conv1.0.weight"], theirs["conv1.0.weight"])
    assert (
        stored["state"]["fc.weight"].shape == (2, 1024) and stored["state"]["fc.weight"].std() > 0
    )


def misfit(change) -> str:
    torch.save(change(foreign_weights("theirs.pt")), "odd.pt")
    return "odd.pt"


MISFITS = {
    "another network's": (
        lambda state: nn.Linear(3, 2).state_dict(),
        "they lack conv1.0.weight, conv1.1.weight, conv1.1.bias and 335 more and have weight, bias",
    ),
    "of other classes": (
        lambda state: foreign_weights("other.pt", 1000),
        "1000 classes apart and the data have 2",
    ),
    "of another width": (
        lambda state: state | {"conv1.0.weight": torch.zeros(8, 3, 3, 3)},
        "conv1.0.weight is [8, 3, 3, 3], not [24, 3, 3, 3]",
    ),
    "a number": (
        lambda state: state | {"fc.bias": torch.zeros(())},
        "fc.bias is [], not [2]",
    ),
    "not finite": (lambda state: state | {"fc.bias": torch.full((2,), torch.nan)}, "not finite"),
    "none": (lambda state: {"epoch": 3}, "has no state_dict"),
    "code": (lambda state: nn.Linear(3, 2), "save a state_dict"),
}


@pytest.mark.parametrize("kind", MISFITS)
def test_weights_that_do_not_fit_are_one_line(run, capsys, kind):
    change, says = MISFITS[kind]
    assert run(train_teacher.main, *TAKEN, misfit(change)) == 2
    assert says in one_line(capsys)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--epochs", 0], "name them with --weights"),
        (["--weights", "nowhere.pt"], "cannot read --weights nowhere.pt"),
        (["--mean", 0, 0, 0], "--mean and --std go together"),
        (
            ["--mean", 0, 0, 0, "--std", 1, 1, 1, "--normalization", "data"],
            "--normalization has no effect",
        ),
        (["--mean", 0, 0, "nan", "--std", 1, 1, 1], "is not a number"),
        (["--mean", 123.7, 116.3, 103.5, "--std", 0.2, 0.2, 0.2], "not a number from 0 to 1"),
        (["--mean", 0, 0, 0, "--std", 58.4, 57.1, 57.4], "not a number above 0, to 1"),
    ],
)
def test_half_a_foreign_teacher_is_one_line(run, capsys, argv, says):
    assert run(train_teacher.main, *argv) == 2
    assert says in one_line(capsys)
    assert run(train_student.main, "--epochs", 0) == 2
    assert "at least 1" in one_line(capsys)


def test_layers_belong_to_methods_that_compare_them(run, capsys):
    assert run(distill.main, "--student-layers", "conv1") == 2
    assert "--method kd compares no layers" in one_line(capsys)


# ---------------------------------------------------------------- in training


def test_a_torchvision_student_goes_on_with_the_same_bits(make_run):
    """Batch norm's running figures among them."""
    cell = Cell(SHUFFLE, 0, 0, "sp", 0.5, beta=1.0, lr=0.01, teacher_seed=0)
    cells = [cell, Cell(SHUFFLE, 0, 0, lr=0.01)]
    whole = train_all(cells, make_run("whole"))
    with pytest.raises(Interrupted):
        train(cells, cells, make_run("stopped", keeper=Countdown(6)))
    assert train_all(cells, make_run("stopped")) == whole
    alone = train_all(cells[1:], make_run("alone"))
    assert alone.items() <= whole.items()


def test_a_batch_norm_without_pixels_and_a_last_batch_of_one(run, capsys):
    few = "--student", SHUFFLE, "--batch-size", 49  # of 50 images
    assert run(train_student.main, *few) == 2
    assert "(an epoch ends with 1 image: --last-batch drop)" in one_line(capsys)
    assert run(train_student.main, *few, "--last-batch", "drop") == 0
    capsys.readouterr()
    assert run(train_student.main, "--student", SHUFFLE, "--batch-size", 1) == 2
    assert "(every batch is of 1 image: --batch-size)" in one_line(capsys)


def test_two_networks_do_not_share_a_neighbour_by_chance(run, capsys):
    for folder in ("one", "two"):
        Path(folder).mkdir()
        Path(folder, "neighbour_of_both.py").touch()
        write(f"{folder}/net.py", "import neighbour_of_both" + NET)
    one, two = "one/net.py:Net", "two/net.py:Net"
    assert run(distill.main, "--teacher-model", one, "--student", two) == 2
    assert "is imported, so neighbour_of_both of " in one_line(capsys)


def test_a_layer_may_be_called_by_a_number(run, capsys):
    foreign_weights("theirs.pt")
    assert run(train_teacher.main, *TAKEN, "theirs.pt") == 0
    text = "def Net(k): return nn.Sequential(conv, nn.Flatten(), nn.Linear(256, k))".replace(
        "conv", "nn.Conv2d(3, 4, 3, 4, 1)"
    )
    layers = ["--student-layers", "0", "--teacher-layers", "maxpool"]
    student = ["--student", write("numbered.py", text) + ":Net", "--method", "at", *layers]
    assert run(distill.main, *student) == 0 and run(distill.main, *student) == 0
    assert "1 of 1 runs" in capsys.readouterr().out


def test_weights_may_be_compiled_or_from_before_batches_were_counted(run):
    state = foreign_weights("theirs.pt")
    kept = {f"_orig_mod.{n}": v for n, v in state.items() if "num_batches" not in n}
    torch.save(kept, "odd.pt")
    assert run(train_teacher.main, *TAKEN, "odd.pt") == 0
    assert (
        run(
            train_teacher.main,
            *TAKEN,
            misfit(lambda s: {n: v.to("meta") for n, v in s.items()}),
            "--overwrite",
        )
        == 2
    )


def test_a_checkpoint_of_this_project_keeps_its_normalisation(run):
    own = ["--model", "resnet8", "--mean", 0.1, 0.2, 0.3, "--std", 0.4, 0.5, 0.6]
    assert run(train_teacher.main, *own) == 0
    [path] = Path("out/checkpoints").glob("*.pt")
    again = ["--model", "resnet8", "--weights", path, "--epochs", 0, "--seed", 1]
    assert run(train_teacher.main, *again) == 0
    first, second = read_rows(csv_path(Path("out"))).itertuples()
    assert second.normalization == first.normalization and second.test_loss == first.test_loss


def test_a_checkpoint_of_this_project_keeps_its_classes(run, capsys):
    assert run(train_teacher.main, "--model", "resnet8") == 0
    [path] = Path("out/checkpoints").glob("*.pt")
    stored = torch.load(path, weights_only=True)
    torch.save(stored | {"class_names": stored["class_names"][::-1]}, "other.pt")
    again = ["--model", "resnet8", "--weights", "other.pt", "--seed", 1]
    capsys.readouterr()
    assert run(train_teacher.main, *again, "--epochs", 0) == 2
    assert "in this order" in one_line(capsys)
    assert run(train_teacher.main, *again) == 0
