"""The same methods on tf_keras models, for people who prune with TF-MOT: its `strip_pruning`, its callbacks and its other tools go on working.

Nothing else in keras_gibbs imports this package, which brings TF-MOT and with it Keras 2 into the process:

>>> from keras_gibbs import tfmot as kg_tfmot
>>> pruned = kg_tfmot.prune(model, kg.Gibbs(sparsity=0.9))
>>> pruned.compile("adam", loss)
>>> pruned.fit(x, y, epochs=60, callbacks=[kg_tfmot.GibbsPruningCallback()])
>>> final = tfmot.sparsity.keras.strip_pruning(pruned)
"""

import keras

if keras.backend.backend() != "tensorflow":
    raise ImportError(
        f"`keras_gibbs.tfmot` prunes tf_keras models, whose tensors are TensorFlow's. Received: Keras 3 with backend={keras.backend.backend()!r}. "
        "Set KERAS_BACKEND=tensorflow before Python starts."
    )
try:
    import tensorflow_model_optimization  # noqa: F401
except ImportError as error:
    raise ImportError(f"`keras_gibbs.tfmot` needs TF-MOT, tf_keras and setuptools ({error}). Install the extra: pip install 'keras_gibbs[tfmot]'.") from error

from keras_gibbs.tfmot.callbacks import GibbsPruningCallback as GibbsPruningCallback
from keras_gibbs.tfmot.model import fold as fold
from keras_gibbs.tfmot.model import prune as prune
from keras_gibbs.tfmot.model import prune_low_magnitude as prune_low_magnitude
from keras_gibbs.tfmot.wrapper import Pruned as Pruned
