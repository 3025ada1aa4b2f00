"""The fair trial's rows to comparisons, and to the texts and tables of its page.

A place is (training images, width of the student). It is whole when the winner of every main side
has run with all fresh seeds there; only whole places are compared and drawn, all others are named.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

import sides
from engine.cells import OPTIMISER
from reporting import stats
from reporting.rows import PROTOCOL
from reporting.tables import distinct, duration, percent, plural, points, several, show
from utils import UserError

PLACE = ["images", "width"]
OF_PLACE = ("train_size", "epochs", "t_max", *OPTIMISER)  # settings a trial varies
RATE = 0.1  # the learning rate that an untuned comparison would have kept: the protocol's
MADE = ("device", "machine", "amp", "torch", "commit")
# Ends of a range beyond which there is nothing to try.
NATURAL = {("weight_decay", 0.0), ("alpha", 1.0), ("temperature", 1.0)}
NAMES = {"lr": "lr", "weight_decay": "weight decay", "alpha": "α", "temperature": "T", "beta": "β"}


@dataclass(frozen=True)
class Trial:
    """What is known of a trial; accuracies and differences are fractions of 1.

    `entries`, by (images, width, side): `search`, `final`, `fresh` (how many runs are there),
    `lost` (how many fresh ones diverged), `choice` (the winner's number in SIDES, -1: none), `val`
    (its held-out mean over the final's seeds), `accuracy` (its test accuracies, a Series by fresh
    seed), `whole` (of side and place).
    `tests`: images, width, side, against, n, difference, half (of the 95 % interval), p, p_holm,
    sign (1 above, -1 below, 0: does not hold), over all differences of whole places.
    `fixed`, by place and side: held-out gain over the student alone where both keep RATE.
    """

    rows: pd.DataFrame
    teachers: pd.DataFrame  # rows of teachers, where they were trained in the same out-dir
    fresh: int
    entries: pd.DataFrame
    tests: pd.DataFrame
    fixed: pd.Series

    @property
    def sides(self) -> list[str]:
        return [side for side in sides.SIDES if side in set(self.entries.index.get_level_values(2))]

    @property
    def whole(self) -> list[tuple]:
        """The whole places, in order."""
        return places_of(self.entries[self.entries.whole])


# ---------------------------------------------------------------- from rows to comparisons


def read(rows: pd.DataFrame, fresh: int, diverged: set[str]) -> Trial:
    """What is known of the trial in cleaned rows, where `fresh` seeds make a winner whole.

    `diverged` are the run ids of runs that were made and left no row.

    Raises UserError where there is no run of a trial, or runs of several.
    """
    teachers = rows[rows.role == "teacher"]
    rows = sides.with_sides(rows).rename(columns={"train_size": "images"})
    if rows.empty:
        raise UserError("no run of a trial in results.csv: run `sh trial.sh` first")
    check(rows)
    entries = pd.DataFrame(
        {
            (*place, side): entry(part[part.side == side], fresh, diverged)
            for place, part in rows.groupby(PLACE)
            for side in sides.SIDES
            if side in sides.MAIN or (part.side == side).any()
        }
    ).T.infer_objects()
    entries.index.names = [*PLACE, "side"]
    done = (entries.fresh + entries.lost == fresh) & (entries.fresh > 1)
    main = done[done.index.isin(sides.MAIN, level="side")].groupby(PLACE).all()
    entries["whole"] = done & main.reindex(entries.index.droplevel("side")).to_numpy()
    return Trial(rows, teachers, fresh, entries, compare(entries), fixed_rate(rows))


def check(rows: pd.DataFrame) -> None:
    """Raise UserError unless the rows are one trial's."""
    for name in PROTOCOL:
        if name not in OF_PLACE and len(distinct(rows[name])) > 1:
            break
    else:
        name = "epochs"
        lengths = rows.groupby("images")[["epochs", "t_max"]].nunique().max(axis=None)
        if lengths == 1 and not rows.duplicated([*PLACE, "side", "config", "seed"]).any():
            return
        name = "epochs" if lengths > 1 else "teacher"
    raise UserError(
        f"results.csv has trials that differ in {name}: give each an --out-dir of its own"
    )


def entry(rows: pd.DataFrame, fresh: int, diverged: set[str]) -> dict:
    """Trial.entries of one side at one place."""
    search, final = (sides.held_out(rows, s) for s in (sides.SEARCH_SEEDS, sides.FINAL_SEEDS))
    final = final[final.index.isin(sides.finalists(rows))]
    choice = sides.winner(rows)
    mine, seeds = rows[rows.config == choice], sides.fresh_seeds(fresh)
    winners = mine[mine.seed.isin(seeds)]
    first = mine.run_id[mine.seed == 0]
    lost = {name.replace("-s0-", f"-s{seed}-", 1) for name in first for seed in seeds} & diverged
    return {
        "search": int(search.notna().sum(axis=None)),
        "final": int(final.notna().sum(axis=None)),
        "fresh": len(winners),
        "lost": len(lost - set(winners.run_id)),
        "choice": -1 if choice is None else choice,
        "val": np.nan if choice is None else final.loc[choice].mean(),
        "accuracy": winners.set_index("seed").test_acc,
    }


def compare(entries: pd.DataFrame) -> pd.DataFrame:
    """Trial.tests: every whole side minus the student alone, and each taught one minus smooth."""
    parts = [pd.DataFrame(columns=[*PLACE, "side", "against", "n", "difference", "half", "p"])]
    for place, part in entries[entries.whole].groupby(PLACE):
        values = pd.DataFrame(part.accuracy.droplevel(PLACE).to_dict())
        pairs = [(side, "alone") for side in values if side != "alone"]
        pairs += [(side, "smooth") for side in values if side not in ("alone", "smooth")]
        named = pd.DataFrame(pairs, columns=["side", "against"])
        named = named.assign(images=place[0], width=place[1])
        parts.append(pd.concat([named, stats.contrasts(values, pairs)], axis=1))
    tests = pd.concat(parts[1:] or parts, ignore_index=True)
    tests["p_holm"] = stats.holm(tests.p)
    holds = tests.p_holm <= stats.LEVEL
    return tests.assign(sign=np.sign(tests.difference).where(holds, 0).astype(int))


def fixed_rate(rows: pd.DataFrame) -> pd.Series:
    """Trial.fixed: at RATE, without weight decay, the best of a side's search minus alone's."""
    rows = rows[rows.seed.isin(sides.SEARCH_SEEDS) & (rows.lr == RATE) & (rows.weight_decay == 0)]
    best = rows.groupby([*PLACE, "side"]).val_acc.max().unstack().reindex(columns=list(sides.SIDES))
    return best.sub(best.alone, axis=0).drop(columns="alone").stack().dropna()


def places_of(frame: pd.DataFrame) -> list[tuple]:
    """The places of a frame by (images, width, side), each once, in order."""
    return list(dict.fromkeys(frame.index.droplevel("side")))


# ---------------------------------------------------------------- what was chosen


def described(side: str, number: int) -> str:
    """A configuration in words."""
    config = sides.SIDES[side][number]
    words = [
        f"{named(side, name)} {getattr(config, name):g}"
        for name in NAMES
        if getattr(config, name) not in (None, 0.0)
    ]
    return ", ".join(words) + (" × T²" if config.scale_t2 else "")


def borders(side: str, number: int) -> list[str]:
    """Which settings of a choice are the smallest or largest that its side tried.

    A setting with two values is on or off, and has no border.
    """
    found = []
    for name in NAMES:
        tried = sorted({getattr(c, name) for c in sides.SIDES[side]} - {None})
        value = getattr(sides.SIDES[side][number], name)
        if len(tried) > 2 and value in (tried[0], tried[-1]) and (name, value) not in NATURAL:
            end = "smallest" if value == tried[0] else "largest"
            found.append(f"{named(side, name)} {value:g} is the {end} tried")
    return found


def named(side: str, name: str) -> str:
    return "ε" if (side, name) == ("smooth", "alpha") else NAMES[name]


# ---------------------------------------------------------------- the page


def page(trial: Trial) -> dict:
    """What the template shows: texts and tables."""
    rows = trial.rows
    first = rows.iloc[0]
    lengths = rows.groupby("images").epochs.first()
    steps = lengths * np.ceil(lengths.index.to_numpy() / first.batch_size)
    return {
        "findings": findings(trial),
        "expect": expect(trial),
        "any_lost": bool(trial.entries.lost[trial.entries.whole].any()),
        "family": int(trial.tests.p.notna().sum()),
        "unfinished": unfinished(trial),
        "choices": choices(trial),
        "at_border": at_border(trial),
        "settings": {name: distinct(rows[name])[0] for name in PROTOCOL if name not in OF_PLACE},
        "lengths": [
            f"{n:,.0f} images: {plural(int(lengths[n]), 'epoch')}, {steps[n]:,.0f} steps"
            for n in lengths.index
        ],
        "teachers": taught_by(trial),
        "made": {name: distinct(rows[name]) for name in MADE},
        "several_made": any(len(distinct(rows[name])) > 1 for name in MADE),
        "fixed_tries": sum(c.lr == RATE and not c.weight_decay for c in sides.SIDES["kd"]),
        "runs": plural(len(rows), "run"),
        "time": duration(rows.seconds),
        "sides": sides,
        "fresh": trial.fresh,
        "RATE": RATE,
    }


def gain(test: pd.Series) -> str:
    """`+1.20 [+0.90, +1.50]`, bold where it holds."""
    text = points(test.difference)
    if not np.isnan(test.half):
        low, high = points(test.difference - test.half), points(test.difference + test.half)
        text = f"{text} [{low}, {high}]"
    return f"**{text}**" if test.sign else text


def expect(trial: Trial) -> str:
    """The table of whole places; empty if there is none."""
    lines = []
    tests = trial.tests.set_index([*PLACE, "side", "against"])
    for place in trial.whole:
        line = {"images": f"{place[0]:,.0f}", "width": f"{place[1]:g}"}
        line |= {side: accuracy(trial, place, side) for side in trial.sides}
        for side, against in dict.fromkeys(zip(trial.tests.side, trial.tests.against, strict=True)):
            key = (*place, side, against)
            line[f"{side} − {against}"] = gain(tests.loc[key]) if key in tests.index else "—"
        line[f"kd − alone at lr {RATE:g}"] = points(trial.fixed.get((*place, "kd"), np.nan))
        lines.append(line)
    return show(pd.DataFrame(lines), *(lines[0] if lines else ()))


def accuracy(trial: Trial, place: tuple, side: str) -> str:
    """Mean ± standard deviation over fresh seeds of a whole side; — otherwise."""
    key = (*place, side)
    if key not in trial.entries.index or not trial.entries.whole[key]:
        return "—"
    one = trial.entries.loc[key]
    return several(one.accuracy) + (f" ({one.lost} diverged)" if one.lost else "")


def unfinished(trial: Trial) -> str:
    """What is not whole, by place and side, and how far it is; empty if all is."""
    lines = []
    for place in places_of(trial.entries[~trial.entries.whole]):
        for side, one in trial.entries.loc[place].iterrows():
            if not one.whole:
                lines.append({
                    "images": f"{place[0]:,.0f}", "width": f"{place[1]:g}", "side": side,
                    "search": f"{one.search} of {sides.BUDGET}",
                    "final": f"{one.final} of {sides.KEEP * len(sides.FINAL_SEEDS)}",
                    "fresh": f"{one.fresh} of {trial.fresh}",
                })  # fmt: skip
    return show(pd.DataFrame(lines), *(lines[0] if lines else ()))


def choices(trial: Trial) -> str:
    """What was chosen where, and whether it lies at a border."""
    lines = []
    for (images, width, side), one in trial.entries[trial.entries.choice >= 0].iterrows():
        lines.append({
            "images": f"{images:,.0f}", "width": f"{width:g}", "side": side,
            "cell": described(side, one.choice), "held-out": percent(one.val),
            "runs lost in search": str(sides.BUDGET - one.search),
            "border": "; ".join(borders(side, one.choice)) or "no",
        })  # fmt: skip
    return show(pd.DataFrame(lines), *(lines[0] if lines else ()))


def at_border(trial: Trial) -> list[str]:
    """The choices at a border, as `kd at 500 images, width 16`."""
    chosen = trial.entries[trial.entries.choice >= 0].choice
    return [
        f"{side} at {images:,.0f} images, width {width:g}"
        for (images, width, side), choice in chosen.items()
        if borders(side, choice)
    ]


def taught_by(trial: Trial) -> list[str]:
    """A sentence for each teacher: what it was trained on, as its run id says it."""
    lines = []
    taught = trial.rows[trial.rows.role == "distill"]
    for (teacher, sha), part in taught.groupby(["teacher", "teacher_sha"]):
        own = trial.teachers[trial.teachers.run_id == teacher]
        grade = f", {percent(own.test_acc.iloc[0])} % on test" if len(own) else ""
        seen = teacher.split("-")
        some = next((part[1:] for part in seen if part[0] == "n" and part[1:].isdigit()), "all")
        apart = any(part.startswith("val") for part in seen)
        held = "none of the held-out ones" if apart else "the held-out ones among them"
        who = " and ".join(dict.fromkeys(part.side))
        lines.append(
            f"`{teacher}` (`{sha}`{grade}) taught {who}. It was trained on {some} images, {held}."
        )
    return lines


# ---------------------------------------------------------------- three sentences


def findings(trial: Trial) -> list[str]:
    """What a reader takes away; of whole places alone."""
    if not trial.whole:
        return ["No place is finished, so nothing has been found yet."]
    tests = trial.tests
    kd = tests[(tests.side == "kd") & (tests.against == "alone")]
    rival = tests[(tests.side == "kd") & (tests.against == "smooth")]
    smooth = tests[(tests.side == "smooth") & (tests.against == "alone")]
    unfair = trial.fixed.xs("kd", level="side").reindex(trial.whole).dropna()
    sentences = [
        f"Distillation beats the student alone that was tuned as well {held(kd)}: {extremes(kd)}.",
        f"Label smoothing, which needs no teacher, beats it {held(smooth)} ({span(smooth)}), and "
        f"distillation beats label smoothing {held(rival)} ({span(rival)}).",
    ]
    if len(unfair):
        sentences.append(
            f"With the learning rate left at {RATE:g} the best distilled student of the search "
            f"would have seemed to gain {ranged(unfair)} (the unfair figure), where the fair gain "
            f"is {span(kd)}."
        )
    return sentences


def held(tests: pd.DataFrame) -> str:
    """`at 3 of 6 places (and is below at 1)`, after correction."""
    below = int((tests.sign < 0).sum())
    also = f" (and is below it at {below})" if below else ""
    return f"at {(tests.sign > 0).sum()} of {plural(len(tests), 'place')}{also}"


def extremes(tests: pd.DataFrame) -> str:
    """The gain at the fewest and at the most images of the commonest width."""
    line = tests[tests.width == tests.width.mode().iloc[0]].sort_values("images")
    ends = [line.iloc[k] for k in dict.fromkeys([0, len(line) - 1])]
    told = [f"{gain(end).strip('*')} points with {end.images:,.0f} images" for end in ends]
    return f"{' and '.join(told)} at width {line.width.iloc[0]:g}"


def span(tests: pd.DataFrame) -> str:
    return ranged(tests.difference)


def ranged(values: pd.Series) -> str:
    """`+0.10 to +1.20 points`."""
    low, high = points(values.min()), points(values.max())
    return f"{low} points" if low == high else f"{low} to {high} points"
