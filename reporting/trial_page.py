"""The fair trial's page below its answer: tables, what was chosen and what was done."""

from collections.abc import Callable

import numpy as np
import pandas as pd

import sides
from reporting.rows import PROTOCOL, applies
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
from reporting.trial import PLACE, TRIES, TUNED, Trial, best_of, places_of
from reporting.trial_answer import (
    ABOUT,
    answer,
    elsewhere,
    is_here,
    named_place,
    on_first_draw,
    seen_by,
    student,
)

MADE = ("device", "machine", "amp", "torch", "commit")
NAMES = {"lr": "lr", "weight_decay": "weight decay", "alpha": "α", "temperature": "T", "beta": "β"}


def page(trial: Trial) -> dict:
    """The template's values: texts and tables."""
    rows = trial.rows
    fixed = [n for n in PROTOCOL if n not in sides.OF_PLACE and applies(n, rows.iloc[0])]
    return answer(trial) | {
        "expect": expect(trial),
        "others": further(trial, [s for s in trial.sides if s not in (*sides.MAIN, *ABOUT)]),
        "controls": further(trial, list(ABOUT)),
        "about": {side: ABOUT[side] for side in trial.sides if side in ABOUT},
        "tuning": tuning(trial),
        "any_lost": bool(trial.entries.lost[trial.entries.whole].any()),
        "any_small": bool((trial.tests.p_small <= LEVEL).any()),
        "several_draws": bool((trial.tests.draws > 1).any()),
        "one_draw": bool((trial.tests.draws == 1).any()),
        "sampled": bool(trial.tests.sampled.notna().any()),
        "unfinished": unfinished(trial),
        "fewer": fewer(trial),
        "choices": choices(trial),
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


def at(trial: Trial, place: tuple) -> dict[str, str]:
    """A place as a line of a table begins."""
    return {"images": f"{place[0]:,.0f}", "student": student(trial, place[1])}


# ---------------------------------------------------------------- the tables


def gain(test: pd.Series) -> str:
    """`+1.20 [+0.90, +1.50] (± 0.41)`, bold where significant, ° where certainly within MARGIN.

    In parentheses the sampling of the test set, where that is known.
    """
    text = with_interval(test.difference, test.half) + "°" * bool(test.p_small <= LEVEL)
    text = f"**{text}**" if test.sign else text
    return text + (f" (± {percent(test.sampled)})" if test.sampled == test.sampled else "")


def expect(trial: Trial) -> str:
    """The table of the main sides at whole places; empty if there are none."""
    lines = []
    tests = trial.tests[trial.tests.side.isin(sides.MAIN) & trial.tests.against.isin(sides.MAIN)]
    pairs = dict.fromkeys(zip(tests.side, tests.against, strict=True))
    tests = tests.set_index([*PLACE, "side", "against"])
    for place in trial.whole:
        line = at(trial, place) | {side: accuracy(trial, place, side) for side in sides.MAIN}
        line |= {f"{one} − {other}": gain(tests.loc[(*place, one, other)]) for one, other in pairs}
        lines.append(line)
    return show_lines(lines)


def further(trial: Trial, names: list[str]) -> str:
    """The table of these further sides, those of whole places; empty if there are none."""
    lines, tests = [], trial.tests
    own = tests.side.where(~tests.side.isin(sides.MAIN), tests.against).rename("own")
    for (*place, side), part in tests[own.isin(names)].groupby([*PLACE, own], sort=False):
        first = ", first draw" * on_first_draw(trial, (*place, side))
        line = at(trial, place) | {"side": side + first}
        line["accuracy"] = accuracy(trial, tuple(place), side)
        for test in part.itertuples():
            name = f"{test.side} − it" if test.against == side else f"− {test.against}"
            line[name] = gain(test)
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


def tuning(trial: Trial) -> str:
    """The table of what kd gains over the student alone, each with the best of so many tries."""
    return show_lines(
        [at(trial, p) | by_tries(gain_by_tries(trial, p), points) for p in trial.whole]
    )


def gain_by_tries(trial: Trial, place: tuple) -> pd.Series:
    """By number of tries: kd minus the student alone on test, each with the best of so many."""
    kd, alone = (best_of(trial, place, side).test for side in ("kd", "alone"))
    return (kd - alone).dropna()


def fewer(trial: Trial) -> str:
    """The table of what each side reaches with so many tries; empty if no place is whole."""
    lines = []
    for place in trial.whole:
        for side in trial.sides:
            if (*place, side) in trial.entries.index and trial.entries.loc[(*place, side)].whole:
                found = best_of(trial, place, side).map(percent)
                figures = found.val + " (" + found.test + ")"
                lines.append(at(trial, place) | {"side": side} | by_tries(figures, str))
    return show_lines(lines)


def by_tries(figures: pd.Series, words: Callable[..., str]) -> dict[str, str]:
    """Some of the figures by number of tries: those of TRIES, and the last."""
    return {f"{n:g}": words(one) for n, one in figures.items() if n in (*TRIES, figures.index[-1])}


def lengths(trial: Trial) -> list[str]:
    """How long a run is at each place, and whether that is long enough."""
    lines = []
    for place, one in trial.lengths.iterrows():
        doubled = f"twice as many move the student alone by {points(one.moved)} points"
        if np.isnan(one.moved):
            doubled = "whether twice as many do more is not known"
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


def taught_by(trial: Trial) -> list[str]:
    """A sentence for each teacher: what it was trained on, by its run id."""
    lines = []
    taught = trial.rows[trial.rows.role == "distill"]
    for (teacher, sha), part in taught.groupby(["teacher", "teacher_sha"]):
        own = trial.teachers[trial.teachers.run_id == teacher]
        known = pd.concat([part.teacher_acc, own.test_acc]).dropna()  # another may have its name
        grade = f", {percent(known.iloc[0])} % on test" if len(known) else ""
        held = is_here(trial, teacher) and f"val{part.val_size.iloc[0]:g}" in teacher.split("-")
        some = "none of them held out" if held else "held-out ones may be among them"
        who = ", ".join(dict.fromkeys(part.side))
        some = "" if len(elsewhere(trial, teacher)) else f", {some}"
        trained = f"It was trained on {seen_by(trial, teacher)}{some}."
        if teacher.endswith("-untrained"):
            trained = "It has its first weights."
        lines.append(f"`{teacher}` (`{sha}`{grade}) taught {who}. {trained}")
    return lines
