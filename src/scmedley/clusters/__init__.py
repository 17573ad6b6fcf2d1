"""Clusters of any latent, each with the evidence that it stands, and the tree of merges that led to them.

numpy, scipy and scikit-learn only; no labels, no batches and no resolution are used.
"""

from scmedley.clusters.clusters import Clusters, find

__all__ = ["Clusters", "find"]
