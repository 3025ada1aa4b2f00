"""From a command's cells to finished rows: skip what is done, group the rest, train them."""

import argparse
import contextlib
import dataclasses
import functools
import math
import re
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import pandas as pd
import torch

from engine import parallel
from engine.cells import (
    DATA_SETTINGS,
    Cell,
    Settings,
    data_suffix,
    every_setting,
    flag,
    run_id,
    spaced,
)
from engine.loop import train
from engine.resume import Keeper, Run, folder_of, remove
from engine.rows import best_path, csv_path, locked, machine, read_rows
from engine.sheet import AUTO_BYTES, Sheet, open_sheet
from engine.steps import steps_in
from engine.teacher import Teacher, load_teacher
from engine.weights import fitting
from images.sources import Data, load
from models import code_of, file_name
from utils import Diverged, OwnError, UserError, check_writable, load_checkpoint, note, say


def run_command(cells: list[Cell], args: argparse.Namespace) -> None:
    """Train a script's cells, one group (a seed's) after another.

    Raises UserError for whatever stands in the way, and Diverged at the end for cells that did.
    """
    ranks, device = parallel.start(args.device, args.threads)
    settings = settings_on(device, args)
    for line in surprises(settings):
        note(line)
    for name in ("checkpoints", "runs"):
        check_writable(args.out_dir / name)
    with locked(csv_path(args.out_dir)):
        pass  # fail now rather than after hours
    taught = any(cell.taught for cell in cells)
    data = load_in_turn(settings, args.data_dir, device, ranks)
    steps_in(len(data.train), settings)  # raises where there is none, before anything is made
    parallel.keep_freed_memory()  # only now, so that what loading freed is returned
    teacher = meet_teacher(args, settings, data, device, taught)
    sha = teacher.sha if teacher and taught else None
    left = functools.partial(pending_cells, settings=settings, args=args, sha=sha, data=data)
    pending = parallel.by_lead(ranks, lambda: left(cells))
    if ranks.lead and len(pending) < len(cells):
        done = len(cells) - len(pending)
        say(f"{done} of {len(cells)} runs are in {csv_path(args.out_dir)} already: skipped")
    run = Run(settings, data, teacher, args.out_dir, device, ranks, Keeper(args.save_seconds))
    run.overwrite, run.eval_every = args.overwrite, args.eval_every
    run.keep_best = args.keep == "best"
    if any(cell.learns_from_logits for cell in pending):
        run.sheet = sheet_for(run, args.teacher_cache)
    if pending and getattr(args, "weights", None):  # train_teacher.py alone has it
        run.weights = fitting(args.weights, pending[0], data.classes, settings)
    with contextlib.closing(run.keeper):
        complaints = train_groups(cells, pending, run, left)
    parallel.stop()
    if complaints:
        raise Diverged(f"{'; '.join(complaints)}: no row was written for it; try a lower --lr")


def sheet_for(run: Run, cache: str) -> Sheet | None:
    """Where the teacher's logits are cached, by --teacher-cache; None where they are not."""
    if cache == "off":
        return None
    folder, most = Path(cache), math.inf
    if cache == "auto":
        folder, most = run.teacher.folder, AUTO_BYTES
    return open_sheet(folder, run.teacher, run.data, machine(str(run.device)), most)


def surprises(settings: Settings) -> list[str]:
    """What a schedule does that few mean, in words."""
    epochs, lines = settings.epochs, []
    if settings.schedule == "cosine" and epochs > settings.t_max + 1:
        lines.append(
            f"the learning rate is 0 in epoch {settings.t_max + 1} and rises after it: "
            f"--t-max {epochs} makes it end at 0"
        )
    if settings.schedule == "step" and int(settings.milestones.split()[0]) >= epochs > 0:
        lines.append(
            f"the first of --milestones is beyond the {epochs} epochs: nothing is annealed"
        )
    if settings.warmup >= epochs > 0:
        lines.append(f"--warmup {settings.warmup} is no shorter than the {epochs} epochs")
    return lines


def settings_of(args: argparse.Namespace) -> Settings:
    """The flags that are settings; `amp` is None where the device is to decide.

    Raises UserError where they contradict each other.
    """
    given = {name: getattr(args, name) for name in Settings.__dataclass_fields__}
    return Settings(**{n: spaced(v) if isinstance(v, list) else v for n, v in given.items()})


def settings_on(device: torch.device, args: argparse.Namespace) -> Settings:
    """settings_of, where the device decides on bfloat16 unless a flag does. Raises UserError."""
    settings = settings_of(args)
    if settings.amp is None:
        return dataclasses.replace(settings, amp=bfloat16_is_faster(device))
    return settings


def grouped(cells: list[Cell]) -> list[list[Cell]]:
    """The cells of a seed together, as they see the same views; those of one width side by side.

    Those with shuffled answers are a group of their own: they see other logits.
    """
    alike = lambda cell: (cell.seed, cell.answers == "shuffled")  # noqa: E731
    ordered = sorted(cells, key=lambda cell: (*alike(cell), cell.width))
    return [list(group) for _, group in groupby(ordered, alike)]


def deals_groups(sizes: list[int], world: int) -> bool:
    """Whether ranks are done sooner with groups of their own than with a part of each group.

    `sizes` are cells a group, of any number; what counts is how many the busiest rank trains.
    """
    apart = max(sum(sizes[rank::world]) for rank in range(world))
    return apart < sum(-(-size // world) for size in sizes)


def train_groups(cells: list[Cell], pending: list[Cell], run: Run, left: Callable) -> list[str]:
    """Train the `pending` cells, group by group; a line for each that diverged.

    `left` says which of some cells still lack their row, as another command may write some. Raises
    UserError where a group cannot be trained.
    """
    ranks, wanted = run.ranks, set(pending)  # in a list, looking 10,000 cells up takes minutes
    parts = [(group, [cell for cell in group if cell in wanted]) for group in grouped(cells)]
    for group, mine in parts:
        if ranks.lead and not mine:
            # What a kill after the rows were written has left.
            remove(folder_of(group, run.settings, run.out_dir))
    todo = [(group, mine) for group, mine in parts if mine]
    sizes = [len(mine) for _, mine in todo]
    dealt = deals_groups(sizes, ranks.world)
    if ranks.world > (len(sizes) if dealt else max(sizes, default=ranks.world)):
        note(f"a network is trained by one process: some of the {ranks.world} have nothing to do")
    if dealt:
        return train_apart(todo[ranks.rank :: ranks.world], run, left)
    complaints = []
    for group, mine in todo:
        if mine := parallel.by_lead(ranks, functools.partial(left, mine)):
            complaints += train(group, mine, run)
    return complaints


def train_apart(
    todo: list[tuple[list[Cell], list[Cell]]], run: Run, left: Callable[[list[Cell]], list[Cell]]
) -> list[str]:
    """`train` what is left of this rank's own groups; the complaints of all ranks.

    Raises UserError, on all of them, where one had to stop; the others end what is theirs first.
    """
    alone, found, error = dataclasses.replace(run, ranks=parallel.Ranks(apart=True)), [], ""
    try:
        for group, mine in todo:
            if mine := left(mine):
                found += train(group, mine, alone)
    except UserError as problem:
        error = str(problem)
    try:
        every = parallel.all_gather(run.ranks, (found, error))
    except parallel.Left:
        run.keeper.saved(run.keeper.signal)  # leaves by the signal, where one came
        if error:  # its own, which it had from before
            raise OwnError(error) from None
        raise
    if errors := [theirs for _, theirs in every if theirs]:
        raise UserError(errors[0])
    return [line for theirs, _ in every for line in theirs]


def bfloat16_is_faster(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 here: GPUs since Ampere, CPUs with AMX or AVX512.

    Not Intel's with AVX512 alone: on one a ResNet-18 took 1.4 times as long as in float32.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    found = torch.cpu.get_capabilities()
    by_avx512 = found.get("avx512_bf16") and "Intel" not in machine(device.type)
    return bool(found.get("amx_bf16") or by_avx512)


def load_in_turn(
    settings: Settings, data_dir: Path, device: torch.device, ranks: parallel.Ranks
) -> Data:
    """The lead loads first, so that a download or a decoding happens once."""
    names = (*DATA_SETTINGS, "normalization", "augment")
    how = {name: getattr(settings, name) for name in names}
    work = functools.partial(load, data_dir=data_dir, device=device, **how)
    return parallel.lead_first(ranks, work) or work()


# ---------------------------------------------------------------- the teacher's checkpoint


def meet_teacher(
    args: argparse.Namespace, settings: Settings, data: Data, device: torch.device, needed: bool
) -> Teacher | None:
    """The teacher on the device. Where no cell needs it, one that cannot be used is no error.

    Raises UserError where it is needed and missing, broken, or trained on other images.
    """
    try:
        path = find_teacher(args, settings, needed)
        if not path:
            return None
        layers = tuple(getattr(args, "teacher_layers", None) or ())
        teacher = load_teacher(
            path, data.classes, settings.amp, device, any_names=args.other_classes,
            image_size=settings.image_size, own=args.teacher_model, layers=layers,
        )  # fmt: skip
        if not isinstance(args.teacher, Path) and teacher.data != data.fingerprint:
            raise UserError(
                f"{path} was trained on other images: train it again with --overwrite, choose "
                "another --out-dir, or name it with --teacher if you mean it"
            )
        held = teacher.settings.get("val_size")
        alike = teacher.settings.get("dataset") == settings.dataset
        if needed and alike and settings.val_size and held != settings.val_size:
            note(
                f"{path} has --val-size {held}: it may have learned from images that are held out "
                "here, and the figures on those be too good"
            )
        return teacher
    except UserError:
        if needed or args.teacher:
            raise
        return None


def teacher_seed(args: argparse.Namespace) -> int:
    """The seed of the teacher that the flags name.

    Raises UserError for a --teacher that cannot be read or is not of the --teacher-seed given.
    """
    if not isinstance(args.teacher, Path):
        return args.teacher_seed or 0
    return agreed_seed(args, load_checkpoint(args.teacher))


def agreed_seed(args: argparse.Namespace, stored: dict) -> int:
    """The seed of --teacher's checkpoint. Raises UserError if --teacher-seed is another."""
    seed = stored["cell"]["seed"]
    if args.teacher_seed not in (None, seed):
        raise UserError(f"{args.teacher} is of seed {seed}: leave --teacher-seed out, or agree")
    return seed


def teacher_fields(args: argparse.Namespace) -> dict[str, int | str]:
    """A taught cell's teacher_seed and teacher_model, from one look into the checkpoint.

    The model is blank for a ResNet-18, or if there is none yet. Raises UserError as teacher_seed
    and find_teacher do.
    """
    path = find_teacher(args, settings_of(args), needed=False)
    stored = load_checkpoint(path) if path else {"model": ""}
    named = isinstance(args.teacher, Path)
    seed = agreed_seed(args, stored) if named else teacher_seed(args)
    model = "" if stored["model"] == "resnet18" else stored["model"]
    return {"teacher_seed": seed, "teacher_model": model}


def find_teacher(args: argparse.Namespace, settings: Settings, needed: bool) -> Path | None:
    """--teacher, or the one teacher of this data set and seed in the out-dir.

    Where no cell needs it, an existing teacher still serves to measure the students' agreement.
    Raises UserError where it is needed and missing or ambiguous.
    """
    if "teacher" not in args:  # train_teacher.py
        return None
    if isinstance(args.teacher, Path):
        return args.teacher
    folder = args.out_dir / "checkpoints"
    ending = f"-teacher-s{teacher_seed(args)}{data_suffix(settings)}.pt"
    found = sorted(folder.glob(f"*{ending}"))
    if args.teacher:  # a network's name; its width may follow
        own = re.compile(re.escape(file_name(args.teacher)) + r"(w\d+)?" + re.escape(ending))
        found = [path for path in found if own.fullmatch(path.name)]
    if len(found) == 1:
        return found[0]
    if not needed:
        return None
    if not found:
        name = file_name(args.teacher) if args.teacher else "*"
        raise UserError(
            f"no teacher checkpoint {folder}/{name}{ending}: run train_teacher.py with the same "
            f"{', '.join(map(flag, DATA_SETTINGS))} and --out-dir, or give --teacher"
        )
    names = ", ".join(path.name for path in found)
    raise UserError(f"several teachers in {folder} ({names}): choose one with --teacher")


# ---------------------------------------------------------------- what is done already


def pending_cells(
    cells: list[Cell], settings: Settings, args: argparse.Namespace, sha: str | None, data: Data
) -> list[Cell]:
    """The cells without a row yet; with --overwrite all of them.

    Raises UserError where a row has the run id but other settings, another teacher (not `sha`) or
    other images: counting it as done would mix two experiments.
    """
    rows = read_rows(csv_path(args.out_dir)).set_index("run_id")
    if args.overwrite:
        return cells
    pending, where = [], (settings, args.out_dir)
    for cell in cells:
        name = run_id(cell, settings)
        path = args.out_dir / "checkpoints" / f"{name}.pt"
        if name not in rows.index:
            # Without a trace of this very run it came from elsewhere: nothing may overwrite it.
            if cell.teaches and path.exists() and not folder_of([cell], *where).exists():
                raise UserError(
                    f"{path} has no row in {csv_path(args.out_dir)}: name it with --teacher, move "
                    "it away, or --overwrite"
                )
            pending.append(cell)
            continue
        row = rows.loc[name]
        other = [
            f"{column} {row[column]}, now {value}"
            for column, value in every_setting(cell, settings).items()
            if column not in ("amp", "train_size") and row[column] != value
        ]
        own = {name: getattr(cell, name) for name in ("student_layers", "teacher_layers")}
        own |= {"model": cell.model, "weights": cell.weights, "code": code_of(cell.model)}
        kept = {name: "" if pd.isna(row[name]) else row[name] for name in own}
        other += [f"{n} {kept[n] or 'none'}, now {own[n] or 'none'}" for n in own
                  if kept[n] != own[n]]  # fmt: skip
        if cell.taught and sha and row.teacher_sha != sha:
            other.append(f"teacher {row.teacher_sha}, now {sha}")
        images = ("training", row.data, data.fingerprint), ("test", row.test_data, data.measured_on)
        for what, then, now in images:
            if pd.notna(then) and then != now:  # blank in rows of an older version
                other.append(f"other {what} images, of checksum {then:.0f}, now {now}")
        if other:
            raise UserError(
                f"{name} is in {csv_path(args.out_dir)} with other settings "
                f"({'; '.join(other)}): choose another --out-dir, or --overwrite"
            )
        # A teacher needs its checkpoint, and best weights come only from training again.
        lost = cell.teaches and not path.exists()
        if lost or (args.keep == "best" and not best_path(path).exists()):
            pending.append(cell)
    return pending
