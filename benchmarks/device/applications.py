"""The mobile networks of keras.applications, as they come, with 90 % zeros in their 1x1 convolutions: what they predict and how fast, on x86 and on ARM64.

    python benchmarks/device/applications.py                       # all four: about half an hour, most of it in the emulator
    python benchmarks/device/applications.py MobileNetV2 --rounds 5

Every network is written dense, sparse as it is, and as `sparse_ready` rewrites it. All three files take the same images, and what they predict is compared
with Keras's predictions, on this machine and in the emulated one (see arm64_latency.py, which also says what emulated times are worth). The files of a
network are timed in turns, one round after the other, on the clock of their own CPU time; a ratio is the median over the rounds of the ratios in a round,
which a machine that others use disturbs least.
"""

import argparse
import platform
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common.machine import environment
from benchmarks.common.results import BUILD, RESULTS, append
from benchmarks.device import arm64, arm64_latency
from keras_gibbs.tables import render

SIZE = 96
CLASSES = 10
ENCODINGS = ("dense", "sparse", "sparse_ready")
FASTER = {"MobileNet": 3.0, "MobileNetV2": 3.0, "MobileNetV3Small": None, "EfficientNetB0": None}  # what the rewritten file must be


def is_pointwise(layer):
    """Whether a layer is a 1x1 convolution: the `where=` of `keras_gibbs.prune`."""
    import keras

    return isinstance(layer, keras.layers.Conv2D) and layer.kernel_size == (1, 1)


def network(name, seed=arm64_latency.SEED):
    """A network with random weights, zeros in its 1x1 convolutions and statistics as they are on images, and images for it.

    Without the statistics the outputs of an untrained network lie near 0, and would agree whatever they are.

    Returns:
        The model, and an array of images (16, height, width, 3).
    """
    import keras

    import keras_gibbs as kg

    keras.utils.set_random_seed(seed)
    make = getattr(keras.applications, name)
    model = make(weights=None, input_shape=(SIZE, SIZE, 3), classes=CLASSES, classifier_activation=None)
    model = kg.strip_pruning(kg.prune(model, kg.Magnitude(arm64_latency.SPARSITY), where=is_pointwise, seed=seed))
    images = np.random.default_rng(seed).uniform(0, 255, (16, SIZE, SIZE, 3)).astype("float32")
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0  # the statistics become those of the next batch
    model(images, training=True)
    return model, images


def files_of(name, folder):
    """Write the files of a network.

    Returns:
        A list of `File`, the images (samples, 1, height, width, 3) that they are run on, what `advise` says of the network as it is and as it is
        rewritten, and the encoding that `prefer="arm64"` writes.
    """
    import keras_gibbs as kg

    model, images = network(name)
    images = images[: arm64_latency.SAMPLES]
    wanted = [np.stack([model.predict(image[None], verbose=0) for image in images])]
    files, reports = [], {}
    for encoding in ENCODINGS:
        path = folder / f"{name}_{encoding}.tflite"
        reports[encoding] = kg.export_tflite(model, path, encoding=encoding, data=(images, None), verbose=0)
        faster = FASTER[name] if encoding == "sparse_ready" else None
        files.append(arm64_latency.File(f"{name}, {encoding}", path, f"{name}, dense", faster, wanted=wanted))
    chosen = kg.export_tflite(model, folder / f"{name}_chosen.tflite", prefer="arm64", data=(images, None), verbose=0).chosen["encoding"]
    return files, images[:, None], (reports["sparse"].advice, reports["sparse_ready"].advice), chosen


def show(rows, title):
    """Print the table."""
    headings = ("bytes", "runs sparse", "emulated ms", "times as fast", "off on ARM64", f"off on {platform.machine()}", "met")
    columns = [("file", "left"), *((heading, "right") for heading in headings)]
    cells = [
        [
            row["name"],
            f"{row['raw_bytes']:,}",
            "" if row["share_sparse"] is None else f"{row['share_sparse']:.1%}",
            row["failure"] or f"{row['ms']:.1f}",
            "" if row["ratio"] is None else f"{1 / row['ratio']:.2f}",
            "" if row["difference"] is None else f"{row['difference']:.1e}",
            "" if row["host_difference"] is None else f"{row['host_difference']:.1e}",
            {None: "", True: "yes", False: "NO"}[row["met"]],
        ]
        for row in rows
    ]
    print(render(title, columns, cells, ["Off: the largest difference from Keras's predictions, as a share of the largest one."]))


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Time the mobile networks of keras.applications, dense and sparse, on an emulated ARM64 machine.")
    parser.add_argument("networks", nargs="*", help=f"of {', '.join(FASTER)} (all)")
    parser.add_argument("--runs", type=int, default=10, help="timed runs of a file a round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="rounds (%(default)s)")
    arm64_latency.add_machine_arguments(parser)
    parser.add_argument("--out", type=Path, default=RESULTS / "arm64_applications.jsonl", help="the file of results")
    given = parser.parse_args(arguments)
    if unknown := set(given.networks) - set(FASTER):
        parser.error(f"networks are {', '.join(FASTER)}. Received: {', '.join(sorted(unknown))}.")
    machine = arm64_latency.machine_of(given)
    folder = BUILD / "applications"
    folder.mkdir(parents=True, exist_ok=True)
    met = True
    for name in given.networks or FASTER:
        print(f"{name}: writing the files ...", flush=True)
        files, images, advices, chosen = files_of(name, folder)
        arm64_latency.measure(files, machine, arm64.this_machine(), given.runs, given.rounds, inputs=[images])
        shares = (None, *(advice and advice.share for advice in advices))
        rows = [file.as_dict(files[0]) | {"share_sparse": share} for file, share in zip(files, shares, strict=True)]
        dense_rest = {}  # why layers of the rewritten network run dense -> their share of the multiply-adds
        for each in advices[1].rows:
            if not each["sparse"]:
                dense_rest[each["why"]] = dense_rest.get(each["why"], 0.0) + each["share"]
        settings = {"size": SIZE, "sparsity": arm64_latency.SPARSITY, "seed": arm64_latency.SEED, "samples": arm64_latency.SAMPLES}
        settings |= {"runs": given.runs, "rounds": given.rounds, "threads": 1, "clock": "CPU time"}
        result = {"benchmark": "arm64_applications", "network": name, "environment": environment(("keras", "tensorflow", "numpy", "ai-edge-litert"))}
        result |= {"arm64": machine.versions, "settings": settings, "chosen_by_arm64": chosen, "estimated_speed": advices[1].speed, "dense_rest": dense_rest}
        spread = float(np.ptp(files[0].wanted[0], axis=0).max() / np.abs(files[0].wanted[0]).max())  # far above the differences, or they tell nothing
        append(given.out, result | {"spread_over_images": spread, "rows": rows})
        show(rows, f"{name}, {SIZE}x{SIZE}, on an emulated {machine.versions['cpu']}; prefer='arm64' writes {chosen}")
        met = met and all(row["equal"] and row["met"] is not False for row in rows)
    if not met:
        sys.exit(1)


if __name__ == "__main__":
    main()
