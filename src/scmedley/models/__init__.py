"""The model classes, and ``load``."""

from scmedley.models.adversarial import AdversarialSettings
from scmedley.models.autoencoder import Autoencoder, AutoencoderSettings
from scmedley.models.catalogue import load
from scmedley.models.deepbid import DeepBID
from scmedley.models.deepbid_network import DeepBIDSettings
from scmedley.models.fixed_effects import FixedEffects, FixedEffectsSettings
from scmedley.models.linear_mixed import LinearMixed, LinearMixedSettings
from scmedley.models.mixed_effects import MixedEffects
from scmedley.models.random_effects import RandomEffects, RandomEffectsSettings
from scmedley.models.settings import Settings
from scmedley.models.vae import VAE
from scmedley.models.vae_settings import VAESettings

__all__ = [
    "VAE",
    "AdversarialSettings",
    "Autoencoder",
    "AutoencoderSettings",
    "DeepBID",
    "DeepBIDSettings",
    "FixedEffects",
    "FixedEffectsSettings",
    "LinearMixed",
    "LinearMixedSettings",
    "MixedEffects",
    "RandomEffects",
    "RandomEffectsSettings",
    "Settings",
    "VAESettings",
    "load",
]
