"""Torch modules of the networks: no AnnData, no training."""
