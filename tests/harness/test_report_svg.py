"""Figures as SVG: the same input gives the same bytes."""

from __future__ import annotations

from typing import Any

from matplotlib.layout_engine import ConstrainedLayoutEngine

from harness.report_svg import drawing, inline_svg, new_figure


def test_a_figure_keeps_its_bytes_where_the_layout_differs_in_its_last_bits() -> None:
    class Shaken(ConstrainedLayoutEngine):
        def execute(self, fig: Any) -> Any:
            super().execute(fig)
            for axes in fig.axes:
                left, bottom, width, height = axes.get_position().bounds
                axes._set_position((left + 1e-13, bottom, width, height - 1e-13))

    drawn = []
    for engine in (ConstrainedLayoutEngine(), Shaken()):
        with drawing():
            figure, (axes,) = new_figure(120.0)
            figure.set_layout_engine(engine)
            axes.plot([1.0, 2.0, 3.0], [1.0, 3.0, 2.0])
            axes.grid()
            drawn.append(inline_svg(figure, "plot", simulated=True))
    assert "clip-path" in drawn[0]
    assert drawn[0] == drawn[1]
