"""One pruning method a file."""

from keras_gibbs.methods.fixed import Fixed as Fixed
from keras_gibbs.methods.gibbs import Gibbs as Gibbs
from keras_gibbs.methods.magnitude import Magnitude as Magnitude
