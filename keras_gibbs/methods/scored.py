"""What the methods share that score the weights of a network before it is trained, and then train what they keep."""

import dataclasses
import warnings
from collections.abc import Callable

import numpy as np
from keras import ops

from keras_gibbs.budget import Budget
from keras_gibbs.budgeting import meet
from keras_gibbs.methods.base import PruningMethod, check_sparsity, check_structure
from keras_gibbs.methods.fixed import Fixed
from keras_gibbs.methods.ranked import mean_over_groups
from keras_gibbs.methods.traits import FindsMasks
from keras_gibbs.methods.weighing import check_floor, check_scope
from keras_gibbs.numerics import ranking
from keras_gibbs.schedules import Schedule
from keras_gibbs.structure import allocation
from keras_gibbs.structure.allocation import Table
from keras_gibbs.structure.groups import Structure, Unstructured

Scorer = Callable[[list[np.ndarray]], list[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class ScoredMethod(FindsMasks, PruningMethod):
    """A method that keeps the groups of the highest mean score, found before training: `prune` gives every weight a `Fixed` mask.

    A subclass says in `scorer` what the weights are worth. With several `steps` the network is pruned bit by bit: step k of n leaves a density of
    (1 - sparsity)^(k/n), and scores are taken anew under the masks so far.

    Attributes:
        sparsity: Fraction of the groups that is removed, a number in [0, 1), or a `Budget`.
        structure: `Unstructured()`, `Kernel()`, `Filter()` or another structure; groups are ranked by the mean score of their weights.
        scope: `"global"` ranks the groups of all layers together; `"layer"`, `"shape"` (ERK), `"lamp"` and a `Table` share out as elsewhere.
        floor: With `scope="global"`, the least density of a layer as a fraction of that of the network, in [0, 1]. `prune` warns where a layer loses all.
        rescale: Whether the kept weights of every layer are multiplied so that their sum of squares is what it was before pruning, which restores the variance
            of its outputs. (In the spirit of Hayou et al. 2021, Robust pruning at initialization, https://arxiv.org/abs/2002.08797; their formula not checked.)
    """

    sparsity: float | Budget
    structure: Structure = dataclasses.field(default=Unstructured(), kw_only=True)
    scope: str | Table = dataclasses.field(default="global", kw_only=True)
    floor: float = dataclasses.field(default=0.0, kw_only=True)
    rescale: bool = dataclasses.field(default=False, kw_only=True)

    steps = 1
    regrows = False  # whether a step may bring back what an earlier one removed

    def __post_init__(self):
        name = type(self).__name__
        if isinstance(self.sparsity, Schedule):
            raise TypeError(f"`sparsity` of {name} must be a number: masks are found once, before training. Received: sparsity={self.sparsity!r}.")
        sparsity = check_sparsity(self.sparsity)
        check_structure(self.structure)
        self.structure.check_sparsity(sparsity)
        check_scope(self.scope, self.structure)
        check_floor(self.floor, self.scope)
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"`steps` must be a positive int. Received: steps={self.steps!r}.")

    def scorer(self, model, weights: list, data, loss) -> Scorer:
        """The function from masks, in the shapes of the `weights` (a list of `Prunable` of `model`), to scores in these shapes."""
        raise NotImplementedError

    def state(self, shape):
        name = type(self).__name__
        raise ValueError(
            f"{name} finds its masks in a whole Keras 3 model. Received: {self.brief()} for one layer. Give `keras_gibbs.prune(model, {name}(...))` the model."
        )

    def find(self, model, weights, data, loss, seed):
        score = self.scorer(model, weights, data, loss)
        masks, solved = [np.ones(weight.shape, "float32") for weight in weights], None
        for step in range(1, self.steps + 1):
            scores = score(masks)
            if not all(np.isfinite(found).all() for found in scores):
                raise ValueError(f"Scores must be finite. Received: model {model.name!r}, whose gradients for {type(self).__name__} overflow on this data.")
            solved = solved or self._solved(model, weights, scores, seed)
            if not self.regrows:
                scores = [np.where(mask > 0, found, -np.inf) for mask, found in zip(masks, scores, strict=True)]
            sparsity = solved.sparsity if step == self.steps else 1.0 - (1.0 - solved.sparsity) ** (step / self.steps)
            masks = solved.cut(weights, scores, sparsity)
        collapsed = [weight.path for weight, mask in zip(weights, masks, strict=True) if not mask.any()]
        if collapsed:
            warnings.warn(
                f"{self.brief()} removed all of {collapsed}, so that nothing passes these layers. Keep a part of every layer with `floor=0.1`, or use "
                "`scope='shape'` or a lower sparsity.",
                stacklevel=3,
            )
        return Fixed(dict(zip([weight.path for weight in weights], masks, strict=True)), found_by=self.brief())

    def _solved(self, model, weights, scores, seed):
        """The method with numbers in place of a budget, which shares out by the scores of the whole network."""
        grouped = [self._grouped(weight, score).reshape(-1) for weight, score in zip(weights, scores, strict=True)]
        return meet(self, model, weights, seed, grouped)

    def cut(self, weights: list, scores: list[np.ndarray], sparsity: float) -> list[np.ndarray]:
        """The masks, in the shapes of the weights, of the groups of the highest scores."""
        grouped = [self._grouped(weight, score) for weight, score in zip(weights, scores, strict=True)]
        flat, groups = [score.reshape(-1) for score in grouped], [score.shape[2] for score in grouped]
        counts = allocation.counts(self.scope, sparsity, self.sparsity, weights, groups, flat, self.floor)
        masks = []
        for weight, score, count in zip(weights, grouped, counts, strict=True):
            mask = ranking.top(ranking.to_key(ops.convert_to_tensor(score)), count)
            masks.append(ops.convert_to_numpy(self.structure.restore(mask, weight.shape, weight.layout)))
        return masks

    def _grouped(self, weight, scores):
        filled = self.structure.filled(weight.shape, weight.layout)
        arranged = self.structure.arrange(ops.convert_to_tensor(scores.astype("float32")), weight.layout)
        if filled is None:
            return ops.convert_to_numpy(mean_over_groups(arranged, {}))
        means = ops.convert_to_numpy(mean_over_groups(arranged, {"filled": filled}))
        return np.where(filled.any(axis=(0, 1), keepdims=True), means, -np.inf)  # what the structure has filled in ranks last

    def finish(self, masked):
        for own in masked if self.rescale else []:
            weight, kept = ops.convert_to_numpy(own.value()), ops.convert_to_numpy(own.mask())
            left = np.square(weight * kept, dtype="float64").sum()
            factor = np.sqrt(np.square(weight, dtype="float64").sum() / left) if left else 1.0
            own.variable.assign(np.where(kept > 0, weight * factor, weight).astype(weight.dtype))
