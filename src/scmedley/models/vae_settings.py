"""Settings of the variational autoencoder (:class:`~scmedley.models.vae.VAE`)."""

from dataclasses import dataclass, field
from typing import Literal, Self, get_args

from scmedley.errors import ScmedleyError
from scmedley.models.settings import Settings
from scmedley.nn.bayesian import EffectStart

Likelihood = Literal["negative binomial", "zero-inflated negative binomial", "poisson", "gaussian"]
Dispersion = Literal["gene", "gene x batch"]
Reduction = Literal["sum", "mean"]


@dataclass(frozen=True)
class VAESettings(Settings):
    """Settings of :class:`~scmedley.models.vae.VAE`.

    Attributes
    ----------
    likelihood
        Of the counts of each cell, given their total over the model's genes: ``"negative binomial"``,
        ``"zero-inflated negative binomial"`` or ``"poisson"``. Or ``"gaussian"``: of the scaled log1p CP10k.
        The total over all genes, which the decoder's share would turn into that of the model's genes, gave
        the same likelihood, labels and denoised counts on two data sets (docs/vae.md).
    beta
        Weight of KL(q(z|x) || N(0, I)). 1 gives the evidence lower bound; other values a beta-VAE.
    warmup
        Share of the largest number of epochs in which the weight of the KL rises from 0 to ``beta``.
    free_bits
        Nats of each latent dimension (mean over the minibatch) whose KL costs nothing.
    dispersion
        Whether the negative binomial has one dispersion for each gene or for each gene and batch. The logarithm
        of the latter is that of the gene plus a Bayesian effect of the batch, as in the decoder.
    learn_variance
        Whether the Gaussian has a variance for each gene that is learnt, or variance 1.
    reduction
        ``"sum"``: the loss is in nats per cell. ``"mean"``: squared error averaged over genes plus KL averaged
        over dimensions, which multiplies the weight of the KL by genes / (2 dimensions). It collapses the latent.
    batch_effects
        Whether the decoder has batch effects, if there is a batch column.
    shrinkage
        The output weights of the decoder have the prior N(0, 1 / (shrinkage * H)), H being the number of units
        before them. Per cell it weighs the less the more cells there are. 0: no prior.
    dropout
        Share of the input that is set to the mean in training.
    effects
        Initial posterior and prior of the random effects in the decoder.
    """

    hidden: tuple[int, ...] = (128,)
    n_latent: int = 10
    learning_rate: float = 5e-3
    steps: int = 1000
    likelihood: Likelihood = "negative binomial"
    beta: float = 1.0
    warmup: float = 0.2
    free_bits: float = 0.0
    dispersion: Dispersion = "gene x batch"
    learn_variance: bool = True
    reduction: Reduction = "sum"
    batch_effects: bool = True
    shrinkage: float = 10.0
    dropout: float = 0.2
    effects: EffectStart = field(default_factory=lambda: EffectStart(loc_scale=0.01))

    def __post_init__(self) -> None:
        super().__post_init__()
        choices = (("likelihood", Likelihood), ("dispersion", Dispersion), ("reduction", Reduction))
        for name, known in choices:
            if getattr(self, name) not in get_args(known):
                raise ScmedleyError(f"{name}={getattr(self, name)!r} must be one of {list(get_args(known))}.")
        if self.warmup > 1:
            raise ScmedleyError(f"warmup={self.warmup} must be between 0 and 1, a share of the epochs.")
        if self.dropout >= 1:
            raise ScmedleyError(f"dropout={self.dropout} must be below 1.")
        if self.counts and self.scale == "pearson":
            raise ScmedleyError(
                f"scale='pearson' does not fit likelihood={self.likelihood!r}, whose decoder gives log1p CP10k. Use "
                "likelihood='gaussian', or scale='standard'."
            )
        if self.reduction == "mean" and self.likelihood != "gaussian":
            raise ScmedleyError(
                f"reduction='mean' is that of a squared error, so it does not fit likelihood={self.likelihood!r}. Use "
                "likelihood='gaussian', or reduction='sum'."
            )

    @property
    def counts(self) -> bool:
        """Whether the likelihood is of counts."""
        return self.likelihood != "gaussian"

    def as_published(self) -> Self:
        """Return the settings of the report: squared error and KL as means, which collapses the latent.

        The report does not give its training. Its reconstruction loss of 0.0002 is that of values scaled to
        0 ... 1.
        """
        return self.replace(
            scale="min-max",
            likelihood="gaussian",
            learn_variance=False,
            reduction="mean",
            batch_effects=False,
            shrinkage=0.0,
            dropout=0.0,
            warmup=0.0,
            hidden=(512,),
            n_latent=50,
            learning_rate=1e-3,
            steps=2000,
            decay=False,
        )
