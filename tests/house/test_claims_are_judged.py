"""Each claim of the course is judged in the notebook it names, and notebooks know no other claims."""

from __future__ import annotations

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook

from deploykit.claims import claims

from .cells import calls, first_string


def claim_faults(notebooks: dict[str, NotebookNode], where: dict[str, str]) -> list[str]:
    """Return claims that are not judged where they should be, and uses of claims that do not exist.

    Args:
        notebooks: solution notebooks by stem.
        where: claim id -> the two digits of its notebook.
    """
    judged = {(stem[:2], claim) for stem, claim in _uses(notebooks, "judge", "not_measurable")}
    used = _uses(notebooks, "judge", "not_measurable", "predict")
    unknown = [f"{stem} uses the claim {claim!r}, which does not exist" for stem, claim in used if claim not in where]
    idle = [
        f"the claim {claim!r} is not judged in notebook {number}"
        for claim, number in where.items()
        if (number, claim) not in judged
    ]
    return list(dict.fromkeys(unknown + idle))


def _uses(notebooks: dict[str, NotebookNode], *names: str) -> list[tuple[str, str | None]]:
    return [
        (stem, first_string(call))
        for stem, notebook in notebooks.items()
        for cell in notebook.cells
        for call in calls(cell, *names)
    ]


class TestClaimFaults:
    def test_a_claim_judged_in_its_notebook_is_fine(self):
        """Judged directly or said to be not measurable, it is dealt with."""
        cells = [new_code_cell('claims.judge("a", 1)'), new_code_cell('if no_gpu:\n    not_measurable("b", "no GPU")')]

        assert claim_faults({"01_x": new_notebook(cells=cells)}, {"a": "01", "b": "01"}) == []

    def test_a_claim_judged_elsewhere_is_found(self):
        """The verdict stands where the claim says it does."""
        cells = [new_code_cell('judge("a", 1)')]

        assert claim_faults({"02_x": new_notebook(cells=cells)}, {"a": "01"}) == [
            "the claim 'a' is not judged in notebook 01"
        ]

    def test_a_misspelt_claim_is_found(self):
        """A prediction about a claim that does not exist is found."""
        cells = [new_code_cell('judge("a", 1)\npredict("aa", None)')]

        assert claim_faults({"01_x": new_notebook(cells=cells)}, {"a": "01"}) == [
            "01_x uses the claim 'aa', which does not exist"
        ]

    def test_every_claim_is_judged(self, solutions):
        """There are claims, and each is judged in its notebook."""
        where = {claim.id: claim.notebook for claim in claims().values()}
        assert where

        assert claim_faults(solutions, where) == []
