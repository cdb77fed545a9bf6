"""Tables and plots of the runs that `compare.py` has finished, at any time.

    python benchmarks/report.py resnet8                  # the tables, and plots in benchmarks/results/resnet8-*.png
    python benchmarks/report.py resnet8 --markdown       # the tables for a README

A difference, to TF-MOT or to the dense network, is taken seed by seed. With five seeds or more it has a 95 % interval (Student's t); with fewer it is shown
without one, and no verdict is in it.
"""

import argparse
from pathlib import Path

import levels
import plots
from step_cost import RESULTS
from suites import SUITES
from tables import describe, finished, markdown, show, spread


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


def report(name, results, suite, folder, as_markdown):
    """Print the tables of one suite and draw its plots."""
    levelled = bool(levels.levels(suite, results))
    title = f"{describe(results)} {levels.notes(suite, results)}" if levelled else describe(results)
    tables = levels.tables(suite, results) if levelled else [rows(suite, results)]
    if as_markdown:
        print("\n\n".join([title, *map(markdown, tables)]))
    else:
        for index, table in enumerate(tables):
            show(table, "" if index else title)
    drawn = {"-sparsity": plots.by_sparsity, "-bytes": plots.by_bytes, "-epochs": plots.by_epoch} if levelled else {"": plots.curves}
    if not any(levels.exported(results, name) for name in results):  # TensorFlow writes them
        drawn.pop("-bytes", None)
    try:
        heading = _heading(results) if levelled else f"{name}, seeds in brackets"
        for suffix, draw in drawn.items():
            image = folder / f"{name}{suffix}.png"
            draw(results, suite, heading, image)
            print(f"Plot: {image}")
    except ImportError:
        print("No plot: matplotlib is not installed (pip install '.[plot]').")


def _heading(results):
    one = next(run for runs in results.values() for run in runs.values())["configuration"]
    return f"{one['network']} on {one['dataset']}, {one['epochs']} epochs"


def main():
    parser = argparse.ArgumentParser(description="Tables and plots of finished runs.")
    parser.add_argument(
        "suites", nargs="+", metavar="suite", help=f"a folder of results: {', '.join(SUITES)}, or one of these with what compare.py put behind it"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the folders are (%(default)s)")
    parser.add_argument("--markdown", action="store_true", help="print the tables in Markdown")
    arguments = parser.parse_args()
    for name in arguments.suites:
        results = finished(arguments.results / name)
        suite = SUITES.get(name) or next((suite for known, suite in SUITES.items() if name.startswith(f"{known}-")), None)
        if suite is None or not results:
            raise SystemExit(f"There are no finished runs in {arguments.results / name}. `python benchmarks/compare.py {name}` makes them.")
        report(name, results, suite, arguments.results, arguments.markdown)


if __name__ == "__main__":
    main()
