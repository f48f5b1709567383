"""A published model as the plain values that the oracle takes: the only place where the two meet."""

from __future__ import annotations

from typing import Any

from load.chaos.oracle import Categories, Cuts, ModelBins
from monitor.reference import Reference
from monitor.spec import ModelSpec


def plain(spec: ModelSpec, reference: Reference) -> ModelBins:
    """The binning, segments and window sizes of a published model.

    Raises:
        ValueError: it has vectors, which the oracle cannot count.
    """
    if reference.layout.vectors:
        raise ValueError(f"{spec.model} has vectors, which the oracle cannot count")
    return ModelBins(
        name=spec.model,
        fields={name: field_of(form) for name, form in reference.layout.forms.items()},
        segments={dimension: list(kept) for dimension, kept in reference.segments.items()},
        sizes_ms=list(spec.windows.sizes),
        lateness_ms=spec.windows.lateness,
    )


def field_of(form: dict[str, Any]) -> Cuts | Categories:
    """Plain bins of the JSON form of a field's bins (``monitor.binning.to_dict``)."""
    if form["kind"] == "categorical":
        return Categories(list(form["categories"]))
    return Cuts(list(form["edges"]), form["low"], form["high"], form["step"], form["discrete"])
