"""The samplers against full enumeration, independent recursions in float64, and a plain transcription of the two-colour chain."""

import itertools

import keras
import numpy as np
import pytest
from keras import ops
from scipy import optimize, stats
from scipy.special import expit, logsumexp

from keras_gibbs.numerics.compilation import compiled, runs_at_once
from keras_gibbs.numerics.noise import Uniform
from keras_gibbs.sampling.samplers import bernoulli, chromatic_spins, coupled_spins, coupled_spins_log_weights, exactly

UNLIKELY = 1e-6  # a correct sampler fails a chi-square test this rarely, were the seed not fixed


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


def tensor(values):
    return ops.convert_to_tensor(np.asarray(values, "float32"))


def fields(*shape, seed=0, scale=1.0):
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype("float32")


def repeated(field, draws):
    """One field as `draws` identical systems, along a new last axis."""
    return np.repeat(np.asarray(field, "float32")[..., None], draws, axis=-1)


def run(sample, field, beta):
    """Compiled where single operations would be, too; the bits are the same, as a test below holds."""
    return numpy((sample if runs_at_once() else compiled(sample))(tensor(field), tensor(beta)))


def draw_coupled(field, beta, coupling, seed=1):
    return run(lambda field, beta: coupled_spins(field, beta, coupling, Uniform(seed, 0)), field, beta)


def draw_chromatic(field, beta, coupling, sweeps=50, seed=1):
    return run(lambda field, beta: chromatic_spins(field, beta, coupling, Uniform(seed, 0), sweeps), field, beta)


def states_of(spins):
    return np.array(list(itertools.product([-1.0, 1.0], repeat=spins)))  # row r is the binary number r, first spin first


def law(hamiltonian, beta):
    logits = -beta * hamiltonian
    return np.exp(logits - logsumexp(logits))


def kernel_hamiltonian(field, coupling):
    states = states_of(len(field))
    return 0.5 * (states @ np.float64(field) - coupling * (states.sum(1) ** 2 - len(field)))


def chi_square(mask, probabilities):
    """Probability of a worse fit of the observed joint states (N, G) to the law; states expected less than 5 times are pooled."""
    spins, draws = mask.shape
    observed = np.bincount((2 ** np.arange(spins)[::-1] @ mask).astype(int), minlength=2**spins)
    expected = draws * probabilities
    rare = expected < 5
    observed = np.append(observed[~rare], observed[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    if expected[-1] < 5:  # too rare even together: they must hardly ever happen
        assert observed[-1] < 30
        observed, expected = observed[:-1], expected[:-1]
    if len(expected) == 1:
        return 1.0
    return stats.chi2.sf(((observed - expected) ** 2 / expected).sum(), len(expected) - 1)


def assert_mean(samples, probability, sigmas=5.0):
    """Means over the last axis within `sigmas` standard errors of the probabilities, and three counts more for rare events."""
    draws = samples.shape[-1]
    variance = np.clip(probability * (1 - probability), 0, None)
    assert np.all(np.abs(samples.mean(-1) - probability) <= sigmas * np.sqrt(variance / draws) + 3 / draws)


def log_elementary(log_odds):
    """log e_m of exp(log_odds) in float64, term by term."""
    table = np.full(len(log_odds) + 1, -np.inf)
    table[0] = 0.0
    for value in np.float64(log_odds):
        table[1:] = np.logaddexp(table[1:], table[:-1] + value)
    return table


def count_weights(field, beta, coupling):
    """log P(m kept) up to a constant, with m = 0 at 0, from the recursion in float64."""
    spins = len(field)
    count = np.arange(spins + 1)
    return log_elementary(-beta * np.float64(field)) + 0.5 * beta * coupling * ((2 * count - spins) ** 2 - spins**2)


# Independent bits


def test_bernoulli_keeps_with_the_sigmoid_of_its_logit():
    logits = np.linspace(-4, 4, 9)
    mask = numpy(bernoulli(tensor(repeated(logits, 20_000)), Uniform(1, 0)))
    assert set(np.unique(mask)) == {0.0, 1.0}
    assert_mean(mask, expit(logits))


def test_extreme_logits_are_certain_even_where_the_noise_is_zero():
    logits = tensor([np.inf, 1e30, 200.0, -200.0, -1e30, -np.inf])
    sample = compiled(lambda logits, level: bernoulli(logits, lambda shape, stream=0: ops.zeros(shape) + level))
    for level in (0.0, 0.5, 1 - 2**-24):
        assert numpy(sample(logits, tensor(level))).tolist() == [1, 1, 1, 0, 0, 0]


# Fully coupled systems


@pytest.mark.once
@pytest.mark.parametrize(
    ("spins", "beta", "coupling"),
    [(1, 1.0, 0.5), (4, 1.0, 0.0), (4, 1.0, -0.3), (5, 2.0, 0.2), (6, 30.0, 0.05), (9, 1.0, 0.1), (9, 0.5, 0.5), (9, 3.0, -0.1)],
)
def test_coupled_spins_follow_the_enumerated_law(spins, beta, coupling):
    field = fields(spins, seed=spins, scale=0.3 if beta < 10 else 0.05)
    mask = draw_coupled(repeated(field, 60_000), beta, coupling)
    assert chi_square(mask, law(kernel_hamiltonian(field, coupling), beta)) > UNLIKELY


def test_equal_fields_break_their_ties_without_bias():
    mask = draw_coupled(np.full((5, 60_000), 0.1, "float32"), 1.0, 0.05)
    assert chi_square(mask, law(kernel_hamiltonian(np.full(5, 0.1), 0.05), 1.0)) > UNLIKELY


@pytest.mark.once
@pytest.mark.parametrize("spins", [1, 2, 3, 5, 9])
@pytest.mark.parametrize(("beta", "coupling"), [(0.0, 1.0), (1.0, -0.05), (1.0, 0.0), (30.0, 0.01), (1e3, 1.0), (1e4, 0.01)])
def test_log_weights_are_those_of_enumeration(spins, beta, coupling):
    field = fields(spins, 50, seed=3, scale=0.3)
    weights = numpy(coupled_spins_log_weights(tensor(field), tensor(beta), coupling))
    kept = (states_of(spins).sum(1).astype(int) + spins) // 2
    for system in range(field.shape[1]):
        logits = -beta * kernel_hamiltonian(field[:, system], coupling)
        exact = np.array([logsumexp(logits[kept == m]) for m in range(spins + 1)])
        np.testing.assert_allclose(weights[:, system], exact - exact[0], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.once
@pytest.mark.parametrize(("beta", "coupling"), [(1.0, 0.0), (1.0, 0.005), (1.0, 0.05), (2.0, -0.05), (1e3, 0.001)])
def test_25_spins_match_a_recursion_in_float64(beta, coupling):
    field = np.float64(fields(25, seed=4, scale=0.3))
    exact = count_weights(field, beta, coupling)
    np.testing.assert_allclose(numpy(coupled_spins_log_weights(tensor(field[:, None]), tensor(beta), coupling))[:, 0], exact, rtol=1e-4, atol=1e-4)

    mask = draw_coupled(repeated(field, 10_000), beta, coupling)
    assert set(np.unique(mask)) <= {0.0, 1.0}
    counts = np.exp(exact - logsumexp(exact))
    assert_mean(mask.sum(0) == np.arange(26)[:, None], counts)
    pairs = exact - log_elementary(-beta * field)  # what the coupling adds
    without = [np.append(-np.inf, log_elementary(-beta * np.delete(field, i))) for i in range(25)]
    marginals = [np.exp(logsumexp(-beta * field[i] + without[i] + pairs) - logsumexp(exact)) for i in range(25)]
    assert_mean(mask, np.array(marginals))


@pytest.mark.once
@pytest.mark.parametrize("spins", [31, 32, 49])
def test_more_spins_than_fit_one_word_keep_their_law(spins):
    field = fields(spins, seed=spins)
    mask = draw_coupled(repeated(field, 4_000), 1.0, 0.0)
    assert_mean(mask, expit(-np.float64(field)))
    correlation = np.corrcoef(mask) - np.eye(spins)
    assert np.abs(correlation).max() < 6 / np.sqrt(4_000)


def test_without_coupling_spins_are_independent():
    field = fields(9, seed=5)
    mask = draw_coupled(repeated(field, 60_000), 1.5, 0.0)
    marginals = expit(-1.5 * np.float64(field))
    product = np.prod(np.where(states_of(9) > 0, marginals, 1 - marginals), axis=1)
    assert chi_square(mask, product) > UNLIKELY


def test_permuted_fields_permute_the_law():
    field, order = fields(5, seed=6, scale=0.3), np.array([3, 0, 4, 1, 2])
    mask = draw_coupled(repeated(field[order], 60_000), 1.0, 0.1)
    assert chi_square(mask[np.argsort(order)], law(kernel_hamiltonian(field, 0.1), 1.0)) > UNLIKELY


def test_strong_coupling_makes_all_spins_equal_with_the_odds_of_the_summed_field():
    field = fields(9, seed=7, scale=0.02)
    mask = draw_coupled(repeated(field, 20_000), 10.0, 10.0)
    assert np.isin(mask.sum(0), [0, 9]).all()
    assert_mean(mask[0], expit(-10.0 * np.float64(field).sum()))


def test_zero_beta_keeps_half_whatever_the_field():
    mask = draw_coupled(fields(9, 20_000, seed=8, scale=100.0), 0.0, 5.0)
    assert chi_square(mask, np.full(512, 1 / 512)) > UNLIKELY


@pytest.mark.few(tensorflow=["9-0.01-inf", "49--0.01-10000.0", "49-1e-06-1e+30"])
@pytest.mark.once
@pytest.mark.parametrize("beta", [1e4, 1e30, np.inf])
@pytest.mark.parametrize(("spins", "coupling"), [(9, 0.0), (9, 0.01), (9, 1.0), (49, 1e-6), (49, -0.01)])
def test_cold_systems_freeze_into_their_ground_state(beta, spins, coupling):
    field = fields(spins, 200, seed=9)
    mask = draw_coupled(field, beta, coupling)
    assert not np.isnan(numpy(coupled_spins_log_weights(tensor(field), tensor(beta), coupling))).any()
    assert set(np.unique(mask)) <= {0.0, 1.0}
    ordered = np.cumsum(np.sort(np.float64(field), axis=0), axis=0)
    count = np.arange(spins + 1)[:, None]
    energies = np.concatenate([np.zeros((1, 200)), ordered]) + 2 * coupling * count * (spins - count)
    best = energies.argmin(0)
    gap = np.partition(energies, 1, axis=0)
    clear = gap[1] - gap[0] > 0.005  # of 1e4 beta: odds below e^-50
    lowest = np.argsort(np.argsort(field, axis=0), axis=0) < best
    assert clear.sum() > 100
    np.testing.assert_array_equal(mask[:, clear], lowest[:, clear])


# Two colours


def filter_hamiltonian(field, coupling):
    channels, positions = field.shape
    states = states_of(field.size)
    half = channels // 2 * positions
    return 0.5 * (states @ np.float64(field).ravel() - coupling * states[:, :half].sum(1) * states[:, half:].sum(1))


@pytest.mark.slow
@pytest.mark.once
@pytest.mark.parametrize(("shape", "beta", "coupling"), [((2, 2), 0.7, 0.3), ((2, 3), 1.0, 0.3), ((3, 2), 1.0, -0.3), ((5, 1), 0.5, 0.5)])
def test_a_mixing_chain_reaches_the_enumerated_law(shape, beta, coupling):
    field = fields(*shape, seed=10)
    mask = draw_chromatic(repeated(field, 40_000), beta, coupling).reshape(field.size, -1)
    joint = law(filter_hamiltonian(field, coupling), beta)
    assert chi_square(mask, joint) > UNLIKELY
    assert_mean(mask, joint @ (states_of(field.size) > 0))


def test_a_single_channel_has_independent_bits():
    field = fields(1, 4, seed=11)
    mask = draw_chromatic(repeated(field, 40_000), 1.3, 1.0).reshape(4, -1)
    marginals = expit(-1.3 * np.float64(field.ravel()))
    assert chi_square(mask, np.prod(np.where(states_of(4) > 0, marginals, 1 - marginals), axis=1)) > UNLIKELY


@pytest.mark.parametrize("beta", [1.0, 1e4, 1e30])
def test_above_the_transition_filters_keep_the_sign_of_their_mean_field(beta):
    field = fields(16, 9, 64, seed=12, scale=0.05)
    mask = draw_chromatic(field, beta, 1.0)
    np.testing.assert_array_equal(mask, np.broadcast_to(field.mean((0, 1)) < 0, mask.shape))


def transcribed(field, beta, coupling, uniform, sweeps):
    """The authors' chain as they wrote it: all spins stored, half of them redrawn at a time."""
    channels, positions, filters = field.shape
    colours = slice(0, channels // 2), slice(channels // 2, channels)
    spins = np.zeros(field.shape)
    felt = np.where(field.mean((0, 1)) < 0, 1, -1) * (channels // 2) * positions
    for sweep in range(sweeps):
        for colour in (0, 1):
            if sweep or colour:
                felt = spins[colours[1 - colour]].sum((0, 1))
            removed = expit(beta * (np.float64(field[colours[colour]]) - coupling * felt))
            noise = numpy(uniform(removed.shape, stream=2 * sweep + colour))
            spins[colours[colour]] = np.where(noise < removed, -1, 1)
    return (spins + 1) / 2


@pytest.mark.once
@pytest.mark.parametrize("shape", [(4, 9, 6), (5, 4, 3), (1, 9, 4), (2, 1, 8)])
@pytest.mark.parametrize("sweeps", [1, 2, 12])
def test_the_chain_gives_the_bits_of_the_authors_algorithm(shape, sweeps):
    field = fields(*shape, seed=13)
    uniform = Uniform(3, 0)
    for beta, coupling in ((0.3, 0.2), (1.0, 0.05)):
        mask = numpy(chromatic_spins(tensor(field), tensor(beta), coupling, uniform, sweeps))
        np.testing.assert_array_equal(mask, transcribed(field, beta, coupling, uniform, sweeps))


# Any way to run them


SAMPLERS = {
    "bernoulli": ((9, 300), lambda field, beta, uniform: bernoulli(-beta * field, uniform)),
    "coupled": ((9, 300), lambda field, beta, uniform: coupled_spins(field, beta, 0.02, uniform)),
    "coupled in two words": ((33, 40), lambda field, beta, uniform: coupled_spins(field, beta, 0.02, uniform)),
    "chromatic": ((4, 9, 8), lambda field, beta, uniform: chromatic_spins(field, beta, 0.05, uniform, sweeps=8)),
}


@pytest.mark.few(jax=["bernoulli", "coupled", "chromatic"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_eager_and_compiled_samplers_give_the_same_bits(name):
    shape, sample = SAMPLERS[name]

    def run(field, beta, counter):
        return sample(field, beta, Uniform(5, counter))

    arguments = tensor(fields(*shape, seed=14)), tensor(1.2), ops.convert_to_tensor(np.uint32(3))
    eager = numpy(run(*arguments))
    np.testing.assert_array_equal(numpy(compiled(run)(*arguments)), eager)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        np.testing.assert_array_equal(numpy(tf.function(run)(*arguments)), eager)


@pytest.mark.few(jax=["bernoulli", "coupled", "chromatic"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_draws_change_with_the_counter_and_repeat_without(name):
    shape, sample = SAMPLERS[name]
    field, beta = tensor(fields(*shape, seed=14)), tensor(1.0)
    first, again, other = (numpy(sample(field, beta, Uniform(5, counter))) for counter in (0, 0, 1))
    assert (first == again).all() and (first != other).any()


def test_an_exact_count_keeps_so_many_each_with_its_probability():
    logits, kept = fields(40, seed=2, scale=2.0), 12
    draw = compiled(lambda counter: exactly(tensor(logits.reshape(1, 1, -1, 1)), ops.convert_to_tensor(np.int32(kept)), Uniform(3, counter)))
    masks = np.stack([numpy(draw(ops.convert_to_tensor(np.uint32(counter)))).ravel() for counter in range(3000)])
    constant = optimize.brentq(lambda shift: expit(logits + shift).sum() - kept, -20, 20)
    assert np.all(masks.sum(1) == kept)
    assert masks.mean(0) == pytest.approx(expit(logits + constant), abs=0.04)  # 3000 draws see 0.009


@pytest.mark.parametrize("kept", [0, 5])
def test_an_exact_count_may_be_none_or_all(kept):
    assert numpy(exactly(tensor(np.reshape([0.0, 1.0, -1.0, 80.0, -80.0], (1, 1, 5, 1))), ops.convert_to_tensor(np.int32(kept)), Uniform(0, 0))).sum() == kept
