"""Plots: every function returns a matplotlib figure and touches no pyplot state."""

from scmedley.pl.embedding import embedding
from scmedley.pl.embeddings import embeddings
from scmedley.pl.scores import scores
from scmedley.pl.training import training

__all__ = ["embedding", "embeddings", "scores", "training"]
