"""One pruning method a file."""

from keras_gibbs.methods.edge_popup import EdgePopup as EdgePopup
from keras_gibbs.methods.edropout import EDropout as EDropout
from keras_gibbs.methods.fixed import Fixed as Fixed
from keras_gibbs.methods.force import FORCE as FORCE
from keras_gibbs.methods.gibbs import Gibbs as Gibbs
from keras_gibbs.methods.grasp import GraSP as GraSP
from keras_gibbs.methods.greg import GReg as GReg
from keras_gibbs.methods.gumbel import GumbelSoftmax as GumbelSoftmax
from keras_gibbs.methods.iterative_snip import IterativeSNIP as IterativeSNIP
from keras_gibbs.methods.magnitude import Magnitude as Magnitude
from keras_gibbs.methods.random import Random as Random
from keras_gibbs.methods.rigl import RigL as RigL
from keras_gibbs.methods.set import SET as SET
from keras_gibbs.methods.snip import SNIP as SNIP
from keras_gibbs.methods.supermask import Supermask as Supermask
from keras_gibbs.methods.synflow import SynFlow as SynFlow
