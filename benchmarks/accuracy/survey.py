"""The table of the survey's methods beside Gibbs pruning, magnitude pruning and TF-MOT, for `report.py`."""

import statistics

from benchmarks.accuracy.levels import accuracy, differences, mean, verdict
from benchmarks.accuracy.methods import SURVEY

LEVELS = (90, 95)
SEEDS = (0, 1, 2)  # of every method, though some have more
WHEN = {  # family -> when its masks are found, and how many trainings it takes
    "gibbs-recommended": ("while training, drawn, then held", 1),
    "magnitude-shape": ("while training, then held", 1),
    "tfmot": ("while training", 1),
    "rigl": ("while training, regrown by gradient", 1),
    "set": ("while training, regrown by chance", 1),
    "greg": ("while training, by a growing penalty", 1),
    "lottery": ("in three rounds, rewound", 4),
    "synflow": ("before training, without data", 1),
    "snip": ("before training", 1),
    "iterative-snip": ("before training, in steps", 1),
    "force": ("before training, in steps", 1),
    "grasp": ("before training", 1),
    "magnitude-before": ("before training, by initial weights", 1),
    "random-shape": ("before training, by chance", 1),
}
NEW = tuple(family for family in WHEN if family in SURVEY)


def of_seeds(results, name):
    """The results of a variant with the seeds of this table, by seed."""
    return {seed: run for seed, run in results.get(name, {}).items() if seed in SEEDS}


def table(results):
    """Rows of methods, the best at the first of `LEVELS` first: test accuracy in per cent, and the difference to TF-MOT; empty without the survey's methods."""
    chosen = {name: of_seeds(results, name) for name in results}
    if not any(chosen.get(f"{family}-{level}") for family in NEW for level in LEVELS):
        return []
    rows = []
    for family, (when, trainings) in WHEN.items():
        found = {level: [accuracy(run) for run in chosen.get(f"{family}-{level}", {}).values()] for level in LEVELS}
        if not found[LEVELS[0]]:
            continue
        row = {"method": family, "masks are found": when, "trainings": str(trainings)}
        row |= {f"test accuracy at {level} %": mean(values) if values else "" for level, values in found.items()}
        if family != "tfmot":
            row |= {f"less TF-MOT at {level} %": verdict(differences(chosen, family, "tfmot", level)) for level in LEVELS}
        rows.append((statistics.fmean(found[LEVELS[0]]), row))
    dense = [accuracy(run) for run in chosen.get("dense", {}).values()]
    first = [{"method": "not pruned", "trainings": "1", **{f"test accuracy at {level} %": mean(dense) for level in LEVELS}}] if dense else []
    return first + [row for _, row in sorted(rows, key=lambda scored: -scored[0])]
