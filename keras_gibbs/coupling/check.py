"""What cannot be pruned by channels, and what a model keeps."""

import warnings

import keras

from keras_gibbs.coupling.plan import BY_HEADS, CARRIED, NO_HEADS, NOT_SELECTED, Plan
from keras_gibbs.methods.traits import FindsMasks
from keras_gibbs.structure import graph
from keras_gibbs.structure.outputs import at_output
from keras_gibbs.structure.prunable import prunable_weights

NAMED = 8  # reasons that a notice gives; the rest is in `summary`


def check_coupled(model, method) -> None:
    """Raise `ValueError` where channels of `model`, which is built, cannot be pruned together by `method`."""
    if isinstance(method, FindsMasks):
        raise ValueError(
            f"{type(method).__name__} finds the masks of single weights, and cannot decide on channels that several make. "
            f"Received: structure={method.structure!r}. Use `Filter()`, or a method such as `Magnitude`."
        )
    if not graph.has_graph(model):
        raise ValueError(
            f"The subclassed model {model.name!r} has no graph that tells which filters make one channel. Received: structure={method.structure!r}. Build it "
            "as a Functional or Sequential model, or use `Filter()` with `where=`."
        )
    if type(model) not in (keras.Sequential, graph.FUNCTIONAL):
        raise ValueError(
            f"`{method.structure.brief()}` makes a model of a class of its own, which {type(model).__name__!r}, that of model {model.name!r}, cannot be. "
            "Pass a plain copy: `keras.Model(model.inputs, model.outputs)`."
        )


def tell_of_kept(model: keras.Model, plan: Plan) -> None:
    """Say once which weights keep their channels, and why, beside those of the layers that give `model` its outputs."""
    outputs, reasons = at_output(model), {}
    parts = {id(part) for leaf in graph.leaves(model) if id(leaf) in outputs for part in graph.walk(leaf)}
    at_end = {weight.path for weight in prunable_weights(model) if id(weight.owner) in parts}
    for path, reason in plan.skipped.items():
        if reason not in (BY_HEADS, CARRIED, NO_HEADS, NOT_SELECTED) and path not in at_end:
            reasons.setdefault(reason, []).append(path)
    if reasons:
        named = "; ".join(f"{', '.join(paths)}: {reason}" for reason, paths in list(reasons.items())[:NAMED])
        more = f"; and {len(reasons) - NAMED} more reasons" if len(reasons) > NAMED else ""
        warnings.warn(f"These weights keep all their channels: {named}{more}. `keras_gibbs.summary(pruned)` names each.", stacklevel=4)
