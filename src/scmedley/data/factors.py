"""What a user asks a model to take as batches: one column, or a design of several factors."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from scmedley import keys
from scmedley.data.design import Design
from scmedley.data.formulas import formula_of, is_formula, parse
from scmedley.data.terms import Terms
from scmedley.errors import ScmedleyError, listed


@dataclass(frozen=True)
class Factors:
    """One column of batches, or a formula.

    Attributes
    ----------
    batch_key
        ``obs`` column of the batches. With a formula it is ``"scmedley_batch"``, in which a fit stores the names of
        the combinations; ``None``: no batches.
    formula
        Formula of several factors; empty for one column.
    keep
        Columns of the formula whose terms are left out, because their effects are to stay in the latent.
    asked
        The whole formula, also where one column is left of it; empty for one column.
    """

    batch_key: str | None
    formula: str = ""
    keep: tuple[str, ...] = ()
    asked: str = ""

    @classmethod
    def of(
        cls,
        batch_key: "str | Factors | None",
        nested_in: str | None = None,
        covariates: Sequence[str] = (),
        slopes: Sequence[str] = (),
        keep: Sequence[str] = (),
    ) -> "Factors":
        """Return the factors of a model's arguments; a formula of one random factor is its column alone.

        Raises
        ------
        ScmedleyError
            The formula cannot be read, ``keep`` names no column of it or all of them, or arguments exclude each
            other.
        """
        if isinstance(batch_key, Factors):
            return batch_key
        covariates, slopes, keep = (names_of(given) for given in (covariates, slopes, keep))
        plain = bool(nested_in or covariates or slopes)
        if batch_key is None or not isinstance(batch_key, str):
            if plain or keep:
                raise ScmedleyError(
                    "nested_in, covariates, slopes and keep need batch_key, the column of the batches."
                )
            return cls(batch_key)
        if is_formula(batch_key) and plain:
            raise ScmedleyError(
                f"batch_key is the formula {batch_key!r}, so nested_in, covariates and slopes belong into it. Give "
                "either a formula or a column."
            )
        if not is_formula(batch_key) and not plain and not keep:
            return cls(batch_key)
        if batch_key in (nested_in, *covariates, *slopes) or (
            nested_in and nested_in in (*covariates, *slopes)
        ):
            raise ScmedleyError(
                f"batch_key={batch_key!r}, nested_in={nested_in!r}, covariates and slopes {[*covariates, *slopes]} "
                "name a column in two roles. Name each column once; slopes may be covariates."
            )
        formula = batch_key if is_formula(batch_key) else formula_of(batch_key, nested_in, covariates, slopes)
        terms = parse(formula)
        columns = list(dict.fromkeys(column for term in terms for column in term.columns))
        if keys.BATCH in columns:
            raise ScmedleyError(
                f"The design {formula!r} names {keys.BATCH!r}, in which the combinations of a design are stored. "
                "Rename this column of obs."
            )
        if absent := [column for column in keep if column not in columns]:
            raise ScmedleyError(
                f"keep names {absent[0]!r}, which is not in the design {formula!r}. Its columns are {listed(columns)}."
            )
        left = [term for term in terms if not set(term.columns) & set(keep)]
        if not left:
            raise ScmedleyError(
                f"keep={list(keep)} leaves no term of the design {formula!r}, so nothing would be removed from the "
                "latent. Keep fewer columns."
            )
        if len(left) == 1 and left[0].random and len(left[0].parts) == 1:
            return cls(left[0].parts[0], asked=formula)
        return cls(keys.BATCH, formula, tuple(keep), asked=formula)

    def learn(self, obs: pd.DataFrame) -> Design:
        """Return the design of cells: their batches, and with a formula the levels of its terms."""
        if not self.formula:
            return Design.of(obs, self.batch_key)
        return Design.of_terms(obs, Terms.of(self.formula, obs, self.keep), keys.BATCH)

    def refuse_paper(self) -> None:
        """Raise for several factors in the published models."""
        if self.formula:
            raise ScmedleyError(
                f"The published models (preset 'paper') have one factor, and the design {self.formula!r} has several. "
                "Use preset='default', or give one column as batch_key."
            )


def names_of(given: Sequence[str] | str) -> tuple[str, ...]:
    """Return one or several names of columns as a tuple."""
    return (given,) if isinstance(given, str) else tuple(given)
