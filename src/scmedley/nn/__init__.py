"""Numerical parts of the models, without AnnData and training loop.

Torch modules of the networks; and the closed-form mixed model (:mod:`scmedley.nn.mixed`, numpy).
"""
