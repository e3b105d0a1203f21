"""Which clips come from one recording, site or speaker, by their names."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath
from typing import NamedTuple

import numpy as np

WORDS = (
    "site|recording|rec|location|loc|station|device|mic|session|speaker|spk|subject|animal|house|room|plot"
)
PATTERNS = {  # what a name says -> how; the stem of the file, without its folders
    "Freesound clip": r"\d-(\d+)-[A-Z]-\d+",  # ESC-50
    "Freesound sound": r"(\d+)-\d+-\d+-\d+",  # UrbanSound8K
    "video": r"Y?([\w-]{11})_\d+(?:[._]\d+)*",  # AudioSet
    "voice": r"([0-9a-f]{8})_nohash_\d+",  # Speech Commands
    "place": r"([a-z_]+-[a-z]+-\d+)-\d+-[a-z]\d?",  # TAU Urban Acoustic Scenes
    "recorder": r"(.+?)[_-](?:19|20)\d{6}[_T-]?\d{6}(?:\D.*)?",  # Song Meter, AudioMoth
    **{word: rf"(?:.*[^a-z])?({word}[_-]?\d+)(?:\D.*)?" for word in WORDS.split("|")},
    "name without its last number": r"(.*[^\d_. -])(?:[_. -]+(?:part|seg|segment|chunk|clip)?[_. -]?\d+)+",
}
MATCHED = 0.9  # of the names
LAST = "name without its last number"


class Recordings(NamedTuple):
    """The recording of every clip ("" where its name does not say), and what the names were read as."""

    keys: np.ndarray
    kind: str


def by_name(files: Sequence[str], labels: Sequence[str], pattern: str = "") -> Recordings | None:
    """Recordings by a pattern with one group, or by the first of PATTERNS that nearly all names match.

    `labels` has a text a clip. A ValueError: the pattern is none, has not one group, or matches no name.
    """
    stems = [PurePath(file).stem for file in files]
    if pattern:
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise ValueError(f"--group {pattern!r} is no regular expression ({error})") from None
        if compiled.groups != 1:
            raise ValueError(
                f"--group {pattern!r} has {compiled.groups} groups: put one (...) around the recording"
            )
        keys = [match[1] or "" if (match := compiled.search(file)) else "" for file in files]
        if not any(keys):
            raise ValueError(f"--group {pattern!r} matches no name, the first is {files[0]}")
        return Recordings(np.array(keys), f"--group {pattern}")
    for kind, text in PATTERNS.items():
        compiled = re.compile(text, re.IGNORECASE if kind in WORDS else 0)
        keys = [match[1] if (match := compiled.fullmatch(stem)) else "" for stem in stems]
        if sum(map(bool, keys)) >= MATCHED * len(keys) and (kind != LAST or _are_recordings(keys, labels)):
            return Recordings(np.array(keys), kind)
    return None


def _are_recordings(keys: Sequence[str], labels: Sequence[str]) -> bool:
    """Whether prefixes of names are recordings: each of one class, and many more of them than classes."""
    of_key = Counter(key for key, _ in dict.fromkeys(zip(keys, labels, strict=True)))
    is_several = sum(count > 1 for count in Counter(keys).values())
    return max(of_key.values()) == 1 and len(of_key) > 3 * len(set(labels)) and is_several > 1
