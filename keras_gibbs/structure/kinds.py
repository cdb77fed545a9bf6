"""Tell the kind of a layer by the names of its classes, so that one test serves Keras 3 and Keras 2."""


def is_a(layer, *classes: type | str) -> bool:
    """Whether `layer` is of one of `classes`, given as Keras 3 classes or by name; a class of that name in Keras 2 counts too."""
    names = {cls if isinstance(cls, str) else cls.__name__ for cls in classes}
    return not {base.__name__ for base in type(layer).__mro__}.isdisjoint(names)
