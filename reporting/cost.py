"""bench.py's figures as text: the lines of its table, and an estimate of what `sh exp.sh` takes.

A line has seconds per step: `teacher` and `view` for all `cells` together, `students` for all of
theirs, `cell` per cell and `again` per cell where all teacher logits are cached; `ask` is the
teacher on a batch, `test` one network on the test set.
"""

# The reference's experiment.
ALPHAS = [0.1, 0.25, 0.5, 0.75, 0.9]
TEMPERATURES = [1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 30.0, 40.0, 50.0]
GRID = len(ALPHAS) * len(TEMPERATURES)  # cells of one seed
SEEDS = 5  # exp.sh's
EPOCHS, IMAGES, TEST_IMAGES, BATCH = 100, 50_000, 10_000, 128
STEPS = -(-IMAGES // BATCH)  # of an epoch
VIEWS = 162  # of an image of 32 pixels: 9 x 9 crops, flipped or not


def seen(views: int, epochs: int) -> float:
    """How many of an image's views so many epochs are expected to show."""
    return views * (1 - (1 - 1 / views) ** epochs)


def new_views(seeds: int) -> float:
    """Epochs' worth of distinct views in the epochs of `seeds` seeds: logits to be computed."""
    return seen(VIEWS, seeds * EPOCHS)


HEADER = """\
| way | cells | teacher | view | student | one cell-step | plain / this | all cached | \
GPU busy | memory |
|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"""


def row(name: str, line: dict, plain_cell: float) -> str:
    """A line in Markdown, times in ms; ratios are to the plain loop's cell-step."""
    student = line["students"] / line["cells"]
    times = [line["teacher"], line["view"], student, line["cell"]]
    ratio = f"{plain_cell / line['cell']:.1f}" if line["ask"] else "–"
    again = f"{plain_cell / line['again']:.1f}" if line["way"] == "engine" else "–"
    busy = f"{100 * line['busy']:.0f} %" if line["busy"] else "–"
    cells = [name, str(line["cells"]), *(f"{1000 * seconds:.2f}" for seconds in times)]
    cells += [ratio, again, busy, f"{line['memory'] / 2**30:.2f} GiB"]
    return f"| {' | '.join(cells)} |"


def foot(line: dict, on_gpu: bool) -> str:
    """Explains the table's columns; `line` is the engine's last."""
    recorded = (
        "On a GPU a step is recorded and timed as a whole, so that gathering the batch is in the "
        "student's column. Steps are timed in blocks of 20, between synchronisations. GPU busy: "
        "the time of its kernels in 20 steps under a profiler, by that of 20 steps without one. "
    )
    return (
        "Milliseconds of a step: teacher and view are for all cells together, student is for one "
        "cell; a cell-step is their sum per cell. Teacher is its time for a batch times the "
        f"fraction of views that are new in {EPOCHS} epochs; with a full cache none is. View is "
        "gathering a batch, and a step's part of an epoch's start (order, crops, reading cached "
        f"logits). {recorded if on_gpu else ''}Memory is summed over ranks. Testing a cell on "
        f"{TEST_IMAGES:,} images takes {line['test']:.3f} s.\n"
    )


def estimate(grid: dict, resnet: dict) -> list[tuple[str, str, float]]:
    """What `sh exp.sh` takes, from the lines of one seed's grid and of training a ResNet-18.

    Its parts: name, arithmetic, minutes.
    """
    cells = GRID + 1 + len(ALPHAS)  # with the student alone and the controls
    students = grid["students"] * cells / GRID
    tests = grid["test"] * cells / grid["ranks"]
    answered = f"{new_views(SEEDS):.1f} epochs' worth of new views"
    train, again = resnet["view"] + resnet["students"], grid["view"] + resnet["students"]
    together = f"{SEEDS} x {EPOCHS} epochs of {cells} cells"
    parts = [
        ("teacher", EPOCHS, f"{EPOCHS} epochs", train, resnet["test"]),
        ("its logits", new_views(SEEDS), answered, grid["ask"], 0.0),
        (f"{SEEDS} seeds' grid, with student alone and controls", SEEDS * EPOCHS, together,
         grid["view"] + students, tests),
        ("two ResNet-18 students, logits cached", 2 * EPOCHS, f"2 x {EPOCHS} epochs", again,
         resnet["test"]),
    ]  # fmt: skip
    found = []
    for name, epochs, what, step, test in parts:
        tested = f" + {test:.3f} s of testing" if test else ""
        how = f"{what} x ({STEPS} steps x {1000 * step:.3f} ms{tested})"
        found.append((name, how, epochs * (STEPS * step + test) / 60))
    return found


def estimate_text(grid: dict, resnet: dict) -> str:
    """The estimate in Markdown, with its arithmetic and its sum."""
    parts = estimate(grid, resnet)
    lines = [f"| {name} | {how} | {minutes:.1f} |" for name, how, minutes in parts]
    return (
        "## What `sh exp.sh` will take here\n\n"
        "| part | arithmetic | minutes |\n|---|---|---:|\n" + "\n".join(lines) + "\n"
        f"| all | | {sum(minutes for _, _, minutes in parts):.0f} |\n\n"
        "Computed from the lines above; without the download, loading, saving, curves and report.\n"
    )
