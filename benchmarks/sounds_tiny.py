"""Sounds of the built-in model: what it is pre-trained on, and which file teaches which class.

python benchmarks/sounds_tiny.py DATA OUT

DATA holds `esc10/`, `free/`, `fsdd/` and `gm/`; ESC-50 is not read. OUT gets `train.csv` (file, start, end,
labels, split, group) for `patchout train`, and `streams/`, 32 kHz, for `patchout pretrain`, without the split
test. Splits: test is fold 5 of ESC-10, the takes 0-4 of the digits and half of the narrations; valid is half of
fold 4 and a sixth of the others, whole sources; train is the rest. Classes are read off the file names by `RULES`; what no rule
names is background, and what may hold a class that its name does not tell is left out.
"""

import argparse
import csv
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import soundfile
from objectives import write_streams
from unlabelled import digits_and_notes

SEGMENT_S, SEGMENTS = 10.0, 8  # a long recording gives so many stretches, spread over it
VALID_CLIPS = 5  # of a class: fewer choose no threshold
SPEECH = "speech"
UNCERTAIN = "?"
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
    (r"harbour/.*(lumberjack|tavern|main_square|warehouse|sheepfield|windmill|smith)", UNCERTAIN),
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
    (r"effects/.*(scream|hurt_|laugh)|park/.*(scream|crowd)|ambience/.*bar-crowd", UNCERTAIN),
    (r"ambience/.*(waves-of-hawaii)", "sea waves"),
    (r"ambience/.*campfire|game/.*fire_(fire|large|small)|furnace_active", "crackling fire"),
    (r"ambience/.*(waterfall|fish-tank)|game/.*sounds_water|park/.*(flush|log_flume)", "water"),
    (r"ambience/.*(singing-bowl)", "bell"),
    (r"ambience/.*(choirs|ethereal)", "music"),
    (r"ambience/.*(call-to-prayer|frogs|forestday)", UNCERTAIN),
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
    with (args.out / "train.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("file", "start", "end", "labels", "split", "group"))
        for sound in held_out(
            [sound for read in (esc10, free, digits, rendered) for sound in read(args.data)]
        ):
            label = sound.label or "background"
            for start, end in stretches(sound.path):
                rows.writerow((sound.path.resolve(), start, end, label, sound.split, sound.group))
                counts.update((name, sound.split) for name in label.split(";"))
    for name in sorted({name for name, _ in counts}):
        print(
            f"{name:20}"
            + "".join(f"{split} {counts[name, split]:5}  " for split in ("train", "valid", "test"))
        )


if __name__ == "__main__":
    main()
