"""The speed table: what is counted is right, and the command measures, prints and writes it."""

import json
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import tiny_config
from matplotlib.image import imread
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from patchout.bench import cnn14
from patchout.bench import measure as bench
from patchout.bench import tables as bench_tables
from patchout.bench.cnn14 import Cnn14
from patchout.bench.figure import Circle, speed_and_score
from patchout.bench.rows import (
    CITED,
    CITED_ONLY,
    MEASURED,
    ROWS,
    TABLES,
    VARIANTS,
    Cited,
    TableName,
    checked,
    passt_gflop,
)
from patchout.checkpoint.labels import label_names
from patchout.cli import main as cli
from patchout.models import kernels
from patchout.models.passt import Passt, PasstConfig
from patchout.models.patches import Patchout
from patchout.training import plan

CPU = torch.device("cpu")
BASE = PasstConfig(labels=label_names("audioset"))
TINY = tiny_config(width=16, depth=3, heads=1)


def settings(**changes: object) -> bench.Settings:
    values: dict[str, object] = {
        "device": CPU,
        "precision": "fp32",
        "batch": 1,
        "seconds": 0.001,
        "base": TINY,
    }
    return bench.Settings(**(values | changes))  # type: ignore[arg-type]


def test_the_encoder_is_compiled_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(bench, "compile_transformer", compiled.append)
    bench.measure("S", settings(), 1e12)
    assert compiled == []
    bench.measure("S", settings(compile=True), 1e12)
    assert [type(model) for model in compiled] == [Passt]


# -- the rows ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "tokens"), [(name, row.tokens) for name, row in CITED.items() if row.tokens]
)
def test_sequences_are_as_long_as_published(name: str, tokens: int) -> None:
    """The papers count C and D, but for the finer hops."""
    ours, _ = bench.make(name, tiny_config(width=16, depth=3, heads=1)).tokens
    assert ours == tokens + (2 if name.startswith(("hop160", "hop100")) else 0)


def test_variants_are_what_the_paper_changed() -> None:
    assert VARIANTS["S-L"].config(BASE).depth == 7
    assert VARIANTS["AST"].config(BASE).positions == "grid"
    assert (VARIANTS["S-N"].config(BASE).rows, VARIANTS["S-N"].config(BASE).columns) == (8, 62)
    assert VARIANTS["hop100"].config(BASE).columns == 319
    assert VARIANTS["S16"].drop == Patchout(freq=1, time=20)


def test_an_unknown_row_is_refused() -> None:
    assert checked(()) == tuple(CITED)
    with pytest.raises(ValueError, match=r"no row S-M: there are B, U, S, S-L"):
        checked(("S", "S-M"))


def test_fine_tuning_has_the_clips_and_the_patchout_of_its_recipe() -> None:
    tokens = {name: bench.make(name, TINY).tokens for name in ("esc50-b", "esc50-s", "esc50-s-n", "fsd50k-s")}
    plain, half = 2 + 12 * 49, 2 + 8 * 31  # of five seconds
    assert tokens["esc50-b"] == (plain, plain)
    assert tokens["esc50-s"] == (2 + 273, plain)
    assert tokens["esc50-s-n"] == (2 + 126, half)
    assert tokens["fsd50k-s"][1] == 2 + 12 * 99
    assert MEASURED["openmic-s-l"].config(BASE).depth == 7


# -- whole tables --------------------------------------------------------------------------------------------


def made_up(name: str) -> bench.Row:
    """As if this machine were the paper's and twice as fast as its own base."""
    cited = ROWS[name]
    speed = 10.0 * (cited.speed_up or 1.0)
    got = bench.Measured(7, 9, 1, 1.0, 1.0, speed, 6.0, 0.125, None, 0.5)
    return bench.Row(name, None if name in CITED_ONLY else got, cited)


def cells_of(name: TableName) -> dict[str, list[str]]:
    """The cells of every line by its first one."""
    lines = bench_tables.table(name, [made_up(row) for row in TABLES[name]]).splitlines()
    split = [
        [cell for part in line.split(" | ") for cell in part.strip().split("  ") if cell] for line in lines
    ]
    return {cells[0]: [cell.strip() for cell in cells[1:]] for cells in split}


def test_table_1_is_whole() -> None:
    lines = cells_of("1")
    assert [name for name in lines if name in bench_tables.LABELS.values()] == list(
        bench_tables.LABELS.values()
    )
    assert lines["Baseline (AudioSet paper)"] == ["0.314", *"--------"]
    assert lines["AST"] == ["0.459", "-", "23.1", "-", "1", "-", "2.33", "-", "1212"]
    assert lines["RF-CNN, authors' run"] == ["0.438", "-", "126.3", "-", "5.5", "-", "0.213", "-", "-"]
    assert lines["PaSST-S-N"] == ["0.466", "80.00", "184.2", "8.0", "8", "0.125", "0.202", "7", "254"]


def test_table_2_has_every_task_with_its_own_speed_up() -> None:
    lines = cells_of("2")
    assert lines["best before"] == ["0.831", "-", "-", "95.6", "-", "-", "73.7", "-", "-", "0.558", "-", "-"]
    assert lines["PaSST-S-N"] == [
        "0.840",
        "8.0",
        "8",
        "96.4",
        "4.0",
        "4",
        "73.9",
        "8.0",
        "8",
        "0.637",
        "8.0",
        "8",
    ]


def test_the_hear_table_has_the_gain_of_patchout_at_every_hop() -> None:
    lines = cells_of("hear")
    assert lines["5 ms"][4:] == ["9.2", "9.2", "6.00", "18.9", "0.473"]
    assert lines["3 ms"][:4] == ["7 / 7", "3828 / 1014", "10.00 / 99.00", "3 / 29.7"]


def test_what_was_not_measured_has_no_speed_up() -> None:
    """Nor have others over it."""
    rows = [made_up(name) for name in TABLES["1"]]
    broken = [bench.Row(row.name, None, row.cited, "no room") if row.name == "AST" else row for row in rows]
    text = bench_tables.table("1", broken)
    assert "PaSST-B                   | 0.462 | 10.00   23.1 |    -      1 |" in text
    assert text.splitlines()[-1] == "AST: no room"


# -- what is counted -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["S", "S-N"])
def test_the_formula_counts_what_the_operators_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against torch's counter, which knows neither the CPU's fused attention nor oneDNN's products."""
    monkeypatch.setattr(kernels, "chosen", lambda: kernels.Kernels(False, False, False, False))
    subject = bench.make(name, tiny_config(width=32, depth=3, heads=1))
    mel = torch.randn(1, 128, 1000)
    with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        with FlopCounterMode(display=False) as training:
            torch.autograd.backward(subject.learn(mel).sum())
        with FlopCounterMode(display=False) as inference, torch.no_grad():
            subject.infer(mel)
    assert training.get_total_flops() == round(1e9 * subject.gflop[0])
    assert inference.get_total_flops() == round(1e9 * subject.gflop[1])


def test_patchout_saves_what_the_issue_says() -> None:
    """Ratios of GFLOP in training at Base size: 2.86 for S and 5.6 for S-N."""
    cost = {
        name: passt_gflop(VARIANTS[name].config(BASE), kept, training=True) for name, kept in KEPT.items()
    }
    assert cost["B"] / cost["S"] == pytest.approx(2.86, abs=0.005)
    assert cost["B"] / cost["S-N"] == pytest.approx(5.6, abs=0.05)


KEPT = {"B": 1188, "S": 472, "S-N": 252}


def test_activations_are_those_of_one_more_clip() -> None:
    weight = torch.randn(7, 5, requires_grad=True)

    def forward(clips: int) -> Tensor:
        hidden = torch.ones(clips, 3, 7) @ weight  # keeps its input, and weight
        return hidden.exp().sum()  # keeps its output

    assert plan.activation_bytes(forward) == 4 * 3 * (7 + 5)


def test_activations_grow_with_the_tokens_alone() -> None:
    """Nothing of the attention scores is kept, which would grow with their square."""

    def of(name: str) -> int:
        subject = bench.make(name, tiny_config(width=64, depth=3, heads=1))
        return plan.activation_bytes(lambda clips: subject.learn(torch.randn(clips, 128, 1000)))

    assert of("S") / of("B") == pytest.approx(474 / 1190, rel=0.02)


def test_cnn14_has_the_published_size() -> None:
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in Cnn14(527).parameters()) == 80_753_615


def test_cnn14_takes_a_clip_and_learns() -> None:
    model = Cnn14(3, channels=(2, 3, 4, 5, 6, 7))
    torch.autograd.backward(model(torch.randn(2, 64, 100)).sum())
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_the_best_round_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that a call moves by 9 (not counted), then by 5, 1, 1 ... seconds:
    rounds of one call, twelve seconds.
    """
    clock, took = [0.0], iter([9.0, 5.0, *[1.0] * 100])
    calls: list[float] = []

    def call() -> None:
        calls.append(next(took))
        clock[0] += calls[-1]

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    assert bench.best_s(call, CPU, seconds=12.0) == 1.0
    assert calls == [9.0, 5.0] + [1.0] * 7


# -- measuring -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_row_is_measured() -> None:
    (row,) = bench.rows(["S-L"], settings(), peak_flops=1e9)
    got = row.measured
    assert got is not None
    assert (got.tokens, got.inference_tokens) == (474, 1190)
    assert got.parameters == sum(
        parameter.numel() for parameter in Passt(VARIANTS["S-L"].config(TINY)).parameters()
    )
    assert got.training_clips_per_s > 0
    assert got.inference_clips_per_s > 0
    assert got.utilisation == pytest.approx(
        got.training_gflop * got.training_clips_per_s
    )  # of a peak of 1 GFLOP/s
    assert got.peak_gb is None  # a CPU does not tell


@pytest.mark.slow
def test_the_cnn_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cnn14, "Cnn14", partial(Cnn14, channels=(2, 2, 2, 2, 2, 2)))
    (row,) = bench.rows(["CNN14"], settings(), peak_flops=1e9)
    assert row.measured is not None
    assert row.measured.tokens == 0
    # first block, by hand: 64 x 1000 places, 9 taps, 1 -> 2 and 2 -> 2 channels
    assert row.measured.inference_gflop > 2 * 64_000 * 9 * (2 + 4) / 1e9
    assert row.measured.training_gflop == pytest.approx(3 * row.measured.inference_gflop, rel=0.3)


@pytest.mark.slow
def test_one_model_is_measured_once() -> None:
    plain, fine = bench.rows(["B", "hop320"], settings(), peak_flops=1e9)
    assert plain.measured is fine.measured
    assert plain.cited != fine.cited


@pytest.mark.slow
def test_a_row_that_does_not_fit_does_not_stop_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    measure = bench.measure

    def small(name: str, how: bench.Settings, peak_flops: float) -> bench.Measured:
        if name == "B":
            raise torch.OutOfMemoryError
        return measure(name, how, peak_flops)

    monkeypatch.setattr(bench, "measure", small)
    first, second = bench.rows(["B", "S"], settings(), peak_flops=1e9)
    assert first.measured is None
    assert "a batch of 1 does not fit: lower --batch" in bench_tables.text(first)
    assert second.measured is not None


def test_a_line_stands_under_its_heading() -> None:
    got = bench.Measured(474, 1190, 86_000_000, 266.8, 254.8, 1.234, 0.5, 0.159, None, 0.56)
    line = bench_tables.text(bench.Row("S", got, Cited(474, 0.471, 88.7, 62.5, 0.513)))
    width = {len(part) for part in (*bench_tables.HEADER.splitlines(), line)}
    assert len(width) == 1
    measured, cited = line.split("|")
    assert measured.split() == ["S", "474", "86.0", "266.8", "254.8", "1.23", "0.50", "159", "-", "56"]
    assert cited.split() == ["0.471", "474", "88.7", "62.5", "0.513"]


# -- picture and command -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_radius_of_a_circle_is_its_memory(tmp_path: Path) -> None:
    def blue(memory_gb: float) -> int:
        circles = [Circle("", 1.0, 0.46, memory_gb), Circle("", 4.0, 0.47, 4.0)]
        speed_and_score(tmp_path / "bench.png", circles, title="")
        pixels = imread(tmp_path / "bench.png")[:, :, :3]
        return int((pixels[..., 2] - pixels[..., 0] > 0.2).sum())

    largest = blue(4.0) / 2
    assert (blue(1.0) - largest) / largest == pytest.approx((1 / 4) ** 2, rel=0.1)


def test_nothing_to_draw_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        speed_and_score(tmp_path / "bench.png", [], title="")


@pytest.fixture
def small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "PasstConfig", lambda labels: tiny_config(width=16, depth=3, heads=1))
    monkeypatch.setitem(bench.MATRIX, "cpu", 64)


@pytest.mark.slow
@pytest.mark.usefixtures("small_models")
def test_the_command_prints_and_writes_the_table(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    args = ["bench", "--rows", "S", "S-N", "--batch", "1", "--seconds", "0.001", "--device", "cpu"]
    assert cli.run_command([*args, "--out", str(tmp_path / "new" / "out")]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].startswith("device ")
    assert [line.split()[0] for line in lines if line.startswith("S")] == ["S", "S-N"]
    assert [line.split()[0] for line in lines[-3:]] == ["fp32", "bf16", "int8"]
    record = json.loads((tmp_path / "new" / "out" / "bench.json").read_text())
    assert [row["measured"]["tokens"] for row in record["rows"]] == [474, 254]
    assert record["rows"][0]["cited"]["mAP"] == 0.471
    assert record["machine"]["matrix_tflops"] > 0
    assert imread(tmp_path / "new" / "out" / "bench.png").std() > 0.01


@pytest.mark.slow
@pytest.mark.usefixtures("small_models")
def test_the_command_prints_a_table(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []

    def measure(name: str, *_: object) -> bench.Measured | None:
        measured.append(name)
        return made_up(name).measured

    monkeypatch.setattr(bench, "measure", measure)
    assert cli.run_command(["bench", "--table", "2", "--seconds", "0.001", "--device", "cpu"]) == 0
    assert bench_tables.table("2", [made_up(row) for row in TABLES["2"]]) in capfd.readouterr().out
    assert [name for name in measured if name.startswith(("dcase2020", "fsd50k"))] == [
        "fsd50k-s",
        "fsd50k-s-l",
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("small_models")
def test_the_command_prints_json(capfd: pytest.CaptureFixture[str]) -> None:
    assert (
        cli.run_command(["bench", "--rows", "S", "--seconds", "0.001", "--format", "json", "--device", "cpu"])
        == 0
    )
    assert json.loads(capfd.readouterr().out)["rows"][0]["name"] == "S"


@pytest.mark.parametrize("options", ["--rows X", "--batch -1", "--seconds 0", "--table 1 --rows S"])
def test_a_wrong_request_is_one_line(options: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.run_command(["bench", "--device", "cpu", *options.split()]) == 2
    assert len(capfd.readouterr().err.splitlines()) == 1


@pytest.mark.slow
def test_every_arithmetic_has_its_peak_and_a_share_of_it() -> None:
    settings = bench.Settings(
        device=torch.device("cpu"), batch=1, seconds=0.01, base=tiny_config(width=64, heads=1)
    )
    speeds = list(bench.arithmetics(settings))
    assert [speed.precision for speed in speeds] == ["fp32", "bf16", "int8"]
    flop = 1e9 * bench.make("S", settings.base).gflop[1]
    for speed in speeds:
        share = flop * speed.clips_per_s / (1e12 * speed.peak_tflops)
        assert speed.utilisation == pytest.approx(share)
    assert bench_tables.arithmetics(speeds).count("\n") == len(speeds) + 1
