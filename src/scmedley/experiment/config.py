"""Settings of an experiment: data, folds, methods. Read from a recipe (Python) or a TOML file."""

import dataclasses
import importlib.util
import inspect
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from scmedley import keys
from scmedley.data.formulas import is_formula
from scmedley.datasets.papers import LOSS_WEIGHTS
from scmedley.errors import ScmedleyError, check_seed
from scmedley.keys import ValueKind
from scmedley.models import catalogue
from scmedley.models.base import Model
from scmedley.models.settings import as_changes

Split = Literal["cells", "donors", "pairs"]
Precision = Literal["auto", "float32", "bfloat16"]

NULL = catalogue.RE.null
# Methods that need neither another package nor counts.
BASIC = (catalogue.PCA, *(method.name for row in catalogue.SCMEDAL for method in row.methods()))
LISTS = ("methods", "splits", "targets", "pair_batches")  # fields that hold names


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A comparison of methods over folds and seeds.

    Attributes
    ----------
    name
        Title of the experiment.
    data
        A data set of scmedley (``"onek1k"``), a paper's files in the data folder (``"aml"``, ``"asd"``,
        ``"healthy_heart"``), or the path of a file, also relative to the data folder.
    batch_key, label_key
        ``obs`` columns of batches and cell types.
    donor_key
        ``obs`` column of the donors; default: the batch column.
    targets
        Donor-level ``obs`` columns (diagnosis, sex) for the classifiers.
    methods
        Names of the catalogue (``BASIC``: all that come with scmedley), names of ``peers.PEERS``, or ``obsm``
        keys of embeddings in the data.
    preset
        Preset of the networks: ``"default"`` or ``"paper"``.
    settings
        Changes to the preset, by method: ``{"FE": {"offset_weight": 0.5}}``. The null has those of "RE".
    splits
        ``"cells"``: all parts have cells of all donors. ``"donors"``: whole donors are held out. ``"pairs"``:
        all cells of a label in a batch are held out, one such pair at a time. Networks with counterfactuals
        predict them from the label's cells in other batches.
    folds, seeds
        Number of folds of cells and donors; random seeds of the fits. The first also draws folds and pairs.
    pairs
        Number of held-out pairs.
    pair_batches
        Batches of the pairs (``("treated",)``); default: any batch.
    pair_cells
        Minimum number of cells of a pair.
    classify
        Whether random forests predict the cell type and the targets from the latents.
    thorough
        Whether to compute all scores of test cells (``evaluate.scores(thorough=True)``).
    published
        Name of these data in the papers' published scores, if there are any.
    n_latent, n_top_genes, min_genes, min_cells
        As for a run.
    values
        What the matrix holds, as for a run; ``"auto"`` decides by its values.
    threads
        CPU threads of each fit; several fits run at the same time.
    precision, device
        As for a run.
    """

    name: str
    data: str
    batch_key: str = "batch"
    label_key: str = "cell_type"
    donor_key: str = ""
    targets: tuple[str, ...] = ()
    methods: tuple[str, ...] = BASIC
    preset: str = "default"
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    splits: tuple[Split, ...] = ("cells",)
    folds: int = 5
    pairs: int = 5
    pair_batches: tuple[str, ...] = ()
    pair_cells: int = 20
    seeds: tuple[int, ...] = (0,)
    classify: bool = True
    thorough: bool = True
    published: str = ""
    n_latent: int = 50
    n_top_genes: int = 3000
    min_genes: int = 10
    min_cells: int = 3
    values: ValueKind = "auto"
    threads: int = 1
    precision: str = "auto"
    device: str = "auto"

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            wanted = type(getattr(type(self), name, "")) if name != "settings" else dict
            if not isinstance(value, wanted) or isinstance(value, bool) != (wanted is bool):
                raise ScmedleyError(f"{name} = {value!r} must be of type {wanted.__name__}.")
        for name in ("folds", "pairs", "pair_cells", "n_latent", "n_top_genes", "threads"):
            least = 3 if name == "folds" else 1
            if getattr(self, name) < least:
                raise ScmedleyError(f"{name} = {getattr(self, name)} must be at least {least}.")
        for name, kind in (*((name, str) for name in LISTS), ("seeds", int)):
            if any(not isinstance(value, kind) or isinstance(value, bool) for value in getattr(self, name)):
                raise ScmedleyError(f"{name} = {list(getattr(self, name))} must hold {kind.__name__} only.")
        for name in (*LISTS, "seeds"):
            values = getattr(self, name)
            if (not values and name not in ("targets", "pair_batches")) or len(set(values)) < len(values):
                raise ScmedleyError(f"{name} = {list(values)} must have at least one value, and none twice.")
        if is_formula(self.batch_key):
            raise ScmedleyError(
                f"batch_key = {self.batch_key!r} is a formula; experiment and tune compare methods on one column of "
                "batches. Join the columns into one, or fit the design with scmedley run --design."
            )
        if {self.label_key, self.batch_key, self.donors} & set(self.targets):
            raise ScmedleyError(
                f"targets = {list(self.targets)} must be other columns than label, batch and donor."
            )
        for name, known in (("precision", get_args(Precision)), ("values", get_args(ValueKind))):
            if getattr(self, name) not in known:
                raise ScmedleyError(
                    f"{name} = {getattr(self, name)!r} is none of {list(known)}. Choose one of them."
                )
        for seed in self.seeds:
            check_seed(seed)
        for split in self.splits:
            if split not in get_args(Split):
                raise ScmedleyError(
                    f"splits = {list(self.splits)}: {split!r} is none of {list(get_args(Split))}."
                )
        for method in self.methods:
            _check_method(method)
        for method in self.settings:
            if method not in self.methods or method not in catalogue.methods() or catalogue.is_null(method):
                raise ScmedleyError(
                    f"Settings of {method!r} have no use here. Give settings only of networks in methods; the null "
                    "takes those of RE."
                )
        if self.published not in ("", *LOSS_WEIGHTS["release"]):
            raise ScmedleyError(
                f"published = {self.published!r} is none of {list(LOSS_WEIGHTS['release'])}, the papers' data sets."
            )
        self.models()
        if "pairs" in self.splits and not self.counterfactual_methods:
            able = " or ".join(repr(row.name) for row in catalogue.rows() if "effects" in row.outputs)
            raise ScmedleyError(
                "splits has 'pairs', but none of the methods has batch effects in its decoder, which predictions of "
                f"held-out pairs need. Add {able} to the methods, with the default preset."
            )

    @property
    def donors(self) -> str:
        """Return the ``obs`` column of the donors."""
        return self.donor_key or self.batch_key

    @property
    def counterfactual_methods(self) -> list[str]:
        """Return the methods that can predict held-out pairs."""
        return [method for method in self.models() if self.unfitted(method).has_effects]

    def n_folds(self, split: Split) -> int:
        """Return the number of folds of a split."""
        return self.pairs if split == "pairs" else self.folds

    def models(self) -> dict[str, Any]:
        """Return the settings of each compared network, changes included."""
        networks = catalogue.methods()
        return {
            method: networks[method]
            .preset(self.preset)
            .replace(**{"n_latent": self.n_latent} | (self.changes(method) or {}))
            for method in self.methods
            if method in networks
        }

    def changes(self, method: str) -> dict[str, Any] | None:
        """Return the changes to the preset of a method; a null has those of its network."""
        known = catalogue.methods().get(method)
        return self.settings.get(method if known is None else known.set_by)

    def unfitted(self, method: str) -> Model[Any]:
        """Return a new model of a method."""
        settings = self.models()[method]
        return catalogue.methods()[method].unfitted(self.batches_of(method), self.label_key, settings)

    def batches_of(self, method: str) -> str:
        """Return the batch column that a method is trained on: permuted batches for a null."""
        return keys.PERMUTED if catalogue.is_null(method) else self.batch_key


def is_rival(method: str) -> bool:
    """Return whether a method is of another package or the user's embedding: if it fails, others continue."""
    from scmedley.peers import PEERS

    return method in PEERS or method.startswith("X_")


def _check_method(method: str) -> None:
    from scmedley.peers import PEERS

    known = (catalogue.PCA, *catalogue.methods(), *PEERS)
    if method not in known and not is_rival(method):
        raise ScmedleyError(
            f"There is no method {method!r}. Choose from {', '.join(known)}, or give an obsm key (X_...)."
        )


def read_config(path: Path, **changes: Any) -> Experiment:
    """Read a recipe, a Python file with a function ``config()``, or a TOML file with the same fields.

    Parameters
    ----------
    path
        The file. A Python recipe is executed: use only recipes that you trust.
    changes
        Fields to change.

    Raises
    ------
    ScmedleyError
        The file or its ``config()`` is missing, or an experiment has no such field.
    """
    if not path.is_file():
        raise ScmedleyError(f"There is no recipe {path}. Give a .py file with config(), or a .toml file.")
    if path.suffix == ".py":
        found = _from_python(path)
        return dataclasses.replace(found, **changes)
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ScmedleyError(f"{path} is neither a Python recipe (.py) nor TOML: {error}.") from error
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    if "settings" in fields:
        fields["settings"] = as_changes(fields["settings"], path)
    known = [f.name for f in dataclasses.fields(Experiment)]
    unknown = [name for name in fields if name not in known]
    if unknown:
        raise ScmedleyError(f"{path}: an experiment has no {unknown[0]!r}; it has {', '.join(known)}.")
    missing = [name for name in ("name", "data") if name not in fields]
    if missing:
        raise ScmedleyError(f"{path} lacks {missing[0]!r}. Add it.")
    return Experiment(**{**fields, **changes})


def _from_python(path: Path) -> Experiment:
    spec = importlib.util.spec_from_file_location(f"scmedley_recipe_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        made = module.config() if inspect.isfunction(getattr(module, "config", None)) else None
    except ScmedleyError:
        raise
    except (Exception, SystemExit) as error:  # any error in the recipe
        raise ScmedleyError(f"{path} fails with {type(error).__name__}: {error}") from error
    if not isinstance(made, Experiment):
        raise ScmedleyError(
            f"{path} has no function config() that returns an Experiment. Add one (see recipes/)."
        )
    return made
