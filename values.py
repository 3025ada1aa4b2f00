"""argparse types for the flags' values, whose errors name what is wanted."""

import argparse
from collections.abc import Callable
from pathlib import Path

from utils import LARGEST


def number(kind: type, test: Callable[[float], bool], what: str) -> Callable[[str], float]:
    """An argparse type: a `kind` that tensors can hold and `test` accepts; `what` describes it."""

    def parse(raw: str) -> float:
        try:
            value = kind(raw)
            fine = abs(value) <= (LARGEST if kind is int else 3e38) and test(value)
        except (ValueError, OverflowError):
            fine = False
        if not fine:
            raise argparse.ArgumentTypeError(f"{raw[:40]!r} is not {what}, or too large")
        return value

    return parse


COUNT = number(int, lambda v: v >= 1, "a whole number of at least 1")
COUNT_OR_NONE = number(int, lambda v: v >= 0, "a whole number of at least 0")
WIDTH = number(int, lambda v: 1 <= v <= 4096, "a whole number from 1 to 4096")
PIXELS = number(int, lambda v: 8 <= v <= 4096, "a whole number from 8 to 4096")
THREADS = number(int, lambda v: 0 <= v <= 4096, "a whole number from 0 to 4096")
POSITIVE = number(float, lambda v: v > 0, "a number above 0")
NOT_NEGATIVE = number(float, lambda v: v >= 0, "a number of at least 0")
SHARE = number(float, lambda v: 0 <= v <= 1, "a number from 0 to 1")
SPREAD = number(float, lambda v: 0 < v <= 1, "a number above 0, to 1")
BELOW_ONE = number(float, lambda v: 0 <= v < 1, "a number from 0 to below 1")


def folder(raw: str) -> Path:
    """An argparse type: a folder's path."""
    return Path(filled(raw))


def filled(raw: str) -> str:
    """An argparse type: text that is not empty, as an unset shell variable is."""
    if not raw:
        raise argparse.ArgumentTypeError("it is empty")
    return raw
