"""Preparation: exploration, filters, normalisation, highly variable genes."""

from scmedley.data.reader import log_normalised
from scmedley.pp.counts import prepare
from scmedley.pp.exploration import Exploration, explore
from scmedley.pp.maps import pca
from scmedley.pp.nulls import permute_batches

__all__ = ["Exploration", "explore", "log_normalised", "pca", "permute_batches", "prepare"]
