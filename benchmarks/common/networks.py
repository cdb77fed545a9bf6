"""The networks of the benchmarks.

Every builder takes `api`, the Keras to build with: Keras 3 (`keras`) or, for TF-MOT, `tf_keras`. Layers that the authors of Gibbs pruning
leave dense carry the names in `DENSE`; `prunable` is the `where=` that keeps them out.
"""

import dataclasses

import keras

DENSE = ("stem", "classifier")  # the first convolution and the last layer


def prunable(layer) -> bool:
    """The `where=` of `keras_gibbs.prune`: every layer with a kernel but the first convolution, the classifier and depthwise convolutions.

    Depthwise convolutions hold a hundredth of a network's weights, run dense on every runtime, and TF-MOT does not prune them either.
    """
    return layer.name not in DENSE and hasattr(layer, "kernel") and not hasattr(layer, "depth_multiplier")


@dataclasses.dataclass(frozen=True)
class Network:
    """One of the networks below with its options, as data that another process can read.

    Attributes:
        builder: Name of a function of this file.
        options: Its arguments beside the shape, the classes and the Keras.
    """

    builder: str
    options: dict = dataclasses.field(default_factory=dict)

    def __call__(self, shape, classes, api=keras):
        return globals()[self.builder](input_shape=tuple(shape), classes=classes, api=api, **self.options)


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
    return _residual((depth - 2) // 6, widths, input_shape, classes, l2, api, f"resnet{depth}")


def _residual(blocks, widths, input_shape, classes, l2, api, name):
    """Stages of `blocks` basic blocks each, of 3x3 convolutions with BatchNorm, one width a stage."""
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
        for block in range(1, blocks + 1):
            at = f"stage{stage}_block{block}"
            strides = 2 if stage > 1 and block == 1 else 1
            y = layers.ReLU(name=f"{at}_relu1")(normalized(x, f"{at}_conv1", width, strides=strides))
            y = normalized(y, f"{at}_conv2", width)
            if strides > 1:
                x = convolution(x, f"{at}_shortcut", width, size=1, strides=strides)
            x = layers.ReLU(name=f"{at}_relu2")(layers.Add(name=f"{at}_add")([x, y]))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    outputs = layers.Dense(classes, kernel_initializer="he_normal", name="classifier")(x)
    return api.Model(inputs, outputs, name=name)


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


def resnet18(input_shape=(32, 32, 3), classes=10, width=64, l2=0.0, api=keras):
    """ResNet-18 for small images: a stem of 3x3 without pooling, four stages of two basic blocks, global average pooling, logits.

    As the authors of EDropout have it (sparsifai/epruning, realresnet.py:175, 240), with bare projections as in `resnet`.

    Args:
        input_shape: Height, width, channels.
        classes: Number of logits.
        width: Channels of the first stage; each later one has twice as many. 64 is ResNet-18.
        l2: Factor of the L2 penalty on every convolution kernel.
        api: The Keras to build with.

    Returns:
        A functional model, its layers named as those of `resnet`.
    """
    return _residual(2, [width * 2**stage for stage in range(4)], input_shape, classes, l2, api, f"resnet18_{width}")


def alexnet(input_shape=(32, 32, 3), classes=10, width=64, dropout=0.5, api=keras):
    """AlexNet in the form used for small images: five convolutions with three poolings, two Dense layers with Dropout, logits; no BatchNorm.

    Args:
        input_shape: Height, width, channels.
        classes: Number of logits.
        width: Channels of the first convolution, 64 in AlexNet; the others follow in its proportions (3, 6, 4, 4 times, and Dense layers of 64 times as many).
        dropout: Rate before the two Dense layers.
        api: The Keras to build with.

    Returns:
        A functional model; its layers are `stem`, `conv2` ... `conv5`, `hidden1`, `hidden2`, `classifier`.
    """
    layers = api.layers
    settings = {"padding": "same", "activation": "relu", "kernel_initializer": "he_normal"}
    x = inputs = api.Input(input_shape)
    for index, (share, strides, pooled) in enumerate(((1, 2, True), (3, 1, True), (6, 1, False), (4, 1, False), (4, 1, True)), 1):
        x = layers.Conv2D(share * width, 3, strides=strides, name="stem" if index == 1 else f"conv{index}", **settings)(x)
        if pooled:
            x = layers.MaxPooling2D(name=f"pool{index}")(x)
    x = layers.Flatten(name="flatten")(x)
    for index in (1, 2):
        x = layers.Dropout(dropout, name=f"dropout{index}")(x)
        x = layers.Dense(64 * width, activation="relu", kernel_initializer="he_normal", name=f"hidden{index}")(x)
    return api.Model(inputs, layers.Dense(classes, name="classifier")(x), name=f"alexnet_{width}")


def squeezenet(input_shape=(32, 32, 3), classes=10, width=64, dropout=0.5, api=keras):
    """SqueezeNet 1.1 in the form used for small images: a 3x3 stem, eight fire modules, a 1x1 convolution, global average pooling; no BatchNorm.

    A fire module squeezes by 1x1 convolutions to a quarter of what it then expands to, half by 1x1 and half by 3x3.

    Args:
        input_shape: Height, width, channels.
        classes: Number of logits.
        width: Channels of the stem, 64 in SqueezeNet; the fire modules follow in its proportions.
        dropout: Rate before the last convolution.
        api: The Keras to build with.

    Returns:
        A functional model; its layers are `stem`, `fire1_squeeze`, `fire1_expand1`, `fire1_expand3` ..., `classifier`.
    """
    layers = api.layers

    def convolution(x, name, filters, size, activation="relu"):
        return layers.Conv2D(filters, size, padding="same", activation=activation, kernel_initializer="he_normal", name=name)(x)

    inputs = api.Input(input_shape)
    x = layers.MaxPooling2D(name="pool1")(convolution(inputs, "stem", width, 3))
    for index, share in enumerate((1, 1, 2, 2, 3, 3, 4, 4), 1):
        x = convolution(x, f"fire{index}_squeeze", share * width // 4, 1)
        expanded = [convolution(x, f"fire{index}_expand{size}", share * width, size) for size in (1, 3)]
        x = layers.Concatenate(name=f"fire{index}_join")(expanded)
        if index in (2, 4):
            x = layers.MaxPooling2D(name=f"pool{index // 2 + 1}")(x)
    x = layers.Dropout(dropout, name="dropout")(x)
    x = convolution(x, "classifier", classes, 1, activation=None)
    return api.Model(inputs, layers.GlobalAveragePooling2D(name="pool")(x), name=f"squeezenet_{width}")


MOBILENET = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))  # (channels, stride) of a block
MOBILENET_SMALL = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 1), (512, 1))  # for 32x32 images: its beginning, with 4x4 features at the end

# How a `mobilenet` ends: name -> function of (features, classes, layers of the Keras in use).
HEADS = {
    "dense": lambda x, classes, layers: layers.Dense(classes, name="classifier")(layers.GlobalAveragePooling2D(name="pool")(x)),
    "pooled": lambda x, classes, layers: layers.GlobalAveragePooling2D(keepdims=True, name="pool")(x),
    "convolution": lambda x, classes, layers: layers.Flatten(name="flatten")(
        layers.Conv2D(classes, 1, name="classifier")(layers.GlobalAveragePooling2D(keepdims=True, name="pool")(x))
    ),
    "none": lambda x, classes, layers: x,
}


def mobilenet(input_shape=(96, 96, 3), alpha=0.5, classes=10, head="dense", blocks=MOBILENET, api=keras):
    """A MobileNetV1: a 3x3 convolution, then blocks of a depthwise 3x3 and a 1x1 convolution, each with BatchNorm and ReLU.

    As in Howard et al. 2017, table 1 (https://arxiv.org/abs/1704.04861). Every stride of 2 stands behind an explicit padding of 1, the form in which
    XNNPACK runs 1x1 convolutions with sparse kernels. `prunable` is true of all of these but a head's.

    Args:
        input_shape: Height, width, channels; 32x32 works too.
        alpha: Factor of all channels, in (0, 1].
        classes: Number of logits of the heads "dense" and "convolution".
        head: "dense" (pooling, Dense), "pooled" (pooling that keeps the dimensions), "convolution" (the same, 1x1 convolution, Flatten) or "none" (the
            last block's features).
        blocks: (channels at alpha 1, stride) of every block.
        api: The Keras to build with.

    Returns:
        A functional model; its layers are `stem`, `block1_depthwise`, `block1_pointwise` ..., `pool`, `classifier`.
    """
    if head not in HEADS:
        raise ValueError(f"`head` must be one of {', '.join(map(repr, HEADS))}. Received: head={head!r}.")
    if not 0 < alpha <= 1:
        raise ValueError(f"`alpha` must lie in (0, 1]. Received: alpha={alpha!r}. It is the factor of all channels.")
    layers = api.layers

    def normalized(x, name):
        return layers.ReLU(name=f"{name}_relu")(layers.BatchNormalization(name=f"{name}_norm")(x))

    def padded(x, name, strides):
        """`x` ready for a 3x3 convolution, and that convolution's `padding`."""
        return (x, "same") if strides == 1 else (layers.ZeroPadding2D(1, name=f"{name}_padding")(x), "valid")

    inputs = api.Input(input_shape)
    x, padding = padded(inputs, "stem", 2)
    x = layers.Conv2D(int(32 * alpha), 3, strides=2, padding=padding, use_bias=False, kernel_initializer="he_normal", name="stem")(x)
    x = normalized(x, "stem")
    for index, (width, strides) in enumerate(blocks, 1):
        name = f"block{index}_depthwise"
        x, padding = padded(x, name, strides)
        # Keras counts all channels into the fan-in of a depthwise kernel, which has nine weights a channel.
        settings = {"use_bias": False, "depthwise_initializer": api.initializers.RandomNormal(stddev=(2 / 9) ** 0.5)}
        x = normalized(layers.DepthwiseConv2D(3, strides=strides, padding=padding, name=name, **settings)(x), name)
        name = f"block{index}_pointwise"
        x = normalized(layers.Conv2D(int(width * alpha), 1, use_bias=False, kernel_initializer="he_normal", name=name)(x), name)
    return api.Model(inputs, HEADS[head](x, classes, layers), name=f"mobilenet_{head}")
