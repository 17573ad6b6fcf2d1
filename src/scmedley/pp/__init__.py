"""Preparation: exploration, filters, normalisation, highly variable genes."""

from scmedley.data.conversion import log_normalised
from scmedley.pp.counts import prepare
from scmedley.pp.exploration import Exploration, explore
from scmedley.pp.maps import pca
from scmedley.pp.nulls import permute_batches
from scmedley.pp.pearson import pearson_residuals
from scmedley.pp.stored import prepare_store, read_store

__all__ = [
    "Exploration",
    "explore",
    "log_normalised",
    "pca",
    "pearson_residuals",
    "permute_batches",
    "prepare",
    "prepare_store",
    "read_store",
]
