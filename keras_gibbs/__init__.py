"""Stochastic pruning for Keras 3, inside `model.fit`."""

import importlib.metadata

import keras

if keras.backend.backend() not in ("tensorflow", "jax"):
    raise ImportError(
        f"keras_gibbs runs on the TensorFlow and the JAX backend of Keras 3. Received: backend={keras.backend.backend()!r}. "
        "Set KERAS_BACKEND=tensorflow or KERAS_BACKEND=jax before Python starts."
    )

from keras_gibbs import sampling as sampling
from keras_gibbs.budget import Budget as Budget
from keras_gibbs.callbacks import GibbsPruningCallback as GibbsPruningCallback
from keras_gibbs.export import Advice as Advice
from keras_gibbs.export import ExportReport as ExportReport
from keras_gibbs.export import RewriteReport as RewriteReport
from keras_gibbs.export import advise as advise
from keras_gibbs.export import export_saved_model as export_saved_model
from keras_gibbs.export import export_tflite as export_tflite
from keras_gibbs.export import sparse_ready as sparse_ready
from keras_gibbs.layers import Pruned as Pruned
from keras_gibbs.lottery import Rounds as Rounds
from keras_gibbs.lottery import Snapshot as Snapshot
from keras_gibbs.lottery import lottery_rounds as lottery_rounds
from keras_gibbs.lottery import rewind as rewind
from keras_gibbs.lottery import snapshot as snapshot
from keras_gibbs.methods import FORCE as FORCE
from keras_gibbs.methods import SET as SET
from keras_gibbs.methods import SNIP as SNIP
from keras_gibbs.methods import EdgePopup as EdgePopup
from keras_gibbs.methods import EDropout as EDropout
from keras_gibbs.methods import Fixed as Fixed
from keras_gibbs.methods import Gibbs as Gibbs
from keras_gibbs.methods import GraSP as GraSP
from keras_gibbs.methods import GReg as GReg
from keras_gibbs.methods import GumbelSoftmax as GumbelSoftmax
from keras_gibbs.methods import IterativeSNIP as IterativeSNIP
from keras_gibbs.methods import Magnitude as Magnitude
from keras_gibbs.methods import Random as Random
from keras_gibbs.methods import RigL as RigL
from keras_gibbs.methods import Supermask as Supermask
from keras_gibbs.methods import SynFlow as SynFlow
from keras_gibbs.model import prune as prune
from keras_gibbs.model import pruned_layers as pruned_layers
from keras_gibbs.model import sparsity as sparsity
from keras_gibbs.model import strip_pruning as strip_pruning
from keras_gibbs.recalibrate import recalibrate as recalibrate
from keras_gibbs.sampling.hamiltonians import FilterCoupling as FilterCoupling
from keras_gibbs.sampling.hamiltonians import Hamiltonian as Hamiltonian
from keras_gibbs.sampling.hamiltonians import Independent as Independent
from keras_gibbs.sampling.hamiltonians import KernelCoupling as KernelCoupling
from keras_gibbs.schedules import Constant as Constant
from keras_gibbs.schedules import Geometric as Geometric
from keras_gibbs.schedules import Linear as Linear
from keras_gibbs.schedules import Polynomial as Polynomial
from keras_gibbs.schedules import Schedule as Schedule
from keras_gibbs.scores.criteria import Criterion as Criterion
from keras_gibbs.scores.criteria import CurvatureEnergy as CurvatureEnergy
from keras_gibbs.scores.criteria import SquaredWeight as SquaredWeight
from keras_gibbs.search import objectives as objectives
from keras_gibbs.search.ising import IsingEnergy as IsingEnergy
from keras_gibbs.search.objectives import CrossEntropyEnergy as CrossEntropyEnergy
from keras_gibbs.search.objectives import KeepPenalty as KeepPenalty
from keras_gibbs.search.objectives import MarginEnergy as MarginEnergy
from keras_gibbs.shrink import shrink as shrink
from keras_gibbs.shrink_report import ShrinkReport as ShrinkReport
from keras_gibbs.structure.allocation import Table as Table
from keras_gibbs.structure.contests import Block as Block
from keras_gibbs.structure.contests import NofM as NofM
from keras_gibbs.structure.groups import Filter as Filter
from keras_gibbs.structure.groups import Head as Head
from keras_gibbs.structure.groups import Kernel as Kernel
from keras_gibbs.structure.groups import Structure as Structure
from keras_gibbs.structure.groups import Unstructured as Unstructured
from keras_gibbs.structure.layouts import Layout as Layout
from keras_gibbs.summaries import Summary as Summary
from keras_gibbs.summaries import summary as summary

try:
    __version__ = importlib.metadata.version("keras_gibbs")
except importlib.metadata.PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "unknown"
