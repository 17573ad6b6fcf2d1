"""What a model of your own is made of (docs/adding-a-model.md): import it from here, so that it stays in its place."""

from scmedley.data.resident import Minibatch, Resident
from scmedley.keys import Embedding
from scmedley.models.base import Model
from scmedley.models.catalogue import Row, add, remove
from scmedley.models.network import EffectsNetwork, Network
from scmedley.models.settings import Settings, named
from scmedley.nn.bayesian import Bias, EffectStart, Levels, ScaleAndBias
from scmedley.nn.layers import Classifier, Decoder, Encoder, VariationalEncoder, linear
from scmedley.nn.likelihoods import cross_entropy, kl_to_standard_normal, mse
from scmedley.train.trainable import Progress, Stage, Term, Trainable, TrainingCells

__all__ = [
    "Bias",
    "Classifier",
    "Decoder",
    "EffectStart",
    "EffectsNetwork",
    "Embedding",
    "Encoder",
    "Levels",
    "Minibatch",
    "Model",
    "Network",
    "Progress",
    "Resident",
    "Row",
    "ScaleAndBias",
    "Settings",
    "Stage",
    "Term",
    "Trainable",
    "TrainingCells",
    "VariationalEncoder",
    "add",
    "cross_entropy",
    "kl_to_standard_normal",
    "linear",
    "mse",
    "named",
    "remove",
]
