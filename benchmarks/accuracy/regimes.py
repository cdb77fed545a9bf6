"""Whether the noise pays, in one table and one plot over the regimes of the budget `long`."""

import statistics

from benchmarks.accuracy.levels import WITHOUT_NOISE, accuracy, differences, mean, verdict
from benchmarks.accuracy.suites import SUITES
from benchmarks.accuracy.tables import FEW, finished, half_width

REGIMES = {"few-images": "few images, long", "all-images": "all images, long", "pretrained": "trained network, fine-tuned"}  # suite -> what it is called
RECOMMENDED = "gibbs-recommended"
LEVEL = 90


def found(folder):
    """The finished runs in the folder of results, `{suite: {variant: {seed: result}}}`, of the regimes that have some."""
    results = {name: finished(folder / f"{name}.jsonl") for name in REGIMES}
    return {name: result for name, result in results.items() if result}


def table(results):
    """One row a regime: accuracies at 90 %, and what `Gibbs.recommended` is ahead, paired by seed."""
    rows = []
    for name, result in results.items():
        row = {"at 90 %, test accuracy in %": REGIMES[name]}
        rival = SUITES[name].rival
        columns = {"dense": "dense", "no noise": f"{WITHOUT_NOISE}-{LEVEL}", "Gibbs.recommended": f"{RECOMMENDED}-{LEVEL}", "TF-MOT": f"{rival}-{LEVEL}"}
        for column, variant in columns.items():
            runs = result.get(variant, {}).values()
            row[column] = mean([accuracy(run) for run in runs]) if runs else ""
        row["the noise adds"] = verdict(differences(result, RECOMMENDED, WITHOUT_NOISE, LEVEL))
        row["ahead of TF-MOT"] = verdict(differences(result, RECOMMENDED, rival, LEVEL))
        rows.append(row)
    return rows


def plot(results, path):
    """The same differences: a dot a seed, and the mean, from five seeds on with its 95 % interval."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.5, 1 + 0.9 * len(results)), dpi=110, layout="constrained")
    labels = []
    for name, result in results.items():
        for other, label, colour in ((WITHOUT_NOISE, "no noise", "tab:blue"), (SUITES[name].rival, "TF-MOT", "tab:orange")):
            values = differences(result, RECOMMENDED, other, LEVEL)
            if not values:
                continue
            place = -len(labels)
            labels.append(f"{REGIMES[name]}, against {label}")
            interval = half_width(values) if len(values) >= FEW else None
            centre = statistics.fmean(values)
            axes.errorbar(centre, place, xerr=interval, fmt="D", color=colour, capsize=4)
            axes.plot(values, [place] * len(values), "o", color=colour, alpha=0.35, markersize=4)
            axes.annotate(f"{centre:+.1f}", (centre, place), (0, 7), textcoords="offset points", ha="center", fontsize="small")
    axes.axvline(0, color="grey", linewidth=0.8)
    axes.set_yticks([-place for place in range(len(labels))], labels)
    axes.set(xlabel="Gibbs.recommended at 90 %: test accuracy ahead, points", ylim=(0.6 - len(labels), 0.6))
    axes.grid(alpha=0.3, axis="x")
    figure.savefig(path, bbox_inches="tight")
    pyplot.close(figure)
