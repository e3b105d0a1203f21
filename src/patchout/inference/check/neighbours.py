"""What embeddings say of a data set: copies of one sound, and labels that the nearest sounds contradict."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import fft
from sklearn.neighbors import NearestNeighbors

from patchout.audio.mel import MelConfig, log_mel
from patchout.audio.stream import AudioError, Stream
from patchout.data.items import Item
from patchout.inference.check.findings import Finding
from patchout.inference.check.sounds import Sounds, span_of

Rows = Float[np.ndarray, "clip value"]
Spectra = Float[np.ndarray, "clip mel"]
Frames = Float[np.ndarray, "mel _"]
CANDIDATES = 3  # nearest clips that are compared with a clip
MIN_PAIRS = 1000  # of clips that are decoded again at most; in a larger set as many as it has clips
SAME_SPECTRUM = 0.2  # root mean square between mean log-mels as they are, each without its own mean
OVERLAP = 0.5  # of the power of the one with less
COPY = 0.7  # correlation over time and frequency
SILENT_BELOW = 1.84  # below the loudest frame, in the units of a log-mel: 40 dB
MIN_FRAMES = 30  # that are not silent: shorter sounds are all alike
COMPARED_S = 10.0  # of a sound
VOTES, CONTRADICTED = 10, 0.9  # nearest clips, and the share of them with one other label
MARGIN = 0.2  # between their cosines, in the mean, and that of the nearest clip with the same label
MIN_AGREEMENT = 0.5  # of labels and nearest clips: below it the embeddings know nothing of these classes


class Clips(NamedTuple):
    """What is compared, an entry a clip."""

    places: Int[np.ndarray, "clip"]  # in the set
    items: Sequence[Item]
    labels: np.ndarray  # as one text each
    splits: np.ndarray
    groups: np.ndarray  # clips of one recording have the same


def findings(
    clips: Clips,
    sounds: Sounds,
    opened: Callable[[Item], Stream],
    mel: MelConfig,
    on_note: Callable[[str], None],
) -> Iterator[Finding]:
    """Copies and contradicted labels among the clips that can be heard.

    `on_note` gets what could not be looked at.
    """
    is_heard = sounds.is_heard
    places = np.flatnonzero(is_heard)
    heard = Clips(
        places, [clips.items[place] for place in places.tolist()], *(part[is_heard] for part in clips[2:])
    )
    digests, values = sounds.digests[is_heard], sounds.values[is_heard]
    yield from duplicates(heard, digests)
    if len(places) < 2:
        return
    spectra, embeddings = values[:, : mel.n_mels] * (mel.std or 1), values[:, mel.n_mels :]
    candidates = pairs(spectra, embeddings, digests, heard.groups)
    limit = max(MIN_PAIRS, len(places))
    if len(candidates) > limit:
        on_note(f"{len(candidates)} pairs may be near-duplicates: the {limit} most alike were compared")
    yield from copies(heard, candidates[:limit], opened, mel)
    if heard.labels.any():
        yield from doubtful(heard, embeddings, on_note)


def nearest(values: Rows, count: int) -> Int[np.ndarray, "clip neighbour"]:
    """The nearest other clips by the cosine of `standardised` values, in blocks of bounded memory."""
    search = NearestNeighbors(n_neighbors=min(count, len(values) - 1), algorithm="brute").fit(values)
    return search.kneighbors(return_distance=False)


def standardised(values: Rows) -> Rows:
    """Every value with mean 0 and deviation 1 over the clips, every clip with length 1."""
    scaled = (values - values.mean(axis=0)) / (values.std(axis=0) + 1e-6)
    return scaled / (np.linalg.norm(scaled, axis=1, keepdims=True) + 1e-9)


# -- copies -----------------------------------------------------------------------------------------------


def duplicates(clips: Clips, digests: np.ndarray) -> Iterator[Finding]:
    """Clips with the very samples of an earlier one."""
    firsts = dict[str, int]()
    for clip, digest in enumerate(digests.tolist()):
        first = firsts.setdefault(digest, clip)
        if first != clip:
            yield _of_pair("duplicate", clips, first, clip, "has the samples of")


def pairs(
    spectra: Spectra, embeddings: Rows, digests: np.ndarray, groups: np.ndarray
) -> list[tuple[int, int]]:
    """Clips that may be copies: near by their mean spectra, whatever their gain, or by their embeddings."""
    shapes = spectra - spectra.mean(axis=1, keepdims=True)
    distances = dict[tuple[int, int], float]()
    for neighbours in (nearest(standardised(part), CANDIDATES) for part in (shapes, embeddings)):
        for clip, row in enumerate(neighbours):
            gaps = np.sqrt(np.square(shapes[row] - shapes[clip]).mean(axis=1))
            for other, gap in zip(row.tolist(), gaps.tolist(), strict=True):
                is_new = groups[clip] != groups[other] and digests[clip] != digests[other]
                if gap < SAME_SPECTRUM and is_new:
                    distances[min(clip, other), max(clip, other)] = gap
    return sorted(distances, key=distances.__getitem__)


def copies(
    clips: Clips, candidates: Sequence[tuple[int, int]], opened: Callable[[Item], Stream], mel: MelConfig
) -> Iterator[Finding]:
    """The candidates that are copies by their spectrograms, which are decoded again."""

    @lru_cache(maxsize=64)
    def frames(clip: int) -> Frames:
        return fingerprint(opened(clips.items[clip]), mel)

    for first, second in candidates:
        try:
            likeness = correlation(frames(first), frames(second))
        except (AudioError, OSError):  # it has changed since
            continue
        if likeness >= COPY:
            yield _of_pair("near-duplicate", clips, first, second, f"sounds like ({likeness:.2f})")


def _of_pair(kind: str, clips: Clips, first: int, second: int, relation: str) -> Finding:
    """The second clip of a pair, by what makes it worse: another label, or another split."""
    labels, splits = (part[[first, second]].tolist() for part in (clips.labels, clips.splits))
    item, other = clips.items[second], clips.items[first]
    detail = f"{relation} {other.file}" + (f" from {other.start_s:g} s" if other.start_s else "")
    if all(labels) and labels[0] != labels[1]:
        kind, detail = "duplicate with another label", f"is {labels[1]}, {detail}, which is {labels[0]}"
    elif all(splits) and splits[0] != splits[1]:
        kind, detail = f"{kind} across splits", f"is in {splits[1]}, {detail}, which is in {splits[0]}"
    return Finding(kind, item.file, detail, *span_of(item), clip=int(clips.places[second]))


def fingerprint(stream: Stream, mel: MelConfig) -> Frames:
    """The log-mel of the first COMPARED_S seconds, without the mean over time."""
    wave = np.zeros(0, np.float32)
    for block in stream:
        wave = np.concatenate([wave, block])[: round(COMPARED_S * mel.sample_rate)]
        if len(wave) == round(COMPARED_S * mel.sample_rate):
            break
    wave = np.pad(wave, (0, max(0, mel.min_samples - len(wave))))
    frames = log_mel(torch.from_numpy(wave)[None], replace(mel, mean=None, std=None))[0].numpy()
    levels = frames.mean(axis=0)
    is_sound = levels > levels.max() - SILENT_BELOW
    frames = frames - levels
    return np.where(is_sound, frames - frames[:, is_sound].mean(axis=1, keepdims=True), 0.0)


def correlation(first: Frames, second: Frames) -> float:
    """The highest correlation of two spectrograms over the lags at which most of one lies over the other.

    0 where one has fewer than MIN_FRAMES that are not silent.
    """
    if min(np.count_nonzero(frames.any(axis=0)) for frames in (first, second)) < MIN_FRAMES:
        return 0.0
    sizes = first.shape[1], second.shape[1]
    size = fft.next_fast_len(sum(sizes))
    spectra = [fft.rfft(frames, size, axis=1) for frames in (first, second)]
    products = fft.irfft((spectra[0].conj() * spectra[1]).sum(axis=0), size)
    powers = [np.square(frames).sum(axis=0, dtype=np.float64) for frames in (first, second)]
    sums = [np.append(0.0, power.cumsum()) for power in powers]
    lags = np.arange(1 - sizes[0], sizes[1])  # of the first one's start in the second
    begins, ends = np.maximum(0, -lags), np.minimum(sizes[0], sizes[1] - lags)
    shares = np.stack([sums[0][ends] - sums[0][begins], sums[1][ends + lags] - sums[1][begins + lags]])
    is_enough = shares.min(axis=0) > OVERLAP * min(power.sum() for power in powers)
    if not is_enough.any():
        return 0.0
    return float((products[lags][is_enough] / np.sqrt(shares[:, is_enough].prod(axis=0))).max())


# -- labels -----------------------------------------------------------------------------------------------


def doubtful(clips: Clips, embeddings: Rows, on_note: Callable[[str], None]) -> Iterator[Finding]:
    """Clips of whose VOTES nearest of other recordings nearly all have one other label, and none theirs."""
    values, votes = standardised(embeddings), dict[int, np.ndarray]()
    for clip, row in enumerate(nearest(values, 2 * VOTES)):
        voters = row[clips.groups[row] != clips.groups[clip]][:VOTES]
        if len(voters) == VOTES and clips.labels[clip]:
            votes[clip] = voters
    agreement = np.mean([clips.labels[row] == clips.labels[clip] for clip, row in votes.items()] or [0.0])
    if agreement < MIN_AGREEMENT:
        share = f"nearest sounds share their label in {agreement:.0%} of cases"
        on_note(
            f"labels are not compared with those of their neighbours ({share}): --model may know them better"
        )
        return
    for clip, voters in votes.items():
        stated = str(clips.labels[clip])
        label, count = Counter(clips.labels[voters].tolist()).most_common(1)[0]
        if stated == label or count < CONTRADICTED * VOTES or stated in clips.labels[voters]:
            continue
        is_alike = (clips.labels == stated) & (clips.groups != clips.groups[clip])
        closest = (values[is_alike] @ values[clip]).max(initial=-1.0)
        if (values[voters] @ values[clip]).mean() - closest >= MARGIN:
            detail = f"is {stated}, {count} of the {VOTES} nearest sounds are {label}"
            item = clips.items[clip]
            yield Finding("doubtful label", item.file, detail, *span_of(item), clip=int(clips.places[clip]))
