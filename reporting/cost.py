"""What bench.py has measured, told: a line of its table, what `sh exp.sh` will take.

A line is seconds of a step by what they are spent on: `teacher` and `view` serve all `cells`,
`students` is all of theirs, `cell` is one's part of it all and `again` its part where the sheet is
full; `ask` is a batch asked from the first image to the last, `test` one network on the test set.
"""

# The reference's experiment.
ALPHAS = [0.1, 0.25, 0.5, 0.75, 0.9]
TEMPERATURES = [1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 30.0, 40.0, 50.0]
GRID = len(ALPHAS) * len(TEMPERATURES)  # cells of one seed
SEEDS = 5  # exp.sh's
EPOCHS, IMAGES, TEST_IMAGES, BATCH = 100, 50_000, 10_000, 128
STEPS = -(-IMAGES // BATCH)  # of an epoch
VIEWS = 162  # of an image of 32 pixels: 9 x 9 crops, flipped or not


def asked(seeds: int, epochs: int = EPOCHS) -> float:
    """How many epochs' worth of views the teacher is asked in `epochs` of `seeds` seeds.

    An epoch draws one of VIEWS for each image: those that are new by then. (Expectation.)
    """
    return VIEWS * (1 - (1 - 1 / VIEWS) ** (seeds * epochs))


HEADER = """\
| way | cells | teacher | view | student | one cell-step | plain / this | on a full sheet | \
GPU busy | memory |
|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"""


def row(name: str, line: dict, plain_cell: float) -> str:
    """A line in Markdown, times in ms; ratios are to the plain way's cell-step."""
    student = line["students"] / line["cells"]
    times = [line["teacher"], line["view"], student, line["cell"]]
    ratio = f"{plain_cell / line['cell']:.1f}" if line["ask"] else "–"
    again = f"{plain_cell / line['again']:.1f}" if line["way"] == "engine" else "–"
    busy = f"{100 * line['busy']:.0f} %" if line["busy"] else "–"
    cells = [name, str(line["cells"]), *(f"{1000 * seconds:.2f}" for seconds in times)]
    cells += [ratio, again, busy, f"{line['memory'] / 2**30:.2f} GiB"]
    return f"| {' | '.join(cells)} |"


def foot(line: dict, on_gpu: bool) -> str:
    """What the table's columns are; `line` is the engine's last."""
    recorded = (
        "On a GPU a step is recorded from the gathering on and timed as a whole, so that the "
        "gathering is in the student's column. Steps are timed in blocks of 20, from one wait for "
        "the GPU to the next. GPU busy: the time of its kernels in 20 steps under a profiler, by "
        "that of 20 steps without one. "
    )
    return (
        "Milliseconds of a step: the teacher's and the view's serve all cells together, the "
        "student's is one cell's; a cell-step is their sum per cell. The teacher's is its time for "
        f"a batch by the share of views that are new in {EPOCHS} epochs; on a full sheet none is. "
        "The view's is the gathering of a batch, and a step's part of an epoch's beginning (its "
        f"order, its crops, the sheet's answers). {recorded if on_gpu else ''}Memory is the ranks' "
        f"sum. Testing a cell on {TEST_IMAGES:,} images takes {line['test']:.3f} s.\n"
    )


def estimate(grid: dict, resnet: dict) -> list[tuple[str, str, float]]:
    """What `sh exp.sh` takes, from the lines of one seed's grid and of a ResNet-18 in training.

    Its parts: name, arithmetic, minutes.
    """
    cells = GRID + 1 + len(ALPHAS)  # the student alone and the controls are in the pass
    students = grid["students"] * cells / GRID
    tests = grid["test"] * cells / grid["ranks"]
    answered = f"{asked(SEEDS):.1f} epochs' worth of new views"
    train, again = resnet["view"] + resnet["students"], grid["view"] + resnet["students"]
    together = f"{SEEDS} x {EPOCHS} epochs of {cells} cells"
    parts = [
        ("teacher", EPOCHS, f"{EPOCHS} epochs", train, resnet["test"]),
        ("its answers", asked(SEEDS), answered, grid["ask"], 0.0),
        (f"{SEEDS} seeds' grid, student alone and controls in the pass", SEEDS * EPOCHS, together,
         grid["view"] + students, tests),
        ("two ResNet-18 students, answers there", 2 * EPOCHS, f"2 x {EPOCHS} epochs", again,
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
