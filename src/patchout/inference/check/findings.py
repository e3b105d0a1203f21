"""Findings of a check: their kinds in order of weight, and how they are told in a line each."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

KINDS = {  # worst first -> what it does, or what to do
    "unreadable": "they cannot be decoded",
    "left out": "rows and folders that cannot be used",
    "duplicate with another label": "one of the labels is wrong",
    "duplicate across splits": "the scores will be too good",
    "recording across splits": "the scores will be too good",
    "near-duplicate across splits": "the scores will be too good",
    "silent": "there is nothing to learn from them",
    "cut short": "a part of the sound is missing",
    "damaged": "a part of the sound is missing or odd",
    "cancelling channels": "their mean is nearly silent: --channel left",
    "doubtful label": "listen to them",
    "missing in a split": "they are not scored, or not trained on",
    "small class": "scores of them mean little",
    "clipped": "distorted, as other recordings are not",
    "duplicate": "they count twice",
    "near-duplicate": "they count twice, or leak into a hold-out",
    "upsampled": "they have no high frequencies, which a model may take for a class",
    "low-pass": "coded with losses before, or resampled",
    "offset": "their mean is not zero",
    "unusual rate": "it may be a wrong header",
    "mixed rates": "a model may take the bandwidth for a class",
    "unbalanced": "rare classes are learned late: --balance loss",
}
NAMES = 3  # that a line quotes


class Finding(NamedTuple):
    """One thing that is wrong with a clip, or with the set (no file)."""

    kind: str  # of KINDS
    file: str
    detail: str
    start_s: float | None = None
    end_s: float | None = None
    clip: int = -1  # its place in the set


class Summary(NamedTuple):
    """The findings of a kind in a line."""

    kind: str
    total: int
    names: str
    advice: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.total} ({self.names}): {self.advice}"


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """The worst kinds first; the order within a kind stays."""
    weight = {kind: place for place, kind in enumerate(KINDS)}
    return sorted(findings, key=lambda finding: weight[finding.kind])


def summaries(findings: Sequence[Finding]) -> list[Summary]:
    """A line a kind, the worst first, with the first names, or details where there is no file."""
    lines = []
    for kind, advice in KINDS.items():
        if of_kind := [finding for finding in findings if finding.kind == kind]:
            names = [*dict.fromkeys(finding.file or finding.detail for finding in of_kind)]
            quoted = ", ".join(names[:NAMES]) + (" ..." if len(names) > NAMES else "")
            lines.append(Summary(kind, len(of_kind), quoted, advice))
    return lines


def worst(findings: Sequence[Finding], data: str, count: int = 3) -> list[str]:
    """The worst kinds as sentences, and the command that looks deeper; nothing without a finding."""
    lines = [str(summary) for summary in summaries(findings)]
    more = f"{len(lines) - count} more kinds; " if len(lines) > count else ""
    return [*lines[:count], f"{more}`patchout check {data}` looks deeper"] if lines else []
