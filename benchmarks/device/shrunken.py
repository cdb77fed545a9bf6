"""What half of the filters bring once they have left the network: bytes, and time in LiteRT on x86, beside what parameters and multiply-adds promise.

    python benchmarks/device/shrunken.py                       # MobileNet and ResNet50 at 224x224, float32 and int8
    python benchmarks/device/shrunken.py MobileNet --rounds 5
    python benchmarks/device/shrunken.py --rounds 0            # only the sizes of the files
    python benchmarks/device/shrunken.py --arm64               # the same files on an emulated ARM64 machine too (see arm64_latency.py)

Random masks remove half of the coupled filters of a network with random weights. The dense file holds the network with these filters at zero, the shrunken one
the network without them, so both predict the same; zeros save a dense file nothing. Every round runs each file a few times, in turns, on one thread and
on the clock of the process's own CPU time; a ratio is the median over the rounds of the ratios in a round. The training step of a shrunken network is timed by
`benchmarks/cost/step_cost.py --only shrunken`.
"""

import argparse
import statistics
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common.machine import environment
from benchmarks.common.results import BUILD, RESULTS, append
from benchmarks.cost.timing import interleave, stopwatch
from benchmarks.device import arm64, arm64_latency
from keras_gibbs.tables import render

NETWORKS = ("MobileNet", "ResNet50")
ENCODINGS = ("dense", "int8")  # "dense" is float32
KINDS = ("dense", "shrunken")
SEED = 1
LARGEST = 1.05  # a file may have this times its share of the parameters in bytes
FASTER = {"dense": 0.7}  # and must bring this part of the speed-up that the multiply-adds promise; in int8 for information


def networks(name, side, classes):
    """A network with half of its filters at zero and without them, images for it, and the report of what went.

    The BatchNorm statistics are those of the images: an untrained network without them has outputs near 0, which would agree whatever they are.

    Returns:
        A dict with the models by `KINDS`, an array of images (16, side, side, 3), and a `ShrinkReport`.
    """
    import keras

    import keras_gibbs as kg

    keras.utils.set_random_seed(SEED)
    make = getattr(keras.applications, name)
    model = make(weights=None, input_shape=(side, side, 3), classes=classes, classifier_activation=None)
    model = kg.strip_pruning(kg.prune(model, kg.Random(0.5, structure=kg.Filter(coupled=True)), seed=SEED))
    coarse = np.random.default_rng(SEED).uniform(0, 255, (16, 7, 7, 3)).astype("float32")  # fields of one colour: noise alone would make all images alike
    images = coarse.repeat(-(-side // 7), 1).repeat(-(-side // 7), 2)[:, :side, :side]
    kg.recalibrate(model, images)
    return {"dense": model, "shrunken": kg.shrink(model)}, images, kg.shrink(model, plan_only=True)


def write(models, images, folder, name):
    """Write the files of a network: a dict from (encoding, kind) to the path."""
    import keras_gibbs as kg

    paths = {}
    for encoding in ENCODINGS:
        for kind in KINDS:
            paths[encoding, kind] = path = folder / f"{name}_{encoding}_{kind}.tflite"
            representative = images if encoding == "int8" else None
            kg.export_tflite(models[kind], path, encoding=encoding, representative_data=representative, data=(images[:2], None), verbose=0)
    return paths


def loaded(path, images):
    """A function that runs a file on one thread, and what it predicts for the images."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    (place,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()

    def invoke():
        interpreter.invoke()
        return []

    predictions = []
    for image in images:
        interpreter.set_tensor(place["index"], image[None])
        invoke()
        predictions.append(interpreter.get_tensor(result["index"]))
    return invoke, np.concatenate(predictions)


def on_arm64(machine, paths, images, given):
    """How many times as fast the shrunken file of each encoding is on the emulated machine; None where one does not run."""
    found = {}
    for encoding in ENCODINGS:
        dense, small = (arm64_latency.File(kind, paths[encoding, kind], "dense") for kind in KINDS)
        arm64_latency.measure([dense, small], machine, arm64.this_machine(), given.arm64_runs, given.arm64_rounds, inputs=[images[:1, None]])
        ratio = small.ratio(dense)
        found[encoding] = {"ratio": ratio, "rounds": [dense.rounds, small.rounds], "failures": [dense.failure, small.failure]}
    return found


def measure(name, given, machine):
    """The record of one network."""
    models, images, report = networks(name, given.side, given.classes)
    folder = BUILD / "shrunken"
    folder.mkdir(parents=True, exist_ok=True)
    paths = write(models, images, folder, name)
    runs = {key: loaded(path, images[:2]) for key, path in paths.items()}
    times = interleave({key: stopwatch(invoke, given.runs, clock="cpu") for key, (invoke, _) in runs.items()}, given.rounds) if given.rounds else {}
    emulated = on_arm64(machine, paths, images, given) if machine else {}
    left = {figure: report.total(f"{figure}_after") / report.total(figure) for figure in ("parameters", "macs")}
    rows = []
    for encoding in ENCODINGS:
        (dense, small), (wanted, found) = ([taken[encoding, kind] for kind in KINDS] for taken in (paths, {key: run[1] for key, run in runs.items()}))
        sizes = [path.stat().st_size for path in (dense, small)]
        rounds = list(zip(*(times[encoding, kind] for kind in KINDS), strict=True)) if times else []
        faster = statistics.median(one / other for one, other in rounds) if rounds else None
        row = {"encoding": encoding, "bytes": sizes, "size": sizes[1] / sizes[0] / left["parameters"], "rounds": rounds, "faster": faster}
        row |= {"of_promised": None if faster is None else faster * left["macs"], "arm64": emulated.get(encoding)}
        row |= {"difference": float(np.abs(found - wanted).max() / np.abs(wanted).max()), "spread": float(np.ptp(wanted, axis=0).max() / np.abs(wanted).max())}
        rows.append(row | {"met": row["size"] <= LARGEST and (faster is None or row["of_promised"] >= FASTER.get(encoding, 0.0))})
    totals = {figure: [report.total(figure), report.total(f"{figure}_after")] for figure in ("parameters", "macs")}
    return {"network": name} | totals | {"promised": 1 / left["macs"], "rows": rows}


def show(records, title):
    """Print the table."""
    headings = ("parameters left", "bytes", "shrunken", "to parameters", "promised", "times as fast", "of promised", "on ARM64", "difference", "met")
    columns = [("network", "left"), ("encoding", "left"), *((heading, "right") for heading in headings)]
    cells = []
    for record in records:
        for row in record["rows"]:
            arm = (row["arm64"] or {}).get("ratio")
            figures = [f"{record['parameters'][1] / record['parameters'][0]:.3f}", *(f"{size:,}" for size in row["bytes"]), f"{row['size']:.3f}"]
            figures += [f"{record['promised']:.2f}", *("" if row[name] is None else f"{row[name]:.2f}" for name in ("faster", "of_promised"))]
            figures += ["" if arm is None else f"{1 / arm:.2f}", f"{row['difference']:.1e}", "yes" if row["met"] else "NO"]
            cells.append([record["network"], {"dense": "float32"}.get(row["encoding"], row["encoding"]), *figures])
    bounds = f"To parameters: share of bytes over share of parameters, at most {LARGEST}. Of promised: at least {FASTER['dense']} in float32."
    print(render(title, columns, cells, [bounds, "On ARM64: times as fast, emulated."]))


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Size and time of networks without half of their filters, in LiteRT.")
    parser.add_argument("networks", nargs="*", help=f"of {', '.join(NETWORKS)} (both)")
    parser.add_argument("--runs", type=int, default=5, help="timed runs of a file a round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=12, help="rounds; 0 for the sizes alone (%(default)s)")
    parser.add_argument("--side", type=int, default=224, help="side of the images (%(default)s)")
    parser.add_argument("--classes", type=int, default=1000, help="classes (%(default)s)")
    parser.add_argument("--arm64", action="store_true", help="run them on an emulated ARM64 machine too")
    parser.add_argument("--arm64-runs", type=int, default=1, help="timed runs of a file a round there (%(default)s)")
    parser.add_argument("--arm64-rounds", type=int, default=3, help="rounds there (%(default)s)")
    arm64_latency.add_machine_arguments(parser)
    parser.add_argument("--out", type=Path, default=RESULTS / "shrunken.jsonl", help="the file of results, which gets a line a network (%(default)s)")
    given = parser.parse_args(arguments)
    if unknown := set(given.networks) - set(NETWORKS):
        parser.error(f"networks are {', '.join(NETWORKS)}. Received: {', '.join(sorted(unknown))}.")
    machine = arm64_latency.machine_of(given) if given.arm64 else None
    records = []
    settings = {"side": given.side, "classes": given.classes, "seed": SEED, "runs": given.runs, "rounds": given.rounds, "threads": 1, "clock": "CPU time"}
    settings |= {"arm64_runs": given.arm64_runs, "arm64_rounds": given.arm64_rounds} if machine else {}
    for name in given.networks or NETWORKS:
        print(f"{name} ...", flush=True)
        record = {"benchmark": "shrunken", "environment": environment(("keras", "tensorflow", "numpy", "ai-edge-litert")), "settings": settings}
        record |= {"arm64": machine.versions if machine else None} | measure(name, given, machine)
        append(given.out, record)
        records.append(record)
    show(records, f"Without half of the filters, {given.side}x{given.side}, LiteRT on one thread of {records[0]['environment']['cpu']}")
    if not all(row["met"] for record in records for row in record["rows"]):
        sys.exit(1)


if __name__ == "__main__":
    main()
