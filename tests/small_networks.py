"""Small networks in which channels meet each way of being tied, carried, read and held, with random weights."""

import keras
import numpy as np
from keras import layers, ops

from keras_gibbs.structure.channels import channel_groups


def randomize(model, seed=0):
    """Normal weights; gammas of both signs, positive variances."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        if "float" in variable.dtype:
            value = rng.normal(size=variable.shape)
            variable.assign((np.abs(value) + 0.5 if "variance" in variable.name else value).astype("float32"))
    return model


def zero_kernels(model, share=0.5, seed=0):
    """Zero kernels, biases and what follows left as they are, for a share of the channels of every group that can be removed."""
    rng = np.random.default_rng(seed)
    for group in channel_groups(model):
        chosen = rng.permutation(group.size)[: int(group.size * share)]
        for member in group.of_role("produces"):
            value = np.array(ops.convert_to_numpy(member.variable))
            np.moveaxis(value, member.axis, 0)[member.indices[chosen].reshape(-1)] = 0.0
            member.variable.assign(value)
    return model


def zero_channels(model, share=0.5, seed=0):
    """Zero weights for a share of the channels of every group that can be removed."""
    rng = np.random.default_rng(seed)
    for group in channel_groups(model):
        if group.reason is None:
            group.zero(rng.permutation(group.size)[: int(group.size * share)])
    return model


def inputs_of(model, batch=3, seed=1):
    """Random inputs of a model, in the structure that it takes."""
    rng = np.random.default_rng(seed)

    def draw(spec):
        shape = (batch, *(size or 5 for size in spec.shape[1:]))
        return rng.integers(0, 7, shape) if "int" in spec.dtype else rng.normal(size=shape).astype("float32")

    return keras.tree.map_structure(draw, model.inputs[0] if isinstance(model, keras.Sequential) else model.input)


def outputs_of(model, inputs=None):
    """All outputs of a model at inference, as one flat array."""
    outputs = model(keras.tree.map_structure(ops.convert_to_tensor, inputs_of(model) if inputs is None else inputs), training=False)
    return np.concatenate([ops.convert_to_numpy(output).reshape(-1) for output in keras.tree.flatten(outputs)])


def _functional(shape, body, dtype="float32"):
    inputs = keras.Input(shape, dtype=dtype)
    return keras.Model(inputs, body(inputs))


def _image(body, shape=(6, 6, 3)):
    """A body between a first convolution of 6 filters and a classifier."""

    def whole(x):
        x = body(layers.Conv2D(6, 3, padding="same", name="first")(x))
        return layers.Dense(2, name="last")(layers.GlobalAveragePooling2D()(x))

    return _functional(shape, whole)


def mlp():
    parts = [layers.Dense(9, "relu"), layers.Dropout(0.5), layers.Dense(7, "tanh"), layers.Dense(3, "softmax")]
    return keras.Sequential([keras.Input((5,)), *parts])


def sigmoid_mlp():
    return keras.Sequential([keras.Input((5,)), layers.Dense(9, "sigmoid"), layers.Dense(7, "softplus"), layers.Dense(3)])


def flattened():
    parts = [layers.Conv2D(6, 3), layers.BatchNormalization(), layers.ReLU(), layers.MaxPooling2D(2), layers.Flatten()]
    return keras.Sequential([keras.Input((6, 6, 3)), *parts, layers.Dense(4, "relu"), layers.Dense(2)])


def channels_first():
    kind = {"data_format": "channels_first"}

    def body(x):
        x = layers.PReLU(shared_axes=[2, 3])(layers.BatchNormalization(axis=1)(layers.ZeroPadding2D(1, **kind)(x)))
        x = layers.Permute((2, 3, 1))(x)
        x = layers.Permute((3, 1, 2))(layers.Conv2D(5, 3, activation="relu")(x))
        return layers.Dense(2)(layers.Dense(4, "relu")(layers.Flatten(**kind)(x)))

    return _functional((6, 4, 4), lambda x: body(layers.Permute((3, 1, 2))(layers.Conv2D(6, 3, padding="same")(layers.Permute((2, 3, 1))(x)))))


def residual():
    def body(x):
        for _ in range(2):
            y = layers.BatchNormalization()(layers.Conv2D(4, 1)(layers.ReLU()(x)))
            x = layers.Add()([x, layers.Conv2D(6, 3, padding="same")(layers.ReLU()(y))])
        return x

    return _image(body)


def squeeze_excite():
    def body(x):
        gate = layers.Reshape((1, 1, 6))(layers.GlobalAveragePooling2D()(x))
        gate = layers.Conv2D(6, 1, activation="sigmoid")(layers.Conv2D(4, 1, activation="silu")(gate))
        x = layers.Multiply()([x, gate])
        return x * (layers.ReLU(6.0)(x + 3.0) * (1.0 / 6.0))  # hard swish

    return _image(body)


def u_net():
    def body(x):
        low = layers.Conv2D(8, 3, padding="same", activation="relu")(layers.AveragePooling2D(2)(x))
        up = layers.Conv2DTranspose(5, 2, strides=2, activation="relu")(low)
        x = layers.Concatenate()([x, up, layers.UpSampling2D(2)(low), layers.Resizing(6, 6)(low)])
        return layers.Conv2D(4, 3, padding="same")(layers.LeakyReLU()(layers.BatchNormalization()(x)))

    return _image(body)


def depthwise():
    def body(x):
        x = layers.ReLU(6.0)(layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same", use_bias=False, depth_multiplier=2)(x)))
        return layers.SeparableConv2D(7, 3, depth_multiplier=2)(layers.Cropping2D(1)(x))

    return _image(body)


def grouped():
    def body(x):
        x = layers.Conv2D(8, 3, groups=2, activation="relu")(x)
        return layers.Conv2D(16, 1, groups=8)(x)

    return _image(body)


def constants():
    """Channels that BatchNorm or an activation leaves constant, before layers that can take a constant and one that cannot."""

    def body(x):
        x = layers.Conv2D(8, 3)(layers.BatchNormalization()(x))
        x = layers.AveragePooling2D(3, strides=1, padding="same")(layers.Activation("sigmoid")(layers.BatchNormalization()(x)))
        x = layers.Conv2D(7, 1, padding="same")(layers.DepthwiseConv2D(2)(x))
        return layers.Conv2D(4, 3, padding="same")(layers.BatchNormalization(scale=False)(x))

    return _image(body)


def shared():
    conv, norm, dense = layers.Conv2D(6, 3, padding="same", name="shared"), layers.BatchNormalization(), layers.Dense(5, "relu")
    left, right = keras.Input((6, 6, 3)), keras.Input((6, 6, 3))
    towers = [dense(layers.Flatten()(norm(conv(x)))) for x in (left, right)]
    return keras.Model([left, right], layers.Dense(2)(layers.Subtract()(towers)))


def shared_once_with_fixed():
    """A layer that reads prunable channels at one call and the model's input at the other."""
    conv = layers.Conv2D(6, 3, padding="same", activation="relu")
    x = keras.Input((6, 6, 6))
    return keras.Model(x, layers.Dense(2)(layers.Flatten()(layers.Conv2D(4, 1)(conv(conv(x))))))


def nested():
    inner = keras.Sequential([keras.Input((6, 6, 6)), layers.Conv2D(5, 3, activation="relu"), layers.Conv2D(4, 1, name="inside")], name="inner")
    x = keras.Input((6, 6, 6))
    outer = keras.Model(x, [inner(x), layers.Conv2D(4, 3)(x)], name="outer")

    def body(x):
        one, two = outer(x)
        return layers.Concatenate()([inner(layers.ReLU()(x)), layers.Maximum()([one, two])])

    return _image(body)


def in_time():
    parts = [
        layers.TimeDistributed(layers.Conv2D(5, 3, activation="relu")),
        layers.TimeDistributed(layers.BatchNormalization()),
        layers.TimeDistributed(layers.Flatten()),
        layers.TimeDistributed(layers.Dense(4, "relu")),
        layers.GlobalAveragePooling1D(),
        layers.Dense(2),
    ]
    return keras.Sequential([keras.Input((3, 5, 5, 2)), *parts])


def text():
    parts = [
        layers.Embedding(7, 6),
        layers.SpatialDropout1D(0.2),
        layers.Conv1D(8, 3, padding="causal", activation="relu"),
        layers.Bidirectional(layers.LSTM(3, return_sequences=True)),
        layers.Dense(5, "relu"),
        layers.GRU(3),
        layers.Dense(2),
    ]
    return keras.Sequential([keras.Input((8,), dtype="int32"), *parts])


def transformer():
    def body(tokens):
        x = layers.Embedding(7, 6)(tokens)
        x = layers.Add()([x, layers.MultiHeadAttention(2, 3)(layers.LayerNormalization()(x), x)])
        y = layers.Dense(6, name="down")(layers.Dense(12, "gelu", name="up")(layers.LayerNormalization()(x)))
        return layers.Dense(2)(layers.GlobalMaxPooling1D()(layers.Add()([x, y])))

    return _functional((8,), body, "int32")


def einsum():
    def body(x):
        x = layers.EinsumDense("abc,cd->abd", (4, 7), bias_axes="d", activation="relu")(x)
        x = layers.EinsumDense("...x,xy->...y", 6, activation="relu")(x)
        x = layers.EinsumDense("abd,de->ae", 5, bias_axes="e", activation="sigmoid")(x)  # sums over positions too
        return layers.EinsumDense("ad,dce->ace", (2, 3), bias_axes="ce")(layers.EinsumDense("ad,de->ae", 6)(x))

    return _functional((4, 5), body)


def volumes():
    parts = [layers.Conv3D(5, 2, activation="elu"), layers.UpSampling3D(2), layers.Conv3DTranspose(4, 2, activation="relu"), layers.GlobalMaxPooling3D()]
    return keras.Sequential([keras.Input((4, 4, 4, 2)), *parts, layers.Dense(3)])


def operations():
    def body(x):
        y = ops.relu(x) * 2.0 - x / 3.0
        gate = ops.sigmoid(ops.mean(y, axis=(1, 2), keepdims=True))
        x = ops.concatenate([ops.maximum(y, 0.5 * x), y * gate], axis=-1)
        x = ops.transpose(ops.expand_dims(x, 1), (0, 4, 1, 2, 3))
        return layers.Conv2D(4, 1)(ops.squeeze(ops.transpose(x, (0, 2, 3, 4, 1)), 1))

    return _image(body)


def two_inputs():
    image, figures = keras.Input((6, 6, 3), name="image"), keras.Input((4,), name="figures")
    x = layers.GlobalMaxPooling2D()(layers.Conv2D(6, 3, activation="relu")(image))
    y = layers.Dense(6, "relu")(figures)
    joint = layers.Concatenate()([x, layers.Average()([x, y]), figures])
    return keras.Model({"image": image, "figures": figures}, {"a": layers.Dense(3, "softmax")(joint), "b": layers.Dense(1)(y)})


def spatial_gate():
    """A map of one channel weighs all channels of another tensor; one of its kernels makes as many channels as the model puts out."""

    def body(x):
        return layers.Multiply()([x, layers.Conv2D(1, 3, padding="same", activation="sigmoid")(x)])

    return _image(body)


def held():
    """Layers that read all channels, and one that is not known."""

    def body(x):
        x = layers.GroupNormalization(2)(layers.Conv2D(6, 1, name="normalized")(x))
        x = layers.Softmax()(layers.Conv2D(5, 1, name="weighed")(x))
        x = layers.Lambda(lambda y: y[..., ::-1])(layers.Conv2D(4, 1, name="reversed")(x))
        x = x + np.arange(4, dtype="float32")
        return layers.Reshape((6, 6, 2, 4))(layers.Conv2D(8, 1, name="split")(x))[..., 0, :]

    return _image(body)


NETWORKS = {
    network.__name__: network
    for network in (
        mlp,
        sigmoid_mlp,
        flattened,
        channels_first,
        residual,
        squeeze_excite,
        u_net,
        depthwise,
        grouped,
        constants,
        shared,
        shared_once_with_fixed,
        nested,
        in_time,
        text,
        transformer,
        einsum,
        volumes,
        operations,
        two_inputs,
        spatial_gate,
        held,
    )
}
