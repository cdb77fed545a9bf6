"""Layer kind by layer kind beside TF-MOT: the share of the weights reached, mixed precision, and a run that was interrupted.

    python benchmarks/accuracy/kinds.py              # what is missing in the results: TF-MOT and keras_gibbs.tfmot on tf_keras, keras_gibbs on Keras 3
    python benchmarks/accuracy/kinds.py --table      # the table of what there is, written into the README

Every kind is one small model: the layer without biases, flattened, and a dense head that is not counted. `share`: the trained weights of the layer that are
half zero after two epochs and `strip_pruning`. `mixed`: the same under mixed_float16. `resume`: a `fit` that ends in its third epoch of four and goes on from
`BackupAndRestore` in a new model has the bits of one that was not interrupted. Results: one JSON line a kind and stack in benchmarks/results/kinds.jsonl.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_GIBBS_XLA", "0")

from benchmarks.common.results import RESULTS, append, read

STACKS = {"tfmot": "TF-MOT", "ours-tf_keras": "keras_gibbs.tfmot", "ours": "keras_gibbs"}
SEQUENCE, IMAGE, VOLUME = (5, 6), (5, 5, 4), (4, 4, 4, 2)
NO_BIAS = {"use_bias": False}
KINDS = {
    "Dense": (lambda k: k.Dense(6, **NO_BIAS), SEQUENCE),
    "EinsumDense": (lambda k: k.EinsumDense("abc,cd->abd", (5, 6)), SEQUENCE),
    "Conv1D": (lambda k: k.Conv1D(6, 2, **NO_BIAS), SEQUENCE),
    "Conv2D": (lambda k: k.Conv2D(6, 2, **NO_BIAS), IMAGE),
    "Conv3D": (lambda k: k.Conv3D(6, 2, **NO_BIAS), VOLUME),
    "Conv1DTranspose": (lambda k: k.Conv1DTranspose(6, 2, **NO_BIAS), SEQUENCE),
    "Conv2DTranspose": (lambda k: k.Conv2DTranspose(6, 2, **NO_BIAS), IMAGE),
    "Conv3DTranspose": (lambda k: k.Conv3DTranspose(6, 2, **NO_BIAS), VOLUME),
    "DepthwiseConv1D": (lambda k: k.DepthwiseConv1D(2, **NO_BIAS), SEQUENCE),
    "DepthwiseConv2D": (lambda k: k.DepthwiseConv2D(2, **NO_BIAS), IMAGE),
    "SeparableConv1D": (lambda k: k.SeparableConv1D(6, 2, **NO_BIAS), SEQUENCE),
    "SeparableConv2D": (lambda k: k.SeparableConv2D(6, 2, **NO_BIAS), IMAGE),
    "LocallyConnected1D": (lambda k: k.LocallyConnected1D(6, 2, **NO_BIAS), SEQUENCE),
    "LocallyConnected2D": (lambda k: k.LocallyConnected2D(6, 2, **NO_BIAS), IMAGE),
    "Embedding": (lambda k: k.Embedding(20, 6), (5,)),
    "SimpleRNN": (lambda k: k.SimpleRNN(6, **NO_BIAS), SEQUENCE),
    "GRU": (lambda k: k.GRU(6, **NO_BIAS), SEQUENCE),
    "LSTM": (lambda k: k.LSTM(6, **NO_BIAS), SEQUENCE),
    "RNN of stacked cells": (lambda k: k.RNN([k.LSTMCell(4, **NO_BIAS), k.GRUCell(3, **NO_BIAS)]), SEQUENCE),
    "ConvLSTM2D": (lambda k: k.ConvLSTM2D(4, 2, **NO_BIAS), (3, *IMAGE)),
    "Bidirectional(GRU)": (lambda k: k.Bidirectional(k.GRU(4, **NO_BIAS)), SEQUENCE),
    "TimeDistributed(Dense)": (lambda k: k.TimeDistributed(k.Dense(6, **NO_BIAS)), SEQUENCE),
    "MultiHeadAttention": (lambda k: k.MultiHeadAttention(2, 4, **NO_BIAS), SEQUENCE),
    "GroupQueryAttention": (lambda k: k.GroupQueryAttention(4, 4, 2, **NO_BIAS), SEQUENCE),
    "SpectralNormalization(Dense)": (lambda k: k.SpectralNormalization(k.Dense(6, **NO_BIAS)), SEQUENCE),
    "a block of one's own": (lambda k: block(k), (5, 8)),
}
EPOCHS, INTERRUPTED = 4, 2
README, BEGIN, END = Path(__file__).resolve().parents[2] / "README.md", "<!-- kinds -->", "<!-- end kinds -->"


def block(k):
    """A transformer block, a layer that makes its own parts."""

    class Block(k.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.attention = k.MultiHeadAttention(2, 4, **NO_BIAS)
            self.one, self.two = k.Dense(12, activation="relu", **NO_BIAS), k.Dense(8, **NO_BIAS)

        def call(self, x):
            x = x + self.attention(x, x)
            return x + self.two(self.one(x))

    return Block(name="part")


class Stack:
    """What prunes, trains and strips a model: `keras` is Keras 3 or tf_keras."""

    def __init__(self, name):
        self.name = name
        import keras

        import keras_gibbs as kg

        self.keras, self.kg = keras, kg
        if name != "ours":
            import tensorflow_model_optimization as tfmot
            import tf_keras

            from keras_gibbs import tfmot as kg_tfmot

            self.keras, self.tfmot, self.kg_tfmot = tf_keras, tfmot.sparsity.keras, kg_tfmot

    def model(self, kind):
        k = self.keras.layers
        make, shape = KINDS[kind]
        self.keras.utils.set_random_seed(1)
        inputs = self.keras.Input(shape, dtype="int32" if kind == "Embedding" else "float32")
        layer = make(k)
        x = layer(inputs, inputs) if "Attention" in kind else layer(inputs)
        return self.keras.Model(inputs, k.Dense(2, name="head")(k.Flatten()(x))), layer.name

    def prune(self, model):
        if self.name == "tfmot":
            schedule = self.tfmot.PolynomialDecay(0.2, 0.5, 0, 4, frequency=1)
            return self.tfmot.prune_low_magnitude(model, schedule)
        method = self.kg.Magnitude(self.kg.Polynomial(0.2, 0.5, end=0.5))
        return (self.kg if self.name == "ours" else self.kg_tfmot).prune(model, method, seed=1)

    def callback(self):
        if self.name == "tfmot":
            return self.tfmot.UpdatePruningStep()
        return self.kg.GibbsPruningCallback("batch", epochs=EPOCHS) if self.name == "ours" else self.kg_tfmot.GibbsPruningCallback("batch", epochs=EPOCHS)

    def strip(self, model):
        return self.kg.strip_pruning(model) if self.name == "ours" else self.tfmot.strip_pruning(model)

    def trained(self, kind, *callbacks):
        """A model of `kind`, pruned and trained, and the name of the layer in question."""
        model, name = self.model(kind)
        pruned = self.prune(model)
        pruned.compile(self.keras.optimizers.Adam(1e-2), self.keras.losses.SparseCategoricalCrossentropy(from_logits=True), run_eagerly=True)
        x, y = data(kind)
        pruned.fit(x, y, batch_size=8, epochs=EPOCHS, shuffle=False, verbose=0, callbacks=[self.callback(), *callbacks])
        return pruned, name

    def share(self, kind):
        pruned, name = self.trained(kind)
        weights = [self.keras.backend.get_value(w) if self.name != "ours" else w.numpy() for w in self.strip(pruned).get_layer(name).trainable_weights]
        reached = [weight.size for weight in weights if abs((weight == 0).mean() - 0.5) <= 0.5 / weight.size + 1e-6]
        return sum(reached) / sum(weight.size for weight in weights)

    def resumes(self, kind):
        stop = self.keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs=None: _interrupt(epoch))
        with tempfile.TemporaryDirectory() as folder:
            backup = self.keras.callbacks.BackupAndRestore(folder)
            try:
                self.trained(kind, backup, stop)
            except KeyboardInterrupt:
                pass
            resumed, _ = self.trained(kind, self.keras.callbacks.BackupAndRestore(folder))
        whole, _ = self.trained(kind)
        return all((one == other).all() for one, other in zip(self.strip(resumed).get_weights(), self.strip(whole).get_weights(), strict=True))


def _interrupt(epoch):
    if epoch == INTERRUPTED:
        raise KeyboardInterrupt


def data(kind):
    import numpy as np

    shape = KINDS[kind][1]
    rng = np.random.default_rng(0)
    x = rng.integers(0, 20, (16, *shape)).astype("int32") if kind == "Embedding" else rng.normal(size=(16, *shape)).astype("float32")
    return x, rng.integers(0, 2, 16)


def measure(stack, kind):
    """The record of one kind; what cannot be done is its error."""

    def attempt(function):
        try:
            return function()
        except Exception as error:  # noqa: BLE001
            return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:120]}"

    if not hasattr(stack.keras.layers, kind.split("(")[0]) and kind.split("(")[0].isidentifier():
        return {"kind": kind, "stack": stack.name, "share": None}
    record = {"kind": kind, "stack": stack.name, "share": attempt(lambda: stack.share(kind))}
    if isinstance(record["share"], str):
        return record
    record["resume"] = attempt(lambda: stack.resumes(kind))
    policy = stack.keras.config.set_dtype_policy if stack.name == "ours" else stack.keras.mixed_precision.set_global_policy
    policy("mixed_float16")
    mixed = attempt(lambda: stack.share(kind))
    policy("float32")
    return record | {"mixed": mixed == record["share"] if not isinstance(mixed, str) else mixed, "versions": {"keras": stack.keras.__version__}}


def cell(record):
    if record["share"] is None:
        return "no such layer"
    if isinstance(record["share"], str):
        return "refused"
    marks = ", ".join(name if record[name] is True else f"not {name}" for name in ("mixed", "resume"))
    return f"{100 * record['share']:.0f} %, {marks}" if record["share"] else "0 %"


def table(records):
    """The records as Markdown: the kinds that were measured on every stack."""
    found = {(record["kind"], record["stack"]): record for record in records}
    lines = ["| layer | " + " | ".join(STACKS.values()) + " |", "|---" * (len(STACKS) + 1) + "|"]
    rows = {kind: [found.get((kind, stack)) for stack in STACKS] for kind in KINDS}
    return "\n".join([*lines, *(f"| {kind} | " + " | ".join(map(cell, row)) + " |" for kind, row in rows.items() if None not in row)])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stack", choices=STACKS, help="measure this one in this process and print its records")
    parser.add_argument("--table", action="store_true", help="measure nothing; print the table and write it into the README")
    args = parser.parse_args()
    path = RESULTS / "kinds.jsonl"
    done = {(record["kind"], record["stack"]) for record in read(path)}
    if args.stack:
        stack = Stack(args.stack)
        for kind in KINDS:
            if (kind, args.stack) not in done:
                append(path, measure(stack, kind))
        return
    for name in STACKS if not args.table else ():  # one imports TF-MOT, which changes the Keras of its process
        subprocess.run([sys.executable, __file__, "--stack", name], check=True, env={**os.environ, "KERAS_BACKEND": "tensorflow"})
    print(table(read(path)))
    text = README.read_text()
    before, after = text.index(BEGIN) + len(BEGIN), text.index(END)
    README.write_text(f"{text[:before]}\n\n{table(read(path))}\n\n{text[after:]}")


if __name__ == "__main__":
    main()
