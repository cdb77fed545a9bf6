"""One of two workers that train a pruned model in a loop of their own; run by `test_distribution.py`, which sets TF_CONFIG."""

import os
import warnings

import tensorflow as tf

strategy = tf.distribute.MultiWorkerMirroredStrategy()

import keras  # noqa: E402
import numpy as np  # noqa: E402

import keras_gibbs as kg  # noqa: E402

warnings.simplefilter("ignore")
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
rng = np.random.default_rng(4)
x = rng.normal(size=(4, 16, 12)).astype("float32")
y = (x[..., 0] > 0).astype("int32")
with strategy.scope():
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((12,)), keras.layers.Dense(16, activation="tanh"), keras.layers.Dense(2)])
    pruned = kg.prune(model, kg.Gibbs(kg.Linear(0.0, 0.75), structure=kg.Kernel(), hamiltonian=kg.Independent(), settle=0.9), seed=1)
    for method in (kg.EDropout(4), kg.SET(0.5), kg.RigL(0.5), kg.GReg(0.5), kg.GumbelSoftmax()):
        kg.prune(model, method, seed=1)  # their state too can be handed round
rank = strategy.cluster_resolver.task_id


@tf.function
def step(x, y):
    def replica(x, y):
        with tf.GradientTape() as tape:
            value = loss(y, pruned(x, training=True)) / 2
        trainable = [variable.value for variable in pruned.trainable_variables]
        gradients = tf.distribute.get_replica_context().all_reduce("SUM", tape.gradient(value, trainable))
        for variable, gradient in zip(trainable, gradients, strict=True):
            variable.assign_sub(0.1 * gradient)
        return value

    return strategy.reduce("SUM", strategy.run(replica, (x, y)), axis=None)


callback = kg.GibbsPruningCallback(epochs=4)
callback.set_model(pruned)
callback.on_train_begin()
for epoch in range(4):
    callback.on_epoch_begin(epoch)
    value = float(step(*(tf.constant(array[epoch, 8 * rank : 8 * rank + 8]) for array in (x, y))))
    callback.on_epoch_end(epoch)
callback.on_train_end()
digest = [float(np.sum(np.abs(keras.ops.convert_to_numpy(weight)))) for weight in kg.strip_pruning(pruned).weights]
print(f"worker: {value:.6f} {kg.sparsity(pruned):.4f} {digest}", flush=True)
os._exit(0)  # whoever ends first would wait for the other
