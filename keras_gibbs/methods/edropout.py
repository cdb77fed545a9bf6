"""EDropout: a population of subnetworks evolves while the network trains (Salehinejad & Valaee)."""

import dataclasses
from collections.abc import Callable

import numpy as np
from keras import ops

from keras_gibbs.arguments import require_count, require_flag, require_number
from keras_gibbs.configuration import register
from keras_gibbs.methods.base import PruningMethod
from keras_gibbs.methods.traits import ChecksTraining, RemovesUnits, SearchesModel
from keras_gibbs.schedules import Linear
from keras_gibbs.search.evolution import LEAST, RULES
from keras_gibbs.search.objectives import MarginEnergy, Objective
from keras_gibbs.specs import Spec
from keras_gibbs.structure.groups import Filter


@register
@dataclasses.dataclass(frozen=True)
class EDropout(SearchesModel, RemovesUnits, ChecksTraining, PruningMethod):
    """Search for a subnetwork while training: a population of states, one bit a filter or unit, evolves against an energy on every batch.

    At every training step each state of the population gets a rival by binary differential evolution; the energies of the rivals are computed on the batch,
    and the better of the two stays. The best state of the population is applied: its filters, with their biases, are kept in the forward pass and trained;
    removed ones are still, and can come back while the search goes on. Once the search has ended the best state stays.

    The search sees the batch and the whole model, so `prune` returns a model of a class of its own, with everything `fit` needs; `strip_pruning` gives back the
    form it had. Layers that feed an output of the model are left alone, and none is ever emptied. With the default energy nothing rewards removing filters:
    about half go, since states begin with half of their bits set. A budget is a term of the objective: `MarginEnergy() + KeepPenalty(0.5)`.

    The default energy is the authors'. It grows with the scale of the logits, and before a network has learned anything a state with small outputs is the
    better one: narrow networks without BatchNormalization may be held back by it (README.md has figures). `CrossEntropyEnergy()` does not do that.

    Args:
        population: Number of states S, at least 4. A search step costs S forward passes besides its own.
        objective: What is minimized: `MarginEnergy()`, `CrossEntropyEnergy()`, `KeepPenalty(target)`, `IsingEnergy()`, a sum of them, or a callable from a
            `keras_gibbs.search.objectives.Context` to energies `(S,)`.
        rule: `"reference"`, the mutation of the authors' code, or `"xor"`, the textbook one of the papers; with the latter a bit that is the same in all
            states stays so, and 16 states or more are advisable (see `keras_gibbs.search.evolution.mutate`).
        search: Fraction of training after which the search ends at the latest, in (0, 1].
        patience: Number of steps after which the search ends if the best state has not changed; None for no such end. It needs
            `reevaluate_parents=True`, since a stored energy may be that of one lucky batch.
        energy_batch: On how many samples of the batch candidates are scored; None for all.
        reevaluate_parents: True scores the population anew on every batch, beside its rivals: twice the cost. False keeps each state's energy from the
            batch that it was accepted on, as the authors do.
        crossover: Probability that a bit of a candidate comes from the mutant.
        mutation_rate: The factor F of the rules.
        initial_keep: Probability that a bit of the first population is 1.
        structure: `Filter()`: a bit is a filter or unit with its bias. `Filter(coupled=True)`: a bit is a channel, with all filters that make it.
        population_chunk: How many candidates are evaluated at once. 1 takes one after the other, in the memory of one forward pass; more share a pass with the
            batch stacked, which needs activations with f(0) = 0 in the pruned layers, and no layer that draws noise.

    Raises:
        ValueError: For a population below 4 and other values that make no sense.

    Example:

    >>> pruned = kg.prune(model, kg.EDropout(population=8))
    >>> pruned.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    >>> pruned.fit(x, y, epochs=60, callbacks=[kg.GibbsPruningCallback()])

    Reference: Salehinejad & Valaee 2020, EDropout, https://arxiv.org/abs/2006.04270, and 2021, https://arxiv.org/abs/2102.13188; the authors' code
    sparsifai/epruning (equations not checked). There a dense layer has its bits
    on inputs, biases stay, and removed weights are zeroed at every validation; here bits are on outputs, biases go with them, and weights stay.
    """

    population: int = 8
    objective: Objective | Callable = dataclasses.field(default=MarginEnergy(), kw_only=True)
    rule: str = dataclasses.field(default="reference", kw_only=True)
    search: float = dataclasses.field(default=0.5, kw_only=True)
    patience: int | None = dataclasses.field(default=None, kw_only=True)
    energy_batch: int | None = dataclasses.field(default=None, kw_only=True)
    reevaluate_parents: bool = dataclasses.field(default=False, kw_only=True)
    crossover: float = dataclasses.field(default=0.9, kw_only=True)
    mutation_rate: float = dataclasses.field(default=0.9, kw_only=True)
    initial_keep: float = dataclasses.field(default=0.5, kw_only=True)
    population_chunk: int = dataclasses.field(default=1, kw_only=True)

    structure: Filter = dataclasses.field(default=Filter(), kw_only=True)

    def __post_init__(self):
        if not isinstance(self.structure, Filter):
            raise ValueError(f"EDropout has one bit a filter, or a channel: `Filter()` or `Filter(coupled=True)`. Received: structure={self.structure!r}.")
        if isinstance(self.population, bool) or not isinstance(self.population, (int, np.integer)) or not LEAST <= self.population < 2**31:
            rule = f"`population` must be an int of at least {LEAST}: a rival has three parents besides its own slot"
            raise ValueError(f"{rule}. Received: population={self.population!r}.")
        if not callable(self.objective) or isinstance(self.objective, type) or type(self.objective).__hash__ is None:
            raise TypeError(f"`objective` must be an object such as `MarginEnergy()`, or a hashable callable. Received: objective={self.objective!r}.")
        require_number(search=self.search, crossover=self.crossover, mutation_rate=self.mutation_rate, initial_keep=self.initial_keep)
        require_flag(reevaluate_parents=self.reevaluate_parents)
        if not isinstance(self.rule, str) or self.rule not in RULES:
            raise ValueError(f"`rule` must be one of {RULES}. Received: rule={self.rule!r}.")
        if not 0.0 < self.search <= 1.0:
            raise ValueError(f"`search` is a fraction of training, in (0, 1]. Received: search={self.search!r}.")
        for name in ("crossover", "mutation_rate"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"`{name}` is a probability, in [0, 1]. Received: {name}={getattr(self, name)!r}.")
        if not 0.0 < self.initial_keep < 1.0:
            raise ValueError(
                "`initial_keep` is a probability between 0 and 1: with either of them all states are the same, and there is nothing to search. "
                f"Received: initial_keep={self.initial_keep!r}."
            )
        require_count(population_chunk=self.population_chunk)
        for name in ("patience", "energy_batch"):
            if getattr(self, name) is not None:
                require_count(**{name: getattr(self, name)})
        if self.patience is not None and not self.reevaluate_parents:
            raise ValueError(
                "`patience` needs `reevaluate_parents=True`: without it the best energy is one that some batch once gave, and the best state may never "
                f"change for that reason alone. Received: patience={self.patience!r}, reevaluate_parents=False."
            )

    def check(self, weight):
        super().check(weight)
        if self.structure.coupled:
            return  # biases are among what follows a channel
        bias = getattr(weight.owner, "bias", None)
        outputs = tuple(weight.shape[axis] for axis in weight.layout.outputs)
        if bias is not None and tuple(bias.shape) != outputs:
            raise ValueError(
                f"EDropout removes a unit with its bias, and layer {weight.owner.name!r} has no bias of its own for every unit. Received: a bias of shape "
                f"{tuple(bias.shape)} for outputs {outputs}."
            )

    def check_training(self, optimizer, layers):
        if getattr(getattr(optimizer, "inner_optimizer", optimizer), "use_ema", False):
            raise ValueError(
                "EDropout keeps removed filters still, and an average of the weights moves them when `fit` ends. Pass an optimizer without `use_ema=True`."
            )

    def schedules(self):
        return {"searching": Linear(1.0, 0.0, begin=self.search, end=self.search)}

    def state(self, shape):
        return super().state(shape) | {"bits": Spec(np.ones(shape[2]), "bool")}

    def unit_mask(self, state):
        return ops.cast(state["bits"], "float32")

    def mode(self, weight, state):
        return ops.reshape(self.unit_mask(state), (1, 1, -1, 1))
