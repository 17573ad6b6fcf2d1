"""Preparation: filters, normalisation, highly variable genes."""

from scmedley.pp.counts import log_normalised, prepare

__all__ = ["log_normalised", "prepare"]
