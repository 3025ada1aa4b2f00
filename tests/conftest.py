"""What the tests share: tiny random data, tiny runs, and scripts called in this process."""

import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: more threads only wait
ROOT = Path(__file__).resolve().parent.parent

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

import train_teacher  # noqa: E402
from engine.cells import Cell, Settings  # noqa: E402
from engine.loop import train  # noqa: E402
from engine.parallel import Ranks  # noqa: E402
from engine.resume import Keeper, Run  # noqa: E402
from engine.teacher import Teacher  # noqa: E402
from engine.trainee import initial_model  # noqa: E402
from images.sources import Data, to_device  # noqa: E402
from losses import METHODS  # noqa: E402
from utils import Interrupted, run_script  # noqa: E402

CPU = torch.device("cpu")
TINY = Settings(dataset="shapes", epochs=2, batch_size=32, t_max=2)
GRID = [
    Cell("cnn", 4, 0, "kd", alpha, temperature, lr=0.05, teacher_seed=0)
    for alpha in (0.1, 0.9)
    for temperature in (1.0, 4.0)
]


def of_response(method: str, alpha: float, temperature: float, **own: float) -> Cell:
    """A cell of a method on logits or labels, light enough to stay finite."""
    beta = None if METHODS[method].beta is None else 0.01
    temperature = temperature if METHODS[method].temperature else None
    seed = None if METHODS[method].family == "labels" else 0
    return Cell("cnn", 4, 0, method, alpha, temperature, beta, teacher_seed=seed, **own)


class Countdown(Keeper):
    """A keeper that stops the run at the n-th chance, as a signal would."""

    def __init__(self, chances: int):
        self.chances, self.signal, self.seconds = chances, 0, 1e9

    def due(self, told: int) -> bool:
        self.chances -= 1
        return self.chances <= 0

    def saved(self, told: int) -> None:
        raise Interrupted(130)


def random_split(count: int, seed: int):
    draw = np.random.default_rng(seed)
    images = draw.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return to_device(images, draw.integers(0, 10, count), slice(None), CPU, 32, pad=4, flips=2)


@pytest.fixture(scope="session")
def tiny_data() -> Data:
    """Random pixels: 100 images to train on, 40 to test on, ten classes."""
    names = [str(i) for i in range(10)]
    moments = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    return Data(random_split(100, 1), random_split(40, 2), None, names, *moments, 0, 0)


@pytest.fixture(scope="session")
def tiny_teacher(tiny_data: Data) -> Teacher:
    """An untrained narrow ResNet-18: what it says is arbitrary and always the same."""
    model = initial_model(Cell("resnet18", 4, 0, teaches=True), 10).eval().requires_grad_(False)
    return Teacher(model, "tiny-teacher", "0" * 12, tiny_data.mean, tiny_data.std, False)


@pytest.fixture
def make_run(tiny_data, tiny_teacher, tmp_path):
    """A Run over the tiny data; out_dir may be named."""

    def make(name: str = "out", settings: Settings = TINY, seconds: float = 1e9, **changes) -> Run:
        run = Run(settings, tiny_data, tiny_teacher, tmp_path / name, CPU, Ranks(), Keeper(seconds))
        for field, value in changes.items():
            setattr(run, field, value)
        return run

    return make


def make_images(root: Path, train: int, test: int) -> None:
    """An image folder of two classes, one darker than the other; `train` and `test` images each."""
    draw = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for label, top in (("dark", 130), ("light", 256)):
            (root / split / label).mkdir(parents=True)
            for i in range(count):
                pixels = draw.integers(0, top, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{i}.png")


def weights(out_dir: Path) -> dict[str, bytes]:
    """Every checkpoint's weights as bytes, by run id."""
    files = sorted((out_dir / "checkpoints").glob("*.pt"))
    states = {f.stem: torch.load(f, weights_only=True)["state"] for f in files}
    return {
        name: b"".join(value.contiguous().numpy().tobytes() for value in state.values())
        for name, state in states.items()
    }


def train_all(cells: list[Cell], run: Run) -> dict[str, bytes]:
    assert train(cells, cells, run) == []
    return weights(run.out_dir)


def script(main, *argv: object) -> int:
    """Run a script's main in this process as the command line would; returns the exit status."""
    try:
        run_script(lambda: main([str(a) for a in argv]))
    except SystemExit as stop:
        return stop.code or 0
    return 0


def small_teacher(out: Path, *flags: object) -> Path:
    """The checkpoint of a ResNet-18 of width 4, trained into `out` by the script."""
    assert script(train_teacher.main, *flags, "--width", 4, "--out-dir", out) == 0
    [path] = (out / "checkpoints").glob("*.pt")
    return path


def command(*argv: object, **env: str) -> subprocess.CompletedProcess:
    """Run a script in a process of its own."""
    process = begin(*argv, **env)
    out, err = process.communicate(timeout=170)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def begin(*argv: object, **env: str) -> subprocess.Popen:
    """Start a script in a process of its own."""
    return subprocess.Popen(
        [sys.executable, *map(str, argv)],
        cwd=ROOT,
        env=os.environ | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
