"""Which of the files that were built to write."""

from keras_gibbs.export.advice import Advice
from keras_gibbs.export.encodings import ENCODINGS, alike, rewritten

LARGEST_DIFFERENCE = 0.05  # of the largest absolute value of the output
ACCURACY_LOSS = 0.01

# Speed on an ARM64 CPU as a multiple of float32's: the lower ends of what TensorFlow's guide "Post-training quantization" states for weights in int8, and for
# activations as well. float16 weights are unpacked at load.
_SPEEDS = {"float32": 1.0, "float16": 1.0, "int8": 2.0}
_CALIBRATED_SPEED = 3.0
SAME_SIZE = 1.02  # a file that is at most this much larger is as small
FAST_ENOUGH = 1.5  # a sparse float32 form that is estimated this fast is taken before int8, because it changes no prediction


def choose(
    rows: list[dict], encoding: str, prefer: str, accuracy: float | None, advice: Advice | None, ready: Advice | None = None
) -> tuple[dict, str, list[str]]:
    """Pick the row to write.

    Args:
        rows: Of `ExportReport`.
        encoding: As asked for.
        prefer: `"raw"`, `"gzip"` or `"arm64"`.
        accuracy: Of the Keras model, or None.
        advice: About the sparse forms; None if there is none.
        ready: About the sparse form of the rewritten network; None if there is none.

    Returns:
        The row, why it was picked, and why others were not allowed, or what is wrong with the one that was asked for.

    Raises:
        RuntimeError: `"auto"` may pick none.
    """
    if encoding != "auto":
        why = _off(rows[0], accuracy)
        return rows[0], f"Written: {encoding}, as asked for.", [f"Beware: 'auto' would not write {encoding}, because {why}."] if why else []
    advices = _advices(rows, advice, ready)
    obstacles = {row["encoding"]: _obstacle(row, accuracy, advices[row["encoding"]]) for row in rows}
    allowed = [row for row in rows if not obstacles[row["encoding"]]]
    notes = [f"Not chosen: {name}, because {why}." for name, why in obstacles.items() if why]
    if not allowed:
        raise RuntimeError(f"'auto' found no encoding to write. {' '.join(notes)} Nothing was written. Ask for one by name, such as encoding='dense'.")
    if prefer == "arm64":
        return *_fastest(allowed, advice, ready), notes
    return *_smallest(allowed, prefer, advice, ready), notes


def _smallest(rows, prefer, advice, ready):
    """The smallest file; or that of the network as it is or rewritten, if it is as small and estimated to run faster."""
    size, advices = f"{prefer}_bytes", _advices(rows, advice, ready)
    least = min(rows, key=lambda row: row[size])
    as_small = [row for row in rows if alike(row["encoding"], least["encoding"]) and row[size] <= SAME_SIZE * least[size]]
    best = max(as_small, key=lambda row: speed(row["encoding"], advices[row["encoding"]]))
    others = ", ".join(f"{row[size]:,} ({row['encoding']})" for row in rows if row is not best)
    reason = f"the smallest by {prefer} size: {best[size]:,} bytes{f' against {others}' if others else ''}"
    if best["encoding"] == rewritten(best["encoding"]):
        reason += f"; {ready.share:.0%} of its multiply-adds run sparse on an ARM64 CPU (estimated speed: {ready.speed:.1f} x)"
    return best, f"Written: {best['encoding']}, {reason}."


def worth_rewriting(rows: list[dict], chosen: dict, prefer: str) -> str | None:
    """The encoding of the rewritten network that would be as small as the file that was chosen, or None."""
    size = f"{prefer}_bytes"
    sparse = [row for row in rows if rewritten(row["encoding"]) and row[size] <= chosen[size]]
    return rewritten(min(sparse, key=lambda row: row[size])["encoding"]) if sparse else None


def _fastest(rows, advice, ready):
    advices = _advices(rows, advice, ready)
    estimates = {name: speed(name, each) for name, each in advices.items()}
    figures = ", ".join(f"{name} {factor:.1f} x" for name, factor in estimates.items())
    exact = [row for row in rows if row["encoding"] in ("sparse_ready", "sparse") and estimates[row["encoding"]] >= FAST_ENOUGH]
    if exact:
        best = max(exact, key=lambda row: estimates[row["encoding"]])
        return best, (
            f"Written: {best['encoding']}, because {advices[best['encoding']].share:.0%} of its multiply-adds run sparse on an ARM64 CPU, and int8 would "
            f"change predictions (estimated speed: {figures})."
        )
    best = max(rows, key=lambda row: (estimates[row["encoding"]], -row["raw_bytes"]))
    return best, f"Written: {best['encoding']}, the fastest on an ARM64 CPU by estimate ({figures}); {advice.share if advice else 0.0:.0%} would run sparse."


def _advices(rows, advice, ready):
    return {row["encoding"]: ready if ENCODINGS[row["encoding"]].rewritten else advice for row in rows}


def speed(encoding: str, advice: Advice | None) -> float:
    """Estimated speed on an ARM64 CPU, as a multiple of the dense float32 file's."""
    form = ENCODINGS[encoding]
    if form.sparse and form.dtype != "int8":  # float16 weights take the same path
        return advice.speed if advice.share else 0.8  # measured: 0.82 to 1.01 where the sparse path was not taken
    return _CALIBRATED_SPEED if form.calibrated else _SPEEDS[form.dtype]


def _obstacle(row, accuracy, advice):
    """Why `"auto"` must not choose a file, or ""."""
    form = ENCODINGS[row["encoding"]]
    if form.sparse and advice is None:
        return "what an ARM64 CPU makes of it could not be found out"
    if form.sparse and advice.fails:
        return advice.fails
    if row["runs"] is False:
        return row["problem"]
    if row["runs"] is None and form.dtype != "float32":
        return "its predictions were not checked"
    return _off(row, accuracy)


def _off(row, accuracy):
    """By how much a file predicts something else than the Keras model, if by more than `"auto"` allows, or ""."""
    difference = row["relative_difference"]
    if difference is not None and not difference <= LARGEST_DIFFERENCE:
        return f"its outputs differ by {difference:.1%} of the largest one, more than {LARGEST_DIFFERENCE:.0%}"
    if row["accuracy"] is not None and accuracy - row["accuracy"] > ACCURACY_LOSS:
        return f"it loses {accuracy - row['accuracy']:.2%} accuracy, more than {ACCURACY_LOSS:.0%}"
    return ""
