"""The plots of `report.py`. Each function draws one figure and writes it to a file."""

import math
import statistics

from benchmarks.accuracy import levels

MARKERS = "osD^v<>PXdhp"
FORMS = {"auto": {}, "dense": {"markerfacecolor": "none", "linestyle": ":"}}  # the encodings of files that are shown, and how


def _axes(rows=1, columns=1, size=(7.5, 4.8)):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(rows, columns, figsize=size, dpi=110, layout="constrained", squeeze=False)


def _finish(figure, path, title):
    """One legend for all panels, beside them, and the file."""
    handles = {label: handle for axes in reversed(figure.axes) for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), fontsize="small", title=title, loc="outside right center")
    figure.savefig(path, bbox_inches="tight")
    _close(figure)


def _close(figure):
    from matplotlib import pyplot

    pyplot.close(figure)


def _style(suite, family):
    """Colour and marker of a family, the same in every plot."""
    from matplotlib import pyplot

    known = list(dict.fromkeys(variant.family for variant in suite.variants if variant.family))
    index = known.index(family)
    return {
        "color": pyplot.get_cmap("tab20" if len(known) > 10 else "tab10")(2 * index % 20 + index // 10 if len(known) > 10 else index),
        "marker": MARKERS[index % 12],
    }


def curves(results, suite, title, path):
    """Validation accuracy against passes over the training images, the mean of the seeds and their range."""
    figure, ((axes,),) = _axes(size=(9, 5.5))
    from matplotlib import pyplot

    styles = ["-", "--", ":", "-."]
    names = [variant.name for variant in suite.variants if variant.name in results]
    for index, name in enumerate(names):
        runs = list(results[name].values())
        one = runs[0]["configuration"]
        lines = [[100 * value for value in run["history"]["val_accuracy"]] for run in runs]
        passes = [(epoch + 1) * one["steps"] * one["batch"] / one["train"] for epoch in range(min(map(len, lines)))]  # a run may have ended early
        colour = pyplot.get_cmap("tab10")(index % 10)
        axes.plot(passes, [statistics.fmean(at) for at in zip(*lines)], styles[index // 5 % 4], color=colour, label=f"{name} ({len(runs)})")
        if len(runs) > 1:
            axes.fill_between(passes, [min(at) for at in zip(*lines)], [max(at) for at in zip(*lines)], color=colour, alpha=0.15, linewidth=0)
    if suite.reach is not None:
        axes.axhline(100 * suite.reach, color="grey", linewidth=0.8)
    axes.set(xlabel="passes over the training images", ylabel="validation accuracy, %", title=title)
    axes.grid(alpha=0.3)
    _finish(figure, path, "variant (seeds)")


def by_sparsity(results, suite, title, path):
    """Test accuracy against sparsity: the mean of the seeds and their standard deviation, of the methods that the question is about."""
    figure, ((axes,),) = _axes(size=(8.5, 4.2))
    families, ticks = levels.leading(suite, results), levels.levels(suite, results)
    ends = []
    for index, (family, name) in enumerate(families.items()):
        found = {level: list(results[f"{family}-{level}"].values()) for level in ticks if f"{family}-{level}" in results}
        values = [[levels.accuracy(run) for run in runs] for runs in found.values()]
        aside = 0.05 * (index / max(1, len(families) - 1) - 0.5)  # bars of several methods at one sparsity stand side by side
        places = [_place(levels.reached(runs, level)) + aside for level, runs in found.items()]
        means = [statistics.fmean(seeds) for seeds in values]
        style = _style(suite, family)
        axes.errorbar(places, means, [_deviation(seeds) for seeds in values], capsize=2, markersize=5, **style)
        ends.append((means[-1], f"{name} ({_range(map(len, values))})", style["color"]))
    if "dense" in results:
        values = [levels.accuracy(run) for run in results["dense"].values()]
        axes.axhline(statistics.fmean(values), color="black", linestyle="--")
        axes.axhspan(statistics.fmean(values) - _deviation(values), statistics.fmean(values) + _deviation(values), color="black", alpha=0.1, linewidth=0)
        ends.append((statistics.fmean(values), f"not pruned ({len(values)})", "black"))
    _label(axes, ends)
    axes.set(xlabel="weights removed from the pruned layers, %", ylabel="test accuracy, %", title=f"{title}: mean ± std (seeds)")
    axes.set_xticks([_place(level) for level in ticks], [str(level) for level in ticks])
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, bbox_inches="tight")
    _close(figure)


def _label(axes, ends):
    """Write what each line is beside the axes, at the height of its end, `(height, text, colour)`; one above the other where ends meet."""
    low, high = axes.get_ylim()
    below = -math.inf
    for height, text, colour in sorted(ends):
        below = max(height, below + 0.055 * (high - low))
        axes.text(1.01, below, text, color=colour, va="center", transform=axes.get_yaxis_transform())


def _range(counts):
    counts = sorted(set(counts))
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _place(level):
    """Where a sparsity stands on the axis: by the logarithm of what is kept."""
    return -math.log10(1 - level / 100)


def _deviation(values):
    return statistics.stdev(values) if len(values) > 1 else 0.0


def by_bytes(results, suite, title, path):
    """Accuracy of the .tflite files in LiteRT against their size, as they are and compressed: the file that "auto" writes, and the dense one."""
    figure, (panels,) = _axes(1, 2, size=(10, 4.8))
    families = ["dense", *levels.families(suite, results)]
    for axes, key, label in ((panels[0], "raw_bytes", "file, kB"), (panels[1], "gzip_bytes", "file after gzip, kB")):
        for family in families:
            names = ["dense"] if family == "dense" else [f"{family}-{level}" for level in levels.levels(suite, results)]
            files = [found for name in names if (found := levels.exported(results, name))]
            if not files:
                continue
            style = {"color": "black", "marker": "*"} if family == "dense" else _style(suite, family)
            for form, options in FORMS.items():
                points = [[file["forms"][file["auto"] if form == "auto" else form] for file in seeds] for seeds in files]
                x = [statistics.fmean(point[key] for point in seeds) / 1000 for seeds in points]
                y = [100 * statistics.fmean(point["accuracy"] for point in seeds) for seeds in points]
                name = None if form == "dense" else "not pruned" if family == "dense" else family
                axes.plot(x, y, label=name, linewidth=1, markersize=5, **style, **options)
        for form, options in FORMS.items():
            axes.plot([], [], color="grey", marker="o", label=f'file by "{form}"', **options)
        axes.set(xscale="log", xlabel=label, ylabel="accuracy of the file, %")
        axes.grid(alpha=0.3, which="both")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(lambda value, position: f"{value:g}" if f"{value:e}"[0] in "235" else "")
        axes.tick_params(which="both", labelsize="small")
    figure.suptitle(f"{title}; accuracy on {levels.measured_on(results)} test images")
    _finish(figure, path, "method, form of the file")


def by_epoch(results, suite, title, path):
    """Beta, energy, sparsity and validation accuracy after every epoch, the mean of the seeds, at one sparsity: the highest that most methods have."""
    counts = {level: sum(f"{family}-{level}" in results for family in levels.families(suite, results)) for level in levels.levels(suite, results)}
    level = max(counts, key=lambda level: (counts[level], level))
    figure, panels = _axes(2, 2, size=(9.5, 6.4))
    quantities = (
        ("beta", "beta, 1 / energy"),
        ("energy", "energy per group"),
        ("sparsity", "zeros in all kernels, %"),
        ("val_accuracy", "validation accuracy, %"),
    )
    for axes, (name, label) in zip(panels.flat, quantities, strict=True):
        percent = label.endswith("%")
        for family in levels.families(suite, results):
            runs = list(results.get(f"{family}-{level}", {}).values())
            if not runs or name not in runs[0]["history"]:
                continue
            lines = [[value * (100 if percent else 1) for value in run["history"][name]] for run in runs]
            axes.plot(range(1, min(map(len, lines)) + 1), [statistics.fmean(at) for at in zip(*lines)], markersize=3, label=family, **_style(suite, family))
        if name == "beta" and axes.lines:
            axes.set_yscale("log")
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    figure.suptitle(f"{title}; at {level} %")
    _finish(figure, path, "method")
