"""The official downloads: address, size, licence and layout, as `patchout prepare NAME --help` says them.

Sizes and licences are those that the pages state; what is not known is said to be unknown.
"""

from typing import NamedTuple


class Download(NamedTuple):
    """A data set's download, in words."""

    title: str
    source: str  # addresses, and what has to be done with the files
    size: str
    licence: str  # that of the sounds, in the words of the page
    layout: tuple[str, ...]  # lines of a tree


_SCENES = (
    "meta.csv",
    "evaluation_setup/fold1_train.{0}",
    "evaluation_setup/fold1_evaluate.{0}",
    "audio/*.wav",
)
_TAMPERE = "free for non-commercial use (terms in the download)"
_LISTS = (
    "https://research.google.com/audioset/download.html has the lists, not the sounds, which are YouTube's"
)
_COPY = "a copy as Parquet, not official: https://huggingface.co/datasets/agkphysics/AudioSet"
_AUDIOSET = (
    "either  {0}, and the sounds anywhere below: Y<id>.wav, <id>.mp3, <id>_30.000.flac ...",
    "or      {1} (HDF5 of the public code)",
    "or      *.parquet with {2} in their names",
)


def _audioset(title: str, splits: tuple[str, ...], words: str, size: str) -> Download:
    lists = ", ".join(f"{split}_segments.csv" for split in splits)
    packed = ", ".join(f"{split}_segments_mp3.hdf" for split in splits)
    layout = tuple(line.format(lists, packed, words) for line in _AUDIOSET)
    licence = "lists: CC BY 4.0; sounds: unknown, they belong to the people who published them on YouTube"
    return Download(title, f"{_LISTS}; {_COPY}", size, licence, layout)


def _scenes(title: str, record: int, *, size: str, licence: str, suffix: str) -> Download:
    source = (
        f"https://zenodo.org/record/{record}: all archives of the development set, unpacked into one folder"
    )
    return Download(title, source, size, licence, tuple(line.format(suffix) for line in _SCENES))


DOWNLOADS = {  # by the names of `layouts.LAYOUTS`, but for a user's own folder
    "audioset": _audioset(
        "AudioSet: 2,084,320 clips of ten seconds as listed, 527 classes",
        ("balanced_train", "unbalanced_train", "eval"),
        "bal, unbal and eval",
        "2.4 TB of the copy; of other forms unknown",
    ),
    "audioset20k": _audioset(
        "AudioSet-20K, its balanced and evaluation clips: 42,531 as listed, 527 classes",
        ("balanced_train", "eval"),
        "bal and eval",
        "50 GB of the copy; of other forms unknown",
    ),
    "esc50": Download(
        "ESC-50: 2000 clips of five seconds, 50 classes, five folds",
        "https://github.com/karolpiczak/ESC-50 (clone it, or unpack its archive)",
        "0.9 GB unpacked",
        "CC BY-NC 3.0",
        ("meta/esc50.csv", "audio/*.wav   (or audio_32k/*.wav, resampled)"),
    ),
    "openmic": Download(
        "OpenMIC-2018: 20,000 clips of ten seconds, 20 instruments",
        "https://zenodo.org/record/1432913 (openmic-2018-v1.0.0.tgz, unpack it)",
        "about 2.6 GB",
        "CC BY 4.0 as a collection; each clip has a Creative Commons licence of its own, some of them NC",
        (
            "openmic-2018-aggregated-labels.csv",
            "class-map.json",
            "partitions/split01_train.csv, partitions/split01_test.csv",
            "audio/<first three digits of the key>/<key>.ogg",
        ),
    ),
    "fsd50k": Download(
        "FSD50K: 51,197 clips up to 30 seconds (108 h), 200 classes",
        "https://zenodo.org/record/4060432 (join the parts: zip -s 0 FSD50K.dev_audio.zip --out dev.zip)",
        "about 25 GB",
        "CC0, CC BY, CC BY-NC and Sampling+ by clip",
        (
            "FSD50K.ground_truth/dev.csv, eval.csv, vocabulary.csv",
            "FSD50K.dev_audio/*.wav",
            "FSD50K.eval_audio/*.wav",
        ),
    ),
    "dcase2018": _scenes(
        "TUT Urban Acoustic Scenes 2018: ten scenes",
        1228142,
        size="unknown: see the page",
        licence="unknown: see the page",
        suffix="txt",
    ),
    "dcase2019": _scenes(
        "TAU Urban Acoustic Scenes 2019: ten scenes",
        2589280,
        size="about 35 GB",
        licence=_TAMPERE,
        suffix="csv",
    ),
    "dcase2020": _scenes(
        "TAU Urban Acoustic Scenes 2020 Mobile: ten scenes, several devices",
        3819968,
        size="27.4 GB",
        licence=_TAMPERE,
        suffix="csv",
    ),
    "speechcommands": Download(
        "Speech Commands v2: 105,829 words of a second, 35 classes",
        "http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz",
        "2.3 GB",
        "CC BY 4.0",
        (
            "validation_list.txt",
            "testing_list.txt",
            "yes/*.wav, no/*.wav ... (a folder for each of 35 words)",
        ),
    ),
}


def describe(name: str) -> str:
    """The download of a data set, for a help page."""
    download = DOWNLOADS[name]
    facts = {"source": download.source, "size": download.size, "licence": download.licence}
    lines = [f"    {word}: {text}" for word, text in facts.items()]
    tree = [f"    {line}" for line in download.layout]
    place = "Layout, in the folder of --source or one folder deeper:"
    return "\n".join([f"{download.title}.", *lines, "", place, *tree])
