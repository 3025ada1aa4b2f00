"""The answer of the fair trial's page: a line for each place, then what holds over all of them."""

import re
from collections.abc import Iterable
from itertools import groupby

import numpy as np
import pandas as pd

import sides
from reporting.rows import student_name
from reporting.stats import LEVEL
from reporting.tables import percent, plural, points, span, with_interval
from reporting.trial import PLACE, Trial, places_of, question, search_rows

FEW = 40  # tries a side; with fewer a side with a small best region is told to be tuned badly
ABOUT = {
    "kd-shuffled": "the teacher's answers to another image of the same class",
    "kd-random": "the teacher's network, untrained",
    "kd-self": "the best student alone, of the same network and images, as the teacher",
    "kd-same": "a teacher trained on the student's own images",
}
ABOVE, BELOW = "significantly above it", "significantly below it"  # after correction
SMALL = "certainly less than half a point from it"
NOTHING = "No place is finished, so nothing has been found yet."
UNKNOWN = "images of another data set, which is not known here"


def answer(trial: Trial) -> dict:
    """The values of the template trial_answer.j2."""
    whole = trial.entries[trial.entries.whole]
    return {
        "NOTHING": NOTHING,
        "drawn": "shapes" in set(trial.rows.dataset),
        "how": how(trial),
        "answers": answers(trial),
        "findings": findings(trial),
        "borders": sided(trial, whole.index[whole.borders.astype(bool)]),
        "short": short(trial),
        "few": trial.asked.tries if trial.asked.tries < FEW else 0,
        "usual": sides.TRIES,
        "lacking": lacking(trial),
    }


# ---------------------------------------------------------------- places in words


def student(trial: Trial, width: float) -> str:
    """The student's name, with its width where that is not its own."""
    return student_name(trial.rows.model.iloc[0], width)


def named_place(trial: Trial, place: tuple) -> str:
    return f"{place[0]:,.0f} images, {student(trial, place[1])}"


def named_places(trial: Trial, places: Iterable[tuple]) -> str:
    """`500 and 5,000 (width 16, 32) images`; widths where the trial has several at that size."""
    sizes, words = [images for images, _ in places_of(trial.entries)], []
    for images, those in groupby(places, lambda place: place[0]):
        widths = f" (width {', '.join(f'{width:g}' for _, width in those)})"
        words.append(f"{images:,.0f}" + widths * (sizes.count(images) > 1))
    return f"{' and '.join(filter(None, [', '.join(words[:-1]), *words[-1:]]))} images"


def sided(trial: Trial, keys: list[tuple]) -> str:
    """`smooth at 500 images; kd at 500 and 1,000 images`, of (images, width, side)."""
    every, told = places_of(trial.entries), []
    for side in trial.sides:
        places = [tuple(place) for *place, own in keys if own == side]
        if places:
            told.append(side + f" at {named_places(trial, places)}" * (len(every) > 1))
    return "; ".join(told)


# ---------------------------------------------------------------- a line for each place


def how(trial: Trial) -> str:
    """How the lines are read: what they have in common. Empty where no place is whole."""
    if not trial.whole:
        return ""
    bases = pd.Series(based(trial))
    other = ", where nothing else is said" * (bases.nunique() > 1)
    images = trial.tests.test_images.dropna()
    apart = (
        f" Test set ±: how far test sets of {span(images, '{:,.0f}'.format)} images would scatter "
        "by their own sampling (95 %); no interval has it."
    )
    taught = trial.rows[trial.rows.side == "kd"]
    seen = " or ".join(dict.fromkeys(seen_by(trial, teacher) for teacher in taught.teacher))
    return (
        f"A line for each number of images that the student learns from; its teacher was trained "
        f"on {seen}. Gains are in points of test accuracy over the student alone, which was tuned "
        f"as well, with 95 % intervals over {bases.mode()[0]}{other}. {corrected(trial)}"
        + apart
        * bool(len(images))
    )


def corrected(trial: Trial) -> str:
    """Over which differences Holm's correction is: two families."""
    known = trial.tests[trial.tests.p.notna()]
    gains = question(known).sum()
    others = plural(len(known) - gains, "other difference")
    return (
        f"A verdict holds after Holm's correction over the {plural(gains, 'gain')} of "
        f"distillation; the page's {others} are corrected among themselves."
    )


def answers(trial: Trial) -> list[str]:
    """A line for each whole place: whether a teacher is worth it, with the interval."""
    tests, told = trial.tests.set_index([*PLACE, "side", "against"]), []
    bases = based(trial)
    for place in trial.whole:
        kd, smooth = (tests.loc[(*place, side, "alone")] for side in ("kd", "smooth"))
        found = verdict(kd, tests.loc[(*place, "kd", "smooth")])
        text = f"**{named_place(trial, place)}**: {found}: {figure(kd)}; label smoothing, "
        text += f"without a teacher, {figure(smooth)}"
        unusual = bases[place] != pd.Series(bases).mode()[0]
        told.append(f"{text}{f' (over {bases[place]})' * unusual}.")
    return told


def based(trial: Trial) -> dict[tuple, str]:
    """By whole place, what the intervals of its line are over."""
    tests = trial.tests[(trial.tests.against == "alone") & trial.tests.side.isin(["kd", "smooth"])]
    return {place: over(part) for place, part in tests.groupby(PLACE)}


def over(tests: pd.DataFrame) -> str:
    """What intervals are over: `5 to 10 fresh seeds or 3 draws of the training images`."""
    seeds, draws = tests.n[tests.draws <= 1], tests.draws[tests.draws > 1]
    words = [f"{span(seeds)} fresh seeds"] * (len(seeds) > 0)
    words += [f"{span(draws)} draws of the training images"] * (len(draws) > 0)
    return " or ".join(words)


def verdict(test: pd.Series, rival: pd.Series) -> str:
    """What distillation's differences to the student alone and to label smoothing say, in words."""
    small = bool(test.p_small <= LEVEL)
    if test.sign > 0 and rival.sign < 0:
        return "a teacher helps, but less than label smoothing"
    if test.sign > 0:
        text = "a teacher is worth it" + ", but less than half a point" * small
        return text + ", though not shown to be worth more than label smoothing" * (not rival.sign)
    if test.sign < 0:
        return "a teacher does harm" + ", by less than half a point" * small
    return "a teacher changes it by less than half a point" if small else "undecided"


def figure(test: pd.Series) -> str:
    """`+2.74 [+2.23, +3.25] (test set ± 0.41)`, the latter where it is known."""
    text = with_interval(test.difference, test.half)
    text += "" if np.isfinite(test.half) else " without an interval"
    known = np.isfinite(test.sampled)
    return text + (f" (test set ± {percent(test.sampled)})" if known else "")


def short(trial: Trial) -> str:
    """Places whose length is not shown to be enough. Empty where there is none."""
    places = [place for place in trial.whole if not trial.lengths.moved[place] < sides.ENOUGH]
    return named_places(trial, places) if places else ""


def lacking(trial: Trial) -> str:
    """What is unfinished: places, and further sides at whole ones. Empty where all is there."""
    places, whole = places_of(trial.entries), trial.whole
    keys = [key for key, one in trial.entries.iterrows() if key[:2] in whole and not one.whole]
    unfinished = [place for place in places if place not in whole]
    some = named_places(trial, unfinished) if whole and unfinished else ""
    return "; ".join(filter(None, [some, sided(trial, keys)]))


# ---------------------------------------------------------------- over all places


def findings(trial: Trial) -> list[str]:
    """Sentences over all whole places."""
    if not trial.whole:
        return []
    tests = trial.tests.set_index(["side", "against"]).sort_index()
    kd, controls = tests.loc[[("kd", "alone")]], []
    gained = beside(trial, kd, "the student alone")
    for side in ABOUT:
        if (side, "alone") in tests.index:
            what = beside(trial, tests.loc[[(side, "alone")]], "the student alone")
            more = beside(trial, tests.loc[[("kd", side)]], "that")
            where = places_in(tests.loc[[(side, "alone")]])
            some = f", tried at {named_places(trial, where)}" * (len(where) < len(trial.whole))
            first = [place for place in where if on_first_draw(trial, (*place, side))]
            if first:
                some += f", with {named_places(trial, first)} only on their first draw"
            controls.append(
                f"With {ABOUT[side]} ({side}){some}: {what}. Plain distillation: {more}."
            )
    smooth = beside(trial, tests.loc[[("smooth", "alone")]], "the student alone")
    rival = beside(trial, tests.loc[[("kd", "smooth")]], "label smoothing")
    alike = [at_the_same_rates(trial, place) for place in trial.whole]
    every, best = pd.concat(alike), pd.concat([gaps[: -(-len(gaps) // 4)] for gaps in alike])
    medians = ranged([gaps.median() for gaps in alike if len(gaps)])
    return [
        f"Distillation: {gained}.",
        *controls,
        f"Label smoothing: {smooth}. Distillation: {rival}.",
        f"Is it tuning? At the same learning rate and weight decay distillation is above the "
        f"student alone in {(every > 0).sum()} of {len(every)} tries, and in {(best > 0).sum()} of "
        f"the {len(best)} that are best, held out, for both; the median difference is {medians} "
        f"(the search's one seed), that of the tuned winners {ranged(kd.difference)} "
        "(fresh seeds).",
    ]


def on_first_draw(trial: Trial, key: tuple) -> bool:
    """Whether a side (images, width, side) has the first draw alone, where its place has several.

    Its differences are then to the runs of that draw.
    """
    asked = trial.entries.asked
    return bool(asked[key] < asked[(*key[:2], "alone")])


def places_in(tests: pd.DataFrame) -> list[tuple]:
    return list(tests[PLACE].itertuples(index=False, name=None))


def beside(trial: Trial, tests: pd.DataFrame, rival: str) -> str:
    """`+0.1 to +1.2 points against it, significantly above it at 1 of 3 places: 500 images`."""
    if len(tests) == 1:
        one = tests.iloc[0]
        text = f"{points(one.difference)} points against {rival}"
        text += ("", f", {ABOVE}", f", {BELOW}")[int(one.sign)]
        return text + f", {SMALL}" * bool(one.p_small <= LEVEL)

    def at(which: pd.Series) -> str:
        places = places_in(tests[which.to_numpy()])
        if len(tests) == 2 and len(places) != 1:
            return "at both places" if places else "at neither place"
        if len(places) in (0, len(tests)):
            return f"at {'all' if places else 'none of'} {len(tests)} places"
        return f"at {len(places)} of {len(tests)} places: {named_places(trial, places)}"

    text = f"{ranged(tests.difference)} against {rival}, {ABOVE} {at(tests.sign > 0)}"
    for which, what in ((tests.sign < 0, BELOW), (tests.p_small <= LEVEL, SMALL)):
        text += f"; {what} {at(which)}" * bool(which.any())
    return text


def at_the_same_rates(trial: Trial, place: tuple) -> pd.Series:
    """Test accuracy of kd's tries minus that of the student alone's with their lr and decay.

    First those that are best by the mean of both's held-out accuracies.
    """
    alone, kd = (
        search_rows(trial, place, side).set_index(list(sides.SHARED))[["val_acc", "test_acc"]]
        for side in ("alone", "kd")
    )
    alone = alone.reindex(kd.index)
    gaps = (kd - alone).test_acc.to_numpy()
    order = np.argsort(-(kd + alone).val_acc.to_numpy(), kind="stable")  # NaN last
    return pd.Series(gaps[order]).dropna()


def ranged(values: Iterable[float]) -> str:
    """`+0.10 to +1.20 points`."""
    return f"{span(pd.Series(values), points)} points"


def elsewhere(trial: Trial, teacher: str) -> pd.DataFrame:
    """The rows of a teacher, by its run id, that began with weights from elsewhere."""
    return trial.teachers[(trial.teachers.run_id == teacher) & (trial.teachers.weights != "")]


def is_here(trial: Trial, teacher: str) -> bool:
    """Whether a teacher, by its run id, has a row in the trial's own CSV."""
    return any((rows.run_id == teacher).any() for rows in (trial.teachers, trial.rows))


def seen_by(trial: Trial, teacher: str) -> str:
    """`all images of the data set`, `... but 5,000` or `1,000 images`, by a teacher's run id.

    A teacher without a row here is known by that name alone. Of weights from elsewhere, which its
    row names, nobody here knows what they saw.
    """
    own = elsewhere(trial, teacher)
    if len(own):
        return UNKNOWN + ", and then on those of this one" * bool(own.epochs.iloc[0])
    found = {word: re.search(rf"-{word}(\d+)(?=-|$)", teacher) for word in ("n", "val")}
    count = {word: f"{int(match[1]):,}" for word, match in found.items() if match}
    text = "all images of the data set" + (f" but {count['val']}" if "val" in count else "")
    if "n" in count:
        text = f"{count['n']} images"
    return text + " (by its name)" * (not is_here(trial, teacher))
