"""The fair trial's page: its sentences and tables, for the template."""

import re

import pandas as pd

import sides
from reporting.rows import PROTOCOL, applies
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
from reporting.trial import (
    ALPHA,
    OF_PLACE,
    PLACE,
    RATE,
    TEMPERATURE,
    TUNED,
    Trial,
    borders,
    places_of,
)

MADE = ("device", "machine", "amp", "torch", "commit")
NAMES = {"lr": "lr", "weight_decay": "weight decay", "alpha": "α", "temperature": "T", "beta": "β"}


def page(trial: Trial) -> dict:
    """The template's values: texts and tables."""
    rows, steps = trial.rows, trial.steps
    fixed = [n for n in PROTOCOL if n not in OF_PLACE and applies(n, rows.iloc[0])]
    return {
        "findings": findings(trial),
        "expect": expect(trial),
        "others": others(trial),
        "any_lost": bool(trial.entries.lost[trial.entries.whole].any()),
        "family": int(trial.tests.p.notna().sum()),
        "unfinished": unfinished(trial),
        "choices": choices(trial),
        "at_border": at_border(trial),
        "settings": {name: distinct(rows[name])[0] for name in fixed},
        "lengths": [
            f"{images:,.0f} images: {plural(int(epochs), 'epoch')}, "
            f"{steps[images]:,.0f} steps, {span(trial.entries.asked[images])} fresh seeds"
            for images, epochs in trial.epochs.items()
        ],
        "teachers": taught_by(trial),
        "made": {name: distinct(rows[name]) for name in MADE},
        "several_made": any(len(distinct(rows[name])) > 1 for name in MADE),
        "runs": plural(len(rows), "run"),
        "time": duration(rows.seconds),
        "sides": sides,
        "fresh": span(trial.entries.asked),
        "measured": span(trial.entries.asked[trial.entries.whole]) if trial.whole else "",
        "RATE": RATE,
        "ALPHA": ALPHA,
        "TEMPERATURE": TEMPERATURE,
    }


def gain(test: pd.Series) -> str:
    """`+1.20 [+0.90, +1.50]`, bold where significant."""
    text = with_interval(test.difference, test.half)
    return f"**{text}**" if test.sign else text


def at(images: float, width: float) -> dict[str, str]:
    """A place as a line of a table begins."""
    return {"images": f"{images:,.0f}", "width": f"{width:g}"}


def expect(trial: Trial) -> str:
    """The table of the main sides at whole places; empty if there are none."""
    lines = []
    tests = trial.tests[trial.tests.side.isin(sides.MAIN)]
    pairs = dict.fromkeys(zip(tests.side, tests.against, strict=True))
    tests = tests.set_index([*PLACE, "side", "against"])
    for place in trial.whole:
        line = at(*place) | {side: accuracy(trial, place, side) for side in sides.MAIN}
        line |= {f"{one} − {other}": gain(tests.loc[(*place, one, other)]) for one, other in pairs}
        lines.append(line | {f"held out: lr {RATE:g}, own best": in_search(trial, place)})
    return show_lines(lines)


def others(trial: Trial) -> str:
    """The table of all further sides; empty if there are none."""
    lines = []
    tests = trial.tests[~trial.tests.side.isin(sides.MAIN)]
    for (images, width, side), part in tests.groupby([*PLACE, "side"], sort=False):
        line = at(images, width) | {"side": side}
        line["accuracy"] = accuracy(trial, (images, width), side)
        line |= {f"− {test.against}": gain(test) for test in part.itertuples()}
        lines.append(line)
    return show_lines(lines)


def in_search(trial: Trial, place: tuple) -> str:
    """`+1.22, +3.62`: kd's held-out gain untuned, and with the best of each side."""
    key = (*place, "kd")
    if key not in trial.searched.index:
        return "—"
    return ", ".join(points(gained) for gained in trial.searched.loc[key, ["fixed", "own"]])


def accuracy(trial: Trial, place: tuple, side: str) -> str:
    """Mean ± standard deviation over the fresh seeds of a whole side."""
    one = trial.entries.loc[(*place, side)]
    return several(one.accuracy) + (f" ({one.lost} diverged)" if one.lost else "")


def unfinished(trial: Trial) -> str:
    """Unfinished sides by place, and how far they are; empty if there are none."""
    lines = []
    for place in places_of(trial.entries[~trial.entries.whole]):
        for side, one in trial.entries.loc[place].iterrows():
            if not one.whole:
                lines.append(at(*place) | {
                    "side": side,
                    "search": f"{one.search} of {sides.BUDGET}",
                    "final": f"{one.final} of {sides.KEEP * len(sides.FINAL_SEEDS)}",
                    "fresh": f"{one.fresh} of {one.asked}",
                })  # fmt: skip
    return show_lines(lines)


# ---------------------------------------------------------------- what was chosen


def choices(trial: Trial) -> str:
    """The choices by place and side, their accuracy, and whether they lie at a border."""
    lines = []
    for (images, width, side), one in trial.entries[trial.entries.choice >= 0].iterrows():
        lines.append(at(images, width) | {
            "side": side, "cell": described(side, one.choice), "held-out": percent(one.val),
            "on its training images": percent(one.train),
            "runs lost in search": str(sides.BUDGET - one.search),
            "border": "; ".join(ends(side, one.choice)) or "no",
        })  # fmt: skip
    return show_lines(lines)


def described(side: str, number: int) -> str:
    """A configuration in words."""
    config = sides.SIDES[side][number]
    words = [
        f"{named(side, name)} {getattr(config, name):g}"
        for name in TUNED
        if getattr(config, name) not in (None, 0.0)
    ]
    return ", ".join(words) + (" × T²" if config.scale_t2 else "")


def ends(side: str, number: int) -> list[str]:
    """A choice's borders in words."""
    return [
        f"{named(side, name)} {value:g} is the {end} tried"
        for name, value, end in borders(side, number)
    ]


def named(side: str, name: str) -> str:
    return "ε" if (side, name) == ("smooth", "alpha") else NAMES[name]


def at_border(trial: Trial) -> list[str]:
    """The choices at a border, as `kd at 500 images, width 16`."""
    chosen = trial.entries[trial.entries.choice >= 0].choice
    return [
        f"{side} at {images:,.0f} images, width {width:g}"
        for (images, width, side), choice in chosen.items()
        if borders(side, choice)
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
        lines.append(
            f"`{teacher}` (`{sha}`{grade}) taught {who}. It was trained on {seen_by(teacher)}, "
            f"{some}."
        )
    return lines


def seen_by(teacher: str) -> str:
    """`all images`, `all images but 5,000` or `1,000 images`, by a teacher's run id."""
    found = {word: re.search(rf"-{word}(\d+)(?=-|$)", teacher) for word in ("n", "val")}
    count = {word: f"{int(match[1]):,}" for word, match in found.items() if match}
    if "n" in count:
        return f"{count['n']} images"
    return "all images" + (f" but {count['val']}" if "val" in count else "")


# ---------------------------------------------------------------- three sentences


def findings(trial: Trial) -> list[str]:
    """The main sentences, about whole places only."""
    if not trial.whole:
        return ["No place is finished, so nothing has been found yet."]
    tests = trial.tests
    kd = tests[(tests.side == "kd") & (tests.against == "alone")]
    rival = tests[(tests.side == "kd") & (tests.against == "smooth")]
    smooth = tests[(tests.side == "smooth") & (tests.against == "alone")]
    taught = trial.rows[trial.rows.side == "kd"]
    seen = " or ".join(dict.fromkeys(seen_by(teacher) for teacher in taught.teacher))
    steps = trial.steps[list(dict.fromkeys(place[0] for place in trial.whole))]
    sentences = [
        f"After {span(steps, '{:,.0f}'.format)} steps, with a teacher trained on {seen}, "
        f"distillation beats the student alone that was tuned as well {held(kd)}: "
        f"{extremes(kd)} (95 % intervals over fresh seeds).",
        f"Label smoothing, which needs no teacher, beats it {held(smooth)} "
        f"({ranged(smooth.difference)}), and distillation beats label smoothing {held(rival)} "
        f"({ranged(rival.difference)}).",
    ]
    keys = [key for place in trial.whole if (key := (*place, "kd")) in trial.searched.index]
    unfair = trial.searched.loc[keys].dropna()
    if len(unfair):
        sentences.append(
            f"On the held-out images, in the search's one seed, the distilled student is "
            f"{ranged(unfair.fixed)} from the student alone where both keep lr {RATE:g} (and α "
            f"{ALPHA:g}, T {TEMPERATURE:g}), and {ranged(unfair.own)} where each has its own best."
        )
    return sentences


def held(tests: pd.DataFrame) -> str:
    """`at 3 of 6 places (and is below it at 1)`, after correction."""
    below = int((tests.sign < 0).sum())
    also = f" (and is below it at {below})" if below else ""
    return f"at {(tests.sign > 0).sum()} of {plural(len(tests), 'place')}{also}"


def extremes(tests: pd.DataFrame) -> str:
    """The gains with the fewest and the most images, at the most common width."""
    line = tests[tests.width == tests.width.mode().iloc[0]].sort_values("images")
    told = []
    for k in dict.fromkeys([0, len(line) - 1]):
        end = line.iloc[k]
        doubt = "" if end.sign else ", which is not significant after correction"
        value = with_interval(end.difference, end.half)
        told.append(f"{value} points with {end.images:,.0f} images{doubt}")
    return f"{'; '.join(told)}; width {line.width.iloc[0]:g}"


def ranged(values: pd.Series) -> str:
    """`+0.10 to +1.20 points`."""
    return f"{span(values, points)} points"
