"""The shallow probe against plain PyTorch, the kit's rules, and the kit's own scores on its toy tasks."""

import json
import math
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from patchout.hear.embeddings import EmbeddingError, read_embeddings
from patchout.hear.probe import grid_points, probe_task
from patchout.hear.probe_exam import Exam, ProbeError
from patchout.hear.probe_network import Check, Data, Point, Probe, predict, train_group
from patchout.hear.tasks import Task

GOLDEN = Path(__file__).parent / "golden" / "hear"
LABELS = ("a", "b", "c")
QUICK = {"hidden_dim": [8], "max_epochs": [6]}
Split = tuple[
    np.ndarray, list[list[str]], dict[str, Any], list[Any] | None
]  # values, labels, annotations, stamps


def point(layers: int = 1, **changes: Any) -> Point:
    values: dict[str, Any] = {
        "batch_size": 8,
        "check_val_every_n_epoch": 2,
        "dropout": 0.0,
        "hidden_dim": 6,
        "initialization": "xavier_normal_",
        "lr": 1e-2,
        "max_epochs": 40,
        "patience": 3,
    }
    return Point(hidden_layers=layers, **(values | changes))


def toy(rows: int = 20, *, one_label: bool = True) -> Data:
    rng = torch.Generator().manual_seed(1)
    values = torch.randn(rows, 5, generator=rng)
    target = nn.functional.one_hot(values[:, :3].argmax(1), 3) if one_label else values[:, :3] > 0
    return Data(values, target.to(values), one_label)


def rng(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def double() -> Iterator[None]:
    """A bias before a BatchNorm has no gradient but rounding,
    of which Adam makes whole steps unless it is tiny.
    """
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def never_better() -> Callable[[Tensor], Check]:
    return lambda logits: Check(0.0)


def write_embeddings(folder: Path, splits: dict[str, Split], **metadata: Any) -> Task:
    """A folder of embeddings as the kit writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "task_name": "toy",
        "version": "v1",
        "mode": "full",
        "embedding_type": "scene",
        "prediction_type": "multiclass",
        "sample_duration": None,
        "split_mode": "trainvaltest",
        "splits": list(splits),
        "evaluation": ["top1_acc", "mAP", "aucroc"],
        "evaluation_params": {"task_specific_param_grid": QUICK},
    } | metadata
    labels = about.pop("labels", LABELS)
    (folder / "task_metadata.json").write_text(json.dumps(about))
    (folder / "labelvocabulary.csv").write_text(
        "idx,label\n" + "".join(f"{i},{x}\n" for i, x in enumerate(labels))
    )
    for split, (values, rows, annotations, stamps) in splits.items():
        values.astype(np.float32).tofile(folder / f"{split}.embeddings.npy")
        (folder / f"{split}.embedding-dimensions.json").write_text(json.dumps(values.shape))
        (folder / f"{split}.target-labels.pkl").write_bytes(pickle.dumps(rows))
        (folder / f"{split}.json").write_text(json.dumps(annotations))
        if stamps is not None:
            (folder / f"{split}.filename-timestamps.json").write_text(json.dumps(stamps))
    return read_embeddings(folder)


def scenes(split: str, rows: int = 12, seed: int = 0, labels: Sequence[str] = LABELS) -> Split:
    """Clips whose first values say their class, with noise."""
    random = np.random.default_rng(seed)
    classes = np.arange(rows) % len(labels)
    values = np.eye(len(LABELS))[classes] + 0.8 * random.standard_normal((rows, len(LABELS)))
    names = [[labels[index]] for index in classes.tolist()]
    return values, names, {f"{split}{row}.wav": names[row] for row in range(rows)}, None


def frames(split: str, active: Sequence[float]) -> Split:
    """One sound a split of 50 ms frames: class a sounds where the value is above 0."""
    events = [{"label": "a", "start": 0.0, "end": 200.0}]
    stamps = [[f"{split}0.wav", 50.0 * index] for index in range(len(active))]
    return (
        np.array(active)[:, None],
        [["a"] if value > 0 else [] for value in active],
        {f"{split}0.wav": events},
        stamps,
    )


def three(make: Callable[..., Split] = scenes, **options: Any) -> dict[str, Split]:
    return {name: make(name, seed=seed, **options) for seed, name in enumerate(("train", "valid", "test"))}


def folds(number: int = 3) -> dict[str, Split]:
    return {f"fold{index:02d}": scenes(f"fold{index:02d}", seed=index) for index in range(number)}


def events_task(folder: Path, active: Sequence[float], **metadata: Any) -> Task:
    splits = {name: frames(name, active) for name in ("train", "valid", "test")}
    about = {
        "embedding_type": "event",
        "prediction_type": "multilabel",
        "evaluation": ["event_onset_200ms_fms"],
    }
    return write_embeddings(folder, splits, **(about | metadata))


def run(embedded: Task, out: Path, *, seed: int = 0) -> dict[str, Any]:
    return probe_task(embedded, out, grid="two", seed=seed)


# -- the network and its training ----------------------------------------------------------------------------


def plain(probe: Probe) -> nn.Sequential:
    """The same network of PyTorch's own layers."""
    layers: list[nn.Module] = []
    for index, weight in enumerate(probe.weights):
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.load_state_dict({"weight": weight.detach(), "bias": probe.biases[index].detach()})
        layers += [linear]
        if index < len(probe.gains):
            layers += [nn.BatchNorm1d(weight.shape[0]), nn.ReLU()]
    return nn.Sequential(*layers)


@pytest.mark.slow
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("one_label", [True, False])
def test_a_probe_learns_as_plain_pytorch_does(layers: int, one_label: bool) -> None:
    data = toy(20, one_label=one_label)
    probe = Probe(point(layers, max_epochs=6, check_val_every_n_epoch=6), data, rng())
    model = plain(probe)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(6):
        for rows in (slice(0, 8), slice(8, 16), slice(16, 20)):  # never shuffled, the last one as it is
            logits = model(data.values[rows])
            if one_label:
                loss = nn.functional.cross_entropy(logits, data.target[rows].argmax(1))
            else:
                loss = nn.functional.binary_cross_entropy_with_logits(logits, data.target[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    train_group([probe], data, data.values, never_better(), rng())
    ours = predict(probe, data.values)
    assert torch.allclose(ours, model.eval()(data.values), atol=1e-7)


@pytest.mark.slow
@pytest.mark.usefixtures("double")
def test_a_point_learns_in_a_group_what_it_learns_alone() -> None:
    """Other depths, rates and patience beside it; the first to finish leaves, and the others go on."""
    data = toy()
    points = [
        point(1, lr=3e-2, patience=1),
        point(2),
        point(1, lr=1e-3, patience=9),
        point(2, lr=3e-3, patience=5),
    ]

    def make() -> list[Probe]:
        return [Probe(one, data, rng(index)) for index, one in enumerate(points)]

    def judge(logits: Tensor) -> Check:  # worse than at the first check as soon as it is sure of itself
        return Check(-float((logits.softmax(1).amax(1).mean() - 0.6).abs()))

    together, alone = make(), make()
    train_group(together, data, data.values, judge, rng())
    for probe in alone:
        train_group([probe], data, data.values, judge, rng())
    epochs = [probe.best_epoch for probe in together]
    assert epochs == [probe.best_epoch for probe in alone]
    assert len(set(epochs)) > 2
    for one, other in zip(together, alone, strict=True):
        assert one.best.score == pytest.approx(other.best.score, abs=1e-7)
        pairs = zip([*one.parameters(), *one.running], [*other.parameters(), *other.running], strict=True)
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)


@pytest.mark.parametrize("epochs", [2, 8])
def test_the_weights_of_a_group_are_stacked_once(epochs: int) -> None:
    """Not in every batch: a copy of all weights forwards, and of all gradients backwards."""
    stacks: list[Any] = []

    class Stacks(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            stacks.extend([func] * (func is torch.ops.aten.stack.default))
            return func(*args, **(kwargs or {}))

    data = toy()
    probes = [Probe(point(layers, max_epochs=epochs), data, rng()) for layers in (1, 2, 2)]
    with Stacks():  # type: ignore[no-untyped-call]
        train_group(probes, data, data.values, lambda logits: Check(0.0), rng())
    assert len(stacks) == 12  # weights and biases of three layers; gains, shifts and statistics of two


@pytest.mark.slow
def test_the_best_state_is_what_is_left() -> None:
    data, seen = toy(), list[Tensor]()

    def judge(logits: Tensor) -> Check:
        seen.append(logits)
        return Check([1.0, 3.0, 2.0, 3.0, 0.0][len(seen) - 1])  # equal is not better

    probe = Probe(point(2), data, rng())
    train_group([probe], data, data.values, judge, rng())
    assert (len(seen), probe.best_epoch) == (5, 3)  # three checks of patience after that of epoch 3
    assert torch.equal(predict(probe, data.values), seen[1])


@pytest.mark.parametrize(("score", "kept"), [(math.nan, -math.inf), (math.inf, math.inf)])
def test_a_score_that_is_not_finite_ends_the_training(score: float, kept: float) -> None:
    data, checks = toy(), list[float]()

    def judge(logits: Tensor) -> Check:
        checks.append(score)
        return Check(score)

    probe = Probe(point(), data, rng())
    train_group([probe], data, data.values, judge, rng())
    assert (len(checks), probe.best.score, probe.best_epoch) == (1, kept, 1)


def test_a_training_shorter_than_its_first_check_is_checked_at_its_end() -> None:
    data = toy()
    probe = Probe(point(max_epochs=1, check_val_every_n_epoch=3), data, rng())
    train_group([probe], data, data.values, never_better(), rng())
    assert probe.best_epoch == 0


def test_a_last_batch_of_one_row_joins_the_one_before() -> None:
    data = toy(9)
    joined, whole = (Probe(point(batch_size=size, max_epochs=2), data, rng()) for size in (8, 9))
    for probe in (joined, whole):
        train_group([probe], data, data.values, never_better(), rng())
    assert torch.equal(predict(joined, data.values), predict(whole, data.values))


def test_dropout_is_drawn_from_the_generator() -> None:
    data = toy()

    def trained(dropout: float, seed: int) -> Tensor:
        probe = Probe(point(dropout=dropout, max_epochs=2), data, rng())
        train_group([probe], data, data.values, never_better(), rng(seed))
        return predict(probe, data.values)

    assert torch.equal(trained(0.5, 1), trained(0.5, 1))
    assert not torch.allclose(trained(0.5, 1), trained(0.5, 2))
    assert not torch.allclose(trained(0.5, 1), trained(0.0, 1))


@pytest.mark.parametrize("name", ["xavier_uniform_", "xavier_normal_"])
def test_the_network_starts_as_in_the_kit(name: str) -> None:
    data = Data(torch.zeros(2, 1295), torch.zeros(2, 50), one_label=True)
    probe = Probe(point(2, initialization=name, hidden_dim=1024), data, rng())
    assert sum(value.numel() for value in probe.parameters()) == 2_432_050
    gains = [1.0, math.sqrt(2), math.sqrt(2)]
    for weight, bias, gain in zip(probe.weights, probe.biases, gains, strict=True):
        assert float(weight.detach().std()) == pytest.approx(
            gain * math.sqrt(2 / sum(weight.shape)), rel=0.02
        )
        assert 0.9 < float(bias.detach().abs().max()) * math.sqrt(weight.shape[1]) <= 1
    if name == "xavier_uniform_":
        bounds = [float(weight.detach().abs().max()) for weight in probe.weights]
        assert bounds == pytest.approx([0.0508657, 0.0765466, 0.1057033], rel=1e-4)


# -- the grid ------------------------------------------------------------------------------------------------


def test_the_points_are_those_that_the_kit_draws(tmp_path: Path) -> None:
    task = write_embeddings(tmp_path, three(), evaluation_params={})
    drawn = [(one.hidden_layers, one.initialization[7:-1], one.lr) for one in grid_points(task, "full")]
    assert drawn == [
        *((1, "normal", 1e-4), (2, "uniform", 1e-3), (1, "normal", 1e-3), (1, "normal", 3.2e-4)),
        *((2, "normal", 3.2e-4), (2, "uniform", 3.2e-4), (2, "normal", 3.2e-3), (2, "uniform", 3.2e-3)),
    ]
    assert {one.schedule for one in grid_points(task, "full")} == {(1024, 3, 0.1, 1024, 500)}
    assert sorted((one.hidden_layers, one.lr) for one in grid_points(task, "two")) == [(1, 1e-3), (2, 1e-3)]


def test_a_task_may_set_its_own_grid(tmp_path: Path) -> None:
    own = {"task_specific_param_grid": {"max_epochs": [50], "check_val_every_n_epoch": [1]}}
    task = write_embeddings(tmp_path, three(), evaluation_params=own)
    assert {one.schedule for one in grid_points(task, "full")} == {(1024, 1, 0.1, 1024, 50)}
    about = {"task_name": "dcase2016_task2", "mode": "small", "evaluation_params": {}}
    dcase = events_task(tmp_path / "dcase", [1, 0], **about)
    assert {one.check_val_every_n_epoch for one in grid_points(dcase, "full")} == {10}


# -- validation ----------------------------------------------------------------------------------------------


def test_of_equal_scores_the_longer_events_win(tmp_path: Path) -> None:
    exam = Exam(events_task(tmp_path, [1.0] * 9 + [-1.0] * 9), "valid")
    logits = torch.full((18, 3), -9.0)
    logits[:9, 0] = 9  # 0 to 400 ms, above both least durations
    assert exam.check(logits) == Check(1.0, {"median_filter_ms": 250, "min_duration": 250})
    logits[4:, 0] = -9  # 0 to 150 ms
    assert exam.check(logits) == Check(1.0, {"median_filter_ms": 250, "min_duration": 125})


def test_where_no_event_is_found_the_check_is_nan(tmp_path: Path) -> None:
    exam = Exam(events_task(tmp_path, [1.0, -1.0]), "valid")
    assert math.isnan(exam.check(torch.full((2, 3), -9.0)).score)


def test_a_task_may_choose_by_its_loss(tmp_path: Path) -> None:
    one = {"event_postprocessing_grid": {"median_filter_ms": [150], "min_duration": [50]}}
    about = {"use_scoring_for_early_stopping": False, "evaluation_params": one}
    exam = Exam(events_task(tmp_path / "one", [1.0, -1.0], **about), "valid")
    assert exam.check(torch.zeros(2, 3)).score == pytest.approx(-math.log(2))
    assert exam.sign == -1
    with pytest.raises(ProbeError, match="the loss cannot choose among 2 ways"):
        Exam(events_task(tmp_path / "two", [1.0, -1.0], use_scoring_for_early_stopping=False), "valid")


def test_an_error_rate_is_the_better_the_lower(tmp_path: Path) -> None:
    exam = Exam(events_task(tmp_path, [1.0] * 9 + [-1.0] * 9, evaluation=["segment_1s_er"]), "valid")
    right, wrong = torch.full((18, 3), -9.0), torch.full((18, 3), 9.0)
    right[:9, 0] = 9
    scores = [exam.check(logits).score for logits in (right, wrong)]
    assert scores == pytest.approx([0.0, -2.0])  # two false labels beside the right one


# -- one task, with its files --------------------------------------------------------------------------------


def test_the_record_has_the_keys_of_the_kit(tmp_path: Path) -> None:
    expected = json.loads((GOLDEN / "toy_ml.json").read_text())
    scores = ["mAP", "d_prime", "aucroc", "top1_acc"]
    record = run(write_embeddings(tmp_path / "in", three(), evaluation=scores), tmp_path / "out")
    assert list(record) == [*expected, "patchout"]
    assert list(record["test"]) == list(expected["test"])
    ours = {"hidden_dim": 8, "max_epochs": 6, "lr": 1e-3, "hidden_layers": record["hparams"]["hidden_layers"]}
    assert record["hparams"] == expected["hparams"] | ours
    assert list(record["hparams"]) == list(expected["hparams"])
    assert json.loads((tmp_path / "out" / "test.predicted-scores.json").read_text()) == record


def test_predictions_are_those_that_were_scored(tmp_path: Path) -> None:
    record = run(write_embeddings(tmp_path / "in", three()), tmp_path / "out")
    found = pickle.loads((tmp_path / "out" / "test.predictions.pkl").read_bytes())
    assert (found["prediction"].shape, found["prediction"].dtype) == ((12, 3), np.float32)
    assert (
        np.mean(found["prediction"].argmax(1) == found["target"].argmax(1)) == record["test"]["test_top1_acc"]
    )
    assert np.allclose(torch.from_numpy(found["prediction_logit"]).softmax(1), found["prediction"])


def test_events_are_kept_with_their_scores(tmp_path: Path) -> None:
    record = run(events_task(tmp_path / "in", [1.0] * 9 + [-1.0] * 9), tmp_path / "out")
    found = pickle.loads((tmp_path / "out" / "test.predictions.pkl").read_bytes())
    assert list(found["predicted_events"]) == list(found["target_events"]) == ["test0.wav"]
    assert found["timestamp"].tolist() == [50.0 * index for index in range(18)]
    assert {name for name, _ in record["postprocessing"]} == {"median_filter_ms", "min_duration"}
    assert "test_event_onset_200ms_fms_f_measure" in record["test"]


def test_every_fold_is_tested_and_the_mean_is_out_of_fold(tmp_path: Path) -> None:
    fits: list[int] = []
    embedded = write_embeddings(tmp_path / "in", folds(), split_mode="new_split_kfold")
    record = probe_task(embedded, tmp_path / "out", grid="two", on_fit=fits.append)
    assert sum(fits) == 4  # two points on the first fold, the better one on two more
    scores = [record[fold]["test_score"] for fold in ("fold00", "fold01", "fold02")]
    together = record["aggregated_scores"]
    assert together["test_score_mean"] == pytest.approx(mean(scores))
    assert together["test_score_std"] == pytest.approx(np.std(scores, ddof=1))
    assert set(together) == {f"{key}_{kind}" for key in record["fold00"] for kind in ("mean", "std")}


def test_the_seed_decides(tmp_path: Path) -> None:
    embedded = write_embeddings(tmp_path / "in", three())
    losses = [
        run(embedded, tmp_path / str(index), seed=seed)["test"]["test_loss"]
        for index, seed in enumerate((1, 1, 2))
    ]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.slow
def test_the_validation_chooses_the_point(tmp_path: Path) -> None:
    """Of two rates, one of which does not learn."""
    own = QUICK | {"lr": [1e-9, 3e-2], "max_epochs": [60]}
    embedded = write_embeddings(tmp_path / "in", three(), evaluation_params={"task_specific_param_grid": own})
    assert run(embedded, tmp_path / "out")["hparams"]["lr"] == 3e-2


# -- going on ------------------------------------------------------------------------------------------------


def test_an_interrupted_run_goes_on_after_its_last_fold(tmp_path: Path) -> None:
    embedded = write_embeddings(tmp_path / "in", folds(), split_mode="new_split_kfold")
    whole = run(embedded, tmp_path / "whole")
    fits: list[int] = []

    def stop(count: int) -> None:
        fits.append(count)
        if len(fits) == 4:  # two points, the second fold, and now the third
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        probe_task(embedded, tmp_path / "out", grid="two", on_fit=stop)
    assert not (tmp_path / "out" / "test.predicted-scores.json").exists()
    fits.clear()
    record = probe_task(embedded, tmp_path / "out", grid="two", on_fit=fits.append)
    assert fits == [1]
    for fold in folds():
        assert record[fold] | {"time_in_min": 0} == whole[fold] | {"time_in_min": 0}
    assert not list((tmp_path / "out").glob("*stages*"))


def test_a_task_that_is_done_is_only_read(tmp_path: Path) -> None:
    embedded = write_embeddings(tmp_path / "in", three())
    record = run(embedded, tmp_path / "out")
    fits: list[int] = []
    assert probe_task(embedded, tmp_path / "out", grid="two", on_fit=fits.append) == record
    assert fits == []


def test_results_are_not_mixed(tmp_path: Path) -> None:
    embedded = write_embeddings(tmp_path / "in", three())
    run(embedded, tmp_path / "out")
    with pytest.raises(
        EmbeddingError, match=r"test.predicted-scores.json: was made with seed 0, this is 1; give another"
    ):
        run(embedded, tmp_path / "out", seed=1)
    with pytest.raises(EmbeddingError, match="made with grid 'two', this is 'full'"):
        probe_task(embedded, tmp_path / "out")
    changed = write_embeddings(tmp_path / "in", three(), evaluation=["mAP"])
    with pytest.raises(EmbeddingError, match="made with task_sha256"):
        run(changed, tmp_path / "out")


def test_scores_of_the_kit_are_not_overwritten(tmp_path: Path) -> None:
    embedded = write_embeddings(tmp_path, three())
    (tmp_path / "test.predicted-scores.json").write_text((GOLDEN / "toy_ml.json").read_text())
    with pytest.raises(EmbeddingError, match="made with model None"):
        run(embedded, tmp_path)


# -- what cannot be probed -----------------------------------------------------------------------------------


def test_a_class_without_an_example_makes_scores_nan_not_the_run_fail(tmp_path: Path) -> None:
    splits = three() | {"test": scenes("test", labels=("a", "b"))}
    run(write_embeddings(tmp_path / "in", splits), tmp_path / "out")
    record = json.loads((tmp_path / "out" / "test.predicted-scores.json").read_text())
    assert math.isnan(record["test"]["test_aucroc"])
    assert 0 <= record["test"]["test_score"] <= 1


def test_a_score_that_cannot_choose_is_refused(tmp_path: Path) -> None:
    splits = three() | {"valid": scenes("valid", labels=("a", "b"))}
    embedded = write_embeddings(tmp_path / "in", splits, evaluation=["aucroc"])
    with pytest.raises(
        ProbeError, match=r"aucroc cannot choose a probe: all or none of the clips of valid are 'c'"
    ):
        run(embedded, tmp_path / "out")


def test_embeddings_that_break_the_probe_are_refused(tmp_path: Path) -> None:
    values, *about = scenes("test")
    huge: Any = (np.full_like(values, 3e38), *about)
    embedded = write_embeddings(tmp_path / "in", three() | {"test": huge})
    with pytest.raises(ProbeError, match="outputs of the probe are not finite"):
        run(embedded, tmp_path / "out")


def test_one_row_is_too_little(tmp_path: Path) -> None:
    embedded = write_embeddings(tmp_path / "in", three() | {"train": scenes("train", rows=1)})
    with pytest.raises(ProbeError, match="1 row to learn from"):
        run(embedded, tmp_path / "out")


@pytest.mark.parametrize(
    ("own", "reason"),
    [
        (
            {"task_specific_param_grid": {"depth": [3]}},
            "sets depth of the probe; what can be set is batch_size",
        ),
        ({"event_postprocessing_grid": {"threshold": [0.3]}}, "event_postprocessing_grid has threshold, not"),
    ],
)
def test_a_grid_that_the_kit_does_not_have_is_refused(
    tmp_path: Path, own: dict[str, Any], reason: str
) -> None:
    embedded = events_task(tmp_path / "in", [1.0, -1.0], evaluation_params=own)
    with pytest.raises(ProbeError, match=reason):
        run(embedded, tmp_path / "out")


# -- the original kit over five random streams (mean, standard deviation), and our deviation over five -------

KIT = {
    "toy_ml": {
        "test_mAP": (0.9401, 0.0044, 0.0042),
        "test_d_prime": (2.546, 0.038, 0.064),
        "test_aucroc": (0.9602, 0.0028, 0.0034),
    },
    "toy_maestro": {
        "test_event_onset_50ms_fms": (0.4359, 0.0447, 0.025),
        "test_event_onset_offset_50ms_20perc_fms": (0.1043, 0.0353, 0.023),
    },
}


def toy_ml(folder: Path) -> Task:
    """The made-up embeddings that the kit was given; its recipe needs the old random numbers."""
    random, splits = np.random.RandomState(1), dict[str, Split]()
    weight, labels = random.randn(12, 6), [f"t{index}" for index in range(6)]
    for name, rows in (("train", 200), ("valid", 80), ("test", 80)):
        values = random.randn(rows, 12)
        active = values @ weight + 0.8 * random.randn(rows, 6) > 1.0
        names = [[labels[index] for index in np.flatnonzero(row)] for row in active]
        splits[name] = values, names, {f"{name}{row}.wav": names[row] for row in range(rows)}, None
    scores = ["mAP", "d_prime", "aucroc", "top1_acc"]
    return write_embeddings(
        folder, splits, labels=labels, prediction_type="multilabel", evaluation=scores, evaluation_params={}
    )


def toy_maestro(folder: Path) -> Task:
    random = np.random.RandomState(2)
    centres = random.randn(3, 10) * 1.2
    splits: dict[str, Split] = {}
    for name, num_files in (("train", 6), ("valid", 3), ("test", 3)):
        values, names, annotations, stamps = [], list[list[str]](), dict[str, Any](), list[Any]()
        for file in (f"{name}{index}.wav" for index in range(num_files)):
            annotations[file] = []
            for label in LABELS:
                start = random.uniform(100, 800)
                while start < 9000:
                    end = start + random.uniform(300, 900)
                    annotations[file].append({"label": label, "start": round(start, 1), "end": round(end, 1)})
                    start = end + random.uniform(300, 1800)
            for time_ms in np.arange(200) * 50.0:
                names.append(
                    [row["label"] for row in annotations[file] if row["start"] <= time_ms < row["end"] + 1e-4]
                )
                values.append(
                    2.2 * random.randn(10) + sum(centres[LABELS.index(label)] for label in names[-1])
                )
                stamps.append([file, time_ms])
        splits[name] = np.array(values), names, annotations, stamps
    return write_embeddings(
        folder,
        splits,
        embedding_type="event",
        prediction_type="multilabel",
        sample_duration=10.0,
        evaluation=["event_onset_50ms_fms", "event_onset_offset_50ms_20perc_fms"],
        use_scoring_for_early_stopping=False,
        evaluation_params={
            "event_postprocessing_grid": {"median_filter_ms": [150], "min_duration": [50]},
            "task_specific_param_grid": {"max_epochs": [50], "check_val_every_n_epoch": [1]},
        },
    )


@pytest.mark.slow
@pytest.mark.parametrize(("make", "runs"), [(toy_ml, 3), (toy_maestro, 2)])
def test_scores_are_those_of_the_kit_up_to_random_streams(
    tmp_path: Path, make: Callable[[Path], Task], runs: int
) -> None:
    """Within twice the standard error of both means, that of ours as if there were so many runs: one costs
    many seconds, and meets it.
    """
    test = probe_task(make(tmp_path / "in"), tmp_path / "out")["test"]
    for name, (kit, kit_spread, our_spread) in KIT[make.__name__].items():
        spread = max(kit_spread, our_spread)
        deviation = abs(test[name] - kit)
        assert deviation < 2 * math.sqrt(kit_spread**2 / 5 + spread**2 / runs), (name, test[name])
