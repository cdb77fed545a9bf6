"""Frozen dataclasses that Keras can save: the base of every method, structure, schedule and Hamiltonian."""

import dataclasses

import keras


def register(cls):
    """Make a class known to `keras.models.load_model`, so that no `custom_objects` are ever needed."""
    return keras.saving.register_keras_serializable(package="keras_gibbs")(cls)


class Configuration:
    """A frozen dataclass whose fields are its whole state: equality, `repr` and the Keras configuration follow from them."""

    def brief(self) -> str:
        """Like `repr`, without the fields that have their default."""
        fields = [field for field in dataclasses.fields(self) if field.repr and getattr(self, field.name) != field.default]
        values = ((field.name, getattr(self, field.name)) for field in fields)
        text = ((name, value.brief() if isinstance(value, Configuration) else repr(value)) for name, value in values)
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in text)})"

    def get_config(self) -> dict:
        """The fields, serialized by Keras where they are objects themselves."""
        return {field.name: keras.saving.serialize_keras_object(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def from_config(cls, config: dict):
        """The object whose `get_config` gave `config`."""
        return cls(**{name: keras.saving.deserialize_keras_object(value) for name, value in config.items()})
