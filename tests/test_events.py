import numpy as np
import pytest

from patchout.inference.events import Event, EventRule, find_events, median

RULE = EventRule(window_s=1.0, hop_s=1.0, median=1, on=0.5, off=0.3)


def events(*tracks: list[float], rule: EventRule = RULE) -> list[tuple[str, float, float, float]]:
    """Events of classes a, b ...: windows of one second, centred at .5, 1.5 ... s, side by side."""
    track = np.array(tracks, np.float32).T
    times_s = np.arange(len(track), dtype=np.float32) + 0.5
    found = find_events(track, times_s, "abc"[: len(tracks)], rule=rule, duration_s=float(len(track)))
    return [(event.label, event.start_s, event.end_s, round(event.score, 4)) for event in found]


def test_an_event_begins_at_on_and_lasts_until_the_score_falls_below_off() -> None:
    assert events([0.1, 0.4, 0.6, 0.4, 0.2]) == [("a", 2.0, 4.0, 0.6)]


def test_both_thresholds_are_reached_by_equality() -> None:
    rule = EventRule(window_s=1.0, hop_s=1.0, median=1, on=0.5, off=0.25)
    assert events([0.0, 0.5, 0.25, 0.0], rule=rule) == [("a", 1.0, 3.0, 0.5)]


def test_a_score_between_the_thresholds_begins_nothing() -> None:
    assert events([0.0, 0.4, 0.45, 0.0]) == []


def test_a_dip_above_off_does_not_split_an_event() -> None:
    assert events([0.7, 0.4, 0.9, 0.0]) == [("a", 0.0, 3.0, 0.9)]


def test_a_dip_below_off_makes_two_events_of_one_class() -> None:
    assert events([0.7, 0.1, 0.9, 0.0]) == [("a", 0.0, 1.0, 0.7), ("a", 2.0, 3.0, 0.9)]


def test_the_first_and_last_window_reach_the_ends_of_the_sound() -> None:
    """Two half-overlapping windows of two seconds, centred at 1 and 2 s of 3 s: the border is half-way."""
    track = np.array([[0.9, 0.0], [0.0, 0.9]], np.float32)
    found = find_events(track, np.array([1, 2], np.float32), "ab", rule=RULE, duration_s=3.0)
    assert [(event.label, event.start_s, event.end_s) for event in found] == [
        ("a", 0.0, 1.5),
        ("b", 1.5, 3.0),
    ]


def test_one_window_speaks_for_the_whole_sound() -> None:
    found = find_events(
        np.array([[0.9]], np.float32), np.array([0.1], np.float32), "a", rule=RULE, duration_s=0.2
    )
    assert [(event.start_s, event.end_s) for event in found] == [(0.0, 0.2)]


def test_events_come_in_order_of_their_start_then_their_label() -> None:
    found = events([0.0, 0.0, 0.9], [0.9, 0.0, 0.9], [0.9, 0.9, 0.0])
    assert [(label, start) for label, start, *_ in found] == [("b", 0.0), ("c", 0.0), ("a", 2.0), ("b", 2.0)]


def test_no_windows_and_quiet_windows_give_no_events() -> None:
    assert (
        find_events(np.zeros((0, 2), np.float32), np.zeros(0, np.float32), "ab", rule=RULE, duration_s=0.0)
        == ()
    )
    assert events([0.0, 0.0, 0.0]) == []


def test_the_median_removes_a_blip_of_one_window() -> None:
    blip = [0.0, 0.0, 0.9, 0.0, 0.8, 0.8, 0.0]
    rule = EventRule(window_s=1.0, hop_s=1.0, median=3)
    assert events(blip) == [("a", 2.0, 3.0, 0.9), ("a", 4.0, 6.0, 0.8)]
    assert events(blip, rule=rule) == [("a", 3.0, 6.0, 0.8)]


def test_the_median_of_three_by_hand() -> None:
    values = np.array([1, 5, 2, 8, 3], np.float32)
    assert median(values, 3).tolist() == [1, 2, 5, 3, 3]
    assert median(values, 1).tolist() == values.tolist()


def test_a_median_longer_than_the_sound_is_possible() -> None:
    assert median(np.array([0.5], np.float32), 5).tolist() == [0.5]


def test_an_event_turns_into_rounded_plain_values() -> None:
    event = Event("dog", 0.12345, 1.0, 0.987654)
    assert event.to_dict() == {"label": "dog", "start_s": 0.123, "end_s": 1.0, "score": 0.9877}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"hop_s": 2.0}, "hop must be within 0 and the window"),
        ({"hop_s": 0.0}, "windows of 1.0 s every 0.0 s"),
        ({"median": 2}, "odd, got 2"),
        ({"median": 0}, "odd, got 0"),
        ({"median": -1}, "odd, got -1"),
        ({"on": 0.2, "off": 0.3}, "got off 0.3 and on 0.2"),
        ({"off": 0.6}, "got off 0.6 and on 0.5"),
        ({"on": 1.0}, "on < 1"),
        ({"off": 0.0}, "0 < off"),
    ],
)
def test_a_rule_that_finds_nothing_or_everything_is_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EventRule(**wrong)  # type: ignore[arg-type]
