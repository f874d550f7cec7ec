"""Charts of the report as inline SVG and HTML: lines, a histogram, horizontal bars.

Why: the report is one file that opens anywhere, years later, without a network or scripts.

How: each function turns plain numbers into markup. Charts are drawn in a fixed viewBox and scale
with the page; colours come from the page's CSS classes, so light and dark need one drawing. Labels
are escaped here, so callers pass text as it is.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

STYLE = """
svg{display:block;width:100%;height:auto}
.grid{stroke:var(--rule)}.tick,.axis{fill:var(--soft);font-size:12px}
.line{fill:none;stroke-width:2;stroke-linejoin:round}.cut{stroke:var(--cut);stroke-width:2;
stroke-dasharray:5 4}
.line.s0{stroke:var(--a)}.line.s1{stroke:var(--b)}.line.s2{stroke:var(--c)}.line.s3{stroke:var(--d)}
.dot.s0{fill:var(--a)}.dot.s1{fill:var(--b)}.dot.s2{fill:var(--c)}.dot.s3{fill:var(--d)}
.all{fill:var(--pale)}.kept{fill:var(--a)}
.legend{display:flex;flex-wrap:wrap;gap:4px 18px;font-size:13px;color:var(--soft);margin:6px 0}
.legend span{display:inline-flex;align-items:center;gap:7px}
.legend i{width:14px;height:10px;border-radius:2px;background:var(--pale)}
.legend .s0,.legend .kept{background:var(--a)}.legend .s1{background:var(--b)}
.legend .s2{background:var(--c)}.legend .s3{background:var(--d)}
.legend .cut{height:0;border-top:2px dashed var(--cut);background:none}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums}
th,td{padding:5px 10px;border-bottom:1px solid var(--rule);text-align:right;white-space:nowrap}
thead th{color:var(--soft);font-weight:500}
th:first-child,td:first-child{text-align:left;padding-left:0}
tbody th{font-weight:400;max-width:260px;overflow:hidden;text-overflow:ellipsis}
.bars th:nth-child(2){text-align:left}.track{width:35%;min-width:140px}
.words th:last-child,.words td:last-child{text-align:left;white-space:normal;min-width:220px}
.track div{position:relative;height:14px}
.track b{display:block;height:100%;min-width:1px;background:var(--a);border-radius:2px}
.track .mark{position:absolute;top:-4px;bottom:-4px;border-left:2px dashed var(--cut)}
"""
"""CSS of everything drawn here; the page defines the colours."""

_WIDTH, _HEIGHT = 720, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 16, 12, 40


@dataclass(frozen=True)
class Series:
    """One line: points with finite coordinates, x ascending."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Bin:
    """One bin of a histogram: all documents in [low, high), and how many of them were kept."""

    low: float
    high: float
    documents: int
    kept: int


@dataclass(frozen=True)
class Bar:
    """One horizontal bar: its length as a share of the widest, and text cells beside it."""

    label: str
    length: float
    cells: Sequence[str]


@dataclass(frozen=True)
class _Scale:
    """A linear map from data to the drawing, with round ticks."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, wanted: int = 5, least: float = 0.0) -> list[float]:
        step = max(_round_step((self.high - self.low) / wanted), least)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]


def line_chart(series: Sequence[Series], *, x_label: str, y_label: str) -> str:
    """Lines over a common axis of whole numbers; few points are also marked, with tooltips."""
    points = [point for line in series for point in line.points]
    if not points:
        return ""
    x = _scale([point[0] for point in points], _LEFT, _WIDTH - _RIGHT, padding=0.0)
    y = _scale([point[1] for point in points], _HEIGHT - _BOTTOM, _TOP, padding=0.08)
    drawn = [_axes(x, y, x_label, y_label, least_x=1.0)]
    for index, line in enumerate(series):
        places = [(x.at(across), y.at(up)) for across, up in line.points]
        path = " ".join(f"{across:.1f},{up:.1f}" for across, up in places)
        drawn.append(f'<polyline class="line s{index % 4}" points="{path}"/>')
        if len(places) <= 40:
            drawn.extend(
                f'<circle class="dot s{index % 4}" cx="{across:.1f}" cy="{up:.1f}" r="4">'
                f"<title>{_text(line.name)}: {up_value:.4g}</title></circle>"
                for (across, up), (_, up_value) in zip(places, line.points, strict=True)
            )
    names = [(f"s{index % 4}", line.name) for index, line in enumerate(series)]
    return _legend(names) + _svg(f"{y_label} by {x_label}", drawn)


def histogram(bins: Sequence[Bin], *, threshold: float | None, x_label: str) -> str:
    """Documents by score, the kept part of each bin filled, the cut-off as a dashed line."""
    if not bins:
        return ""
    edges = [edge for bin_ in bins for edge in (bin_.low, bin_.high)]
    x = _scale(edges, _LEFT, _WIDTH - _RIGHT, padding=0.0)
    y = _scale([0.0, *(bin_.documents for bin_ in bins)], _HEIGHT - _BOTTOM, _TOP, padding=0.0)
    drawn = [_axes(x, y, x_label, "documents")]
    for bin_ in bins:
        for count, name in ((bin_.documents, "all"), (bin_.kept, "kept")):
            left, right, top = x.at(bin_.low), x.at(bin_.high), y.at(count)
            drawn.append(
                f'<rect class="{name}" x="{left:.1f}" y="{top:.1f}" '
                f'width="{max(right - left - 0.8, 1.0):.1f}" height="{y.start - top:.1f}">'
                f"<title>{bin_.low:.4g} to {bin_.high:.4g}: {bin_.documents:,} documents, "
                f"{bin_.kept:,} kept</title></rect>"
            )
    names = [("kept", "kept"), ("all", "not kept")]
    if threshold is not None and x.low <= threshold <= x.high:
        place = x.at(threshold)
        drawn.append(
            f'<line class="cut" x1="{place:.1f}" x2="{place:.1f}" y1="{_TOP}" y2="{y.start}"/>'
        )
        names.append(("cut", f"cut-off {threshold:.4g}"))
    return _legend(names) + _svg(f"documents by {x_label}", drawn)


def bar_table(
    head: Sequence[str], bars: Sequence[Bar], *, mark: float | None = None, words: bool = False
) -> str:
    """A table with a bar in its second column.

    Args:
        head: names of the label, of the bar and of every further cell.
        bars: the rows.
        mark: a length to compare with, on the scale of the bars: a line across all of them.
        words: the last column holds words, not numbers.
    """
    widest = max([bar.length for bar in bars] + [mark or 0.0]) or 1.0
    line = "" if mark is None else f'<i class="mark" style="left:{mark / widest:.2%}"></i>'
    rows = "".join(
        f'<tr><th scope="row">{_text(bar.label)}</th><td class="track"><div>'
        f'<b style="width:{bar.length / widest:.2%}"></b>{line}</div></td>'
        + "".join(f"<td>{_text(cell)}</td>" for cell in bar.cells)
        + "</tr>"
        for bar in bars
    )
    return _table_frame(head, rows, "bars words" if words else "bars")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A plain table of text cells."""
    body = "".join(
        "<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return _table_frame(head, body, "plain")


def compact(value: float, digits: int = 3) -> str:
    """A number in so many digits and a unit: 950, 1.2k, 34M, 5.6B."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * 0.9995:
            return f"{value / size:.{digits}g}{unit}"
    return f"{value:.{digits}g}"


def _table_frame(head: Sequence[str], body: str, name: str) -> str:
    """A table that scrolls by itself when the page is narrow; `body` is markup."""
    names = "".join(f'<th scope="col">{_text(cell)}</th>' for cell in head)
    return (
        f'<div class="scroll"><table class="{name}"><thead><tr>{names}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _legend(names: Sequence[tuple[str, str]]) -> str:
    """Names beside the colour of their CSS class."""
    keys = "".join(f'<span><i class="{key}"></i>{_text(name)}</span>' for key, name in names)
    return f'<p class="legend">{keys}</p>'


def _text(text: object) -> str:
    return html.escape(str(text))


def _scale(values: Sequence[float], start: float, end: float, *, padding: float) -> _Scale:
    low, high = min(values), max(values)
    if low == high:
        margin = abs(low) * 0.1 or 0.5
        return _Scale(low - margin, high + margin, start, end)
    margin = (high - low) * padding
    return _Scale(low - margin, high + margin, start, end)


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)


def _labelled(ticks: Sequence[float]) -> list[tuple[float, str]]:
    """Ticks at even steps, each with its value in as many digits as the step needs."""
    step = ticks[1] - ticks[0] if len(ticks) > 1 else max(map(abs, ticks), default=0.0)
    digits = next(
        (d for d in range(3, 15) if all(abs(float(f"{t:.{d}g}") - t) <= step / 1e3 for t in ticks)),
        15,
    )
    return [(tick, compact(tick, digits)) for tick in ticks]


def _axes(x: _Scale, y: _Scale, x_label: str, y_label: str, *, least_x: float = 0.0) -> str:
    parts = []
    for tick, label in _labelled(y.ticks()):
        up = y.at(tick)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{up:.1f}" y2="{up:.1f}"/>'
            f'<text class="tick" x="{_LEFT - 8}" y="{up + 4:.1f}" text-anchor="end">'
            f"{label}</text>"
        )
    for tick, label in _labelled(x.ticks(6, least_x)):
        parts.append(
            f'<text class="tick" x="{x.at(tick):.1f}" y="{_HEIGHT - _BOTTOM + 17}" '
            f'text-anchor="middle">{label}</text>'
        )
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(
        f'<text class="axis" x="{middle}" y="{_HEIGHT - 4}" text-anchor="middle">'
        f"{_text(x_label)}</text>"
        f'<text class="axis" transform="translate(13 {(_HEIGHT - _BOTTOM) / 2}) rotate(-90)" '
        f'text-anchor="middle">{_text(y_label)}</text>'
    )
    return "".join(parts)


def _svg(label: str, drawn: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{_text(label)}">'
        f"{''.join(drawn)}</svg>"
    )
