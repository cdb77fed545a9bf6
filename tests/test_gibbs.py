"""The law of Gibbs masks, from a kernel to `mask(training=True)`, against NumPy formulas and full enumeration.

Statistics: means lie within 5 sigma of their probability; a chi-square test would fail a correct sampler for one seed in a million.
"""

import dataclasses
import itertools

import cases
import keras
import numpy as np
import pytest
from keras import ops
from scipy import stats
from scipy.special import expit, softmax

import keras_gibbs as kg

UNLIKELY = 1e-6

without_xla = pytest.fixture(cases.xla(False))


def numpy(tensor):
    return np.asarray(ops.convert_to_numpy(tensor))


def wrapped(kernel, method, seed=1):
    """A pruned layer with `kernel`: Dense for a matrix, Conv2D for four axes."""
    kernel = np.asarray(kernel, "float32")
    if kernel.ndim == 2:
        layer = keras.layers.Dense(kernel.shape[1], use_bias=False)
        layer.build((None, kernel.shape[0]))
    else:
        layer = keras.layers.Conv2D(kernel.shape[3], kernel.shape[:2], use_bias=False)
        layer.build((None, 9, 9, kernel.shape[2]))
    layer.kernel.assign(kernel)
    return kg.Pruned(layer, method, seed=seed)


def samples(layer, draws):
    """`draws` masks along a new first axis."""
    return np.stack([numpy(layer.mask(training=True)) for _ in range(draws)])


def normal(*shape, seed=0, scale=1.0):
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype("float32")


def energies(kernel):
    return np.float64(kernel) ** 2


def pooled(kernel, structure):
    """Mean w^2 of every group, by NumPy."""
    squares = energies(kernel)
    if isinstance(structure, kg.Filter):
        return squares.mean(tuple(range(squares.ndim - 1)))
    return squares.mean((0, 1)) if isinstance(structure, kg.Kernel) else squares


def assert_means(samples, probability, sigmas=5.0):
    """Means over the first axis within `sigmas` standard errors of `probability`, and three counts more for rare events."""
    draws = len(samples)
    bound = sigmas * np.sqrt(probability * (1 - probability) / draws) + 3 / draws
    np.testing.assert_array_less(np.abs(samples.mean(0) - probability), bound)


# The law of single weights


@pytest.mark.few(tensorflow=["0.5-0.3", "4.0-0.9"], jax=["4.0-0.9"])
@pytest.mark.parametrize("sparsity", [0.3, 0.9])
@pytest.mark.parametrize("beta", [0.5, 4.0])
def test_a_weight_is_kept_with_the_sigmoid_of_beta_times_its_energy_above_the_quantile(sparsity, beta):
    kernel = np.repeat(normal(66, 1), 200, axis=1)  # 66 weights, and 200 like each
    masks = samples(wrapped(kernel, kg.Gibbs(sparsity, beta=beta)), 3)
    assert set(np.unique(masks)) == {0.0, 1.0}
    threshold = np.quantile(energies(kernel), sparsity)
    assert_means(masks.transpose(0, 2, 1).reshape(600, 66), expit(beta * (energies(kernel) - threshold))[:, 0])


def test_a_large_layer_has_the_same_marginals():  # its threshold is tracked in `fit`, but exact in `mask`
    values = np.linspace(0.1, 1.5, 8)
    kernel = np.repeat(values[:, None], 5000, axis=1)
    layer = wrapped(kernel, kg.Gibbs(0.61, beta=2.0))
    masks = samples(layer, 4)
    threshold = np.quantile(energies(kernel), 0.61)
    assert_means(np.concatenate(masks, axis=1).T, expit(2.0 * (values**2 - threshold)))


@pytest.mark.once
def test_weights_of_one_layer_are_independent_of_each_other_and_of_the_last_draw():
    kernel = np.repeat(normal(40, 1), 800, axis=1)  # 40 weights, and 800 like each
    masks, later = samples(wrapped(kernel, kg.Gibbs(0.5, beta=1.0)), 2)
    bound = 5.5 / np.sqrt(800)  # 40 * 40 coefficients: 5.5 sigma
    assert np.abs(np.corrcoef(masks) - np.eye(40)).max() < bound
    assert np.abs(np.corrcoef(masks, later)[:40, 40:]).max() < bound


def test_layers_of_another_seed_draw_other_masks_and_of_the_same_seed_the_same():
    kernel, method = normal(20, 20), kg.Gibbs(0.5, beta=1.0)
    first, same, other = (samples(wrapped(kernel, method, seed=seed), 2) for seed in (1, 1, 2))
    assert (first == same).all()
    assert 0.3 < (first != other).mean() < 0.5


def test_a_mask_outside_fit_follows_a_kernel_assigned_by_hand():
    layer = wrapped(normal(100, 120), kg.Gibbs(0.8, beta=1e30))
    layer.mask(training=True)
    kernel = normal(100, 120, seed=5, scale=3.0)
    layer.layer.kernel.assign(kernel)
    expected = energies(kernel) > np.quantile(energies(kernel), 0.8)
    np.testing.assert_array_equal(numpy(layer.mask(training=True)), expected)


# Ends of the temperature


@pytest.mark.parametrize("shape", [(7, 9), (100, 101)])
@pytest.mark.parametrize("sparsity", [0.13, 0.49, 0.93])
def test_a_cold_layer_keeps_exactly_the_weights_above_the_quantile(shape, sparsity):
    kernel = normal(*shape, scale=0.05)
    assert (sparsity * (kernel.size - 1)) % 1 > 1e-6  # no weight lies on the quantile itself
    layer = wrapped(kernel, kg.Gibbs(sparsity, beta=1e30))
    above = energies(kernel) > np.quantile(energies(kernel), sparsity)
    assert above.sum() == kernel.size - 1 - int(sparsity * (kernel.size - 1))
    for mask in samples(layer, 3):
        np.testing.assert_array_equal(mask, above)


@pytest.mark.once
def test_a_cold_weight_on_the_quantile_itself_is_kept_half_of_the_time():
    kernel = np.repeat([[0.1], [0.2], [0.3], [0.4], [0.5]], 401, axis=1)
    masks = samples(wrapped(kernel, kg.Gibbs(0.5, beta=1e6)), 3)  # b there is 0 but for rounding, 1e-9
    assert_means(masks.transpose(0, 2, 1).reshape(-1, 5), np.array([0, 0, 0.5, 1, 1]))


@pytest.mark.once
@pytest.mark.parametrize(
    ("structure", "hamiltonian"),
    [(kg.Kernel(), kg.KernelCoupling(c=1.0)), (kg.Kernel(), kg.Independent()), (kg.Filter(), None), (kg.Filter(), kg.Independent())],
)
def test_cold_groups_live_or_die_whole_by_the_quantile_of_their_mean_energy(structure, hamiltonian):
    kernel = normal(3, 3, 6, 9, scale=0.3)
    layer = wrapped(kernel, kg.Gibbs(0.7, structure=structure, hamiltonian=hamiltonian, beta=1e30))
    means = pooled(kernel, structure)
    above = np.broadcast_to(means > np.quantile(means, 0.7), kernel.shape)
    for mask in samples(layer, 3):
        np.testing.assert_array_equal(mask, above)


@pytest.mark.once
@pytest.mark.parametrize("structure, sparsity", [(kg.Unstructured(), 0.2), (kg.Unstructured(), 0.95), (kg.Kernel(), 0.95), (kg.Filter(), 0.95)])
def test_at_beta_zero_half_of_the_weights_are_kept_whatever_the_sparsity(structure, sparsity):
    layer = wrapped(normal(3, 3, 16, 32, scale=10.0), kg.Gibbs(sparsity, structure=structure, beta=0.0))
    masks = samples(layer, 5)
    assert abs(masks.mean() - 0.5) < 5 * 0.5 / np.sqrt(masks.size)


@pytest.mark.once
@pytest.mark.parametrize("structure", [kg.Unstructured(), kg.Kernel(), kg.Filter()])
def test_sparsity_zero_keeps_every_weight_at_any_temperature(structure):
    for beta in (0.0, 1.0, 1e4):
        layer = wrapped(normal(3, 3, 4, 6), kg.Gibbs(0.0, structure=structure, beta=beta))
        assert samples(layer, 3).all() and numpy(layer.mask()).all()


@pytest.mark.slow
@pytest.mark.once
def test_a_higher_beta_never_moves_a_keep_probability_toward_one_half():
    kernel = normal(4, 10)
    distances = [np.abs(samples(wrapped(kernel, kg.Gibbs(0.6, beta=beta)), 500).mean(0) - 0.5) for beta in (0.1, 1.0, 10.0)]
    slack = 5 * np.sqrt(2 * 0.25 / 500)
    assert (distances[1] > distances[0] - slack).all() and (distances[2] > distances[1] - slack).all()


# The filter-wise chain under the authors' schedule


@pytest.mark.once
@pytest.mark.few(tensorflow=["16"])
@pytest.mark.parametrize("channels", [16, 64])
def test_filters_vary_at_the_start_of_the_default_schedule_and_settle_to_the_magnitude_choice(channels):
    layer = keras.layers.Conv2D(channels, 3, kernel_initializer=keras.initializers.HeNormal(seed=3), use_bias=False)
    layer.build((None, 8, 8, channels))
    layer = kg.Pruned(layer, kg.Gibbs(0.5, structure=kg.Filter()), seed=2)
    early = samples(layer, 10)
    changed = (early[1:] != early[:-1]).mean(axis=(1, 2, 3))  # per draw and filter
    assert (changed > 0.25).all()  # independent fair bits: 0.5; every filter draws afresh
    assert 0.4 < early.mean() < 0.6
    assert (np.abs(early.mean((0, 1, 2, 3)) - 0.5) < 0.3).all()  # no filter is decided yet

    layer.anneal(1.0)
    late = samples(layer, 3)
    np.testing.assert_array_equal(late, np.broadcast_to(numpy(layer.mask()), late.shape))  # whole filters, those of the exact count
    means = pooled(numpy(layer.layer.kernel), kg.Filter())
    np.testing.assert_array_equal(late[0, 0, 0, 0], means > np.median(means))


def test_the_default_schedules_are_those_of_the_authors():
    many = kg.Geometric(1.0, 1e4, end=0.64)
    assert kg.Gibbs(0.9).schedules()["beta"] == many
    assert kg.Gibbs(0.9, structure=kg.Kernel()).schedules()["beta"] == many
    assert kg.Gibbs(0.9, structure=kg.Filter()).schedules()["beta"] == kg.Geometric(10**-2.5, 1.0, end=0.64)
    assert kg.Gibbs(0.9, structure=kg.Filter(), hamiltonian=kg.Independent()).schedules()["beta"] == many
    # Their grids, logspace(0, 4, 128) and logspace(-2.5, 0, 128) over 200 epochs: never more than one epoch's step away.
    for structure, low, high in ((kg.Unstructured(), 0, 4), (kg.Filter(), -2.5, 0)):
        theirs = np.append(np.linspace(low, high, 128), np.full(72, high))
        ours = np.log10([kg.Gibbs(0.9, structure=structure).schedules()["beta"](epoch / 200) for epoch in range(200)])
        assert np.abs(ours - theirs).max() < (high - low) / 127
        assert ours[0] == theirs[0] and np.isclose(ours[-1], theirs[-1], atol=1e-12)


def test_the_default_hamiltonians_are_those_of_the_authors():
    assert kg.Gibbs(0.9).law == kg.Independent()
    assert kg.Gibbs(0.9, structure=kg.Kernel()).law == kg.KernelCoupling(c=0.01)
    assert kg.Gibbs(0.9, structure=kg.Filter()).law == kg.FilterCoupling(c=1.0)


# Hamiltonians: the three, and a fourth


@keras.saving.register_keras_serializable(package="tests")
@dataclasses.dataclass(frozen=True)
class Chain(kg.Hamiltonian):  # a fourth one: neighbouring positions of a kernel agree
    c: float = 0.3

    def energy(self, spins, field):
        return 0.5 * ops.sum(field * spins, (-4, -3)) - 0.5 * self.c * ops.sum(spins[..., 1:, :, :] * spins[..., :-1, :, :], (-4, -3))

    def sample(self, field, beta, uniform):
        spins, odd = ops.zeros_like(field), np.arange(field.shape[1])[:, None, None] % 2
        for step in range(12):
            around = ops.pad(spins, [[0, 0], [1, 1], [0, 0], [0, 0]])
            logit = -beta * (field - self.c * (around[:, 2:] + around[:, :-2]))
            drawn = kg.sampling.bernoulli(logit, lambda shape, step=step: uniform(shape, stream=step))
            spins = ops.where(odd == step % 2, 2.0 * drawn - 1.0, spins)
        return 0.5 * (spins + 1.0)


# name: structure, Hamiltonian, channels and positions of a group, beta
LAWS = {
    "single weights": (kg.Unstructured(), kg.Independent(), (1, 1), 1.5),
    "kernels": (kg.Kernel(), kg.KernelCoupling(c=0.1), (1, 4), 0.8),
    "kernels of nine": (kg.Kernel(), kg.KernelCoupling(c=0.05), (1, 9), 1.0),
    "kernels of one": (kg.Kernel(), kg.KernelCoupling(c=0.3), (1, 1), 0.8),
    "kernels, repelling": (kg.Kernel(), kg.KernelCoupling(c=-0.2), (1, 3), 1.0),
    "kernels, reference": (kg.Kernel(), kg.KernelCoupling(c=0.1, convention="reference"), (1, 4), 0.4),
    "kernels of one, reference": (kg.Kernel(), kg.KernelCoupling(convention="reference"), (1, 1), 0.8),
    "filters": (kg.Filter(), kg.FilterCoupling(c=0.3), (2, 2), 0.7),
    "filters of three channels": (kg.Filter(), kg.FilterCoupling(c=0.3), (3, 2), 0.7),
    "filters of one channel": (kg.Filter(), kg.FilterCoupling(c=5.0), (1, 3), 0.7),
    "chain": (kg.Kernel(), Chain(c=0.6), (1, 4), 0.9),
    "chain in filters": (kg.Filter(), Chain(c=-0.4), (2, 3), 0.9),
}
SPARSITY, KINDS, REPEATS = 0.4, 3, 6000


def few_kinds(channels, positions):
    """A Conv2D kernel of KINDS kinds of groups, REPEATS of each side by side, and the kinds as (KINDS, channels, positions)."""
    kinds = normal(KINDS, channels, positions, seed=channels * 10 + positions)
    kernel = np.repeat(kinds.transpose(2, 1, 0)[None], REPEATS, axis=-1)  # (1, positions, channels, kind-major groups)
    return kernel, kinds


def fields(kinds):
    """b = Q - w^2 of every spin of every kind, as (channels, positions, KINDS), Q by NumPy over all groups."""
    squares = energies(kinds)
    threshold = np.quantile(np.repeat(squares.mean((1, 2)), REPEATS), SPARSITY)
    return (threshold - squares).transpose(1, 2, 0)


def all_states(spins):
    return np.array(list(itertools.product([-1.0, 1.0], repeat=spins)))  # row r is the binary number r, first spin first


def by_hand(hamiltonian, x, b):
    """The energy of one group, as the specification writes it: `x` and `b` of shape (channels, positions)."""
    field = (b * x).sum()
    if isinstance(hamiltonian, kg.Independent):
        return 0.5 * field
    if isinstance(hamiltonian, kg.KernelCoupling):
        flat = x.ravel()
        coupling = sum(flat[i] * flat[j] for i in range(flat.size) for j in range(flat.size) if i != j)
        return (1.0 if hamiltonian.convention == "reference" else 0.5) * (field - hamiltonian.c * coupling)
    if isinstance(hamiltonian, kg.FilterCoupling):
        half = len(x) // 2
        return 0.5 * (field - hamiltonian.c * sum(i * j for i in x[:half].ravel() for j in x[half:].ravel()))
    return 0.5 * (field - hamiltonian.c * sum(row[i] * row[i + 1] for row in x for i in range(x.shape[1] - 1)))


@pytest.mark.parametrize("name", LAWS)
def test_energies_are_those_of_the_formulas(name):
    _, hamiltonian, (channels, positions), _ = LAWS[name]
    field = fields(few_kinds(channels, positions)[1])
    states = all_states(channels * positions).reshape(-1, channels, positions, 1) * np.ones(KINDS)
    energy = numpy(hamiltonian.energy(ops.convert_to_tensor(states[..., None], "float32"), ops.convert_to_tensor(field[..., None], "float32")))[..., 0]
    expected = [[by_hand(hamiltonian, x[..., kind], field[..., kind]) for kind in range(KINDS)] for x in states]
    np.testing.assert_allclose(energy, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.once
@pytest.mark.usefixtures("without_xla")  # compiled samplers give the same bits: see `test_sampling.py`
@pytest.mark.parametrize("name", LAWS)
def test_samples_follow_the_enumerated_law_of_their_energy(name):
    structure, hamiltonian, (channels, positions), beta = LAWS[name]
    kernel, kinds = few_kinds(channels, positions)
    spins, field = channels * positions, fields(kinds)
    layer = wrapped(kernel, kg.Gibbs(SPARSITY, structure=structure, hamiltonian=hamiltonian, beta=beta), seed=7)
    draws = np.concatenate([mask.reshape(positions, channels, KINDS, REPEATS) for mask in samples(layer, 4)], axis=-1)
    for kind in range(KINDS):
        hand = [by_hand(hamiltonian, x.reshape(channels, positions), field[..., kind]) for x in all_states(spins)]
        probabilities = softmax(-beta * np.array(hand))
        bits = draws[:, :, kind].transpose(1, 0, 2).reshape(spins, -1)
        observed = np.bincount((2 ** np.arange(spins)[::-1] @ bits).astype(int), minlength=2**spins)
        expected = 4 * REPEATS * probabilities
        rare = expected < 5  # pooled with the rarest of the others
        rare[np.argmin(np.where(rare, np.inf, expected))] = True
        observed, expected = np.append(observed[~rare], observed[rare].sum()), np.append(expected[~rare], expected[rare].sum())
        assert stats.chi2.sf(((observed - expected) ** 2 / expected).sum(), len(expected) - 1) > UNLIKELY


@pytest.mark.slow
@pytest.mark.parametrize("structure", [kg.Kernel(), kg.Filter()])
def test_independent_groups_have_one_bit_each_by_their_mean_energy(structure):
    kernel = normal(2, 2, 3, 4)
    layer = wrapped(kernel, kg.Gibbs(0.5, structure=structure, hamiltonian=kg.Independent(), beta=2.0))
    masks = samples(layer, 1500)
    groups = masks[:, 0, 0, 0] if isinstance(structure, kg.Filter) else masks[:, 0, 0]
    shape = (1500, 1, 1, 1, 4) if isinstance(structure, kg.Filter) else (1500, 1, 1, 3, 4)
    np.testing.assert_array_equal(masks, np.broadcast_to(groups.reshape(shape), masks.shape))
    means = pooled(kernel, structure)
    assert_means(groups, expit(2.0 * (means - np.quantile(means, 0.5))))


def authors_kernel_law(kernel, p, c, beta):
    """The states (2^N, N) and their probabilities (in * out, 2^N): a transcription of gibbs_pruning.py:10-19 and 127-138."""
    flat = np.float64(kernel).reshape(-1, kernel.shape[2] * kernel.shape[3])  # (N, kernels)
    b = np.percentile((flat**2).mean(0), p * 100) - flat**2
    spins = len(b)
    states = all_states(spins)
    coupling = -c * (1 - np.eye(spins))
    hamiltonian = (states @ b).T + np.einsum("si,ij,sj->s", states, coupling, states)
    logits = -beta * hamiltonian
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return states, weights / weights.sum(1, keepdims=True)


@pytest.mark.slow
def test_the_reference_convention_is_the_law_of_the_authors_code():
    kernel = normal(2, 2, 2, 3, scale=0.8)
    states, probabilities = authors_kernel_law(kernel, 0.6, 0.05, 1.2)
    method = kg.Gibbs(0.6, structure=kg.Kernel(), hamiltonian=kg.KernelCoupling(c=0.05, convention="reference"), beta=1.2)
    masks = samples(wrapped(kernel, method), 4000).reshape(4000, 4, 6)
    assert_means(masks.transpose(0, 2, 1), probabilities @ (states > 0))
    for group in range(6):  # the joint law, not the marginals alone
        observed = np.bincount((masks[:, :, group] @ [8, 4, 2, 1]).astype(int), minlength=16)
        frequency = observed / 4000
        bound = 5 * np.sqrt(probabilities[group] * (1 - probabilities[group]) / 4000) + 3 / 4000
        assert (np.abs(frequency - probabilities[group]) < bound).all()


def test_the_reference_convention_is_the_canonical_one_at_twice_the_beta():
    kernel = normal(3, 3, 4, 5)
    canonical = kg.Gibbs(0.6, structure=kg.Kernel(), hamiltonian=kg.KernelCoupling(c=0.02), beta=2.4)
    reference = kg.Gibbs(0.6, structure=kg.Kernel(), hamiltonian=kg.KernelCoupling(c=0.02, convention="reference"), beta=1.2)
    np.testing.assert_array_equal(samples(wrapped(kernel, canonical), 5), samples(wrapped(kernel, reference), 5))


@pytest.mark.once
def test_a_fourth_hamiltonian_is_saved_and_loaded_with_the_model(tmp_path):
    method = kg.Gibbs(0.5, structure=kg.Kernel(), hamiltonian=Chain(c=0.2), beta=kg.Linear(0.5, 2.0))
    model = keras.Sequential([keras.Input((6, 6, 1)), keras.layers.Conv2D(4, 3), keras.layers.Flatten(), keras.layers.Dense(2)])
    pruned = kg.prune(model, method, where="conv", seed=1)
    pruned.layers[0].anneal(0.5)
    pruned.save(tmp_path / "chain.keras")
    again = keras.models.load_model(tmp_path / "chain.keras")
    assert again.layers[0].method == method
    assert again.layers[0].method.law == Chain(c=0.2)
    assert again.layers[0].state("beta") == 1.25
    np.testing.assert_array_equal(samples(again.layers[0], 3), samples(pruned.layers[0], 3))


@pytest.mark.once
@pytest.mark.parametrize("name", ["single weights", "kernels", "kernels, reference", "filters of three channels"])
def test_the_logged_figures_are_those_of_the_next_sample(name):
    structure, hamiltonian, (channels, positions), beta = LAWS[name]
    kernel = few_kinds(channels, positions)[0][..., ::100]
    layer = wrapped(kernel, kg.Gibbs(SPARSITY, structure=structure, hamiltonian=hamiltonian, beta=beta))
    figures = layer.figures()
    mask = numpy(layer.mask(training=True))
    b = np.quantile(pooled(kernel, structure), SPARSITY) - energies(kernel)
    spins = 2.0 * mask - 1.0
    groups = [(spins[0, :, :, g].T, b[0, :, :, g].T) for g in range(kernel.shape[3])]
    assert figures["beta"] == pytest.approx(beta)
    assert figures["kept"] == pytest.approx(mask.mean(), abs=1e-6)
    assert figures["energy"] == pytest.approx(np.mean([by_hand(hamiltonian, x, field) for x, field in groups]), abs=1e-4)


# Bad input


@pytest.mark.parametrize(
    ("structure", "hamiltonian", "message"),
    [
        (kg.Unstructured(), kg.KernelCoupling(), r"structure=Kernel\(\)"),
        (kg.Filter(), kg.KernelCoupling(), r"structure=Kernel\(\)"),
        (kg.Unstructured(), kg.FilterCoupling(), r"structure=Filter\(\)"),
        (kg.Kernel(), kg.FilterCoupling(), r"structure=Filter\(\)"),
    ],
)
def test_a_hamiltonian_for_another_structure_is_refused(structure, hamiltonian, message):
    with pytest.raises(ValueError, match=message):
        kg.Gibbs(0.5, structure=structure, hamiltonian=hamiltonian)


@pytest.mark.parametrize("beta", [-1.0, kg.Linear(-0.5, 2.0), float("nan"), float("inf")])
def test_a_beta_that_is_no_inverse_temperature_is_refused(beta):
    with pytest.raises(ValueError, match="Received"):
        kg.Gibbs(0.5, beta=beta)


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 90, 1.5, float("nan"), kg.Linear(0.0, 1.0)])
def test_a_sparsity_outside_its_range_is_refused(sparsity):
    with pytest.raises(ValueError, match="Received"):
        kg.Gibbs(sparsity)


def test_a_percentage_is_recognised():
    with pytest.raises(ValueError, match=r"pass 0\.9"):
        kg.Gibbs(90)


def test_unknown_conventions_and_no_sweeps_are_refused():
    with pytest.raises(ValueError, match="convention"):
        kg.KernelCoupling(convention="authors")
    with pytest.raises(ValueError, match="sweeps"):
        kg.FilterCoupling(sweeps=0)
