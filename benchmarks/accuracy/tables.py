"""What the reports are made of: finished results, figures over seeds, and tables."""

import statistics

from benchmarks.common.results import read

FEW = 5  # seeds; below this many there is no interval


def finished(file):
    """The results in a file, by variant and seed: `{variant: {seed: result}}`, in the order of variant and seed; of two of one run, the later one."""
    found = {}
    for result in sorted(read(file), key=lambda result: (result["variant"], result["seed"])):
        found.setdefault(result["variant"], {})[result["seed"]] = result
    return found


def half_width(values):
    """Of the 95 % interval of a mean (Student's t)."""
    from scipy.stats import t

    return t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5


def spread(values, scale=1.0, digits=1):
    """The mean of some values, with the range of them, or from five on with the half-width of a 95 % interval."""
    values = [scale * value for value in values]
    mean = f"{statistics.fmean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    if len(values) < FEW:
        return f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"
    return f"{mean} ± {half_width(values):.{digits}f}"


def describe(results):
    """One line: what was trained, how, and where."""
    runs = [run for variant in results.values() for run in variant.values()]
    first, machine = runs[0]["configuration"], runs[0]["environment"]
    passes = first["epochs"] * first["steps"] * first["batch"] / first["train"]
    hours = sum(run["seconds"] for run in runs) / 3600
    schedule = f"{first['epochs']} epochs of {first['steps']} batches of {first['batch']} ({passes:.1f} passes over {first['train']:,} images)"
    device = ", ".join(machine.get("gpus", [])) or f"{machine['cores']} core(s) of {machine['cpu']}"
    where = f"{machine['backend']} on {device} a run"
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
