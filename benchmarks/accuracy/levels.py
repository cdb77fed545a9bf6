"""Tables of the suites that compare methods with TF-MOT at several sparsities, for `report.py`."""

import statistics

from benchmarks.accuracy.methods import NOTES, SURVEY
from benchmarks.accuracy.tables import FEW, half_width

LEADING = {  # what the question is about: family -> what a reader calls it
    "gibbs-recommended": "Gibbs.recommended",
    "magnitude-shape": "the same without noise",
    "tfmot": "TF-MOT, its best schedule",
    "tfmot-default": "TF-MOT, its default",
}
WITHOUT_NOISE = "magnitude-shape"  # `Gibbs.recommended` but for its noise
NOISY = ("gibbs-recommended", "noise-")  # how the families begin that have it, and noise


def accuracy(result):
    """Test accuracy after the last epoch, in per cent."""
    return 100 * result["final"]["test"]["top1"]


def families(suite, results):
    """The families with results, in the order of the suite; those of the survey have a table of their own."""
    found = (variant.family for variant in suite.variants if variant.family and variant.name in results)
    return [family for family in dict.fromkeys(found) if family not in SURVEY]


def leading(suite, results):
    """Those of them that the question is about, at most four, and what a reader calls them; the first four where none is."""
    found = families(suite, results)
    names = {suite.rival if family == "tfmot" else family: name for family, name in LEADING.items()}
    return {family: name for family, name in names.items() if family in found} or {family: family for family in found[:4]}


def levels(suite, results):
    """The sparsities with results, in per cent, ascending."""
    return sorted({variant.level for variant in suite.variants if variant.level is not None and variant.name in results})


def mean(values):
    """The mean with the standard deviation, and how many there are."""
    if len(values) == 1:
        return f"{values[0]:.1f} (1)"
    return f"{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f} ({len(values)})"


def reached(runs, level):
    """The sparsity of the pruned layers that a method came to, in per cent: `level` where it is within half a point of it."""
    found = 100 * statistics.fmean(run["final"]["pruned_sparsity"] for run in runs)
    return found if abs(found - level) > 0.5 else level


def astray(runs, level):
    """What to say of a method that came to another sparsity than the one asked for."""
    return f" at {reached(runs, level):.1f} %" if reached(runs, level) != level else ""


def exported(results, name):
    """What is known of the .tflite files of a variant, one of every seed."""
    return [run["final"]["files"] for run in results.get(name, {}).values() if run["final"].get("files")]


def measured_on(results):
    """On how many test images, the first ones, the accuracy of the .tflite files was measured."""
    return " or ".join(f"{count:,}" for count in sorted({run["images"] for name in results for run in exported(results, name)}))


def accuracies(suite, results, heading="test accuracy, %", of=accuracy):
    """Rows of methods and columns of sparsities: test accuracy, or what `of` a result gives, mean ± standard deviation (seeds)."""
    columns = levels(suite, results)
    table = []
    if dense := results.get("dense"):
        table.append({heading: "dense"} | {f"{level} %": mean([of(run) for run in dense.values()]) if level == columns[0] else "" for level in columns})
    for family in families(suite, results):
        row = {heading: family}
        for level in columns:
            runs = list(results.get(f"{family}-{level}", {}).values())
            row[f"{level} %"] = mean([of(run) for run in runs]) + astray(runs, level) if runs else ""
        table.append(row)
    return table


def short(suite, results):
    """The leading rows only, and how far `Gibbs.recommended` is ahead of TF-MOT and of itself without noise."""
    names = {"dense": "not pruned", **leading(suite, results)}
    heading = "test accuracy, %"
    table = [row | {heading: names[row[heading]]} for row in accuracies(suite, results) if row[heading] in names]
    for other, label in ((suite.rival, "ahead of TF-MOT"), (WITHOUT_NOISE, "what the noise adds")):
        table += [row | {heading: label} for row in against(other, heading, ["gibbs-recommended"], suite, results)]
    return table


def tuning(suite, results):
    """Validation accuracy with seed 0, by which settings are chosen."""
    first = {name: {0: runs[0]} for name, runs in results.items() if 0 in runs}
    return accuracies(suite, first, "validation accuracy with seed 0, %", lambda run: 100 * run["final"]["validation"]["top1"])


def differences(results, family, other, level):
    """Accuracy less that of another family, seed by seed."""
    own, others = results.get(f"{family}-{level}", {}), results.get(f"{other}-{level}", {})
    return [accuracy(own[seed]) - accuracy(others[seed]) for seed in own if seed in others]


def verdict(values):
    """A mean difference; with five seeds or more its 95 % interval, and whether that excludes 0."""
    if not values:
        return ""
    text = f"{statistics.fmean(values):+.1f}"
    if len(values) < FEW:
        return f"{text} ({len(values)})"
    half = half_width(values)
    side = "ahead" if statistics.fmean(values) > half else "behind" if statistics.fmean(values) < -half else "undecided"
    return f"{text} ± {half:.1f} ({len(values)}), {side}"


def against(other, heading, compared, suite, results):
    """Rows of the families in `compared` and columns of sparsities: the difference to the family `other` in points."""
    columns = [level for level in levels(suite, results) if f"{other}-{level}" in results]
    table = []
    for family in compared:
        row = {}
        for level in columns:
            runs = results.get(f"{family}-{level}", {}).values()
            row[f"{level} %"] = verdict(differences(results, family, other, level)) + (astray(runs, level) if runs else "")
        if any(row.values()):
            table.append({heading: family} | row)
    return table


def against_rival(suite, results):
    """The difference of every family to TF-MOT."""
    return against(suite.rival, "less TF-MOT, points", [family for family in families(suite, results) if family != suite.rival], suite, results)


def noise(suite, results):
    """What noise adds: the difference to the recipe without it."""
    return against(WITHOUT_NOISE, "less no noise, points", [family for family in families(suite, results) if family.startswith(NOISY)], suite, results)


def files(suite, results):
    """One row a variant: what its .tflite files weigh, and their accuracy on the first test images, fewer than those of the accuracy in Keras."""
    table = []
    images = measured_on(results)
    for variant in suite.variants:
        runs = exported(results, variant.name)
        if not runs:
            continue
        chosen = [run["forms"][run["auto"]] for run in runs]
        row = {"variant": variant.name, "written by auto": ", ".join(dict.fromkeys(run["auto"] for run in runs))}
        for name, forms in (("auto", chosen), ("dense", [run["forms"]["dense"] for run in runs])):
            row[f"{name} kB"] = f"{statistics.fmean(form['raw_bytes'] for form in forms) / 1000:.1f}"
            row[f"{name} gzip kB"] = f"{statistics.fmean(form['gzip_bytes'] for form in forms) / 1000:.1f}"
            row[f"{name} accuracy on {images} images, %"] = mean([100 * form["accuracy"] for form in forms])
        table.append(row)
    return table


def notes(suite, results):
    """A line on each method that needs one."""
    return [f"{family}: {NOTES[family]}" for family in families(suite, results) if family in NOTES]


def tables(suite, results):
    """The tables, by name."""
    made = {
        "short": short(suite, results),
        "accuracy": accuracies(suite, results),
        "difference": against_rival(suite, results),
        "noise": noise(suite, results),
        "tuning": tuning(suite, results),
        "files": files(suite, results),
    }
    return {name: table for name, table in made.items() if table}
