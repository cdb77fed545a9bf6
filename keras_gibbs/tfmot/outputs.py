"""Which layers give a tf_keras model its outputs."""

from keras_gibbs.structure.graph import has_graph
from keras_gibbs.structure.kinds import is_a
from keras_gibbs.structure.outputs import mixes, names_of_outputs


def at_output(model) -> set[int]:
    """`keras_gibbs.structure.outputs.at_output` for a Sequential or Functional model of tf_keras, whose graph is read from its config."""
    found = set()

    def visit(layer) -> bool:
        """Note `layer` if it has weights; whether the way goes on behind it."""
        if has_graph(layer):
            return trace(layer)
        if getattr(layer, "weights", None):
            found.add(id(layer))
        return not mixes(layer)

    def trace(model) -> bool:
        """Go back from the outputs of `model`; whether one of its inputs is reached."""
        if is_a(model, "Sequential"):
            return all(visit(layer) for layer in reversed(model.layers))
        config = model.get_config()
        before = {layer["name"]: _names_of_tensors(layer["inbound_nodes"]) for layer in config["layers"]}
        by_name = {layer.name: layer for layer in model.layers}
        queue, seen, reached = list(names_of_outputs(config["output_layers"])), set(), False
        while queue:
            name = queue.pop()
            if name in seen:
                continue
            seen.add(name)
            if is_a(by_name.get(name), "InputLayer"):
                reached = True
            elif visit(by_name.get(name)):
                queue += before[name]
        return reached

    trace(model)
    return found


def _names_of_tensors(node):
    """The names of the layers whose outputs enter a layer, from its serialized `inbound_nodes`."""
    if isinstance(node, (list, tuple)) and [type(part) for part in node[:3]] == [str, int, int]:
        yield node[0]
    if isinstance(node, (list, tuple, dict)):
        for value in node.values() if isinstance(node, dict) else node:
            yield from _names_of_tensors(value)
