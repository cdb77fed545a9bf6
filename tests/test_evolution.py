"""Differential evolution and the energies: the laws, on tensors alone."""

import hashlib
import math

import numpy as np
import pytest
from cases import JAX, numpy
from keras import ops

import keras_gibbs as kg
from keras_gibbs.numerics.noise import Uniform
from keras_gibbs.search import evolution, ising
from keras_gibbs.search.objectives import Context

same_bits = pytest.mark.skipif(JAX, reason="the same bits on both backends, as a test below shows, and many of them")
both_rules = pytest.mark.parametrize("rule", evolution.RULES)


def states(shape, keep=0.5, seed=0):
    return ops.convert_to_tensor(np.random.default_rng(seed).random(shape) < keep)


def propose(population, rule, counter=0, key=1):
    return evolution.propose(population, rule, 0.9, 0.9, Uniform(key, counter))


@pytest.mark.once
def test_parents_are_three_others_all_different():
    for size in (4, 5, 16):
        for counter in range(30):
            chosen = numpy(evolution.parents(size, Uniform(3, counter)))
            assert chosen.shape == (3, size)
            assert all(len({slot, *column}) == 4 for slot, column in enumerate(chosen.T))


@same_bits
def test_every_slot_is_a_parent_equally_often():
    chosen = np.stack([numpy(evolution.parents(5, Uniform(3, counter))) for counter in range(400)])
    counts = np.bincount(chosen[:, 0].reshape(-1), minlength=5)
    assert np.abs(counts - 400).max() < 5 * math.sqrt(2000 * 0.2 * 0.8)


def share(condition, given):
    condition, given = numpy(condition), numpy(given)
    return condition[given].mean(), 5 * 0.5 / math.sqrt(given.sum())


def test_the_rule_of_the_reference_flips_a_tenth_where_parents_agree_and_clears_where_they_differ():
    first, second, third = (states((20, 2000), seed=seed) for seed in range(3))
    mutant = evolution.mutate(first, second, third, 0.9, "reference", Uniform(1, 0))
    changed, agree, ones = ops.not_equal(mutant, first), ops.equal(second, third), first
    for condition, expected in (
        (agree, 0.1),
        (ops.logical_and(ops.logical_not(agree), ones), 0.1),
        (ops.logical_and(ops.logical_not(agree), ops.logical_not(ones)), 0),
    ):
        found, tolerance = share(changed, condition)
        assert abs(found - expected) <= (tolerance if expected else 0)


def test_the_textbook_rule_flips_where_parents_differ_and_nowhere_else():
    first, second, third = (states((20, 2000), seed=seed) for seed in range(3))
    mutant = evolution.mutate(first, second, third, 0.9, "xor", Uniform(1, 0))
    changed, differ = ops.not_equal(mutant, first), ops.not_equal(second, third)
    assert not numpy(changed)[~numpy(differ)].any()
    found, tolerance = share(changed, differ)
    assert abs(found - 0.9) <= tolerance


def test_a_unanimous_population_is_the_end_of_the_textbook_rule_only():
    population = ops.repeat(states((1, 500)), 6, axis=0)
    assert (numpy(propose(population, "xor")) == numpy(population)).all()
    changed = (numpy(propose(population, "reference")) != numpy(population)).mean()
    assert abs(changed - 0.1 * 0.9) < 0.03


@pytest.mark.few(tensorflow=["reference-0.9-0.35-0.38", "xor-0.5-0.48-0.52"])
@same_bits
@pytest.mark.parametrize("rule, start, low, high", [("reference", 0.5, 0.35, 0.38), ("reference", 0.9, 0.35, 0.38), ("xor", 0.5, 0.48, 0.52)])
def test_where_everything_is_accepted_the_kept_fraction_drifts_to_the_fixed_point_of_the_rule(rule, start, low, high):
    population, energies = states((32, 5000), keep=start), ops.zeros(32)
    for generation in range(150):
        population, energies = evolution.select(population, energies, propose(population, rule, generation), energies - 1.0)
    assert low <= numpy(population).mean() <= high


def test_costs_that_are_all_the_same_change_nothing():
    population, energies = states((8, 100)), ops.zeros(8)
    again, _ = evolution.select(population, energies, propose(population, "reference"), energies)
    assert (numpy(again) == numpy(population)).all()


@pytest.mark.few(tensorflow=["reference"])
@same_bits
@both_rules
def test_the_hidden_vector_is_found_by_every_seed(rule):
    for seed in range(6):
        hidden = np.random.default_rng([seed, 1]).random(20) < 0.5
        population = states((16, 20), seed=seed)
        energies = ops.sum(ops.cast(ops.not_equal(population, hidden), "float32"), axis=1)
        for generation in range(1000):
            candidates = propose(population, rule, generation, key=seed)
            costs = ops.sum(ops.cast(ops.not_equal(candidates, hidden), "float32"), axis=1)
            before = numpy(energies)
            population, energies = evolution.select(population, energies, candidates, costs)
            assert (numpy(energies) <= before).all()
            if numpy(energies).min() == 0:
                break
        assert numpy(energies).min() == 0, seed


def test_a_cost_that_is_not_a_number_is_never_accepted():
    population, candidates = states((4, 10)), states((4, 10), seed=1)
    again, energies = evolution.select(population, ops.full((4,), math.inf), candidates, ops.convert_to_tensor([math.nan, 1.0, math.inf, math.nan]))
    assert (numpy(again)[[0, 2, 3]] == numpy(population)[[0, 2, 3]]).all() and (numpy(again)[1] == numpy(candidates)[1]).all()
    assert numpy(energies).tolist() == [math.inf, 1.0, math.inf, math.inf]


@pytest.mark.parametrize("rule, digest", [("reference", "b664de72c0f7c869"), ("xor", "f9aece2bf0221cfc")])
def test_every_backend_gives_the_same_states(rule, digest):
    population = states((8, 301), seed=5)
    energies = ops.convert_to_tensor(np.random.default_rng(1).normal(size=8).astype("float32"))
    for generation in range(5):
        costs = ops.roll(energies, generation) - 0.1
        population, energies = evolution.select(population, energies, propose(population, rule, generation), costs)
    assert hashlib.sha256(np.packbits(numpy(population)).tobytes()).hexdigest()[:16] == digest


# Energies


def context(logits, labels=(0,), bits=((1.0, 1.0, 0.0),), parameters=(10.0, 30.0, 60.0), **kwargs):
    bits = ops.convert_to_tensor(np.array(bits, "float32"))
    logits = ops.convert_to_tensor(np.array(logits, "float32"))
    labels = ops.convert_to_tensor(np.array(labels, "int32"))
    rest = {"layers": {}, "kernels": {}, "features": None} | kwargs
    return Context(logits=logits, labels=labels, bits=bits, parameters=ops.convert_to_tensor(np.array(parameters, "float32")), **rest)


def test_the_margin_on_hand_computed_logits():
    assert numpy(kg.MarginEnergy()(context([[[2, 0, 1]]], [0]))).tolist() == [-1.0]
    assert numpy(kg.MarginEnergy()(context([[[2, 0, 1]]], [1]))).tolist() == [2.0]
    assert numpy(kg.MarginEnergy()(context([[[2, 0, 1], [2, 0, 1]], [[0, 0, 0], [3, 1, 0]]], [0, 1]))).tolist() == [0.5, 1.0]


def test_the_cross_entropy_of_uniform_logits_is_the_logarithm_of_the_classes():
    assert numpy(kg.CrossEntropyEnergy()(context([[[1.0, 1.0, 1.0]]], [2])))[0] == pytest.approx(math.log(3))


@pytest.mark.parametrize("energy", [kg.MarginEnergy(), kg.CrossEntropyEnergy()], ids=["margin", "cross-entropy"])
def test_energies_do_not_feel_a_shift_of_all_logits_and_refuse_unknown_labels(energy):
    logits, labels = np.random.default_rng(0).normal(size=(3, 7, 4)), np.arange(7) % 4
    shifted = numpy(energy(context(logits + 5.0, labels)))
    np.testing.assert_allclose(numpy(energy(context(logits, labels))), shifted, atol=1e-5)
    assert np.isnan(numpy(energy(context(logits, labels + 1)))).all()
    assert np.isnan(numpy(energy(context(logits, labels - 1)))).all()


def test_the_budget_counts_parameters_on_both_sides():
    bits = [[1, 1, 1], [1, 1, 0], [0, 0, 1]]  # of 100 parameters 100, 40, 60
    penalty = kg.KeepPenalty(0.5, weight=10.0)
    np.testing.assert_allclose(numpy(penalty(context([[[0.0, 0.0]]] * 3, bits=bits))), [5.0, 1.0, 1.0], rtol=1e-6)
    total = kg.MarginEnergy() + penalty
    np.testing.assert_allclose(numpy(total(context([[[1.0, 0.0]]] * 3, bits=bits))), [4.0, 0.0, 0.0], atol=1e-6)


def test_sums_of_objectives_are_saved():
    total = kg.MarginEnergy() + kg.KeepPenalty(0.3) + kg.IsingEnergy()
    assert type(total).from_config(total.get_config()) == total
    assert total.needs_classes and not kg.KeepPenalty(0.5).needs_classes


@pytest.mark.parametrize("arguments", [{"target": 0.0}, {"target": 50}, {"target": 0.5, "weight": -1.0}])
def test_a_budget_that_makes_no_sense_is_refused(arguments):
    with pytest.raises(ValueError, match="Received"):
        kg.KeepPenalty(**arguments)


@pytest.mark.once
def test_the_couplings_of_ipruning_are_those_of_the_formula():
    kernel = np.random.default_rng(0).normal(size=(3, 4, 2)).astype("float32")
    mean, variance = kernel.reshape(12, 2).mean(0), kernel.reshape(12, 2).var(0) + ising.SMALL
    one_way = [0.5 * (np.log(variance[1 - i] / variance[i]) + (variance[i] + (mean[0] - mean[1]) ** 2) / variance[1 - i] - 1) for i in (0, 1)]
    raw = numpy(ising.divergence(ops.convert_to_tensor(kernel)))
    np.testing.assert_allclose(raw, [[0, 1], [1, 0]], atol=1e-6)
    three = np.concatenate([kernel, kernel[..., :1] + 0.5], axis=-1)
    scaled = numpy(ising.divergence(ops.convert_to_tensor(three)))
    distance = sum(one_way), 0.25 / variance[0]  # two filters of one variance and means half apart
    assert scaled[0, 1] / scaled[0, 2] == pytest.approx(distance[0] / distance[1], rel=1e-3)
    flat, spread = np.zeros((2, 16, 16)), np.arange(256.0).reshape(1, 16, 16) * np.ones((2, 1, 1))
    maps = ops.convert_to_tensor(np.stack([flat, spread], axis=-1).astype("float32"))
    np.testing.assert_allclose(numpy(ising.entropy(maps)), [0.0, 1.0], atol=1e-2)


@pytest.mark.once
def test_the_ising_energy_is_the_quadratic_form():
    rng = np.random.default_rng(0)
    kernels = {
        "a": ops.convert_to_tensor(rng.normal(size=(3, 4, 2)).astype("float32")),
        "b": ops.convert_to_tensor(rng.normal(size=(2, 4, 3)).astype("float32")),
    }
    features = {name: ops.convert_to_tensor(rng.normal(size=(5, 4, 4, width)).astype("float32")) for name, width in (("a", 2), ("b", 3))}
    layers, bits = {"a": slice(0, 2), "b": slice(2, 5)}, (rng.random((4, 5)) < 0.5).astype("float32")
    given = context(np.zeros((4, 1, 2)), bits=bits, layers=layers, kernels=kernels, features=lambda: features)
    couplings = numpy(kg.IsingEnergy().couplings(given))
    assert couplings.shape == (5, 5) and couplings[0, 0] == -1.0 and (couplings[2:, :2] == -1.0).all() and (couplings[0, 2:] == couplings[0, 2]).all()
    expected = [(-(s @ couplings @ s) + couplings.sum() / 5 * s.sum()) / 25 for s in bits]
    np.testing.assert_allclose(numpy(kg.IsingEnergy()(given)), expected, atol=1e-5)
