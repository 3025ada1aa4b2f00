"""What a fair trial costs here: runs, steps, time by a few timed ones, and a smaller one."""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import torch

import sides
from engine import measure, parallel
from engine.cells import Settings
from engine.grid import load_in_turn, meet_teacher, settings_on
from engine.resume import Run
from engine.steps import STACK, Steps
from engine.teacher import CHUNK, chunk_size
from engine.trainee import Trainee
from images.sources import Data
from images.views import epoch_views, plain
from reporting.cost import seen
from reporting.tables import plural
from trial import epochs_of

HOUR = 3600
TIMED = 5  # steps, after as many that are not


class Size(NamedTuple):
    """How large a trial is."""

    places: list[tuple[int, int | None]]  # (training images, width)
    tries: int
    fresh: int | None
    steps: int


class Pace(NamedTuple):
    """Seconds of one run of a width: a step, and its tests at the end."""

    step: float
    tests: float


def plan(args: argparse.Namespace) -> str:
    """Two lines: what the trial of these flags costs here, and which smaller one fits an hour."""
    _, device = parallel.start(args.device, args.threads)
    args.train_size, args.epochs, args.t_max = 0, 1, 1
    settings = settings_on(device, args)
    data = load_in_turn(settings, args.data_dir, device, parallel.Ranks())
    places = [(images or len(data.train), width or args.width) for images, width in args.plan]
    places = list(dict.fromkeys(places))  # its own width may be named, too
    args.start = time.process_time()  # spent on imports and images, as at each stage's start
    widths = {width for _, width in places}
    paces = {width: pace(args, width, settings, data, device) for width in widths}
    args.images, args.views = len(data.train), data.train.views
    args.answer = answer_pace(args, settings, data, device)
    asked = Size(places, args.tries, args.fresh, args.steps)
    runs, steps, seconds, taught = cost(asked, args, paces)
    slowest = max(one.step for one in paces.values())
    share = f", {spoken(taught)} of it for the teacher's answers" * bool(args.answer)
    rest = "; a teacher's training, and its answers until they are cached, come on top"
    lines = [
        f"{plural(len(places), 'place')}, {plural(len(args.sides), 'side')}: about {runs:,} "
        f"runs, {steps:,} steps, about {spoken(seconds)} here by {TIMED} timed steps (up to "
        f"{1000 * slowest:,.1f} ms each, {args.ranks} at a time){share}. A length that must be "
        f"doubled doubles its place{rest * (not args.answer)}."
    ]
    if seconds > HOUR:
        lines.append(smaller(asked, args, paces))
    return "\n".join(lines)


def cost(size: Size, args: argparse.Namespace, paces: dict[int | None, Pace]) -> tuple:
    """Runs, steps and seconds of a trial whose lengths are enough as they are.

    And how many of the seconds are the teacher's, which answers each view of an image once.
    """
    runs = steps = seconds = starts = answers = 0
    for images, width in size.places:
        epochs = epochs_of(images, size.steps, args.batch_size)
        long = epochs * -(-images // args.batch_size)
        search = size.tries + sides.keep(size.tries) * (len(sides.FINAL_SEEDS) - 1)
        fresh = len(sides.fresh_seeds(images, size.fresh))
        draws = 1 if images == args.images else args.draws or 1  # all images have one
        count = sum(
            search + fresh * (1 if side in sides.OWN_TEACHER else draws) for side in args.sides
        )
        # To see that a length is enough takes a run of it, and one of twice it; those of the
        # search's seeds are tries, too.
        probes = sides.PROBES * len(sides.FINAL_SEEDS) * (args.doublings > 0)
        count -= sides.PROBES * len(sides.SEARCH_SEEDS) * (args.doublings > 0)
        runs += count + 2 * probes
        steps += (count + 3 * probes) * long
        one = paces[width]
        seconds += (count + 3 * probes) * long * one.step + (count + 2 * probes) * one.tests
        stages = 4 * (1 + len(set(args.sides) & set(sides.CONTROLS)))
        starts += (stages + (args.doublings + 1) * (args.doublings > 0)) * args.start
        first = seen(args.views, epochs * (len(sides.FINAL_SEEDS) + fresh))
        more = (draws - 1) * seen(args.views, epochs * fresh)
        answers += images * (first * (1 + ("kd-random" in args.sides)) + more)
    taught = answers * args.answer / args.ranks
    return runs, steps, seconds / args.ranks + starts + taught, taught


def smaller(asked: Size, args: argparse.Namespace, paces: dict[int | None, Pace]) -> str:
    """The first smaller trial that fits an hour, its runs the last to be shortened."""
    first = min(asked.places, key=lambda place: place[0])
    few = [asked.fresh, *(n for n in (5, 4) if n < (asked.fresh or sides.FRESH))]
    tries = [asked.tries, *(n for n in (40, 30, 20, 12, 8) if n < asked.tries)]
    ways = product((1, 2, 4, 8), few, tries, (asked.places, [first]))
    for shorter, fresh, count, places in ways:
        size = Size(places, count, fresh, math.ceil(asked.steps / shorter))
        seconds = cost(size, args, paces)[2]
        if seconds <= HOUR:
            words = [f"SIZES={first[0]} WIDTHS="] * (len(places) < len(asked.places))
            words += [f"TRIES={count}"] * (count != asked.tries)
            words += [f"FRESH={fresh}"] * (fresh != asked.fresh)
            words += [f"STEPS={size.steps}"] * (shorter > 1)
            return f"Within an hour ({spoken(seconds)}): {' '.join(words)} before the same command"
    return "No smaller trial of this student fits an hour here: a GPU, or a smaller student, may."


def pace(
    args: argparse.Namespace,
    width: int | None,
    settings: Settings,
    data: Data,
    device: torch.device,
) -> Pace:
    """Time a few steps and the tests of the student: of one, or of a stack on a GPU."""
    count = STACK if device.type == "cuda" else 1
    configs = sides.draw("alone", range(count), sides.SHARED)
    cells = sides.cells("alone", configs, [0], args.student, width or args.width, 0)
    trainees = [Trainee(cell, settings, len(data.classes), device) for cell in cells]
    run = Run(settings, data, None, args.out_dir, device, parallel.Ranks(), None)
    steps = Steps(trainees, run)
    steps.begin(0, epoch_views(0, 0, data.train), None)

    def step() -> None:
        batch = steps.batch(slice(0, settings.batch_size))
        for team in steps.teams:
            team(batch)

    tests = seconds(lambda: measure.record(steps.predictor(trainees), data), 1, device)
    return Pace(seconds(step, TIMED, device) / count, tests / count)


def answer_pace(
    args: argparse.Namespace, settings: Settings, data: Data, device: torch.device
) -> float:
    """Seconds of the teacher's answer to an image; 0.0 where no teacher is there yet."""
    if not args.teacher:
        return 0.0
    teacher = meet_teacher(args, settings, data, device, needed=True)
    size = min(chunk_size(data.train, CHUNK[device.type]), len(data.train))
    pixels = plain(data.train, slice(0, size))
    return seconds(lambda: teacher(pixels), 1, device) / size


def seconds(work: Callable[[], object], times: int, device: torch.device) -> float:
    """Median seconds of so many calls, after as many that are not timed."""
    taken = []
    for _ in range(2 * times):
        begun = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken[times:])


def spoken(seconds: float) -> str:
    """`40 seconds`, `12 minutes` or `5.3 hours`."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 1.5 * HOUR else f"{seconds / HOUR:.1f} hours"
