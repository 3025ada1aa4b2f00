"""How often the report's intervals cover and its marks err, where nothing differs in truth.

    python tests/simulate_intervals.py --repeats 250  # all that docs/evidence.md quotes; 10 minutes

A grid of alphas x temperatures, with or without a control for each alpha, and the student alone.
A run's noise has variance 1, `shared` of which all cells of an alpha have in common, and `whole` of
which all cells of the grid have; the student alone has variance `alone`. All of a seed share its
effect, which pairing takes out.
"""

import argparse
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from reporting import stats  # noqa: E402

SEEDS, ALPHAS, TEMPERATURES = (2, 3, 5), (1, 2, 5), (2, 9)
SHARED, ALONE = (0.0, 0.5, 0.8, 0.95), (1.0, 2.0)


def simulate(
    seeds: int,
    alphas: int = 5,
    temperatures: int = 9,
    shared: float = 0.0,
    alone: float = 1.0,
    whole: float = 0.0,
    controls: bool = True,
    repeats: int = 300,
) -> tuple[float, float, float]:
    """Mean coverage of the cells' intervals, the lowest cell's, and the family-wise error."""
    cells = alphas * temperatures
    row = np.repeat(np.arange(alphas), temperatures)
    alike = [("kd", a) for a in row] + [("control", a) for a in range(alphas) if controls]
    alike.append(("alone", 0))
    pairs = [(cell, len(alike) - 1) for cell in range(cells)]
    rng = np.random.default_rng([seeds, alphas, temperatures])
    covered, errors = [], []
    for _ in range(repeats):
        y = rng.normal(size=(seeds, len(alike)))
        moving = np.sqrt(shared) * rng.normal(size=(seeds, alphas))[:, row]
        moving += np.sqrt(1 - shared) * y[:, :cells]
        y[:, :cells] = np.sqrt(1 - whole) * moving + np.sqrt(whole) * rng.normal(size=(seeds, 1))
        y[:, -1] *= np.sqrt(alone)
        y += 3 * rng.normal(size=(seeds, 1))
        p = stats.contrasts(pd.DataFrame(y), pairs, alike).p.to_numpy()
        covered.append(p > stats.LEVEL)
        errors.append((stats.holm(p) <= stats.LEVEL).any())
    cell = np.mean(covered, axis=0)
    return cell.mean(), cell.min(), np.mean(errors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=300)
    repeats = parser.parse_args().repeats
    print(
        "Coverage and family-wise error, %, in the mean over 2 and 9 T, with and without controls,"
    )
    print(
        "by what the cells of an alpha share; the student alone as noisy as they are, then twice:\n"
    )
    print("| seeds | alphas | " + " | ".join(f"{100 * s:.0f} %" for s in SHARED) + " |")
    print("|---:|---:|" + "---|" * len(SHARED))
    for seeds, alphas in product(SEEDS, ALPHAS):
        texts = []
        for shared in SHARED:
            parts = []
            for alone in ALONE:
                found = [
                    simulate(seeds, alphas, t, shared, alone, 0.0, controls, repeats)
                    for t, controls in product(TEMPERATURES, (False, True))
                ]
                coverage, _, error = 100 * np.mean(found, axis=0)
                parts.append(f"{coverage:.1f} ({error:.1f})")
            texts.append(", ".join(parts))
        print(f"| {seeds} | {alphas} | {' | '.join(texts)} |", flush=True)
    print("\nAll cells of the grid move together, apart from the student alone (5 alphas x 9 T):\n")
    print("| of their variance | controls | 2 seeds | 3 seeds | 5 seeds |\n|---:|---|---|---|---|")
    for whole, controls in product((0.25, 0.5, 0.9), (True, False)):
        found = [simulate(n, 5, 9, 0.5, 1.0, whole, controls, repeats) for n in SEEDS]
        cells = " | ".join(f"{100 * c:.1f}, error {100 * e:.1f}" for c, _, e in found)
        print(f"| {100 * whole:.0f} % | {'yes' if controls else 'no'} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
