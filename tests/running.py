"""Run the command line in process, on a small part of a real data set and without what only draws."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from anndata import AnnData

from scmedley import datasets, keys
from scmedley.__main__ import main
from scmedley.pipeline import stages
from scmedley.pp import maps
from scmedley.report import figures

SMALL = ("--latent", "4", "--epochs", "2", "--draws", "3", "--threads", "1", "--genes", "60")
RESULTS = ("latents", "scores.csv", "gene_shifts.csv", "counterfactual_check.csv", "history.csv")


@dataclass(frozen=True)
class Said:
    """What a command gave back."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line on stderr of a command that failed."""
        assert self.code != 0, self.out
        assert self.err.startswith("scmedley: error: "), self.err
        assert self.err.endswith("\n"), self.err
        assert self.err.count("\n") == 1, self.err
        return self.err.removeprefix("scmedley: error: ").strip()


class Shell:
    """Calls ``main``: ``shell("run", path, "--out", folder)``."""

    def __init__(self, capsys: pytest.CaptureFixture[str]):
        self.capsys = capsys

    def __call__(self, *arguments: object) -> Said:
        self.capsys.readouterr()
        try:
            main([str(a) for a in arguments])
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        return Said(code, *self.capsys.readouterr())

    def well(self, *arguments: object) -> str:
        """Call a command that must succeed with nothing on stderr; give what it printed."""
        said = self(*arguments)
        assert (said.code, said.err) == (0, "")
        return said.out


def without_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave UMAP (seconds of compiling) and the pictures of the report out; all else is real."""

    def first_two(adata: AnnData, basis: str, **_: object) -> None:
        adata.obsm[keys.umap(basis)] = np.ascontiguousarray(adata.obsm[basis][:, :2])

    monkeypatch.setattr(stages, "umap", first_two)
    monkeypatch.setattr(maps, "load_umap", lambda: None)
    monkeypatch.setattr(
        figures, "picture", lambda draw, size, alt, title: figures.Picture("", "", alt, title)
    )


def some_cells(n: int = 180, genes: int = 80) -> AnnData:
    """A part of sc_mixology, with both real columns and an embedding that could be the fixed part."""
    adata = datasets.sc_mixology()
    # The genes with most counts, so that no cell and no gene is filtered out.
    best = np.sort(np.argsort(-np.asarray(adata.X.sum(axis=0)).ravel(), kind="stable")[:genes])
    adata = adata[np.linspace(0, adata.n_obs - 1, n).astype(int), best].copy()
    adata.obsm["X_mine"] = np.asarray(adata.X[:, :5].todense(), dtype=np.float32)
    return adata


def tree(folder: Path) -> dict[str, bytes | None]:
    """All files and folders below ``folder`` with their contents, hidden ones too."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() if p.is_file() else None
        for p in sorted(folder.rglob("*"))
    }
