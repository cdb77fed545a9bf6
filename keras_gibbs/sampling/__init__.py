"""Hamiltonians, and the samplers that draw masks from them."""

from keras_gibbs.sampling.samplers import bernoulli as bernoulli
from keras_gibbs.sampling.samplers import chromatic_spins as chromatic_spins
from keras_gibbs.sampling.samplers import coupled_spins as coupled_spins
from keras_gibbs.sampling.samplers import coupled_spins_log_weights as coupled_spins_log_weights
from keras_gibbs.sampling.samplers import exactly as exactly
