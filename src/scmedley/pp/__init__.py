"""Preparation: filters, normalisation, highly variable genes."""

from scmedley.pp.counts import log_normalised, prepare
from scmedley.pp.pca import pca

__all__ = ["log_normalised", "pca", "prepare"]
