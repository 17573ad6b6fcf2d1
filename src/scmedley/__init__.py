"""Mixed-effects deep learning for single cells: what is common to all batches, and what each batch adds."""

import importlib
from typing import TYPE_CHECKING, Any

from scmedley.errors import ScmedleyError

if TYPE_CHECKING:
    from scmedley import datasets, evaluate, interpret, peers, pl, pp, report
    from scmedley.interpret import genomap
    from scmedley.io import read
    from scmedley.models import (
        VAE,
        AdversarialSettings,
        Autoencoder,
        AutoencoderSettings,
        DeepBID,
        DeepBIDSettings,
        FixedEffects,
        FixedEffectsSettings,
        LinearMixed,
        LinearMixedSettings,
        MixedEffects,
        RandomEffects,
        RandomEffectsSettings,
        VAESettings,
        load,
    )
    from scmedley.pp.join import read_batches
    from scmedley.report import write_report

__version__: str  # of the installed package: see _version
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
    "ScmedleyError",
    "VAESettings",
    "datasets",
    "evaluate",
    "genomap",
    "interpret",
    "load",
    "peers",
    "pl",
    "pp",
    "read",
    "read_batches",
    "report",
    "write_report",
]
MODULES = ("datasets", "evaluate", "interpret", "peers", "pl", "pp", "report")
HOMES = {
    "genomap": "scmedley.interpret",
    "read": "scmedley.io",
    "read_batches": "scmedley.pp.join",
    "write_report": "scmedley.report",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``import scmedley`` is quick."""
    if name == "__version__":
        return _version()
    if name not in __all__:
        raise AttributeError(f"module 'scmedley' has no attribute {name!r}")
    if name in MODULES:
        return importlib.import_module(f"scmedley.{name}")
    return getattr(importlib.import_module(HOMES.get(name, "scmedley.models")), name)


def _version() -> str:
    """Return the version of the installed package, which its build took from the git tag."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("scmedley")
    except PackageNotFoundError:  # a copy of the source that was not installed
        return "0+unknown"


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
