"""The self-contained HTML report of a run, and of a pipeline of several stages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trivium.lazy import lazy_attributes

__all__ = ["Bar", "Bars", "Comparison", "Figure", "Link", "Stage", "Table", "write_pipeline_report", "write_report"]

if TYPE_CHECKING:
    from trivium.report.pipeline import Bar as Bar
    from trivium.report.pipeline import Bars as Bars
    from trivium.report.pipeline import Comparison as Comparison
    from trivium.report.pipeline import Link as Link
    from trivium.report.pipeline import Stage as Stage
    from trivium.report.pipeline import Table as Table
    from trivium.report.pipeline import write_pipeline_report as write_pipeline_report
    from trivium.report.report import write_report as write_report
    from trivium.report.story import Figure as Figure

_PIPELINE = ("Bar", "Bars", "Comparison", "Link", "Stage", "Table", "write_pipeline_report")

__getattr__ = lazy_attributes(
    __name__,
    {name: "trivium.report.pipeline" for name in _PIPELINE}
    | {"write_report": "trivium.report.report", "Figure": "trivium.report.story"},
)
