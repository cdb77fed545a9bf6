"""From a pruned model to files, and what a phone makes of them. TensorFlow is imported inside functions: it converts, under every backend."""

from keras_gibbs.export.advice import Advice as Advice
from keras_gibbs.export.advisor import advise as advise
from keras_gibbs.export.reports import ExportReport as ExportReport
from keras_gibbs.export.rewrite import RewriteReport as RewriteReport
from keras_gibbs.export.rewrite import sparse_ready as sparse_ready
from keras_gibbs.export.saved_model import export_saved_model as export_saved_model
from keras_gibbs.export.tflite import export_tflite as export_tflite
