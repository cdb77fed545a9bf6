"""Tables and plots of the runs that `compare.py` has finished, at any time.

    python benchmarks/report.py extraction               # the table, and a plot in benchmarks/results/extraction.png
    python benchmarks/report.py extraction --markdown    # the table for a README

A difference to the dense network is taken seed by seed. With five seeds or more it has a 95 % interval (Student's t); with fewer the range of the seeds is
shown, and no verdict is in it.
"""

import argparse
import json
import statistics
from pathlib import Path

from step_cost import RESULTS
from suites import SUITES

FEW = 5  # seeds; below this many there is no interval


def finished(folder):
    """The results in a folder, by variant and seed: `{variant: {seed: result}}`, in the order of the files."""
    found = {}
    for file in sorted(Path(folder).glob("*-seed*.json")):
        result = json.loads(file.read_text())
        found.setdefault(result["variant"], {})[result["seed"]] = result
    return found


def spread(values, scale=1.0, digits=1):
    """The mean of some values, with the range of them, or from five on with the half-width of a 95 % interval."""
    values = [scale * value for value in values]
    mean = f"{statistics.fmean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    if len(values) < FEW:
        return f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"
    from scipy.stats import t

    half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean} ± {half:.{digits}f}"


def epochs_to(result, accuracy):
    """After how many epochs the validation accuracy first reached `accuracy`; None if it never did."""
    return next((epoch for epoch, value in enumerate(result["history"]["val_accuracy"], 1) if value >= accuracy), None)


def rows(suite, results):
    """One dict of texts per variant, in the order of the suite."""
    table = []
    for variant in suite.variants:
        runs = results.get(variant.name)
        if not runs:
            continue
        final = {seed: run["final"] for seed, run in runs.items()}
        row = {"variant": variant.name, "seeds": str(len(runs))}
        paired = [seed for seed in final if seed in results.get("dense", {})]
        for name, text in (("top1", "top-1"), ("top5", "top-5"))[: 2 if suite.detailed else 1]:
            row[f"{text} %"] = spread([one["test"][name] for one in final.values()], 100)
            if variant.name != "dense" and paired:
                lost = [final[seed]["test"][name] - results["dense"][seed]["final"]["test"][name] for seed in paired]
                row[f"{text} to dense, points"] = spread(lost, 100)
        row["weights removed %"] = spread([one["sparsity"] for one in final.values()], 100)
        if suite.detailed:
            unmasked = [one["test_unmasked"]["top1"] for one in final.values() if one["test_unmasked"]]
            row["top-1 % without the mask"] = spread(unmasked, 100) if unmasked else ""
        if suite.reach is not None:
            reached = [epochs_to(run, suite.reach) for run in runs.values()]
            row[f"epochs to {100 * suite.reach:g} %"] = ", ".join("not reached" if epoch is None else str(epoch) for epoch in reached)
        table.append(row)
    return table


def describe(results):
    """One line: what was trained, how, and where."""
    runs = [run for variant in results.values() for run in variant.values()]
    first, machine = runs[0]["configuration"], runs[0]["environment"]
    passes = first["epochs"] * first["steps"] * first["batch"] / first["train"]
    hours = sum(run["seconds"] for run in runs) / 3600
    schedule = f"{first['epochs']} epochs of {first['steps']} batches of {first['batch']} ({passes:.1f} passes over {first['train']:,} images)"
    where = f"{machine['backend']} on {machine['cores']} core(s) of {machine['cpu']} a run"
    return f"{first['network']} on {first['dataset']}, {schedule}, {first['optimizer']}; {where}, {len(runs)} runs, {hours:.1f} h of training."


def headings(table):
    return list(dict.fromkeys(name for row in sorted(table, key=len, reverse=True) for name in row))


def markdown(table):
    names = headings(table)
    lines = [f"| {' | '.join(names)} |", "|---|" + "---:|" * (len(names) - 1)]
    return "\n".join(lines + [f"| {' | '.join(row.get(name, '') for name in names)} |" for row in table])


def show(table, title):
    from rich.console import Console
    from rich.table import Table

    printed = Table(title=title, title_justify="left")
    for index, name in enumerate(headings(table)):
        printed.add_column(name, justify="right" if index else "left")
    for row in table:
        printed.add_row(*(row.get(name, "") for name in headings(table)))
    Console(width=180).print(printed)


def plot(results, suite, title, path):
    """Validation accuracy against passes over the training images, the mean of the seeds and their range."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5.5), dpi=110)
    styles = ["-", "--", ":", "-."]
    names = [variant.name for variant in suite.variants if variant.name in results]
    for index, name in enumerate(names):
        runs = list(results[name].values())
        one = runs[0]["configuration"]
        curves = [[100 * value for value in run["history"]["val_accuracy"]] for run in runs]
        passes = [(epoch + 1) * one["steps"] * one["batch"] / one["train"] for epoch in range(min(map(len, curves)))]  # a run may have ended early
        colour = pyplot.get_cmap("tab10")(index % 10)
        axes.plot(passes, [statistics.fmean(at) for at in zip(*curves)], styles[index // 5 % 4], color=colour, label=f"{name} ({len(runs)})")
        if len(runs) > 1:
            axes.fill_between(passes, [min(at) for at in zip(*curves)], [max(at) for at in zip(*curves)], color=colour, alpha=0.15, linewidth=0)
    if suite.reach is not None:
        axes.axhline(100 * suite.reach, color="grey", linewidth=0.8)
    axes.set(xlabel="passes over the training images", ylabel="validation accuracy, %", title=title)
    axes.grid(alpha=0.3)
    axes.legend(title="variant (seeds)", fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, bbox_inches="tight")
    pyplot.close(figure)


def main():
    parser = argparse.ArgumentParser(description="Tables and plots of finished runs.")
    parser.add_argument("suite", help=f"a folder of results: {', '.join(SUITES)}, or one of these with the data set that was given")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the folders are (%(default)s)")
    parser.add_argument("--markdown", action="store_true", help="print the table in Markdown")
    arguments = parser.parse_args()
    results = finished(arguments.results / arguments.suite)
    suite = SUITES.get(arguments.suite) or next((suite for name, suite in SUITES.items() if arguments.suite.startswith(f"{name}-")), None)
    if suite is None or not results:
        raise SystemExit(f"There are no finished runs in {arguments.results / arguments.suite}. `python benchmarks/compare.py {arguments.suite}` makes them.")
    table, title = rows(suite, results), describe(results)
    if arguments.markdown:
        print(f"{title}\n\n{markdown(table)}")
    else:
        show(table, title)
    try:
        image = arguments.results / f"{arguments.suite}.png"
        plot(results, suite, f"{arguments.suite}, seeds in brackets", image)
        print(f"Plot: {image}")
    except ImportError:
        print("No plot: matplotlib is not installed (pip install '.[plot]').")


if __name__ == "__main__":
    main()
