"""Sounds of the built-in model: what it is pre-trained on, and which file teaches which class.

python benchmarks/sounds_tiny.py DATA OUT

DATA holds `esc10/`, `free/`, `fsdd/` and `gm/`; ESC-50 is not read. OUT gets `train.csv` (file, start, end,
labels, split, group) for `patchout train`, and `streams/`, 32 kHz, for `patchout pretrain`, without the split
test. Splits: test is fold 5 of ESC-10, takes 0-4 of the digits and half of the narrations; valid is half of
fold 4 and a sixth of the others, whole sources; train is the rest. Classes are read off the file names by
`RULES`; what no rule names is background, and what may hold a class that its name does not tell is left out.
`single.csv` has the first class of each alone, and nothing made.
Background is also made, in OUT/negatives: voices at another speed, and calls, insects, frogs, sirens, motors,
scrubbing and hiss from formulas; frogs and sirens are valid.
"""

import argparse
import csv
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr
from objectives import write_streams
from scipy.signal import butter, sosfilt
from unlabelled import digits_and_notes

SEGMENT_S, SEGMENTS = 10.0, 8  # a long recording gives so many stretches, spread over it
VALID_CLIPS = 5  # of a class: fewer choose no threshold
SPEECH = "speech"
UNCERTAIN = "?"
OTHER_VOICES = "!crying baby;!dog;!rooster;!sneezing;!clock tick;!helicopter;!chainsaw"  # and perhaps others
RATE, CLIP_S = 32_000, 5.0  # of the negatives
TIME_S = np.arange(round(RATE * CLIP_S)) / RATE
VOICES = ("crying baby", "dog", "rooster")
FAMILIES = {  # of negatives from formulas: split, clips
    "calls": ("train", 300),
    "insects": ("train", 50),
    "motors": ("train", 50),
    "scrubbing": ("train", 50),
    "hiss": ("train", 50),
    "frogs": ("valid", 30),
    "sirens": ("valid", 30),
}
NARRATION = r"harbour/.*voice"

RULES: tuple[tuple[str, str], ...] = (  # pattern of the file's name, classes; the first that fits
    (r"game2/.*dssaw", "chainsaw"),
    (r"words/", SPEECH),
    (r"cries/", "crying baby"),
    (r"instruments/.*Violin", "violin;music"),
    (r"instruments/.*Cello", "cello;music"),
    (r"instruments/.*Double_bass", "double bass;music"),
    (r"instruments/.*Flute", "flute;music"),
    (r"instruments/.*Clarinet", "clarinet;music"),
    (r"instruments/.*Saxophone", "saxophone;music"),
    (r"instruments/.*Acoustic_guitar|samples/.*_guit_", "guitar;music"),
    (r"instruments/.*Snare_drum|samples/.*(_sn_|snare)", "snare drum;drums;music"),
    (r"instruments/.*Bass_drum|samples/.*(_bd_|drum_bass|heavy_kick)", "bass drum;drums;music"),
    (r"instruments/.*Hi_hat|samples/.*(_hat_|cymbal|splash|_ride_)", "hi-hat or cymbal;drums;music"),
    (r"samples/.*(_drum_|tabla|tom|loop_(amen|breakbeat|compus|safari|mika))", "drums;music"),
    (r"samples/.*loop_(perc|electric|industrial|mehackit)", "drums;music"),
    (r"samples/.*(arovane|loop_(drone|garzul|weirdo))", "music"),
    (r"samples/.*(ambi_piano)", "piano;music"),
    (r"samples/.*(bell|chime|triangle|ping)|ships_bell|church_bells|_chapel|wind-chime", "bell"),
    (r"samples/.*(bass_|ambi_(choir|drone|haunted|lunar))", "music"),
    (r"samples/.*perc_door", "door"),
    (r"samples/.*cineboom", "explosion"),
    (NARRATION, SPEECH),
    (r"harbour/.*(audio_music|scenario_(win|lose)|new_era|new_settlement)", "music"),
    (r"harbour/.*sheepfield|ambience/.*(frogs|forestday)", OTHER_VOICES),
    (r"harbour/.*(lumberjack|tavern|main_square|warehouse|windmill|smith)", UNCERTAIN),
    (r"effects/.*(walk_.*water)", "footsteps;water"),
    (r"effects/.*plmove_walk|game/.*footstep", "footsteps"),
    (r"effects/.*(open|close)_(door|trunk|door_internal)|game/.*(doors_|door_|chest_|fencegate)", "door"),
    (r"game2/.*(dor|bd)(cls|opn)|game2/.*dsdb(cls|opn)", "door"),
    (
        r"effects/.*fire_gun_.*(rifle|handgun|machinegun|shotgun|generic)|game2/.*(pistol|shotgn|dshtgn)",
        "gunshot",
    ),
    (r"effects/.*explosion_|game/.*tnt_explode|game2/.*(barexp|rxplod|firxpl)", "explosion"),
    (r"effects/.*(thunderstorm)|ambience/.*thunderstorm", "thunder;rain"),
    (r"(effects|park)/.*thunder", "thunder"),
    (r"effects/.*(RAINSTORM|heavyrain|drizzle|night_rain|indoors_rain)|park/.*rain", "rain"),
    (r"effects/.*weather|effects/.*ambient|effects/.*humming", UNCERTAIN),
    (
        r"effects/.*(smash_.*glass|smash_smash_glass|success_window_window_smash)|game/.*break_glass",
        "glass breaking",
    ),
    (r"effects/.*smash_", "crash"),
    (r"effects/.*(inaudible_chatter|mumbling|ranbling|whisper)", SPEECH),
    (r"effects/.*(scream|hurt_|laugh)|park/.*(scream|crowd)|ambience/.*bar-crowd", OTHER_VOICES),
    (r"ambience/.*(waves-of-hawaii)", "sea waves"),
    (r"ambience/.*campfire|game/.*fire_(fire|large|small)|furnace_active", "crackling fire"),
    (r"ambience/.*(waterfall|fish-tank)|game/.*sounds_water|park/.*(flush|log_flume)", "water"),
    (r"ambience/.*(singing-bowl)", "bell"),
    (r"ambience/.*(choirs|ethereal)", "music"),
    (r"ambience/.*call-to-prayer", UNCERTAIN),
)
PROGRAMS = (  # General MIDI, from 0: what the notes of `gm/pitch` are played by
    (range(4), "piano;music"),
    (range(24, 26), "guitar;music"),
    (range(40, 41), "violin;music"),
    (range(42, 43), "cello;music"),
    (range(43, 44), "double bass;music"),
    (range(64, 68), "saxophone;music"),
    (range(71, 72), "clarinet;music"),
    (range(73, 74), "flute;music"),
    (range(112), "music"),
)


class Sound(NamedTuple):
    """A file, its classes ("": background), where it belongs, and the recording it is of."""

    path: Path
    label: str
    split: str
    group: str


def held_out(sounds: list[Sound]) -> list[Sound]:
    """The same, with whole groups of each class made valid until a sixth of its clips is; set splits stay."""
    totals = Counter(sound.label for sound in sounds)
    groups: dict[str, list[Sound]] = {}
    for sound in sounds:
        groups.setdefault(sound.group, []).append(sound)
    valid: Counter[str] = Counter()
    placed: list[Sound] = []
    for group in sorted(groups, key=lambda name: zlib.crc32(name.encode())):
        label, size = groups[group][0].label, len(groups[group])
        total = totals[label]
        wanted = max(total / 6, min(VALID_CLIPS, total / 3))
        is_valid = not groups[group][0].split and valid[label] + size // 2 < wanted and 3 * size <= total
        valid[label] += size * is_valid
        placed += [
            sound._replace(split=sound.split or ("valid" if is_valid else "train")) for sound in groups[group]
        ]
    return placed


def esc10(data: Path) -> Iterator[Sound]:
    """Folds 1-3 and half of the sources of fold 4 to train, the other half valid, fold 5 test."""
    rows = list(csv.DictReader((data / "esc10" / "esc10.csv").open()))
    halves: Counter[tuple[str, str]] = Counter()
    side: dict[str, str] = {}
    for row in sorted(rows, key=lambda row: row["filename"]):
        label, source = row["category"].replace("_", " "), row["filename"].split("-")[1]
        if row["fold"] == "4" and source not in side:
            side[source] = "valid" if halves[label, "valid"] < VALID_CLIPS else "train"
        split = {"4": side.get(source, ""), "5": "test"}.get(row["fold"], "train")
        halves[label, split] += row["fold"] == "4"
        yield Sound(next((data / "esc10").rglob(row["filename"])), label, split, f"esc10 {source}")


def free(data: Path) -> Iterator[Sound]:
    """The free sounds, by `RULES`."""
    words = cries = narrations = 0
    for path in sorted((data / "free").rglob("*.ogg")):
        name = path.relative_to(data / "free").as_posix()
        label = next((classes for pattern, classes in RULES if re.search(pattern, name)), "")
        words += name.startswith("words/")
        cries += name.startswith("cries/")
        if label == UNCERTAIN or (name.startswith("words/") and words % 7):
            continue
        if name.startswith("cries/") and cries % 6:  # of few telephones: more would teach the telephone
            continue
        is_narration = bool(re.search(NARRATION, name))
        narrations += is_narration
        group = re.sub(r"[._]?\d*(-[0-9a-f]{6})?\.ogg$", "", name)
        if name.startswith(("words/", "instruments/")):
            group = name
        if name.startswith("cries/"):  # a phone
            group = "-".join(name.split("hungry_")[-1].split("-")[:5])
        yield Sound(path, label, "test" if is_narration and narrations % 2 else "", group)


def digits(data: Path) -> Iterator[Sound]:
    """Spoken digits: takes 0-4 are the test, one speaker is valid."""
    for number, path in enumerate(sorted((data / "fsdd" / "recordings").glob("*.wav"))):
        _, speaker, take = path.stem.split("_")
        split = "test" if int(take) < 5 else "valid" if speaker == "theo" else "train"
        if split == "test" or number % 9 == 0:
            yield Sound(path, SPEECH, split, f"fsdd {speaker} {split}")


def rendered(data: Path) -> Iterator[Sound]:
    """Notes and piano pieces."""
    for number, row in enumerate(csv.DictReader((data / "gm" / "pitch.csv").open())):
        program = int(row["gm_program"])
        label = next((classes for programs, classes in PROGRAMS if program in programs), "")
        if number % 5 == 0:
            yield Sound(data / "gm" / "pitch" / row["file"], label, "", f"gm {program}")
    for name in json.loads((data / "gm" / "piano.json").read_text()):
        yield Sound(data / "gm" / "piano" / name, "piano;music", "", name)


def faster(wave: np.ndarray, factor: float) -> np.ndarray:
    """As played faster: a baby is no baby then, nor a dog a dog."""
    return soxr.resample(wave, RATE * factor, RATE).astype(np.float32)[: round(CLIP_S * RATE)]


def band(rng: np.random.Generator, low_hz: float, high_hz: float) -> np.ndarray:
    """Noise between two frequencies."""
    sections = butter(2, (low_hz, high_hz), "bandpass", fs=RATE, output="sos")
    return sosfilt(sections, rng.standard_normal(len(TIME_S)))


def smooth(rng: np.random.Generator, knots_per_s: float) -> np.ndarray:
    """A curve between -1 and 1 through random knots."""
    knots = rng.uniform(-1, 1, max(2, round(knots_per_s * CLIP_S)))
    return np.interp(TIME_S, np.linspace(0, CLIP_S, len(knots)), knots)


def harmonics(rng: np.random.Generator, pitch_hz: np.ndarray) -> np.ndarray:
    """A sound of this pitch, with partials of a random slope."""
    phase, tilt = 2 * np.pi * np.cumsum(pitch_hz) / RATE, rng.uniform(0.5, 2.5)
    partials = range(1, 1 + min(int(rng.integers(1, 12)), int(0.45 * RATE / pitch_hz.max())))
    return sum(np.sin(n * phase + rng.uniform(0, 6)) / n**tilt for n in partials)


def pulses(rng: np.random.Generator, per_s: float, share: float) -> np.ndarray:
    """An envelope that is open for this share of each period, with soft edges; a little irregular."""
    place = np.cumsum(per_s * (1 + 0.2 * smooth(rng, 2)) / RATE) % 1
    return np.clip(np.minimum(place, share - place) / (0.2 * share), 0, 1)


def synthetic(family: str, rng: np.random.Generator) -> np.ndarray:
    """Five seconds of a family of sounds that the model has no name for."""
    if family == "calls":
        pitch_hz = 10 ** rng.uniform(2.2, 3.6) * 2 ** (
            rng.uniform(0.1, 1.2) * smooth(rng, rng.uniform(2, 20))
        )
        wave = harmonics(rng, pitch_hz) * pulses(rng, rng.uniform(0.3, 5), rng.uniform(0.2, 0.8))
    elif family == "insects":
        wave = harmonics(rng, rng.uniform(2000, 7500) * (1 + 0.01 * smooth(rng, 9)))
        wave *= pulses(rng, rng.uniform(15, 90), 0.5) * pulses(rng, rng.uniform(0.5, 6), rng.uniform(0.3, 1))
    elif family == "frogs":
        wave = harmonics(rng, rng.uniform(250, 1500) * (1 + 0.1 * smooth(rng, 8)))
        wave *= pulses(rng, rng.uniform(20, 70), 0.6) * pulses(rng, rng.uniform(0.4, 3), 0.5)
    elif family == "sirens":
        swing = np.sin(2 * np.pi * rng.uniform(0.15, 3) * TIME_S)
        wave = harmonics(rng, rng.uniform(500, 1500) * 2 ** (rng.uniform(0.2, 0.8) * swing))
    elif family == "motors":
        wave = harmonics(rng, rng.uniform(25, 250) * (1 + 0.05 * smooth(rng, 4)))
        wave += rng.uniform(0.1, 2) * band(rng, 100, rng.uniform(500, 9000))
    elif family == "scrubbing":
        low_hz = rng.uniform(300, 4000)
        wave = band(rng, low_hz, low_hz * rng.uniform(1.5, 3)) * pulses(rng, rng.uniform(1.5, 8), 0.7)
    else:  # hiss
        low_hz = rng.uniform(30, 3000)
        wave = band(rng, low_hz, low_hz * rng.uniform(1.3, 4)) * (1 + 0.5 * smooth(rng, 1))
    wave = 10 ** rng.uniform(-1.6, -0.2) * wave / np.abs(wave).max()
    return (wave + 10 ** rng.uniform(-4, -2) * rng.standard_normal(len(wave))).astype(np.float32)


def negatives(sounds: Sequence[Sound], out: Path) -> Iterator[Sound]:
    """Background that is made: voices at another speed, in the split of the voice, and `FAMILIES`."""
    out.mkdir(parents=True, exist_ok=True)
    voices = [sound for sound in sounds if sound.label in VOICES and sound.split != "test"]
    for number, (sound, factor) in enumerate(product(voices, (0.5, 1.9))):
        wave, rate = soundfile.read(sound.path, dtype="float32", always_2d=True)
        rng = np.random.default_rng([zlib.crc32(b"speed"), number])
        wave = faster(soxr.resample(wave.mean(axis=1), rate, RATE), factor * rng.uniform(0.85, 1.2))
        path = out / f"speed-{number:03}.flac"
        soundfile.write(path, np.clip(wave, -1, 1), RATE)
        yield Sound(path, "", sound.split, sound.group)
    for family, (split, count) in FAMILIES.items():
        for number in range(count):
            path = out / f"{family}-{number:03}.flac"
            rng = np.random.default_rng([zlib.crc32(family.encode()), number])
            soundfile.write(path, np.clip(synthetic(family, rng), -1, 1), RATE)
            yield Sound(path, "", split, family)


def stretches(path: Path) -> list[tuple[float, float]]:
    """Start and end (s) of the stretches of a recording: all of a short one."""
    seconds = soundfile.info(path).duration
    if seconds <= 1.5 * SEGMENT_S:
        return [(0.0, seconds)]
    count = min(SEGMENTS, int(seconds / SEGMENT_S))
    step = (seconds - SEGMENT_S) / max(1, count - 1)
    return [(round(i * step, 2), round(i * step + SEGMENT_S, 2)) for i in range(count)]


def unlabelled(data: Path) -> Iterator[tuple[str, list[Path]]]:
    """Name and files of each group of sounds to pre-train on."""
    for folder in sorted(path for path in (data / "free").iterdir() if path.is_dir()):
        yield f"free_{folder.name}", sorted(path for path in folder.rglob("*.ogg"))
    yield from digits_and_notes(data).items()
    pieces = json.loads((data / "gm" / "piano.json").read_text())
    yield "piano", [data / "gm" / "piano" / name for name in pieces if pieces[name]["split"] == "train"]
    yield "esc10", [sound.path for sound in esc10(data) if sound.split != "test"]


def main() -> None:
    """Write both and print how many clips each class has."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    write_streams(unlabelled(args.data), args.out / "streams", 32_000)
    counts: Counter[tuple[str, str]] = Counter()
    with (args.out / "train.csv").open("w", newline="") as file, (args.out / "single.csv").open("w") as one:
        rows, singles = csv.writer(file), csv.writer(one)
        rows.writerow(("file", "start", "end", "labels", "split", "group"))
        singles.writerow(("file", "start", "end", "label", "split", "group"))
        sounds = held_out([sound for read in (esc10, free, digits, rendered) for sound in read(args.data)])
        for sound in (*sounds, *negatives(sounds, args.out / "negatives")):
            label = sound.label or "background"
            for start, end in stretches(sound.path):
                about = (sound.path.resolve(), start, end, label, sound.split, sound.group)
                rows.writerow(about)
                if sound in sounds and not label.startswith("!"):
                    singles.writerow((*about[:3], label.split(";")[0], *about[4:]))
                counts.update((name, sound.split) for name in label.split(";"))
    for name in sorted({name for name, _ in counts}):
        print(
            f"{name:20}"
            + "".join(f"{split} {counts[name, split]:5}  " for split in ("train", "valid", "test"))
        )


if __name__ == "__main__":
    main()
