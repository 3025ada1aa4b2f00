"""The fair trial's page: its sentences and tables, for the template."""

import re

import numpy as np
import pandas as pd

import sides
from reporting.rows import PROTOCOL, applies, student_name
from reporting.stats import LEVEL
from reporting.tables import (
    distinct,
    duration,
    percent,
    plural,
    points,
    several,
    show_lines,
    span,
    with_interval,
)
from reporting.trial import OF_PLACE, PLACE, TUNED, Trial, best_of, places_of

MADE = ("device", "machine", "amp", "torch", "commit")
NAMES = {"lr": "lr", "weight_decay": "weight decay", "alpha": "α", "temperature": "T", "beta": "β"}
ABOUT = {
    "kd-shuffled": "the teacher's answers to another image of the same class",
    "kd-random": "the teacher's network, untrained",
    "kd-self": "the best student alone as the teacher: the same network and images",
    "kd-same": "a teacher trained on the student's own images",
}


def page(trial: Trial) -> dict:
    """The template's values: texts and tables."""
    rows = trial.rows
    fixed = [n for n in PROTOCOL if n not in OF_PLACE and applies(n, rows.iloc[0])]
    return {
        "answers": answers(trial),
        "findings": findings(trial),
        "expect": expect(trial),
        "others": others(trial),
        "about": {side: ABOUT[side] for side in trial.sides if side in ABOUT},
        "any_lost": bool(trial.entries.lost[trial.entries.whole].any()),
        "any_small": bool((trial.tests.p_small <= LEVEL).any()),
        "draws": int(trial.tests.draws.max()) if len(trial.tests) else 1,
        "family": int(trial.tests.p.notna().sum()),
        "unfinished": unfinished(trial),
        "fewer": fewer(trial),
        "choices": choices(trial),
        "at_border": at_border(trial),
        "settings": {name: distinct(rows[name])[0] for name in fixed},
        "lengths": lengths(trial),
        "teachers": taught_by(trial),
        "made": {name: distinct(rows[name]) for name in MADE},
        "several_made": any(len(distinct(rows[name])) > 1 for name in MADE),
        "runs": plural(len(rows), "run"),
        "time": duration(rows.seconds),
        "sides": sides,
        "tries": trial.asked.tries,
        "kept": sides.keep(trial.asked.tries),
        "fresh": span(trial.entries.asked),
        "measured": span(trial.entries.fresh[trial.entries.whole]) if trial.whole else "",
        "moment": distinct(rows.momentum),
    }


def student(trial: Trial, width: float) -> str:
    """The student's name, with its width where that is not its own."""
    return student_name(trial.rows.model.iloc[0], width)


def at(trial: Trial, place: tuple) -> dict[str, str]:
    """A place as a line of a table begins."""
    return {"images": f"{place[0]:,.0f}", "student": student(trial, place[1])}


def named_place(trial: Trial, place: tuple) -> str:
    return f"{place[0]:,.0f} images, {student(trial, place[1])}"


# ---------------------------------------------------------------- the answer


def answers(trial: Trial) -> list[str]:
    """A sentence for each place: whether a teacher is worth it, with the interval."""
    tests = trial.tests.set_index([*PLACE, "side", "against"])
    told = []
    for place in places_of(trial.entries):
        where = named_place(trial, place)
        if place not in trial.whole:
            told.append(f"**{where}**: unfinished, so nothing is known yet.")
            continue
        kd, smooth = (tests.loc[(*place, side, "alone")] for side in ("kd", "smooth"))
        told.append(
            f"**{where}**: {verdict(kd)} ({over(kd)}); label smoothing, without a teacher, "
            f"{with_interval(smooth.difference, smooth.half)}."
        )
    return told


def verdict(test: pd.Series) -> str:
    """What a difference to the student alone says, in words."""
    value = f"{with_interval(test.difference, test.half)} points"
    small = test.p_small <= LEVEL
    if test.sign > 0:
        less = ", but less than half a point" if small else ""
        return f"a teacher is worth it{less}: {value}"
    if test.sign < 0:
        return f"a teacher does harm{', by less than half a point' if small else ''}: {value}"
    if small:
        return f"a teacher gains less than half a point: {value}"
    low, high = points(test.difference - test.half), points(test.difference + test.half)
    if not np.isfinite(test.half):
        return f"not told: {value}, without an interval"
    return f"not told: {points(test.difference)} points, and {low} to {high} are possible"


def over(test: pd.Series) -> str:
    """What an interval is over."""
    if test.draws > 1:
        return f"95 % interval over {test.draws:g} draws of the training images"
    return f"95 % interval over {test.n:g} fresh seeds"


def gain(test: pd.Series) -> str:
    """`+1.20 [+0.90, +1.50]`, bold where significant, ° where certainly within MARGIN."""
    text = with_interval(test.difference, test.half) + "°" * bool(test.p_small <= LEVEL)
    return f"**{text}**" if test.sign else text


def expect(trial: Trial) -> str:
    """The table of the main sides at whole places; empty if there are none."""
    lines = []
    tests = trial.tests[trial.tests.side.isin(sides.MAIN)]
    pairs = dict.fromkeys(zip(tests.side, tests.against, strict=True))
    tests = tests.set_index([*PLACE, "side", "against"])
    for place in trial.whole:
        line = at(trial, place) | {side: accuracy(trial, place, side) for side in sides.MAIN}
        line |= {f"{one} − {other}": gain(tests.loc[(*place, one, other)]) for one, other in pairs}
        lines.append(line)
    return show_lines(lines)


def others(trial: Trial) -> str:
    """The table of all further sides; empty if there are none."""
    lines = []
    tests = trial.tests[~trial.tests.side.isin(sides.MAIN)]
    for (*place, side), part in tests.groupby([*PLACE, "side"], sort=False):
        line = at(trial, place) | {"side": side}
        line["accuracy"] = accuracy(trial, tuple(place), side)
        line |= {f"− {test.against}": gain(test) for test in part.itertuples()}
        lines.append(line)
    return show_lines(lines)


def accuracy(trial: Trial, place: tuple, side: str) -> str:
    """Mean ± standard deviation over the fresh runs of a whole side."""
    one = trial.entries.loc[(*place, side)]
    return several(one.accuracy) + (f" ({one.lost} diverged)" if one.lost else "")


def unfinished(trial: Trial) -> str:
    """Unfinished sides by place, and how far they are; empty if there are none."""
    lines, kept = [], sides.keep(trial.asked.tries)
    for place in places_of(trial.entries[~trial.entries.whole]):
        for side, one in trial.entries.loc[place].iterrows():
            if not one.whole:
                lines.append(at(trial, place) | {
                    "side": side,
                    "search": f"{one.search} of {trial.asked.tries}",
                    "final": f"{one.final} of {kept * len(sides.FINAL_SEEDS)}",
                    "fresh": f"{one.fresh} of {one.asked}",
                })  # fmt: skip
    return show_lines(lines)


# ---------------------------------------------------------------- fewer tries, and lengths


def fewer(trial: Trial) -> str:
    """The table of what each side reaches with so many tries; empty if no place is whole."""
    lines = []
    for place in trial.whole:
        for side in trial.sides:
            if (*place, side) in trial.entries.index and trial.entries.loc[(*place, side)].whole:
                found = best_of(trial, place, side)
                figures = {
                    f"{n:g}": f"{percent(one.val)} ({percent(one.test)})"
                    for n, one in found.iterrows()
                }
                lines.append(at(trial, place) | {"side": side} | figures)
    return show_lines(lines)


def lengths(trial: Trial) -> list[str]:
    """How long a run is at each place, and whether that is long enough."""
    lines = []
    for place, one in trial.lengths.iterrows():
        doubled = f"twice as many move the student alone by {points(one.moved)} points"
        if np.isnan(one.moved):
            doubled = "whether twice as many do more was not tried"
        elif one.moved >= sides.ENOUGH:
            doubled = f"the last doubling moved the student alone by {points(one.moved)} points, "
            doubled += "so more may do more"
        lines.append(
            f"{named_place(trial, place)}: {plural(int(one.epochs), 'epoch')}, "
            f"{one.steps:,.0f} steps ({doubled})"
        )
    return lines


# ---------------------------------------------------------------- what was chosen


def choices(trial: Trial) -> str:
    """The choices by place and side, their accuracy, and whether they lie at a border."""
    lines = []
    for (*place, side), one in trial.entries[trial.entries.choice.notna()].iterrows():
        lines.append(at(trial, place) | {
            "side": side, "cell": described(side, one.choice), "held-out": percent(one.val),
            "on its training images": percent(one.train), "tries": f"{one.search}"
            + f" ({one.lost_search} more diverged)" * bool(one.lost_search),
            "border": "; ".join(f"{named(side, name)} {value:g} is at the {end} tried"
                                for name, value, end in one.borders) or "no",
        })  # fmt: skip
    return show_lines(lines)


def described(side: str, config: sides.Config) -> str:
    """A configuration in words."""
    words = [
        f"{named(side, name)} {getattr(config, name):g}"
        for name in TUNED
        if getattr(config, name) not in (None, 0.0)
    ]
    return ", ".join(words) + (" × T²" if config.scale_t2 else "")


def named(side: str, name: str) -> str:
    return "ε" if (side, name) == ("smooth", "alpha") else NAMES[name]


def at_border(trial: Trial) -> list[str]:
    """The choices at a border, as `kd at 500 images, cnn`."""
    return [
        f"{side} at {named_place(trial, place)}"
        for (*place, side), one in trial.entries.iterrows()
        if one.borders
    ]


def taught_by(trial: Trial) -> list[str]:
    """A sentence for each teacher: what it was trained on, by its run id."""
    lines = []
    taught = trial.rows[trial.rows.role == "distill"]
    for (teacher, sha), part in taught.groupby(["teacher", "teacher_sha"]):
        own = trial.teachers[trial.teachers.run_id == teacher]
        known = pd.concat([own.test_acc, part.teacher_acc]).dropna()
        grade = f", {percent(known.iloc[0])} % on test" if len(known) else ""
        held = f"val{part.val_size.iloc[0]:g}" in teacher.split("-")
        some = "none of them held out" if held else "held-out ones may be among them"
        who = ", ".join(dict.fromkeys(part.side))
        trained = f"It was trained on {seen_by(teacher)}, {some}."
        if teacher.endswith("-untrained"):
            trained = "It has its first weights."
        lines.append(f"`{teacher}` (`{sha}`{grade}) taught {who}. {trained}")
    return lines


def seen_by(teacher: str) -> str:
    """`all images`, `all images but 5,000` or `1,000 images`, by a teacher's run id."""
    found = {word: re.search(rf"-{word}(\d+)(?=-|$)", teacher) for word in ("n", "val")}
    count = {word: f"{int(match[1]):,}" for word, match in found.items() if match}
    if "n" in count:
        return f"{count['n']} images"
    return "all images" + (f" but {count['val']}" if "val" in count else "")


# ---------------------------------------------------------------- over all places


def findings(trial: Trial) -> list[str]:
    """Sentences over all whole places."""
    if not trial.whole:
        return ["No place is finished, so nothing has been found yet."]
    tests = trial.tests
    kd = tests[(tests.side == "kd") & (tests.against == "alone")]
    rival = tests[(tests.side == "kd") & (tests.against == "smooth")]
    smooth = tests[(tests.side == "smooth") & (tests.against == "alone")]
    taught = trial.rows[trial.rows.side == "kd"]
    seen = " or ".join(dict.fromkeys(seen_by(teacher) for teacher in taught.teacher))
    few, all_of_them = (ranged(best_gains(trial, n)) for n in (1, trial.asked.tries))
    return [
        f"With a teacher trained on {seen}, distillation beats the student alone that was tuned "
        f"as well {held(kd)} ({ranged(kd.difference)}), and at {(kd.p_small <= LEVEL).sum()} its "
        "gain or loss is less than half a point.",
        f"Label smoothing, which needs no teacher, beats it {held(smooth)} "
        f"({ranged(smooth.difference)}), and distillation beats label smoothing {held(rival)} "
        f"({ranged(rival.difference)}).",
        f"Is it tuning? With one try a side, drawn by chance, distillation is {few} from the "
        f"student alone, and with the best of all {trial.asked.tries} {all_of_them} (expected test "
        "accuracy, in the search's one seed).",
    ]


def best_gains(trial: Trial, tries: int) -> pd.Series:
    """By whole place: kd minus the student alone on test, each with the best of so many tries."""

    def reached(place: tuple, side: str) -> float:
        found = best_of(trial, place, side).test
        return found[found.index <= tries].iloc[-1]

    return pd.Series([reached(p, "kd") - reached(p, "alone") for p in trial.whole])


def held(tests: pd.DataFrame) -> str:
    """`at 3 of 6 places (and is below it at 1)`, after correction."""
    below = int((tests.sign < 0).sum())
    also = f" (and is below it at {below})" if below else ""
    return f"at {(tests.sign > 0).sum()} of {plural(len(tests), 'place')}{also}"


def ranged(values: pd.Series) -> str:
    """`+0.10 to +1.20 points`."""
    return f"{span(values, points)} points"
