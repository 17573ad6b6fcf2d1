"""Mixed-effects deep learning for single cells: what is common to all batches, and what each one adds."""

import importlib
from typing import TYPE_CHECKING, Any

from scmedley.errors import ScmedleyError
from scmedley.report import build as report  # eager: the subpackage of that name would hide a lazy one

if TYPE_CHECKING:
    from scmedley import datasets, evaluate, genomap, pl, pp
    from scmedley.io import read
    from scmedley.join import read_batches
    from scmedley.models import (
        Autoencoder,
        AutoencoderSettings,
        FixedEffects,
        FixedEffectsSettings,
        MixedEffects,
        RandomEffects,
        RandomEffectsSettings,
        load,
    )

__version__ = "0.1.0"
__all__ = [
    "Autoencoder",
    "AutoencoderSettings",
    "FixedEffects",
    "FixedEffectsSettings",
    "MixedEffects",
    "RandomEffects",
    "RandomEffectsSettings",
    "ScmedleyError",
    "datasets",
    "evaluate",
    "genomap",
    "load",
    "pl",
    "pp",
    "read",
    "read_batches",
    "report",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``import scmedley`` is quick."""
    if name not in __all__:
        raise AttributeError(f"module 'scmedley' has no attribute {name!r}")
    if name in ("datasets", "evaluate", "genomap", "pl", "pp"):
        return importlib.import_module(f"scmedley.{name}")
    home = {"read": "scmedley.io", "read_batches": "scmedley.join"}.get(name, "scmedley.models")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
