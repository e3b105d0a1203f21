"""Tagging with an exported model, without torch and patchout: python onnx_tag.py model.onnx dog.wav

Needs numpy, soundfile, soxr and onnxruntime. A sound of any length is read in bounded memory and cut
into windows that overlap by half; the scores are their mean, the same that `patchout tag` gives.
What libsndfile does not read (m4a, video) is converted first, e.g. to FLAC.
"""

import argparse
import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import soundfile
import soxr
from onnxruntime.capi import onnxruntime_pybind11_state as state

Wave = npt.NDArray[np.float32]
BLOCK = 16384  # samples read at a time
FORMAT = "patchout-onnx-1"
REFUSED = (state.Fail, state.InvalidArgument, state.InvalidGraph, state.InvalidProtobuf, state.NoModel)
UNABLE = (state.NoSuchFile, state.NotImplemented, state.RuntimeException)


def open_model(path: Path) -> onnxruntime.InferenceSession:
    """The session of an exported tagger; another file, or one that is damaged, ends the program."""
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except (*REFUSED, *UNABLE) as error:
        reason = str(error).partition("\n")[0]
        raise SystemExit(f"{path}: onnxruntime {onnxruntime.__version__} cannot run it: {reason}") from None
    about = session.get_modelmeta().custom_metadata_map
    if about.get("format") != FORMAT:
        raise SystemExit(f"{path}: no {FORMAT!r} in its metadata: give a file of `patchout export`")
    if about["input"] != "waveform":
        raise SystemExit(f"{path}: takes a log-mel: give a file of `patchout export` without --front-end")
    return session


def resampled(file: Path, rate: int, channel: str) -> Iterator[Wave]:
    """The sound in pieces at a rate, one channel of it or the mean of all."""
    with soundfile.SoundFile(file) as sound:
        resampler = soxr.ResampleStream(sound.samplerate, rate, 1, dtype="float32", quality="HQ")
        for block in sound.blocks(BLOCK, dtype="float32", always_2d=True):
            place = min(("left", "right").index(channel), sound.channels - 1) if channel != "mean" else 0
            mono = block.mean(axis=1) if channel == "mean" else block[:, place]
            yield mono if sound.samplerate == rate else resampler.resample_chunk(np.ascontiguousarray(mono))
        if sound.samplerate != rate:
            yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)


def windows(pieces: Iterator[Wave], size: int) -> Iterator[Wave]:
    """Windows of `size` samples every half of that, the last one at the end; a shorter sound is one."""
    held, is_first = np.zeros(0, np.float32), True
    for piece in pieces:
        held = np.concatenate([held, piece])
        while len(held) >= size + (0 if is_first else size // 2):
            held = held if is_first else held[size // 2 :]
            yield held[:size]
            is_first = False
    if is_first:
        yield held
    elif len(held) > size:
        yield held[-size:]


def probabilities(logits: npt.NDArray[np.float64], task: str) -> npt.NDArray[np.float64]:
    """Softmax for one class a sound, else sigmoid."""
    if task == "multi_class":
        powers = np.exp(logits - logits.max())
        return powers / powers.sum()
    return 0.5 + 0.5 * np.tanh(0.5 * logits)


def calibrated(scores: npt.NDArray[np.float64], about: dict[str, str]) -> npt.NDArray[np.float64]:
    """The mean over windows, as the file's calibration says; its output `scores` is that of one window."""
    if "calibration" not in about:
        return scores
    slope, bias = json.loads(about["calibration"])
    scores = np.clip(scores, 1e-37, 1 - 2**-25)
    odds = scores if about["task"] == "multi_class" else scores / (1 - scores)
    return probabilities(slope * np.log(odds) + bias, about["task"])


def scores_of(session: onnxruntime.InferenceSession, file: Path) -> npt.NDArray[np.float64]:
    """The mean of every class's score over all windows; ValueError for a sound without proper samples."""
    about = session.get_modelmeta().custom_metadata_map
    size = int(about["window_samples"])
    shortest = max(int(about["min_samples"]), int(about["pad_samples"]))
    scores: list[npt.NDArray[np.float64]] = []
    for wave in windows(resampled(file, int(about["sample_rate"]), about["channel"]), size):
        if not (len(wave) and np.isfinite(wave).all()):
            raise ValueError("holds no samples, or samples that are NaN or infinite")
        padded = np.pad(wave, (0, max(0, min(size, shortest) - len(wave))))
        logits = session.run(["logits"], {"waveform": padded[None]})[0][0].astype(np.float64)
        scores.append(probabilities(logits, about["task"]))
    return calibrated(np.mean(scores, axis=0), about)


def main() -> int:
    """Print the best classes of each sound as CSV: file, label, score; exit code 1 if one fails."""
    parser = argparse.ArgumentParser(description="Tag sounds with a file of `patchout export`.")
    parser.add_argument("model", type=Path, help="the .onnx file")
    parser.add_argument("sounds", type=Path, nargs="+")
    parser.add_argument("--top", type=int, default=5, help="labels a sound (default: 5)")
    options = parser.parse_args()
    session = open_model(options.model)
    labels = json.loads(session.get_modelmeta().custom_metadata_map["labels"])
    table, exit_code = csv.writer(sys.stdout, lineterminator="\n"), 0
    for sound in options.sounds:
        try:
            scores = scores_of(session, sound)
        except (soundfile.LibsndfileError, ValueError) as error:
            exit_code = 1
            print(f"{sound}: {error}", file=sys.stderr)
            continue
        for index in np.argsort(-scores, kind="stable")[: options.top]:
            table.writerow((sound, labels[index], f"{scores[index]:.4f}"))
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
