"""What is looked at before any work of a run: settings, packages, inputs."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from scmedley.device import resolve_device
from scmedley.errors import ScmedleyError, check_seed, one_line
from scmedley.io.formats import reader_for
from scmedley.models import FixedEffects, RandomEffects
from scmedley.models.catalogue import FE, RE
from scmedley.models.fixed_effects import FixedEffectsSettings
from scmedley.models.random_effects import RandomEffectsSettings
from scmedley.models.settings import read_changes
from scmedley.pipeline.config import RunConfig
from scmedley.pp.maps import load_umap


def check_config(config: RunConfig) -> None:
    """Raise for a setting that makes no sense, before any work is done."""
    for name in ("genes", "min_genes", "min_cells", "latent", "epochs", "threads"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ScmedleyError(f"--{name.replace('_', '-')} {value} must be at least 1.")
    if config.draws < 2:
        raise ScmedleyError(f"--draws {config.draws} must be at least 2, or there is no interval.")
    if config.learn_labels and (config.label is None or config.fixed is not None):
        why = "needs --label" if config.label is None else "has no network to train beside --fixed"
        raise ScmedleyError(f"--learn-labels {why}. Leave it out, or change that.")
    check_seed(config.seed)
    resolve_device(config.device)
    network_settings(config)


def network_settings(config: RunConfig) -> tuple[FixedEffectsSettings, RandomEffectsSettings]:
    """Return the settings of both networks: the preset's, changed by a file, changed by the command."""
    from_file = read_changes(Path(config.settings)) if config.settings else {}
    fixed = FE.labelled if config.learn_labels else FE.name
    unused = sorted(set(from_file) - {fixed, RE.name})
    if unused:
        raise ScmedleyError(
            f"{config.settings} has settings of {unused[0]!r}, which this run does not fit; it fits {fixed} and RE."
        )
    given = {k: v for k, v in (("n_latent", config.latent), ("max_epochs", config.epochs)) if v}
    return (
        FixedEffects.preset(config.preset, config.learn_labels).replace(**from_file.get(fixed, {}) | given),
        RandomEffects.preset(config.preset).replace(**from_file.get(RE.name, {}) | given),
    )


def check_extra() -> None:
    """Raise for what is not installed before hours of training, not after."""
    missing = [name for name in ("jinja2", "matplotlib", "umap") if find_spec(name) is None]
    if missing:
        raise ScmedleyError(
            f"{' and '.join(missing)} not found, for maps and report: pip install 'scmedley[report]'"
        )
    try:
        load_umap()
    except Exception as error:  # numba raises its own for a version of numpy that it does not know
        raise ScmedleyError(
            f"UMAP cannot be imported ({one_line(error)}). Install umap-learn anew."
        ) from error


def check_inputs(inputs: Sequence[Path], out: Path) -> None:
    """Look at the inputs from outside; the reader looks inside."""
    for path in inputs:
        if {path.resolve(), *path.resolve().parents} & {out.resolve()}:
            raise ScmedleyError(
                f"{path} lies in --out {out}, which is for results only. Choose another --out."
            )
        try:
            reader_for(path)
        except OSError as error:
            raise ScmedleyError(
                f"{path} cannot be read ({error.strerror}). Look at its permissions."
            ) from error
