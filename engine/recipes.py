"""Named protocols, `--recipe`: what they set where no flag says otherwise.

`crd` is that of the field's table (Tian et al. 2020, ICLR, section 4 and its authors' repository,
RepDistiller): every term beside a hard loss of weight 1, but kd as 0.1 hard + 0.9 T^2 kd.
"""

from dataclasses import dataclass, field
from typing import Any

from losses import parts

NARROW = ("mobilenet", "shufflenet")  # diverge at the learning rate of the others


@dataclass(frozen=True)
class Recipe:
    """`settings`: those that differ from the reference's, by name; `lr_narrow` of NARROW networks.

    `milestones` and `warmups` are epochs of a run as long as the recipe's, and scale with it.
    `weights`: what a method's cells have by default, by its name; "" is any other's.
    """

    weights: dict[str, dict[str, Any]]
    settings: dict[str, Any] = field(default_factory=dict)
    lr_narrow: float | None = None
    milestones: tuple[int, ...] = ()
    warmups: dict[str, int] = field(default_factory=dict)

    def scaled(self, whole: int, epochs: int) -> int:
        return max(1, round(whole * epochs / self.settings["epochs"]))


RECIPES = {
    "reference": Recipe({"": {"alpha": 0.5, "temperature": 10.0}}),
    "crd": Recipe(
        weights={
            "": {"alpha": 1.0, "temperature": 4.0, "hard_weight": 1.0},
            "kd": {"alpha": 0.9, "temperature": 4.0, "scale_t2": True},
            # Its authors train kd on standardised logits with weights of their own (0.1 and 9).
            "ls": {"alpha": 0.9, "temperature": 2.0},
            # 30000 times a mean over the batch's 64^2 pairs, which are summed here.
            "pkt": {"alpha": 1.0, "hard_weight": 1.0, "beta": 30000 / 64**2},
            "smooth": {"alpha": 0.1},
            "none": {"alpha": 0.9},
        },
        settings={"epochs": 240, "batch_size": 64, "momentum": 0.9, "schedule": "step",
                  "lr": 0.05, "weight_decay": 5e-4},
        lr_narrow=0.01,
        milestones=(150, 180, 210),
        warmups={"dkd": 20, "reviewkd": 20},
    ),
}  # fmt: skip


def settings_of(recipe: str, model: str, epochs: int | None) -> dict[str, Any]:
    """The settings that a recipe has other than the reference's, for a network and its epochs."""
    known = RECIPES[recipe]
    found = dict(known.settings)
    if known.lr_narrow and model.rpartition(":")[2].startswith(NARROW):  # torchvision:mobilenet_v2
        found["lr"] = known.lr_narrow
    if known.milestones:
        length = epochs or found["epochs"]
        scaled = sorted({known.scaled(each, length) for each in known.milestones})
        found["milestones"] = " ".join(map(str, scaled))
    return found


def beta_of(recipe: str, method: str) -> float | None:
    """The weight of a method's term: the recipe's, or its own; None where it has none."""
    methods = parts(method)
    own = methods[-1].beta if methods else None
    return RECIPES[recipe].weights.get(method, {}).get("beta", own)


def weights_of(recipe: str, method: str, epochs: int) -> dict[str, Any]:
    """A method's alpha, temperature, hard_weight, scale_t2, beta and soft_warmup, if it sets them.

    Two methods, as kd+sp, are any other's, and nothing of them is phased in; kd is given its T^2.
    """
    known = RECIPES[recipe]
    found = dict(known.weights.get(method, known.weights[""]))
    first, _, second = method.partition("+")
    if second and first == "kd" and "scale_t2" in known.weights.get("kd", {}):
        found["scale_t2"] = True
    if method in known.warmups:
        found["soft_warmup"] = known.scaled(known.warmups[method], epochs)
    return found
