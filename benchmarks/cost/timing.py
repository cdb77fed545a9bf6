"""The stopwatch of the cost benchmarks: ratios of times that are taken in turns, and their table."""

import dataclasses
import statistics
import sys
import time

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}  # the second counts all threads of the process, whatever else the machine does
BATCH = 128
SEED = 1
SPARSITY = 0.9


@dataclasses.dataclass
class Row:
    """One line of the table: what was timed, against what, and what the ratio must be.

    Attributes:
        case: Network or function.
        variant: Method and state.
        reference: What it is compared with.
        bound: The ratio asked for, or None where it is for information.
        at_most: True if the ratio must not exceed the bound, False if it must reach it.
        rounds: (milliseconds of the reference, milliseconds of this) of every round.
        note: What the table cannot show.
    """

    case: str
    variant: str
    reference: str
    rounds: list[tuple[float, float]]
    bound: float | None = None
    at_most: bool = True
    note: str = ""

    @property
    def ratio(self):
        return statistics.median(own / reference for reference, own in self.rounds)

    @property
    def reference_ms(self):
        return statistics.median(reference for reference, _ in self.rounds)

    @property
    def met(self):
        if self.bound is None:
            return None
        return self.ratio <= self.bound if self.at_most else self.ratio >= self.bound

    def as_dict(self):
        return dataclasses.asdict(self) | {"ratio": self.ratio, "reference_ms": self.reference_ms, "met": self.met}


def interleave(timers, rounds):
    """Time several things in turns.

    Args:
        timers: Dict from a name to a callable that runs and returns the milliseconds of one step. Called twice before the first round.
        rounds: How often.

    Returns:
        Dict from each name to its list of times, one a round.
    """
    names, times = list(timers), {name: [] for name in timers}
    for timer in timers.values():
        timer(), timer()
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            times[name].append(timers[name]())
    return times


def rows_against(times, reference, case, bounds, notes=None):
    """A `Row` for every name in `times` but the reference; `bounds` maps a name to the most its ratio may be."""
    notes = notes or {}
    return [
        Row(case, name, reference, list(zip(times[reference], own, strict=True)), bounds.get(name), note=notes.get(name, ""))
        for name, own in times.items()
        if name != reference
    ]


def stopwatch(step, steps, before=None, clock="wall"):
    """A timer for `interleave`: milliseconds a call of `step`, over `steps` calls, after an untimed call of `before`; `clock` is one of `CLOCKS`."""
    now = CLOCKS[clock]

    def timer():
        if before is not None:
            before()
        start = now()
        for _ in range(steps):
            result = step()
        wait_for(result)
        return 1e3 * (now() - start) / steps

    return timer


def wait_for(result):
    """Wait until a result is there."""
    import tensorflow as tf

    for tensor in tf.nest.flatten(result):
        tensor.numpy()


def random_batches(shape, classes=10, number=8, seed=SEED, batch=BATCH):
    """An endless iterator over a few batches of noise that lie in memory, and the same as two tensors."""
    import tensorflow as tf

    x = tf.random.stateless_normal((number * batch, *shape), seed=(seed, 0))
    y = tf.random.stateless_uniform((number * batch,), seed=(seed, 1), maxval=classes, dtype="int32")
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(batch, drop_remainder=True).cache().repeat().prefetch(2)
    return iter(dataset), (x, y)


def train_step(model, batches, api=None):
    """One call of the train function that `fit` would compile; works on Keras 3 and tf_keras."""
    if api is None:
        import keras as api
    loss = api.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(api.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    model.make_train_function()
    return lambda: model.train_function(batches)


def show(rows, title):
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for heading in ("case", "variant", "against", "its ms", "ratio", "quartiles", "must be", "met"):
        table.add_column(heading, justify="right" if heading in ("its ms", "ratio", "quartiles", "must be") else "left")
    for row in rows:
        ratios = [own / reference for reference, own in row.rounds]
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
        bound = "" if row.bound is None else f"{'<=' if row.at_most else '>='} {row.bound:g}"
        met = {None: "", True: "yes", False: "NO"}[row.met]
        figures = (f"{row.reference_ms:.2f}", f"{row.ratio:.3f}", f"{low:.3f} to {high:.3f}")
        table.add_row(row.case, row.variant, row.reference, *figures, bound, met)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
