"""Torch modules of the networks, without AnnData and training."""
