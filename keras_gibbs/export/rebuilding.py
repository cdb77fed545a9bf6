"""The graph of a network, built anew in the form whose 1x1 convolutions a phone's CPU runs sparse."""

import keras
import numpy as np
from keras import ops, tree

from keras_gibbs.export import turning
from keras_gibbs.export.regions import Regions, activation_of, is_1x1
from keras_gibbs.export.wiring import Wiring, output_of


class Left(Exception):
    """A rewrite is not exact here; holds the layer and why."""


def pads_of(wiring, call):
    """The tensor that a convolution reads before all padding, and the padding; None if it is not known."""
    source = call.inputs[0]
    own = turning.padding_of(call.operation, source.shape[1:3])
    if own is None:
        return None
    before = wiring.giver(source)
    if call.operation.padding == "valid" and before and isinstance(before.operation, keras.layers.ZeroPadding2D) and len(wiring.readers(source)) == 1:
        return before.inputs[0], tuple(map(tuple, before.operation.padding))
    return source, own


class Rebuilt:
    """The new graph, built call by call; `turn` says whether it is turned by 180 degrees."""

    def __init__(self, wiring: Wiring, turn: bool):
        self._wiring, self._turn, self._regions = wiring, turn, Regions(wiring)
        self.rows, self.left = self._regions.rows, self._regions.left
        self._new = {id(tensor): tensor for tensor in tree.flatten(wiring.inputs)}  # id of a tensor of the old graph -> the new one
        self._turned = set()  # ids of new tensors that are turned
        self._flips, self._layers, self._copies, self._names = {}, {}, [], set()

    def model(self, original: keras.Model) -> keras.Model:
        """The new model, with the weights of `original`."""
        for call in self._wiring.calls:
            self._rebuild(call)
        outputs = tree.map_structure(lambda tensor: self._get(tensor, turned=False), self._wiring.outputs)
        built = keras.Model(self._wiring.inputs, outputs, name=original.name)
        for layer, copy, change in self._copies:
            if layer.weights:
                copy.set_weights(change(layer.get_weights()))
            if hasattr(copy, "finalize_state"):  # Normalization keeps figures beside its weights
                copy.finalize_state()
            copy.trainable = layer.trainable
        return built

    # One call

    def _rebuild(self, call):
        layer = call.operation
        if id(call) in self._regions.gates:
            new = self._in_gate(call)
        elif id(call) in self._regions.heads:
            new = self._in_head(call)
        elif isinstance(layer, turning.WINDOWS) and turning.is_map(call.inputs[0]):
            new = self._window(call)
        elif isinstance(layer, keras.layers.ZeroPadding2D):
            readers = [reader for reader in self._wiring.readers(output_of(call)) if isinstance(reader.operation, turning.WINDOWS)]
            if any((pads_of(self._wiring, reader) or [None])[0] is call.inputs[0] for reader in readers):
                return  # part of the convolution behind it
            new = self._padding(call)
        elif isinstance(layer, turning.POOLS):
            new = self._pooling(call)
        else:
            new = self._plain(call)
        for old, tensor in zip(tree.flatten(call.outputs), tree.flatten(new)):
            self._new[id(old)] = tensor

    def _plain(self, call):
        """The same layer on the new tensors."""
        on_maps = [tensor for tensor in call.inputs if turning.is_map(tensor)]
        turned = any(id(self._new[id(tensor)]) in self._turned for tensor in on_maps)
        if turned and not isinstance(call.operation, turning.GLOBAL_POOLS) and not turning.is_pointwise(call.operation):
            raise Left(call.operation.name, "it looks at positions in an order that cannot be turned exactly")
        args, kwargs = tree.map_structure(lambda value: self._get(value, turned), (call.args, call.kwargs))
        outputs = self._copy(call.operation)(*args, **kwargs)
        if turned:
            self._mark(*[tensor for tensor in tree.flatten(outputs) if turning.is_map(tensor)])
        return outputs

    def _window(self, call):
        layer, found = call.operation, pads_of(self._wiring, call)
        if found is None:
            if self._turn:
                raise Left(layer.name, "its padding depends on sizes that are not fixed")
            return self._plain(call)
        source, pads = found
        sizes = source.shape[1:3]
        changed = turning.turned(pads, sizes, layer) if self._turn else pads
        if changed is None:
            raise Left(layer.name, "turned, it would have to leave lines of its input out")
        changed = turning.evened(changed, sizes, layer)
        flip = _flip if self._turn and max(layer.kernel_size) > 1 else _same
        x = self._get(source, self._turn)
        if flip is _flip:
            self._regions.note(layer, "kernel turned by 180 degrees")
        keeps = layer.padding == "same" and turning.strides_of(layer) == (1, 1) and changed == pads
        if not keeps and any(map(any, changed)):
            before = self._wiring.giver(call.inputs[0])
            name = before.operation.name if source is not call.inputs[0] else f"{layer.name}_pad"
            x = self._named(keras.layers.ZeroPadding2D, name=name, padding=changed)(x)
            if self._turn:
                self._mark(x)
            if changed != pads or layer.padding == "same":
                self._regions.note(layer, "padded explicitly, on every side alike where that is the same" if changed != pads else "padded explicitly")
        output = self._copy(layer, flip, padding="same" if keeps else "valid")(x)
        if self._turn:
            self._mark(output)
        return output

    def _padding(self, call):
        padding = tuple(map(tuple, call.operation.padding))
        if self._turn:
            padding = tuple(pair[::-1] for pair in padding)
        output = self._copy(call.operation, padding=padding)(self._get(call.inputs[0], self._turn))
        if self._turn:
            self._mark(output)
        return output

    def _pooling(self, call):
        if self._turn:
            sizes = call.inputs[0].shape[1:3]
            pads = turning.padding_of(call.operation, sizes)
            if pads is None or turning.turned(pads, sizes, call.operation) != pads:
                raise Left(call.operation.name, "turned, it would pool other positions")
        output = self._copy(call.operation)(self._get(call.inputs[0], self._turn))
        if self._turn:
            self._mark(output)
        return output

    def _in_gate(self, call):
        layer = call.operation
        if id(call) in self._regions.skipped:
            return self._new[id(call.inputs[0])]
        if activation_of(layer) == "hard_sigmoid" and id(getattr(self._wiring.giver(call.inputs[0]), "operation", None)) in self._regions.shifts:
            return self._named(keras.layers.ReLU, name=layer.name, max_value=6.0)(self._new[id(call.inputs[0])])
        if isinstance(layer, keras.layers.Reshape):
            self._regions.note(layer, "left out: pooling keeps its dimensions")
            return self._new[id(call.inputs[0])]
        if type(layer) is keras.layers.Dense:
            self._regions.note(layer, "a 1x1 convolution in place of Dense")
            config = _shared_config(layer) | {"kernel_size": 1, "filters": layer.units}
            copy = self._new_layer(layer, keras.layers.Conv2D, lambda weights: [weights[0][None, None], *weights[1:]], **config)
            return copy(self._new[id(call.inputs[0])])
        if isinstance(layer, turning.GLOBAL_POOLS):
            return self._copy(layer, keepdims=True)(self._get_any(call.inputs[0]))
        args, kwargs = tree.map_structure(self._get_any, (call.args, call.kwargs))
        return self._copy(layer, **_on_last_axis(layer))(*args, **kwargs)

    def _in_head(self, call):
        layer = call.operation
        if isinstance(layer, (keras.layers.Reshape, keras.layers.Flatten)):
            return self._new[id(call.inputs[0])]
        if is_1x1(layer):
            self._regions.note(layer, "Dense in place of a 1x1 convolution behind the last pooling")
            config = _shared_config(layer) | {"units": layer.filters}
            copy = self._new_layer(layer, keras.layers.Dense, lambda weights: [weights[0][0, 0], *weights[1:]], **config)
            return copy(self._new[id(call.inputs[0])])
        if isinstance(layer, turning.GLOBAL_POOLS):
            self._regions.note(layer, "without keepdims")
            return self._copy(layer, keepdims=False)(self._get_any(call.inputs[0]))
        args, kwargs = tree.map_structure(self._get_any, (call.args, call.kwargs))
        return self._copy(layer, **_on_last_axis(layer))(*args, **kwargs)

    # Tensors

    def _get(self, value, turned):
        """The new tensor for one of the old graph, of the same shape, turned or not; anything else as it is."""
        if not isinstance(value, keras.KerasTensor):
            return value
        tensor = self._new[id(value)]
        if len(tensor.shape) != len(value.shape):
            tensor = keras.layers.Reshape(value.shape[1:])(tensor)
        if turning.is_map(value) and (id(tensor) in self._turned) != turned:
            key = (id(tensor), turned)
            if key not in self._flips:
                self._flips[key] = ops.flip(tensor, axis=(1, 2)), tensor
                self.rows.append({"layer": value.name, "change": "flipped along height and width"})
                if turned:
                    self._turned.add(id(self._flips[key][0]))
            tensor = self._flips[key][0]
        return tensor

    def _get_any(self, value):
        return self._new[id(value)] if isinstance(value, keras.KerasTensor) else value

    def _mark(self, *tensors):
        self._turned.update(map(id, tensors))
        self._flips.update({id(tensor): tensor for tensor in tensors})  # an id is valid as long as its object lives

    # Layers

    def _copy(self, layer, change=None, **config):
        if not isinstance(layer, keras.layers.Layer) or isinstance(layer, keras.layers.Lambda):
            return layer
        return self._new_layer(layer, type(layer), change or _same, **(layer.get_config() | config))

    def _new_layer(self, layer, cls, change, **config):
        key = (id(layer), cls, repr(sorted(config.items(), key=lambda item: item[0])))
        if key not in self._layers:
            self._layers[key] = self._named(cls, **config)
            self._copies.append((layer, self._layers[key], self._with_constants(layer, change)))
        return self._layers[key]

    def _with_constants(self, layer, change):
        scale, shift = self._regions.scales.get(id(layer), 1.0), self._regions.shifts.get(id(layer), 0.0)
        if (scale, shift) == (1.0, 0.0):
            return change
        return lambda weights: [change(weights)[0] * scale, *(weight + shift for weight in weights[1:])]

    def _named(self, cls, *, name, **config):
        while name in self._names:
            name += "_again"
        self._names.add(name)
        return cls.from_config({**config, "name": name})


def _shared_config(layer):
    """The configuration of a Dense layer or a convolution that the other one has too."""
    keys = {"name", "trainable", "dtype", "activation", "use_bias", "activity_regularizer"}
    keys |= {f"{weight}_{part}" for weight in ("kernel", "bias") for part in ("initializer", "regularizer", "constraint")}
    return {key: value for key, value in layer.get_config().items() if key in keys}


def _on_last_axis(layer):
    return {"axis": -1} if isinstance(layer, keras.layers.BatchNormalization) else {}


def _same(weights):
    return weights


def _flip(weights):
    """Spatial kernels turned; a pointwise kernel is 1x1, and stays as it is."""
    return [np.flip(weight, axis=(0, 1)) if weight.ndim == 4 else weight for weight in weights]
