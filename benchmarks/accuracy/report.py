"""Tables and plots of the runs that `compare.py` has finished, at any time.

    python benchmarks/accuracy/report.py resnet8                  # the tables, and plots in benchmarks/results/resnet8-*.png
    python benchmarks/accuracy/report.py regimes                  # one table and one plot over the regimes of `compare.py --budget long`
    python benchmarks/accuracy/report.py --update README.md       # write the tables in a Markdown file anew (see `update`); no plots

A difference, to TF-MOT or to the dense network, is taken seed by seed. With five seeds or more it has a 95 % interval (Student's t); with fewer it is shown
without one, and no verdict is in it.
"""

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.accuracy import levels, plots, regimes, survey
from benchmarks.accuracy.suites import SUITES
from benchmarks.accuracy.tables import describe, finished, markdown, show, spread
from benchmarks.common.results import RESULTS, write_text

OPENING = "<!-- report "
MARKS = re.compile(r"(<!-- report (\S+)((?: [a-z]+)*) -->)(?:(?!<!-- report ).)*?(<!-- end -->)", re.DOTALL)
NO_PLOT = "No plot: matplotlib is not installed (pip install '.[plot]')."
LEGEND = "Accuracies are means ± standard deviation (seeds); differences are paired by seed, from five seeds on ± the half-width of their 95 % interval."


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
        if suite.shrunken:
            small = [one["shrunken"] for one in final.values()]
            for name, text in (("parameters", "parameters"), ("macs", "multiply-adds")):
                row[f"{text} left %"] = spread([one[name] / one[f"{name}_before"] for one in small], 100)
            row["top-1 % recalibrated"] = spread([one["recalibrated"]["top1"] for one in small], 100)
        if suite.reach is not None:
            reached = [epochs_to(run, suite.reach) for run in runs.values()]
            row[f"epochs to {100 * suite.reach:g} %"] = ", ".join("not reached" if epoch is None else str(epoch) for epoch in reached)
        table.append(row)
    return table


def parts(suite, results):
    """A line on the runs, lines on the methods, and the tables by name."""
    if levels.levels(suite, results):
        compared = survey.table(results)
        return f"{describe(results)} {LEGEND}", levels.notes(suite, results), levels.tables(suite, results) | ({"survey": compared} if compared else {})
    return describe(results), [], {"accuracy": rows(suite, results)}


def print_tables(suite, results):
    """The tables of one suite in the terminal."""
    title, notes, tables = parts(suite, results)
    for index, table in enumerate(tables.values()):
        show(table, "" if index else "\n".join([title, *notes]))


def in_markdown(suite, results, names=()):
    """The same as Markdown; of the tables those of `names`, or all."""
    title, notes, tables = parts(suite, results)
    if missing := set(names) - set(tables):
        raise SystemExit(f"There is no table `{'`, `'.join(sorted(missing))}` of {describe(results)} There are `{'`, `'.join(tables)}`.")
    listed = ["\n".join(f"- {note}" for note in notes)] if notes and names not in (["short"], ["survey"]) else []
    return "\n\n".join([title, *(markdown(tables[name]) for name in names or tables), *listed])


def over_regimes(folder):
    """The results of the regimes; there must be some."""
    return regimes.found(folder) or _nothing(folder, "regimes", "--budget long")


def _nothing(folder, name, words):
    raise SystemExit(f"There are no finished runs of {name} in {folder}. `python benchmarks/accuracy/compare.py {words}` makes them.")


def written(name, tables_wanted, folder):
    """What `update` writes between the marks of a suite, or of `regimes`."""
    return markdown(regimes.table(over_regimes(folder))) if name == "regimes" else in_markdown(*known(name, folder), tables_wanted)


def update(path, folder):
    """Write the tables of a Markdown file anew, each between a mark that names a suite and perhaps some of its tables, and its `<!-- end -->`."""
    text = path.read_text()
    whole = len(MARKS.findall(text))
    if not whole or whole != text.count(OPENING):
        raise SystemExit(
            "A table is written between `<!-- report resnet8 -->`, or `<!-- report resnet8 accuracy difference -->`, and `<!-- end -->`. "
            f"Received: {path}, with {whole} such pairs and {text.count(OPENING)} beginnings of one. Nothing was written."
        )
    write_text(path, MARKS.sub(lambda found: f"{found[1]}\n\n{written(found[2], found[3].split(), folder)}\n\n{found[4]}", text))
    print(f"Updated: {path}")


def draw(name, suite, results, folder):
    """The plots of one suite."""
    levelled = bool(levels.levels(suite, results))
    drawn = {"-sparsity": plots.by_sparsity, "-bytes": plots.by_bytes, "-epochs": plots.by_epoch} if levelled else {"": plots.curves}
    if not any(levels.exported(results, name) for name in results):  # TensorFlow writes them
        drawn.pop("-bytes", None)
    try:
        heading = _heading(results) if levelled else f"{name}, seeds in brackets"
        for suffix, plot in drawn.items():
            image = folder / f"{name}{suffix}.png"
            plot(results, suite, heading, image)
            print(f"Plot: {image}")
    except ImportError:
        print(NO_PLOT)


def draw_regimes(results, folder):
    """The plot over the regimes."""
    try:
        regimes.plot(results, folder / "regimes.png")
        print(f"Plot: {folder / 'regimes.png'}")
    except ImportError:
        print(NO_PLOT)


def _heading(results):
    one = next(run for runs in results.values() for run in runs.values())["configuration"]
    return f"{one['network']} on {one['dataset']}, {one['epochs']} epochs"


def known(name, folder):
    """The suite that a file of results is of, and the results."""
    results = finished(folder / f"{name}.jsonl")
    suite = SUITES.get(name) or next((suite for one, suite in SUITES.items() if name.startswith(f"{one}-")), None)
    if suite is None or not results:
        _nothing(folder, name, name)
    return suite, results


def main():
    parser = argparse.ArgumentParser(description="Tables and plots of finished runs.")
    parser.add_argument(
        "suites", nargs="*", metavar="suite", help=f"whose results: {', '.join(SUITES)}, one of these with what compare.py put behind it, or regimes"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder of the files of results (%(default)s)")
    parser.add_argument("--markdown", action="store_true", help="print the tables in Markdown")
    parser.add_argument("--update", nargs="+", type=Path, default=[], metavar="FILE", help="write the tables in these Markdown files anew")
    arguments = parser.parse_args()
    if not arguments.suites and not arguments.update:
        parser.error("name a suite, or a file to update")
    for name in arguments.suites:
        if name == "regimes":
            results = over_regimes(arguments.results)
            print(markdown(regimes.table(results))) if arguments.markdown else show(regimes.table(results), "Does the noise pay?")
            draw_regimes(results, arguments.results)
            continue
        suite, results = known(name, arguments.results)
        if arguments.markdown:
            print(in_markdown(suite, results))
        else:
            print_tables(suite, results)
        draw(name, suite, results, arguments.results)
    for path in arguments.update:
        update(path, arguments.results)


if __name__ == "__main__":
    main()
