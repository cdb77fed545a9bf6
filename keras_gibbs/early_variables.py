"""Variables that Keras makes within the first training step, made before it: TensorFlow traces a step twice in which variables are made."""

import contextlib

import keras
from keras import ops

from keras_gibbs.structure.graph import walk

SPARSE = "sparse_categorical_crossentropy"
UNSURE = frozenset({"accuracy", "acc", "crossentropy", "ce"})  # names that stand for several metrics
CROSSENTROPIES = (SPARSE, "categorical_crossentropy", "binary_crossentropy")


def build_early(model: keras.Model) -> None:
    """Let a compiled model make the variables of its optimizer and its metrics before the first training step.

    TensorFlow traces a step in which a variable is made once to make it, lifts its initial value out of the graph, and then traces the step again: for a
    mobile network that is a third of the time up to the end of the first step. Metrics are made here where their names and the loss say what they are.
    """
    if type(model).train_step is keras.Model.train_step and all(layer.built for layer in walk(model)):
        _build_optimizer(model)
        if keras.backend.backend() == "tensorflow" and model.distribute_strategy.num_replicas_in_sync == 1:  # over replicas Keras makes them early itself
            _build_metrics(model)


def _build_optimizer(model):
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None and not optimizer.built and (variables := model.trainable_variables):
        optimizer.build(variables)


def _build_metrics(model):
    """Show the metrics one sample of zeros, and forget it: a metric that is given by a name looks at what it is shown to find out which one it is."""
    if all(getattr(metric, "built", True) for metric in model.metrics) or type(model).compute_metrics is not keras.Model.compute_metrics:
        return
    output = getattr(model, "outputs", [None])[0] if isinstance(model, keras.Sequential) else getattr(model, "output", None)
    names, loss = _names(model), _name(getattr(model, "loss", None))
    if names is None or not isinstance(output, keras.KerasTensor) or (loss is None and not UNSURE.isdisjoint(names)):
        return
    shape = [length or 1 for length in output.shape]
    predictions = ops.zeros(shape, output.dtype)
    targets = ops.zeros(shape[:-1], "int32") if loss == SPARSE else predictions
    model.compute_metrics(None, targets, predictions)
    model.reset_metrics()


def _name(loss):
    """The name of a loss of Keras, however it is given; None for any other."""
    if isinstance(loss, str):
        with contextlib.suppress(ValueError):
            loss = keras.losses.get(loss)
    found = [name for name in CROSSENTROPIES if loss is getattr(keras.losses, name) or type(loss) is getattr(keras.losses, _class_name(name))]
    return found[0] if found else None


def _class_name(name):
    return "".join(part.title() for part in name.split("_"))


def _names(model):
    """The names by which metrics are given; None where one is given otherwise, which may look for more than shapes in what it is shown."""
    with contextlib.suppress(NotImplementedError, TypeError, ValueError):  # what cannot be serialized is no name
        config = model.get_compile_config()
        given = [config.get(key) or [] for key in ("metrics", "weighted_metrics")]
        if all(isinstance(metrics, list) and all(isinstance(metric, str) for metric in metrics) for metrics in given):
            return set().union(*given)
    return None
