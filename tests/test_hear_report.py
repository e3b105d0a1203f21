"""A HEAR report: official numbers by hand, results read or named as damaged, tables,
CSV files and what is left out.
"""

import csv
import json
import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from patchout.cli.hear import main
from patchout.hear import figures as hear_figures
from patchout.hear import report
from patchout.hear.figures import Line
from patchout.hear.results import ReportError, read_results
from patchout.hear.settings import Settings
from patchout.hear.sources import read_table
from patchout.hear.tasks import BOARDS
from patchout.inference.embedding import EmbedConfig

GOLDEN = Path(__file__).parent / "golden" / "hear"
FILE = "test.predicted-scores.json"


def put(
    root: Path, model: str, task: str, *scores: float, config: EmbedConfig | None = None, **more: Any
) -> Path:
    """A scores file as the kit writes it, with a fold for each of several scores."""
    splits = ["test"] if len(scores) == 1 else [f"fold{number:02d}" for number in range(len(scores))]
    record: dict[str, Any] = {
        split: {"test_loss": 0.1, "test_score": score, **more.get("scores", {})}
        for split, score in zip(splits, scores, strict=True)
    }
    record |= {"aggregated_scores": {"test_score_mean": 0.5}, "hparams": {}, "score_mode": "max"}
    if config or more.keys() & {"weights", "about"}:
        whose = {"model": model, "detail": "", "weights_sha256": more.get("weights", "0")}
        settings = {"settings": Settings(config, more.get("hop_ms", 10.0)).record()} if config else {}
        record["patchout"] = whose | settings | more.get("about", {}) | {"grid": "two"}
    path = root / model / task / FILE
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(record))
    return path


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Sequence[Line]]:
    """The lines of every picture by its name, instead of the picture."""
    lines: dict[str, Sequence[Line]] = {}
    for name in ("rows", "pair"):
        monkeypatch.setattr(
            hear_figures, name, lambda path, given, *more, title, score: lines.update({path.name: given})
        )
    return lines


# -- official scores -----------------------------------------------------------------------------------------


def official(fsd50k: str = "fsd50k") -> report.Board:
    return report._board("", "", BOARDS, report.leaderboard(fsd50k))


def test_the_best_submissions_are_those_of_the_challenge_alone() -> None:
    best = official().best
    assert len(official().models) == 29
    assert best["esc50"] == 0.947499991  # PaSST; a model of 2023 has 0.9615
    assert best["maestro_5h"] == 0.469076937  # GURA Cat H+w+C
    assert best["fsd50k"] == 0.640896618


def test_the_two_snapshots_differ_in_five_cells_of_fsd50k() -> None:
    new, old = (
        {model.name: model.scores for model in official(c).models}
        for c in ("fsd50k", "fsd50k_before_2022_07")
    )
    changed = {(name, task) for name in new for task in new[name] if new[name][task] != old[name].get(task)}
    assert {task for _, task in changed} == {"fsd50k"}
    assert len(changed) == 5
    assert (old["wav2vec2"]["fsd50k"]["score"], new["wav2vec2"]["fsd50k"]["score"]) == (
        0.1163954884,
        0.341744781,
    )
    assert official("fsd50k_before_2022_07").best["fsd50k"] == 0.6400519013


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "category", "quartiles", "tasks"),
    [
        ("OpenL3", "general", (0.6927, 0.7921, 0.9380), 7),
        ("OpenL3", "music", (0.7250, 0.9910, 0.9953), 7),
        ("wav2vec2", "general", (0.5479, 0.6543, 0.8368), 6),
        ("wav2vec2", "speech", (0.8586, 0.8725, 0.8813), 5),
        ("CVSSP PANNS", "music", (0.2516, 0.8756, 0.9489), 7),
        ("CP-JKU PaSST base", "general", (0.8817, 0.9784, 0.9961), 6),
        ("CP-JKU PaSST base", "speech", (0.6531, 0.6975, 0.8116), 5),
        ("GURA Fuse Cat H+w+C", "music", (0.9521, 0.9808, 0.9874), 7),
    ],
)
def test_quartiles_of_official_models(
    model: str, category: str, quartiles: tuple[float, ...], tasks: int, cited: list[dict[str, str]]
) -> None:
    (row,) = [row for row in cited if (row["model"], row["category"]) == (model, category)]
    found = [float(row[name]) for name in ("first_quartile", "median", "third_quartile")]
    assert found == pytest.approx(quartiles, abs=6e-5)
    assert (row["tasks"], row["source"]) == (str(tasks), "cited")


@pytest.fixture
def cited(tmp_path: Path, drawn: dict[str, Sequence[Line]]) -> list[dict[str, str]]:
    """Medians of a report on one result."""
    put(tmp_path / "results", "ours", "fsd50k-v1.0-full", 0.5)
    report.write_report([tmp_path / "results"], tmp_path / "out")
    return rows_of(tmp_path / "out" / "hear-medians.csv")


def test_models_are_in_the_order_of_their_medians(cited: list[dict[str, str]]) -> None:
    overall = [(row["model"], float(row["median"])) for row in cited if row["category"] == "all tasks"]
    wanted = ["Fuse Cat H+w+C", "Fuse Cat H+w+C (time)", "Fuse Hubert", "Cat H+w+C", "Fuse wav2vec2"]
    assert [name.removeprefix("GURA ") for name, _ in overall[:5]] == wanted
    assert [value for _, value in overall[:5]] == pytest.approx(
        [0.9649, 0.9618, 0.9223, 0.9116, 0.8939], abs=6e-5
    )
    assert all(first >= second for (_, first), (_, second) in pairwise(overall))


def test_mean_normalised_scores_of_official_models() -> None:
    board = official()
    means = {model.name: np.mean(list(board.normalised(model).values())) for model in board.models}
    wanted = {
        "GURA Fuse Cat H+w+C": 0.9312,
        "CP-JKU PaSST base": 0.8094,
        "OpenL3": 0.7552,
        "CVSSP PANNS": 0.6247,
    }
    assert {name: means[name] for name in wanted} == pytest.approx(wanted, abs=6e-5)


def test_both_folds_of_beehive_average_to_the_leaderboard() -> None:
    scores = {model.name: model.primary() for model in report.leaderboard()}
    folds = [row for row in read_table("leaderboard_secondary") if row["beehive_states_fold0:aucroc"]]
    assert len(folds) == 11
    for row in folds:
        mean = (float(row["beehive_states_fold0:aucroc"]) + float(row["beehive_states_fold1:aucroc"])) / 2
        assert mean == pytest.approx(
            scores[row["model"]]["beehive_states"], abs=6e-4
        )  # they are rounded to 0.001


# -- reading -------------------------------------------------------------------------------------------------


def test_a_file_of_the_kit_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "embeddings" / "somebody.module" / "toy_ml-v1-full"
    folder.mkdir(parents=True)
    shutil.copyfile(GOLDEN / "toy_ml.json", folder / FILE)
    (model,), problems, notes = read_results([tmp_path])
    assert (model.name, problems, notes) == ("somebody.module", [], [])
    assert model.scores["toy_ml"]["score"] == 0.945995977415378
    assert model.scores["toy_ml"]["d_prime"] == 2.659208379830049


def test_a_score_is_the_mean_of_the_folds(tmp_path: Path) -> None:
    put(tmp_path, "ours", "esc50-v2.0.0-full", 0.95, 0.94, 0.96, 0.9375, 0.95)
    assert read_results([tmp_path])[0][0].primary() == pytest.approx({"esc50": 0.9475})


def test_modes_of_a_task_are_tasks_of_the_leaderboard(tmp_path: Path) -> None:
    for name in (
        "nsynth_pitch-v2.2.3-5h",
        "nsynth_pitch-v2.2.3-50h",
        "nsynth_pitch-v2.2.3-small",
        "mini_pitch-v1-mini",
    ):
        put(tmp_path, "ours", name, 0.5)
    tasks = {"nsynth_pitch_5h", "nsynth_pitch_50h", "nsynth_pitch (small)", "mini_pitch"}
    assert set(read_results([tmp_path])[0][0].scores) == tasks


def test_beehive_needs_both_folds(tmp_path: Path) -> None:
    for model, folds in (("whole", (0.5, 0.75)), ("half", (0.5,))):
        for number, score in enumerate(folds):
            put(tmp_path, model, f"beehive_states_fold{number}-v2-full", score)
    put(tmp_path, "half", "fsd50k-v1.0-full", 0.5)
    models, problems, (note,) = read_results([tmp_path])
    assert {model.name: model.primary() for model in models} == {
        "whole": {"beehive_states": 0.625},
        "half": {"fsd50k": 0.5},
    }
    assert "half: beehive_states" in note
    assert problems == []


def test_no_event_found_is_a_score_of_zero(tmp_path: Path) -> None:
    scores = {"test_event_onset_200ms_fms": float("nan")}
    put(tmp_path, "ours", "dcase2016_task2-hear2021-full", float("nan"), scores=scores)
    assert read_results([tmp_path])[0][0].primary() == {"dcase2016_task2": 0.0}


def test_a_task_whose_loss_chooses_keeps_its_score(tmp_path: Path) -> None:
    """MAESTRO: the mode of the kit's file is that of the loss."""
    folder = tmp_path / "somebody.module" / "toy_maestro-v1-full"
    folder.mkdir(parents=True)
    shutil.copyfile(GOLDEN / "toy_maestro.json", folder / FILE)
    assert read_results([tmp_path])[0][0].primary() == {"toy_maestro": pytest.approx(0.4028776884)}


def test_an_infinite_d_prime_stays_infinite(tmp_path: Path) -> None:
    path = put(tmp_path, "ours", "own-v1-full", 0.5, 0.5, 0.5, scores={"test_d_prime": float("inf")})
    assert read_results([tmp_path])[0][0].scores["own"]["d_prime"] == float("inf")
    path.write_text(path.read_text().replace("Infinity", "-Infinity", 1))
    assert np.isnan(read_results([tmp_path])[0][0].scores["own"]["d_prime"])


def test_an_error_rate_does_not_stand_among_scores(tmp_path: Path) -> None:
    put(tmp_path, "ours", "own_events-v1-full", 0.9, scores={"test_segment_1s_er": 0.9, "test_top1_acc": 0.1})
    put(tmp_path, "ours", "own_clips-v1-full", 0.8)
    (model,), _, _ = read_results([tmp_path])
    assert model.primary() == {"own_clips": 0.8}
    assert model.scores["own_events"] == {"segment_1s_er": 0.9, "top1_acc": 0.1}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"test": {"test_sco', "is no file of scores"),
        ("[]", "is no file of scores"),
        ('{"hparams": {}}', "is no file of scores"),
        ('{"test": {"test_score": "high"}}', "is no file of scores"),
        ('{"test": {"test_score": 0.5}, "patchout": [1]}', "is no file of scores"),
        ('{"test": {"test_score": NaN}}', "no number from 0 to 1"),
        ('{"test": {"test_score": 47.0}}', "no number from 0 to 1"),
        ('{"fold00": {"test_score": 0.5}, "fold01": {"test_score": 0.5}}', "2 test splits, not of 1"),
    ],
)
def test_a_damaged_file_is_named_and_the_rest_is_read(content: str, reason: str, tmp_path: Path) -> None:
    put(tmp_path, "ours", "mini_digits-v1-mini", 0.5)
    bad = put(tmp_path, "ours", "mini_pitch-v1-mini", 0.5)
    bad.write_text(content)
    (model,), (problem,), _ = read_results([tmp_path])
    assert model.primary() == {"mini_digits": 0.5}
    assert problem.startswith(str(bad))
    assert reason in problem
    assert "run this task again" in problem


def test_results_of_two_models_in_one_folder_are_not_mixed(tmp_path: Path) -> None:
    put(tmp_path, "ours", "mini_digits-v1-mini", 0.5, weights="aa")
    put(tmp_path, "ours", "mini_pitch-v1-mini", 0.9, weights="bb")
    (model,), (problem,), _ = read_results([tmp_path])
    assert model.primary() == {"mini_digits": 0.5}
    assert "another model made other results of ours" in problem


def test_a_second_result_of_a_task_is_named(tmp_path: Path) -> None:
    put(tmp_path / "a", "ours", "mini_digits-v1-mini", 0.5)
    second = put(tmp_path / "b", "ours", "mini_digits-v1-mini", 0.9)
    (model,), (problem,), _ = read_results([tmp_path / "a", tmp_path / "b"])
    assert model.primary() == {"mini_digits": 0.5}
    assert str(second) in problem


def test_nothing_to_report_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=f"{tmp_path}/nowhere: has no test.predicted-scores.json"):
        read_results([tmp_path / "nowhere"])


# -- the report ----------------------------------------------------------------------------------------------


def test_ours_stand_beside_the_official_ones(tmp_path: Path, drawn: dict[str, Sequence[Line]]) -> None:
    put(tmp_path / "results", "ours", "fsd50k-v1.0-full", 0.320448309, weights="aa")
    assert report.write_report([tmp_path / "results"], tmp_path / "out") == []
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "| **ours** | **measured** | - (0 of 7) | - (0 of 5) | 0.500 (1 of 7) | 0.500 (1 of 19) |" in text
    assert "| **ours** | **measured** | - | - | - | 0.320 (0.50) | - | - | - |" in text
    assert "| CVSSP PANNS | cited | 0.446 (0.51) | 0.000 (0.00) | 0.909 (0.96) | - |" in text
    assert "- **ours**: ours; grid of the probe: two\n" in text
    rows = rows_of(tmp_path / "out" / "hear-scores.csv")
    (row,) = [row for row in rows if row["source"] == "measured"]
    assert float(row["normalised"]) == pytest.approx(0.5)
    assert len({row["model"] for row in rows}) == 30


def test_figures_have_the_older_fsd50k_and_tables_the_newer(
    tmp_path: Path, drawn: dict[str, Sequence[Line]]
) -> None:
    put(tmp_path / "results", "ours", "fsd50k-v1.0-full", 0.5)
    report.write_report([tmp_path / "results"], tmp_path / "out")
    (line,) = [line for line in drawn["hear-categories.png"] if line.name == "wav2vec2"]
    assert line.values["fsd50k"] == pytest.approx(0.1163954884 / 0.6400519013)
    rows = rows_of(tmp_path / "out" / "hear-scores.csv")
    (row,) = [
        row for row in rows if (row["model"], row["task"], row["score"]) == ("wav2vec2", "fsd50k", "primary")
    ]
    assert float(row["normalised"]) == pytest.approx(0.341744781 / 0.640896618)


def test_the_cited_five_come_first_in_every_figure(tmp_path: Path, drawn: dict[str, Sequence[Line]]) -> None:
    for levels in (("low",), ("mid",)):
        config = EmbedConfig(levels=levels)
        put(
            tmp_path / "results",
            f"ours-{levels[0]}",
            "maestro-v3.0.0-5h",
            0.1,
            0.2,
            0.3,
            0.2,
            0.2,
            config=config,
        )
    report.write_report([tmp_path / "results"], tmp_path / "out")
    for name in ("hear-categories.png", "hear-levels.png"):
        assert [line.name for line in drawn[name][:5]] == list(report.SHOWN)
        assert [line.is_cited for line in drawn[name]] == [True] * 5 + [False] * 2
    assert len(drawn["hear-medians.png"]) == 31


def test_tasks_without_official_scores_are_not_normalised(
    tmp_path: Path, drawn: dict[str, Sequence[Line]]
) -> None:
    put(
        tmp_path / "results",
        "ours",
        "mini_digits-v1-mini",
        0.5,
        scores={"test_top1_acc": 0.5, "test_mAP": 0.25},
    )
    put(tmp_path / "results", "ours", "their_task-v1-full", 0.25)
    report.write_report([tmp_path / "results"], tmp_path / "out")
    assert [line.values for line in drawn["open-categories.png"]] == [
        {"mini_digits": 0.5, "their_task": 0.25}
    ]
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "| model | source | speech | other | all tasks |" in text
    assert "| **ours** | **measured** | 0.500 | 0.250 | 0.375 |" in text
    rows = rows_of(tmp_path / "out" / "open-scores.csv")
    assert [(row["task"], row["value"]) for row in rows if row["score"] == "mAP"] == [("mini_digits", "0.25")]
    assert "Tasks of HEAR" not in text
    assert not (tmp_path / "out" / "hear-scores.csv").exists()


def office(root: Path, name: str, score: float, levels: tuple[Any, ...], *fields_ms: float) -> None:
    put(
        root,
        name,
        "mini_office-v1-mini",
        score,
        config=EmbedConfig(levels=levels, fields_ms=fields_ms or (160.0,)),
    )


def test_levels_are_compared_at_the_shortest_field_and_fields_at_the_same_levels(
    tmp_path: Path, drawn: dict[str, Sequence[Line]]
) -> None:
    office(tmp_path / "results", "a", 0.5, ("mid", "low"))
    office(tmp_path / "results", "b", 0.5, ("low",), 640.0)  # the log-mel has no field
    office(tmp_path / "results", "c", 0.5, ("high", "mid"), 640.0)
    office(tmp_path / "results", "d", 0.5, ("low", "mid"), 160.0, 640.0)
    put(tmp_path / "results", "e", "mini_office-v1-mini", 0.5)  # nothing is known of it
    report.write_report([tmp_path / "results"], tmp_path / "out")
    assert [line.name for line in drawn["open-levels.png"]] == ["b: L", "a: L+M, 160 ms"]
    assert [line.name for line in drawn["open-fields.png"]] == ["a: L+M, 160 ms", "d: L+M, 160 + 640 ms"]
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    settings = (
        "low + mid (scenes: high + mid), fields of 160 and 640 ms, a time every 50 ms, "
        "log-mel frames every 10 ms"
    )
    assert f"- **d**: d, {settings}; grid of the probe: two\n" in text
    left_out = text.partition("## Left out")[2]
    assert "by level: without c (M+H, 640 ms), d (L+M, 160 + 640 ms), e (settings" in left_out
    assert "by receptive field: without b (L), c (M+H, 640 ms), e (settings not k" in left_out


def test_hops_are_not_mixed_and_none_is_lost(tmp_path: Path, drawn: dict[str, Sequence[Line]]) -> None:
    for hop_ms in (10.0, 5.0):
        for level in ("low", "mid"):
            config = EmbedConfig(levels=(level,))
            put(
                tmp_path / "results",
                f"{level}{hop_ms:g}",
                "mini_office-v1-mini",
                0.5,
                config=config,
                hop_ms=hop_ms,
            )
    report.write_report([tmp_path / "results"], tmp_path / "out")
    assert [line.name for line in drawn["open-levels.png"]] == ["low10: L", "mid10: M, 160 ms"]
    assert [line.name for line in drawn["open-levels-5ms.png"]] == [
        "low5: L, hop 5 ms",
        "mid5: M, 160 ms, hop 5 ms",
    ]
    assert "![timestamps by level, log-mel frames every 5 ms]" in (tmp_path / "out" / "report.md").read_text()


def test_levels_are_compared_at_the_field_that_most_have(
    tmp_path: Path, drawn: dict[str, Sequence[Line]]
) -> None:
    office(tmp_path / "results", "odd", 0.5, ("mid",), 40.0)
    office(tmp_path / "results", "a", 0.5, ("mid",))
    office(tmp_path / "results", "b", 0.5, ("low", "mid"))
    report.write_report([tmp_path / "results"], tmp_path / "out")
    assert [line.name for line in drawn["open-levels.png"]] == ["a: M, 160 ms", "b: L+M, 160 ms"]


def test_published_modules_stand_in_the_figures_whoever_ran_them(
    tmp_path: Path, drawn: dict[str, Sequence[Line]]
) -> None:
    """The kit keeps no settings, an early record has none of a module, and one has them as Python text."""
    results, task = tmp_path / "results", "mini_office-v1-mini"
    put(results, "hear21passt.base", task, 0.5)
    put(results, "ours", task, 0.5, about={"model": "patchout.hear.base2level"})
    put(results, "early", task, 0.5, about={"detail": f"{EmbedConfig(levels=('low',))!r}, hop_length=320"})
    put(results, "fused", task, 0.5, about={"model": "patchout.hear.base+theirs"})
    report.write_report([results], tmp_path / "out")
    assert [line.name for line in drawn["open-levels.png"]] == ["early: L", "hear21passt.base: M+H, 160 ms"]
    assert [line.name for line in drawn["open-fields.png"]] == [
        *("hear21passt.base: M+H, 160 ms", "ours: M+H, 160 + 800 ms")
    ]
    assert (
        "fused (settings not known)"
        in (tmp_path / "out" / "report.md").read_text().partition("## Left out")[2]
    )


@pytest.mark.parametrize(
    "settings", [{"levels": ["mid"]}, {"levels": 3, "mel_hop_ms": 10.0}, {"mel_hop_ms": 1, "x": 2}]
)
def test_damaged_settings_are_named(settings: dict[str, Any], tmp_path: Path) -> None:
    put(tmp_path, "ours", "mini_digits-v1-mini", 0.5)
    put(tmp_path, "odd", "mini_digits-v1-mini", 0.5, about={"settings": settings})
    assert "is no file of scores" in read_results([tmp_path])[1][0]


def test_a_figure_that_the_results_do_not_suffice_for_is_left_out_and_named(
    tmp_path: Path, drawn: dict[str, Sequence[Line]]
) -> None:
    office(tmp_path / "results", "alone", 0.5, ("mid",))
    assert report.write_report([tmp_path / "results"], tmp_path / "out") == []
    assert set(drawn) == {"open-categories.png", "open-medians.png"}
    left_out = (tmp_path / "out" / "report.md").read_text(encoding="utf-8").partition("## Left out")[2]
    assert [word in left_out for word in ("by level", "by receptive field", "no two measured")] == [True] * 3


@pytest.mark.parametrize(
    ("base", "best", "pair"),
    [
        ("", "", ["a", "c"]),
        ("b", "", ["b", "c"]),
        ("", "b", ["a", "b"]),
        ("c", "a", ["c", "a"]),
        ("", "a", ["b", "a"]),
    ],
)
def test_the_first_model_is_compared_with_the_best_unless_they_are_named(
    base: str, best: str, pair: list[str], tmp_path: Path, drawn: dict[str, Sequence[Line]]
) -> None:
    for name, score in (("a", 0.5), ("b", 0.6), ("c", 0.7)):
        put(tmp_path / "results", name, "mini_digits-v1-mini", score)
    report.write_report([tmp_path / "results"], tmp_path / "out", base=base, best=best)
    assert [line.name for line in drawn["open-pair.png"]] == pair


# -- the command ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_writes_pictures_and_names_a_damaged_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, score in (("a", 0.5), ("b | b", 0.6)):
        put(tmp_path / "results", name, "mini_digits-v1-mini", score)
    bad = put(tmp_path / "results", "a", "mini_pitch-v1-mini", 0.5)
    bad.write_text("{")
    assert main(["report", str(tmp_path / "results"), "--out", str(tmp_path / "out")]) == 1
    assert str(bad) in capfd.readouterr().err
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert str(bad) in text
    assert "**b \\| b**" in text
    linked = {f"open-{name}.png" for name in ("categories", "medians", "pair")}
    assert linked == {path.name for path in (tmp_path / "out").glob("*.png")}
    assert all(f"]({name})" in text for name in linked)


def test_an_unknown_base_names_the_known_ones(tmp_path: Path) -> None:
    put(tmp_path / "results", "ours", "mini_digits-v1-mini", 0.5)
    with pytest.raises(ValueError, match="no results of 'theirs': there are results of ours"):
        main(["report", str(tmp_path / "results"), "--out", str(tmp_path / "out"), "--base", "theirs"])
    assert not (tmp_path / "out").exists()
