"""OUT/: findings.csv with a row a finding, and one page without scripts or anything from the net."""

import csv
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import TextIO

import numpy as np
from jaxtyping import Float

from patchout.files import write_aside
from patchout.inference.check.findings import KINDS, Finding, summaries
from patchout.inference.check.run import Check

COLUMNS = ("file", "start", "end", "kind", "detail")
MAX_ROWS = 200  # of a kind on the page; the table of all is findings.csv
STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif }
body { max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; width: 100% }
td, th { text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid #8884; vertical-align: top }
td { overflow-wrap: anywhere }
svg { width: 96px; height: 32px; display: block }
path { fill: none; stroke: currentColor; stroke-width: 1.5 }
"""


def write_report(out: Path, check: Check) -> Path:
    """Write both files into a folder; returns the page."""
    out.mkdir(parents=True, exist_ok=True)
    table = out / "findings.csv"
    with write_aside(table) as aside, aside.open("w", newline="", encoding="utf-8", errors="replace") as file:
        write_csv(file, check.findings)
    with write_aside(out / "report.html") as aside:
        aside.write_text(page(check), encoding="utf-8", errors="replace")
    return out / "report.html"


def write_csv(file: TextIO, findings: Iterable[Finding]) -> None:
    """A row a finding; times in seconds, empty for a whole file, the file empty for the set."""
    table = csv.writer(file, lineterminator="\n")
    table.writerow(COLUMNS)
    for finding in findings:
        times = ("" if time_s is None else f"{time_s:g}" for time_s in (finding.start_s, finding.end_s))
        table.writerow((finding.file, *times, finding.kind, finding.detail))


def page(check: Check) -> str:
    """The findings by kind, with the mean log-mel of each clip as a line."""
    title = escape(f"{check.clips.root}: {len(check.clips)} clips, {len(check.findings)} findings")
    notes = "".join(f"<p>{escape(note)}</p>" for note in check.notes)
    lines = summaries(check.findings)
    rows = (
        f'<tr><td>{line.total}<td><a href="#{place}">{escape(line.kind)}</a><td>{escape(line.advice)}'
        for place, line in enumerate(lines)
    )
    parts = [f"<h1>{title}</h1>{notes}<table><tr><th>findings<th>kind<th>{''.join(rows)}</table>"]
    for place, line in enumerate(lines):
        of_kind = [finding for finding in check.findings if finding.kind == line.kind]
        more = f"<p>and {len(of_kind) - MAX_ROWS} more in findings.csv" if len(of_kind) > MAX_ROWS else ""
        cells = "".join(_row(finding, check.spectra) for finding in of_kind[:MAX_ROWS])
        head = f'<h2 id="{place}">{escape(line.kind)}</h2><p>{escape(KINDS[line.kind])}'
        parts.append(f"{head}<table><tr><th>file<th>seconds<th>detail<th>mean spectrum{cells}</table>{more}")
    head = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    )
    return "\n".join([head, *parts])


def _row(finding: Finding, spectra: Float[np.ndarray, "clip mel"]) -> str:
    """A finding with the spectrum of its clip, low frequencies on the left."""
    span = "" if finding.start_s is None else f"{finding.start_s:g} to {finding.end_s or 'end'}"
    picture = _line(spectra[finding.clip]) if finding.clip >= 0 else ""
    return f"<tr><td>{escape(finding.file)}<td>{span}<td>{escape(finding.detail)}<td>{picture}"


def _line(spectrum: Float[np.ndarray, "mel"]) -> str:
    """A spectrum as a line, from its lowest to its highest value; nothing for NaN."""
    if not np.isfinite(spectrum).all():
        return ""
    low, high = spectrum.min(), spectrum.max()
    heights = 30 - 28 * (spectrum - low) / max(high - low, 1e-6)
    points = " ".join(f"{96 * place / len(heights):.1f},{y:.1f}" for place, y in enumerate(heights.tolist()))
    return f'<svg viewBox="0 0 96 32" role="img" aria-label="mean spectrum"><path d="M{points}"/></svg>'
