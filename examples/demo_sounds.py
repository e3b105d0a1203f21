"""Write synthetic demo sounds: made by formulas, none of them is a recording.

    python examples/demo_sounds.py OUT_DIR

Writes nine sounds of 5 s and `synthetic-street.wav` (20 s, seven sounds one after the other), all mono, 32
kHz, 16 bit, the same on each run. `synthetic-siren` is in none of the classes of the built-in model. Each
sound is a function `name(seconds, rate, rng)` that returns float samples of shape (seconds * rate,) within
-1..1.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

Wave = npt.NDArray[np.float64]
RATE = 32000


def clock_tick(seconds: float, rate: int, rng: np.random.Generator) -> Wave:
    """Tick and tock: two damped clicks a second over a very quiet room."""
    wave = 0.03 * _noise(seconds, rate, rng, slope_db=-6)
    wave += _strikes(
        np.arange(0.2, seconds, 1), 1, len(wave), rate, (620, 12, 2900, 9, 4700, 7, 7900, 4, 5600, 0.2)
    )
    wave += _strikes(
        np.arange(0.7, seconds, 1), 1, len(wave), rate, (540, 12, 2500, 9, 4100, 7, 6800, 4, 5100, 0.2)
    )
    return _peak(wave, 0.3)


def rain(seconds: float, rate: int, rng: np.random.Generator) -> Wave:
    """A steady bright hiss of far drops, with thousands of near ones that ring for a few milliseconds."""
    wave = _noise(seconds, rate, rng, slope_db=-4, low_hz=60)
    drops_s = rng.uniform(0, seconds, int(600 * seconds))
    drops = _strikes(
        drops_s, rng.exponential(1.0, len(drops_s)), len(wave), rate, (2300, 0.3, 5200, 0.2, 9500, 0.1)
    )
    return _peak(wave + drops, 0.6)


def siren(seconds: float, rate: int, rng: np.random.Generator) -> Wave:
    """A siren-like sweep between 600 and 1400 Hz, once in three seconds."""
    pitch_hz = 1000 - 400 * np.cos(2 * np.pi * np.arange(round(seconds * rate)) / (3 * rate))
    voice = _voice(pitch_hz, rate, lambda hz: (600 / hz) ** 1.2)
    return _peak(voice + 0.02 * _noise(seconds, rate, rng, slope_db=-6), 0.7)


def chainsaw(seconds: float, rate: int, rng: np.random.Generator) -> Wave:
    """A revving two-stroke engine: a sawtooth of 80 to 120 Hz with overtones up to 8 kHz,
    and a rattling chain.
    """
    time_s = np.arange(round(seconds * rate)) / rate
    rev = 1 / (1 + np.exp(-12 * np.sin(2 * np.pi * (time_s / 2.6 - 0.1))))
    pitch_hz = 82 + 36 * rev + 1.5 * _noise(seconds, rate, rng, slope_db=-12, low_hz=3)
    engine = _voice(pitch_hz, rate, lambda hz: 100 / hz * (1 + 4 * np.exp(-(((hz - 2500) / 2000) ** 2))))
    chain = (0.3 + 0.2 * np.sin(2 * np.pi * np.cumsum(pitch_hz) / rate)) * _noise(
        seconds, rate, rng, low_hz=800
    )
    return _peak((0.3 + 0.7 * rev) * (engine + chain), 0.9)


def crackling_fire(seconds: float, rate: int, rng: np.random.Generator) -> Wave:
    """Random crackles of very different strength, some in bursts, over a low rumble."""
    wave = 0.4 * _noise(seconds, rate, rng, slope_db=-9) + 0.06 * _noise(seconds, rate, rng)
    bursts_s = np.repeat(rng.uniform(0, seconds, int(4 * seconds)), 5)
    pops_s = np.append(
        rng.uniform(0, seconds, int(6 * seconds)), bursts_s + rng.exponential(0.04, len(bursts_s))
    )
    strength = np.minimum(rng.pareto(1.6, len(pops_s)), 12)
    wave += _strikes(pops_s, strength, len(wave), rate, (900, 1, 2600, 0.5, 6100, 0.2, 10500, 0.15))
    return _peak(wave, 0.8)


def rooster(seconds: float, rate: int, rng: np.random.Generator) -> Wave:
    """A rooster-like call of four syllables, the last one long and falling, once in four seconds."""
    time_s = np.arange(round(seconds * rate)) / rate % 4
    pitch_hz = np.interp(
        time_s, [0.3, 0.5, 0.7, 0.95, 1.05, 1.3, 1.5, 2.3], [480, 620, 640, 700, 760, 940, 880, 560]
    )
    edges_s = [0.3, 0.34, 0.46, 0.5, 0.58, 0.62, 0.72, 0.76, 0.8, 0.85, 1.2, 1.24, 1.26, 1.4, 2.0, 2.3]
    loudness = np.interp(time_s, edges_s, [0, 0.6, 0.6, 0, 0, 0.7, 0.7, 0, 0, 0.9, 0.9, 0.3, 0.3, 1, 0.8, 0])
    call = _voice(pitch_hz, rate, lambda hz: np.exp(-(((hz - 2000) / 1500) ** 2)) + 0.15 * np.exp(-hz / 4000))
    call *= loudness * (1 + 0.6 * _noise(seconds, rate, rng, slope_db=-6))
    return _peak(call + 0.004 * _noise(seconds, rate, rng, slope_db=-4), 0.8)


def bell(seconds: float, rate: int, rng: np.random.Generator) -> Wave:
    """A church bell, struck every 1.6 s: hum, prime, tierce, quint, nominal, and what rings above."""
    partials = (220, 900, 440, 800, 523, 600, 660, 500, 880, 400, 1100, 300, 1320, 250, 1760, 180, 2350, 120)
    wave = _strikes(np.arange(0.3, seconds, 1.6), 1, round(seconds * rate), rate, partials)
    return _peak(wave + 0.002 * _noise(seconds, rate, rng, slope_db=-6), 0.7)


def piano(seconds: float, rate: int, rng: np.random.Generator) -> Wave:
    """A chord of C and one of G, broken, on strings whose overtones are a little sharp."""
    wave, number = 0.001 * _noise(seconds, rate, rng, slope_db=-6), np.arange(1, 9)
    keys = (60, 64, 67, 72, 67, 64, 60, 55, 59, 62, 67, 62)
    for index, start_s in enumerate(np.arange(0.05, seconds, 0.45)):
        pitch_hz = 440 * 2 ** ((keys[index % len(keys)] - 69) / 12)
        mode_hz, decay_ms = number * pitch_hz * np.sqrt(1 + 4e-4 * number**2), 1000 / (1.2 + 0.5 * number)
        for mode, decay, strength in zip(mode_hz, decay_ms, 0.7**number, strict=True):
            wave += _strikes(np.array([start_s]), strength, len(wave), rate, (mode, decay))
    return _peak(wave, 0.6)


def drums(seconds: float, rate: int, rng: np.random.Generator) -> Wave:
    """Bass drum and snare, two beats a second."""
    wave = 0.001 * _noise(seconds, rate, rng, slope_db=-6)
    for beat, start_s in enumerate(np.arange(0.1, seconds, 0.5)):
        start = round(start_s * rate)
        time_s = np.arange(min(round(0.3 * rate), len(wave) - start)) / rate
        if beat % 2 == 0:
            hit = np.exp(-12 * time_s) * np.sin(2 * np.pi * (50 * time_s + 2 * (1 - np.exp(-30 * time_s))))
        else:
            hit = 0.6 * np.exp(-18 * time_s) * rng.standard_normal(len(time_s))
            hit += 0.36 * np.exp(-20 * time_s) * np.sin(2 * np.pi * 190 * time_s)
        wave[start : start + len(hit)] += hit
    return _peak(wave, 0.8)


def street(seconds: float, rate: int, rng: np.random.Generator) -> Wave:
    """Seven of the other sounds one after the other, with short pauses,
    at different levels, over a faint hum.
    """
    sounds = (bell, rooster, piano, clock_tick, siren, crackling_fire, drums)
    wave = 0.002 * _noise(seconds, rate, rng, slope_db=-6)
    slot = len(wave) // len(sounds)
    for index, (sound, level) in enumerate(zip(sounds, (0.8, 0.9, 0.8, 2.0, 0.4, 0.8, 0.9), strict=True)):
        part = level * sound(0.84 * slot / rate, rate, rng)
        fade = np.minimum(1, np.bartlett(len(part)) * len(part) / (0.1 * rate))
        start = index * slot + slot // 12
        wave[start : start + len(part)] += fade * part
    return np.clip(wave, -1, 1)


def _peak(wave: Wave, peak: float) -> Wave:
    return wave * (peak / np.abs(wave).max())


def _noise(
    seconds: float, rate: int, rng: np.random.Generator, *, slope_db: float = -2, low_hz: float = 40
) -> Wave:
    """Noise of unit power from `low_hz` to 14 kHz, whose level changes by `slope_db` an octave."""
    samples = round(seconds * rate)
    hz = np.maximum(np.fft.rfftfreq(samples, 1 / rate), 1)
    gain = (hz / 1000) ** (slope_db / 6.02) / np.sqrt((1 + (low_hz / hz) ** 6) * (1 + (hz / 14000) ** 12))
    wave = np.fft.irfft(np.fft.rfft(rng.standard_normal(samples)) * gain, samples)
    return wave / wave.std()


def _strikes(
    starts_s: Wave, strength: Wave | float, samples: int, rate: int, modes: tuple[float, ...]
) -> Wave:
    """Damped sines struck at each start; `modes` is frequency in Hz, decay in ms, and so on in pairs."""
    hits = np.zeros(2 * samples)  # the second half takes what starts too late, so that nothing wraps around
    np.add.at(hits, np.minimum((starts_s * rate).astype(int), samples), strength)
    time_ms = np.arange(samples) * 1000 / rate
    ring = np.zeros(samples)
    for mode_hz, decay_ms in zip(modes[::2], modes[1::2], strict=True):
        ring += np.sin(2 * np.pi * mode_hz / 1000 * time_ms) * np.exp(-time_ms / decay_ms)
    return np.fft.irfft(np.fft.rfft(hits) * np.fft.rfft(ring, 2 * samples))[:samples]


def _voice(pitch_hz: Wave, rate: int, loudness: Callable[[Wave], Wave]) -> Wave:
    """Harmonics of a moving pitch up to 8 kHz, each as loud as `loudness` says for its frequency."""
    phase = 2 * np.pi * np.cumsum(pitch_hz) / rate
    wave = np.zeros(len(phase))
    for k in range(1, int(8000 / pitch_hz.min()) + 1):
        wave += np.sin(k * phase) * loudness(k * pitch_hz) * (k * pitch_hz < 8000)
    return wave


SOUNDS = (clock_tick, rain, siren, chainsaw, crackling_fire, rooster, bell, piano, drums, street)


def main() -> None:
    """Write every sound into the folder given on the command line."""
    parser = argparse.ArgumentParser(
        description="Write synthetic demo sounds, made by formulas, as WAV files."
    )
    parser.add_argument("out_dir", type=Path, help="folder for the files; made if missing")
    out_dir = parser.parse_args().out_dir
    out_dir.mkdir(parents=True, exist_ok=True)
    for index, sound in enumerate(SOUNDS):
        path = out_dir / f"synthetic-{sound.__name__.replace('_', '-')}.wav"
        wave = sound(20.0 if sound is street else 5.0, RATE, np.random.default_rng([2110, index]))
        soundfile.write(path, wave, RATE, subtype="PCM_16")
        print(path)


if __name__ == "__main__":
    main()
