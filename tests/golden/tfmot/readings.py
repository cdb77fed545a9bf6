"""What the golden files of tf_keras models are compared by."""

import numpy as np
import tensorflow_model_optimization as tfmot
import tf_keras

from keras_gibbs import tfmot as kg_tfmot


def read(path, inputs: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Load a model, fold and strip it, and train it for one more step.

    Args:
        path: A file that holds a pruned tf_keras model.
        inputs, labels: A batch for it.

    Returns:
        `"loaded"`, `"folded"` and `"stripped"`, predictions; `"zeros"`, the number of zeros of every stripped kernel in order; `"loss"` of one step.
    """
    model = tf_keras.models.load_model(str(path))
    model.run_eagerly = True
    readings = {"loaded": model(inputs).numpy()}
    kg_tfmot.fold(model)
    stripped = tfmot.sparsity.keras.strip_pruning(model)
    readings |= {"folded": model(inputs).numpy(), "stripped": stripped(inputs).numpy()}
    readings["zeros"] = np.array([np.sum(weight.numpy() == 0) for weight in stripped.weights if weight.shape.rank > 1])
    pruning = kg_tfmot.GibbsPruningCallback(epochs=2)
    history = model.fit(inputs, labels, batch_size=len(inputs), initial_epoch=1, epochs=2, shuffle=False, verbose=0, callbacks=[pruning]).history
    return readings | {"loss": np.float64(history["loss"][0])}
