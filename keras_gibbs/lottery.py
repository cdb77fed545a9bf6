"""Lottery tickets: train, prune, rewind, and again (Frankle & Carbin 2019)."""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
from keras import ops

from keras_gibbs.layers import pruned_layers
from keras_gibbs.methods.fixed import Fixed
from keras_gibbs.model import masked_weights, sparsity
from keras_gibbs.structure import allocation
from keras_gibbs.tables import render

RESTARTS = ("rewind", "learning_rate", "fine_tune")


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """The values of everything that training moves in a model, from `snapshot`.

    Attributes:
        weights: One array a variable of the model, statistics, pruning state and the seeds of its layers included.
        optimizer: One array a variable of its optimizer, the number of steps included; empty where it is not compiled.
    """

    weights: list[np.ndarray]
    optimizer: list[np.ndarray]

    def save(self, path) -> None:
        """Write the snapshot to a file; a file that is there already is replaced by a complete one."""
        arrays = {f"{part}/{index}": array for part in ("weights", "optimizer") for index, array in enumerate(getattr(self, part))}
        unfinished = f"{path}.unfinished"
        with open(unfinished, "wb") as file:
            # As bytes, with the name of the dtype: NumPy reads no bfloat16.
            np.savez(file, **{f"{name}/{array.dtype.name}/{array.shape}": np.frombuffer(array.tobytes(), "uint8") for name, array in arrays.items()})
        os.replace(unfinished, path)

    @classmethod
    def load(cls, path) -> "Snapshot":
        """Read what `save` wrote."""
        parts = {"weights": {}, "optimizer": {}}
        with np.load(path) as file:
            for key in file.files:
                part, index, dtype, shape = key.split("/")
                shape = tuple(int(size) for size in shape.strip("(),").split(",") if size.strip())
                parts[part][int(index)] = np.frombuffer(file[key].tobytes(), np.dtype(dtype)).reshape(shape)
        return cls(*([values[index] for index in sorted(values)] for values in parts.values()))


def snapshot(model: keras.Model) -> Snapshot:
    """Keep what a model is now, to come back to it by `rewind`: weights, statistics, pruning state, optimizer and the place in its learning-rate schedule.

    A compiled model's optimizer is built, as its first training step would, so that a snapshot may be taken before any.

    Args:
        model: A built Keras 3 model, pruned or not.

    Returns:
        A `Snapshot` of copies, which can be saved.

    Example:

    >>> start = kg.snapshot(pruned)
    >>> pruned.fit(x, y, epochs=10)
    >>> kg.rewind(pruned, start)
    """
    return Snapshot(*([np.array(ops.convert_to_numpy(variable)) for variable in part] for part in _variables(model)))


def rewind(model: keras.Model, snapshot: Snapshot, *, weights: bool = True, optimizer: bool = True) -> None:
    """Make a model again what it was when `snapshot` was taken, bit for bit.

    Args:
        model: The model, or one of the same architecture with the same optimizer.
        snapshot: From `snapshot`.
        weights: Whether the model's own variables come back; False with `optimizer=True` rewinds the learning rate only.
        optimizer: Whether the optimizer's variables come back.

    Raises:
        ValueError: For a snapshot of another architecture or optimizer; nothing has changed then.

    Reference: Frankle et al. 2020, https://arxiv.org/abs/1912.05671; Renda, Frankle & Carbin 2020, https://arxiv.org/abs/2003.02389.
    """
    chosen = [
        (name, variables, values)
        for name, variables, values, wanted in zip(
            ("weights", "optimizer"), _variables(model), (snapshot.weights, snapshot.optimizer), (weights, optimizer), strict=True
        )
        if wanted
    ]
    for name, variables, values in chosen:
        found, given = [tuple(variable.shape) for variable in variables], [value.shape for value in values]
        if found != given:
            raise ValueError(
                f"A snapshot fits a model of its own architecture and optimizer. Received: {name} of shapes {given[:6]} ({len(given)} in all) for model "
                f"{model.name!r}, which has {found[:6]} ({len(found)} in all). Take the snapshot after `compile`, and do not compile anew."
            )
    for _, variables, values in chosen:
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
    for layer in pruned_layers(model):
        layer.note_change()


def _variables(model):
    """The variables of a model that are its own, and those of its optimizer, which is built where it is not."""
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None and not optimizer.built:
        optimizer.build(model.trainable_variables)
    metrics = {id(variable) for variable in model.metrics_variables}
    return [variable for variable in model.variables if id(variable) not in metrics], list(optimizer.variables) if optimizer is not None else []


class Rounds:
    """The rounds of `lottery_rounds`: prints as a table.

    Attributes:
        rows: One dict a round: `round`, `sparsity`, and the figures that training gave.
    """

    def __init__(self, rows: list[dict]):
        self.rows = rows

    def __str__(self):
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        return render("Rounds", [(name, "right") for name in names], [[_cell(row.get(name)) for name in names] for row in self.rows])


def _cell(value):
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def lottery_rounds(
    pruned: keras.Model,
    train: Callable,
    *,
    rounds: int,
    fraction: float = 0.2,
    scope: str = "layer",
    restart: str = "rewind",
    start: Snapshot | None = None,
    folder=None,
) -> Rounds:
    """Train, remove the smallest weights that are left, go back, and again: iterative magnitude pruning.

    Round 0 trains as the masks are; every other removes `fraction` of the weights that are left by their magnitude after the last round, goes back, and trains.
    The model ends as the last round left it.

    Args:
        pruned: A compiled model from `prune(model, kg.Fixed())`; it is trained in place.
        train: Function of the model that trains it, by one `fit` or more, without compiling it anew. It may return a dict of numbers for the table, or the
            History of `fit`, whose last values are taken.
        rounds: How many rounds remove weights, at least 1.
        fraction: Which part of what is left a round removes, in (0, 1): after r rounds (1 - fraction)^r is left.
        scope: `"layer"`, `"global"`, `"shape"` or `"lamp"`, as in `Magnitude`.
        restart: Where a round starts: `"rewind"` from `start`, weights and optimizer; `"learning_rate"` from the trained weights with the optimizer and its
            schedule of `start`; `"fine_tune"` from where the last round ended.
        start: The `snapshot` to go back to, of step k, say; by default the model as it is given.
        folder: Where rounds are kept; a call that was interrupted goes on after the last complete one. None keeps nothing.

    Returns:
        The `Rounds`, a table.

    Raises:
        ValueError: For a model that is not compiled or pruned by another method, or an argument outside its range.

    Example:

    >>> pruned = kg.prune(model, kg.Fixed())
    >>> pruned.compile("sgd", loss)
    >>> print(kg.lottery_rounds(pruned, lambda model: model.fit(x, y, epochs=10), rounds=5, folder="tickets"))

    Reference: Frankle & Carbin 2019, The lottery ticket hypothesis, https://arxiv.org/abs/1803.03635.
    """
    _check(pruned, rounds, fraction, scope, restart)
    start = start or snapshot(pruned)
    folder = None if folder is None else Path(folder)
    rows = []
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        rows = _resume(pruned, folder)
        if (folder / "start.npz").exists():
            start = Snapshot.load(folder / "start.npz")
        start.save(folder / "start.npz")
    for number in range(len(rows), rounds + 1):
        if number:
            masks = _next_masks(pruned, 1.0 - (1.0 - fraction) ** number, scope)
            rewind(pruned, start, weights=restart == "rewind", optimizer=restart != "fine_tune")
            for path, masked in masked_weights(pruned).items():
                masked.assign({"given_mask": ops.reshape(masks[path], masked.masks.arranged_shape)})
            for layer in pruned_layers(pruned):
                layer.note_change()
        figures = train(pruned)
        figures = {name: values[-1] for name, values in figures.history.items()} if hasattr(figures, "history") else figures or {}
        rows.append({"round": number, **{name: float(value) for name, value in figures.items()}, "sparsity": sparsity(pruned)})
        if folder is not None:
            snapshot(pruned).save(folder / f"round_{number}.npz")
            with open(folder / "rounds.jsonl", "a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    return Rounds(rows)


def _check(pruned, rounds, fraction, scope, restart):
    methods = {type(layer.method).__name__ for layer in pruned_layers(pruned)}
    if methods != {Fixed.__name__} or getattr(pruned, "optimizer", None) is None:
        raise ValueError(
            "`lottery_rounds` trains a compiled model under masks of its own: `pruned = keras_gibbs.prune(model, keras_gibbs.Fixed())`, then `compile`. "
            f"Received: model {pruned.name!r}, pruned by {sorted(methods)}, {'not ' if getattr(pruned, 'optimizer', None) is None else ''}compiled."
        )
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise ValueError(f"`rounds` must be a positive int. Received: rounds={rounds!r}.")
    if not 0.0 < fraction < 1.0:
        raise ValueError(f"`fraction`, the part of what is left that a round removes, lies in (0, 1). Received: fraction={fraction!r}.")
    if scope not in allocation.SCOPES or restart not in RESTARTS:
        raise ValueError(f"`scope` is one of {allocation.SCOPES}, `restart` one of {RESTARTS}. Received: scope={scope!r}, restart={restart!r}.")


def _resume(pruned, folder):
    """The rows of the complete rounds, with the model as the last of them left it."""
    file = folder / "rounds.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    if rows:
        rewind(pruned, Snapshot.load(folder / f"round_{len(rows) - 1}.npz"))
    return rows


def _next_masks(pruned, target, scope):
    weights = masked_weights(pruned)
    scores = []
    for masked in weights.values():
        kept = ops.convert_to_numpy(masked.mask()).reshape(-1) > 0
        scores.append(np.where(kept, np.square(ops.convert_to_numpy(masked.value()).reshape(-1), dtype="float64"), -np.inf))
    members, groups = [masked.weight for masked in weights.values()], [score.size for score in scores]
    counts = allocation.counts(scope, target, target, members, groups, scores)
    masks = {}
    for (path, masked), score, count in zip(weights.items(), scores, counts, strict=True):
        mask = np.zeros(score.size, "uint8")
        mask[np.argsort(-score, kind="stable")[:count]] = 1
        masks[path] = (mask * (score > -np.inf)).astype("uint8").reshape(masked.weight.shape)
    return masks
