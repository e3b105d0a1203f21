"""Which kernels and precision a CPU takes, by timings that are made up here."""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from patchout.bench import measure as bench
from patchout.models import autotune, kernels
from patchout.models.autotune import Cases, Seconds
from patchout.models.device import pick_precision

CPU = torch.device("cpu")
XEON = {  # has AVX-512's bfloat16, and is slower with it
    "product/torch": 10.0,
    "product/onednn": 10.2,
    "product/bf16": 17.5,
    "product/int8": 4.0,
    "attention fp32/fused": 3.0,
    "attention bf16/fused": 3.0,
    "attention bf16/headwise": 4.0,
    "attention gradients bf16/fused": 12.0,
    "attention gradients bf16/headwise": 13.0,
}
EPYC = XEON | {
    "product/onednn": 5.0,
    "product/bf16": 2.5,
    "attention bf16/headwise": 1.5,
    "attention gradients bf16/headwise": 5.0,
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder, and a process that has not chosen."""
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv(kernels.UNMEASURED)
    monkeypatch.setattr(kernels, "has_onednn", lambda: True)
    kernels.chosen.cache_clear()
    yield tmp_path / "patchout" / "kernels.json"
    kernels.chosen.cache_clear()


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[Seconds]:
    """What the next measurements give; more of them fail."""
    results: list[Seconds] = []
    monkeypatch.setattr(autotune, "measure", lambda cases: results.pop(0))
    return results


def choose_again() -> kernels.Kernels:
    """The choice of a new process."""
    kernels.chosen.cache_clear()
    return kernels.chosen()


# -- the choice ----------------------------------------------------------------------------------------------


def test_bf16_that_is_slower_is_not_taken(timed: list[Seconds]) -> None:
    timed.append(XEON)
    assert pick_precision("auto", CPU) == "fp32"
    assert kernels.chosen()[:3] == (False, False, False)
    assert kernels.chosen().bf16_speed == pytest.approx(33 / 55.5)
    assert kernels.chosen().int8_speed == pytest.approx(33 / 15)
    assert not kernels.chosen().bf16_attention
    assert bench.auto(CPU) == "fp32, bf16 has 0.59 x its speed on this processor (measured)"


def test_bf16_and_kernels_that_are_faster_are_taken(timed: list[Seconds]) -> None:
    timed.append(EPYC)
    assert pick_precision("auto", CPU) == "bf16"
    assert kernels.chosen()[:4] == (True, True, True, True)
    assert kernels.chosen().int8_speed == pytest.approx(18 / 13.5)
    assert bench.auto(CPU) == "bf16, 2.00 x fp32 on this processor (measured)"


@pytest.mark.parametrize(
    "name", ["product/onednn", "attention bf16/headwise", "attention gradients bf16/headwise"]
)
def test_a_tie_goes_to_torchs_own_kernel_and_to_fp32(name: str) -> None:
    even = dict.fromkeys(XEON, 1.0)
    assert kernels.choose(even) == (False, False, False, False, 1.0, 1.0)
    assert sum(kernels.choose(even | {name: 0.96})[:3]) == 0
    assert sum(kernels.choose(even | {name: 0.94})[:3]) == 1
    assert not kernels.choose(even | {"product/bf16": 0.96}).prefers_bf16
    assert kernels.choose(even | {"product/bf16": 0.9}).prefers_bf16


def test_a_torch_without_onednn_uses_its_own_products() -> None:
    assert not kernels.choose(
        {name: seconds for name, seconds in EPYC.items() if "onednn" not in name}
    ).onednn


def test_where_nothing_is_measured_every_machine_takes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kernels.UNMEASURED, "1")
    monkeypatch.setattr(autotune, "measured", lambda *_: pytest.fail("measured"))
    assert kernels.chosen() == (True, True, True, True, 1.0, 1.0)
    assert pick_precision("auto", CPU) == "fp32"


# -- the cache -----------------------------------------------------------------------------------------------


def test_a_machine_is_measured_once(timed: list[Seconds], cache: Path) -> None:
    timed.append(EPYC)
    first = choose_again()
    assert choose_again() == first
    assert json.loads(cache.read_text()) == {autotune.describe(): EPYC}
    assert [path.name for path in cache.parent.glob("*.json")] == ["kernels.json"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"HERE": 3}',
        '{"HERE": {"product/torch": 1.0}}',
        json.dumps({"HERE": XEON | {"product/bf16": -1.0}}),
        json.dumps({"HERE": XEON | {"product/bf16": "fast"}}),
        json.dumps({"another processor": XEON}),
    ],
)
def test_a_damaged_or_foreign_cache_is_measured_again(
    content: str, timed: list[Seconds], cache: Path
) -> None:
    cache.parent.mkdir()
    cache.write_text(content.replace("HERE", autotune.describe()))
    timed.append(EPYC)
    assert choose_again().onednn
    assert choose_again().onednn
    assert json.loads(cache.read_text())[autotune.describe()] == EPYC


@pytest.mark.parametrize("change", ["torch", "processor"])
def test_another_torch_or_processor_is_measured_for_itself(
    change: str, timed: list[Seconds], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed += [EPYC, XEON]
    assert choose_again().onednn
    with monkeypatch.context() as other:
        if change == "torch":
            other.setattr(torch, "__version__", "9.9.9")
        else:
            other.setattr(autotune, "processor", lambda: "Z80")
        assert not choose_again().onednn
    assert choose_again().onednn
    assert len(json.loads(cache.read_text())) == 2


def test_a_cache_that_cannot_be_written_is_done_without(timed: list[Seconds], cache: Path) -> None:
    cache.parent.write_text("a file where the folder should be")
    timed += [EPYC, XEON]
    assert choose_again().onednn
    assert not choose_again().onednn


def test_processes_that_start_together_measure_once(
    timed: list[Seconds], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one waits for its turn, the other has measured."""
    stored = autotune._stored

    def late(path: Path, machine: str, names: list[str]) -> Seconds | None:
        seconds = stored(path, machine, names)
        cache.parent.mkdir(exist_ok=True)
        cache.write_text(json.dumps({machine: EPYC}))
        return seconds

    monkeypatch.setattr(autotune, "_stored", late)
    assert choose_again().onednn
    assert timed == []


# -- measuring -----------------------------------------------------------------------------------------------


def clock(costs: Callable[[str, int], float], monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Cases]:
    """Cases that take so many seconds by name and tokens, on a clock of their own."""
    now = [0.0]
    monkeypatch.setattr(time, "thread_time", lambda: now[0])

    def case(name: str, tokens: int) -> Callable[[], None]:
        return lambda: now.__setitem__(0, now[0] + costs(name, tokens))

    return lambda tokens: {
        name: case(name, tokens) for name in ("product/torch", "product/bf16", "attention/fused")
    }


def test_measuring_takes_less_than_half_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def costs(name: str, tokens: int) -> float:
        calls.append(tokens)
        return 2e-4 * tokens

    seconds = autotune.measure(clock(costs, monkeypatch))
    assert set(seconds) == {"product/torch", "product/bf16", "attention/fused"}
    assert sum(2e-4 * tokens for tokens in calls) < 0.5
    assert seconds["product/torch"] == pytest.approx(2e-4 * max(calls))


def test_a_hopeless_kernel_does_not_slow_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, int]] = []

    def costs(name: str, tokens: int) -> float:
        calls.append((name, tokens))
        return tokens * (1e-2 if name == "product/bf16" else 1e-5)

    seconds = autotune.measure(clock(costs, monkeypatch))
    assert seconds["product/bf16"] == pytest.approx(1000 * seconds["product/torch"])
    assert max(tokens for name, tokens in calls if name == "product/bf16") == autotune.FEW


def test_the_real_cases_run_and_leave_the_caller_alone() -> None:
    """Autocast, inference mode, threads, torch's own random numbers: not touched, not felt."""
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
        seen = autotune.measure(lambda tokens: kernels._cases(1))
    assert set(seen) == set(XEON)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == threads


def test_rivals_compute_the_same() -> None:
    computed = {name: call() for name, call in kernels._cases(3).items()}
    for name, rival in (("product/onednn", "product/torch"), ("product/bf16", "product/torch")):
        torch.testing.assert_close(computed[name], computed[rival], atol=0, rtol=0.02, check_dtype=False)
    exact = computed["attention fp32/fused"]
    for kernel in ("fused", "headwise"):
        out = computed[f"attention bf16/{kernel}"]
        assert isinstance(out, torch.Tensor)
        torch.testing.assert_close(out.view(1, 3, 12, 64).float(), exact, atol=0.02, rtol=0.02)
    fused, headwise = (computed[f"attention gradients bf16/{kernel}"] for kernel in ("fused", "headwise"))
    assert isinstance(fused, tuple)
    assert isinstance(headwise, tuple)
    for theirs, ours in zip(fused, headwise, strict=True):
        torch.testing.assert_close(ours, theirs.view_as(ours), atol=0.02, rtol=0.02)


def test_the_processor_has_a_name() -> None:
    assert autotune.processor() in autotune.describe()
    assert autotune.processor()
