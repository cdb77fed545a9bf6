"""The networks of the benchmarks.

Every builder takes `api`, the Keras to build with: Keras 3 (`keras`) or, for TF-MOT, `tf_keras`. Layers that the authors of Gibbs pruning
leave dense carry the names in `DENSE`; `prunable` is the `where=` that keeps them out.
"""

import keras

DENSE = ("stem", "classifier")  # the first convolution and the last layer


def prunable(layer) -> bool:
    """The `where=` of `keras_gibbs.prune`: every layer with a kernel but the first convolution and the classifier."""
    return layer.name not in DENSE and hasattr(layer, "kernel")


def resnet(depth, input_shape=(32, 32, 3), classes=10, widths=(16, 32, 64), l2=1e-4, api=keras):
    """A ResNet for small images: three stages of 3x3 convolutions, global average pooling, logits.

    Layer for layer the authors' (j201/gibbs-pruning, example.py:70-102), except that it ends in logits and theirs in a softmax: He-normal
    kernels, convolutions without bias and with L2, BatchNorm after those of 3x3, and a bare 1x1 projection where the width changes.

    Args:
        depth: 6n + 2: 8, 20, 32, 44, 56, 110 ...
        input_shape: Height, width, channels.
        classes: Number of logits.
        widths: Channels of the three stages.
        l2: Factor of the L2 penalty on every convolution kernel.
        api: The Keras to build with.

    Returns:
        A functional model with logits as its output. Its layers are `stem`, `stage1_block1_conv1` ..., `stage2_block1_shortcut` ...,
        `classifier`.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"`depth` of a ResNet for small images must be 6n + 2. Received: depth={depth!r}. Take 8, 20, 32, 44 or 56.")
    layers = api.layers

    def convolution(x, name, filters, size=3, strides=1):
        penalty = api.regularizers.L2(l2) if l2 else None
        settings = {"padding": "same", "use_bias": False, "kernel_initializer": "he_normal", "kernel_regularizer": penalty}
        return layers.Conv2D(filters, size, strides=strides, name=name, **settings)(x)

    def normalized(x, name, filters, strides=1):
        x = convolution(x, name, filters, strides=strides)
        return layers.BatchNormalization(name=f"{name}_norm")(x)

    inputs = api.Input(input_shape)
    x = layers.ReLU(name="stem_relu")(normalized(inputs, "stem", widths[0]))
    for stage, width in enumerate(widths, 1):
        for block in range(1, (depth - 2) // 6 + 1):
            name = f"stage{stage}_block{block}"
            strides = 2 if stage > 1 and block == 1 else 1
            y = layers.ReLU(name=f"{name}_relu1")(normalized(x, f"{name}_conv1", width, strides=strides))
            y = normalized(y, f"{name}_conv2", width)
            if strides > 1:
                x = convolution(x, f"{name}_shortcut", width, size=1, strides=strides)
            x = layers.ReLU(name=f"{name}_relu2")(layers.Add(name=f"{name}_add")([x, y]))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    outputs = layers.Dense(classes, kernel_initializer="he_normal", name="classifier")(x)
    return api.Model(inputs, outputs, name=f"resnet{depth}")


def mlp(input_shape=784, hidden=(2048, 2048), classes=10, api=keras):
    """Dense layers with ReLU, He-normal, and logits.

    Args:
        input_shape: Number of inputs, or the shape of an image, which is flattened.
        hidden: Units of the hidden layers, named `hidden1`, `hidden2` ...
        classes: Number of logits.
        api: The Keras to build with.

    Returns:
        A functional model.
    """
    shape = (input_shape,) if isinstance(input_shape, int) else tuple(input_shape)
    inputs = api.Input(shape)
    x = inputs if len(shape) == 1 else api.layers.Flatten()(inputs)
    for index, units in enumerate(hidden, 1):
        x = api.layers.Dense(units, activation="relu", kernel_initializer="he_normal", name=f"hidden{index}")(x)
    outputs = api.layers.Dense(classes, name="classifier")(x)
    return api.Model(inputs, outputs, name="mlp")


def convolutions(depth, input_shape=(32, 32, 3), classes=10, api=keras):
    """Conv2, Conv4 or Conv6 of the papers on subnetworks of random networks: pairs of 3x3 convolutions with pooling, then Dense layers; no BatchNorm.

    As in N0ciple/ASLP (networks_modules.py:33-41, 118-123, 195-207): widths 64, 128, 256, two Dense layers of 256, He-normal kernels.

    Args:
        depth: Number of convolutions: 2, 4 or 6.
        input_shape: Height, width, channels.
        classes: Number of logits.
        api: The Keras to build with.

    Returns:
        A functional model; its layers are `conv1` ..., `hidden1`, `hidden2`, `classifier`.
    """
    if depth not in (2, 4, 6):
        raise ValueError(f"`depth` must be 2, 4 or 6. Received: depth={depth!r}.")
    layers = api.layers
    x = inputs = api.Input(input_shape)
    for index in range(depth):
        width = 64 * 2 ** (index // 2)
        x = layers.Conv2D(width, 3, padding="same", activation="relu", kernel_initializer="he_normal", name=f"conv{index + 1}")(x)
        if index % 2:
            x = layers.MaxPooling2D(name=f"pool{index // 2 + 1}")(x)
    x = layers.Flatten(name="flatten")(x)
    for index in (1, 2):
        x = layers.Dense(256, activation="relu", kernel_initializer="he_normal", name=f"hidden{index}")(x)
    return api.Model(inputs, layers.Dense(classes, kernel_initializer="he_normal", name="classifier")(x), name=f"conv{depth}")
