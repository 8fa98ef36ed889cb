"""How much a model may differ from the one that it is held against."""

from __future__ import annotations

from dataclasses import replace

from exporter.opening import Opening
from runtimes.errors import InputError
from runtimes.tolerance import AS_SIMULATED, MADE_FOR, TOLERANCES, Tolerance, coarser, resized_apart


def as_simulated(model: Opening) -> Tolerance:
    """The bounds of an INT8 model beside the simulation of its own file."""
    return AS_SIMULATED[model.spec.name in MADE_FOR.get(model.target or "", set())]


def as_reference(
    model: Opening, reference: Opening, min_sqnr_db: float | None = None, min_agreement: float | None = None
) -> Tolerance:
    """The bounds of a model beside the first one: the table's row for the coarser of both.

    Args:
        model: That is judged.
        reference: What it is held against.
        min_sqnr_db: Replaces the bound on SQNR; ``None`` keeps it.
        min_agreement: The same for the fraction of images with the same class.

    Raises:
        InputError: The table knows nothing of one of both, and no bound was given.
    """
    given = {"min_sqnr_db": min_sqnr_db, "min_top1": min_agreement}
    changed = {name: value for name, value in given.items() if value is not None}
    keys = [(each.spec.name, each.precision or "fp32") for each in (model, reference)]
    missing = next((key for key in keys if key not in TOLERANCES), None)
    if missing is not None:
        if not changed:
            raise InputError(
                f"no tolerance is known for {' '.join(missing)}: give bounds with --min-sqnr or --min-agreement"
            )
        return Tolerance(min_sqnr_db, None, None, min_agreement, "As asked for: the table has no bounds for it.")
    row = coarser(TOLERANCES[keys[0]], TOLERANCES[keys[1]])
    # One of both resizes by itself, or the two do it in different libraries.
    if any(each.takes is not None and each.takes.any_size for each in (model, reference)):
        row = resized_apart(row)
    return replace(row, **changed, reason=f"As asked for. {row.reason}") if changed else row
