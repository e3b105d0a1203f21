"""The page of `patchout web` in headless Chromium: listened to, labelled, learnt from by keyboard."""

import csv
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import CHROMIUM, Browser
from conftest import DATA, needs_data

AXE = Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"
CLASSES = ("dog", "rain", "rooster")
FIRST_TAG = "document.querySelector('#tags li button').textContent"
SHOWN = "[...document.querySelectorAll('#sounds .file')].map((entry) => entry.textContent.slice(1))"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here"),
    needs_data,
]
pytest.importorskip("uvicorn", reason="the extra web")


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a list."""
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


class Page(Browser):
    """The page in a browser of its own."""

    def chosen(self) -> str:
        """The file that is shown."""
        return str(self.value("document.getElementById('name').textContent"))

    def drawn(self) -> None:
        """Wait until the sound that is shown is drawn."""
        self.until(
            "document.getElementById('lanes').dataset.drawn === document.getElementById('name').textContent"
        )

    def type(self, text: str) -> None:
        """Type a text."""
        self.press(*text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five clips of each of three classes."""
    assert DATA is not None
    folder = tmp_path_factory.mktemp("clips")
    rows = rows_of(DATA / "esc10" / "esc10.csv")
    for label in CLASSES:
        for row in [row for row in rows if row["category"] == label][:5]:
            shutil.copy(DATA / "esc10" / "audio" / row["filename"], folder / f"{label}-{row['filename']}")
    return folder


@pytest.fixture(scope="module")
def page(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The page, all sounds tagged."""
    command = [sys.executable, "-m", "patchout", "web", str(folder), "--model", "sounds-tiny", "--no-open"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        browser = Page(tmp_path_factory.mktemp("profile"))
        try:
            browser.open(server.stdout.readline().strip())
            browser.ask(
                "Emulation.setDeviceMetricsOverride",
                width=1280,
                height=800,
                deviceScaleFactor=1,
                mobile=False,
            )
            browser.until("document.body?.dataset.ready === 'yes'")
            browser.until("document.querySelector('#facts').textContent.includes('15 of 15 sounds tagged')")
            yield browser
        finally:
            browser.close()
            server.terminate()


def test_a_sound_is_played_and_the_cursor_moves(page: Page) -> None:
    page.press("j")
    page.until("document.querySelectorAll('#tags li').length > 3")
    page.until("document.querySelectorAll('#lanes li').length > 3")
    page.press(" ")
    page.until("parseFloat(document.getElementById('time').textContent) > 0.3")
    page.press(" ")
    drawn = "document.querySelector('#wave div').shadowRoot.querySelector('img').naturalWidth > 100"
    assert page.until(drawn)


def test_three_labels_are_corrected_by_keyboard(page: Page, folder: Path) -> None:
    before = [page.chosen()]
    for number in range(3):
        page.press("l")
        page.type("cat")
        page.press("Enter")
        page.until(f"document.querySelectorAll('#sounds .by-hand').length === {number + 1}")
        page.until(f"document.getElementById('name').textContent !== {json.dumps(before[-1])}")
        before.append(page.chosen())
    rows = rows_of(folder / "labels.csv")
    assert [(row["file"], row["labels"]) for row in rows] == [(file, "cat") for file in before[:3]]
    assert len(set(before)) == 4


def test_a_segment_is_drawn_and_labelled(page: Page, folder: Path) -> None:
    page.drawn()
    box = json.loads(page.value("JSON.stringify(document.getElementById('wave').getBoundingClientRect())"))
    x, y, width = box["x"], box["y"] + 200, box["width"]  # below the captions of events
    page.drag((x + 0.2 * width, y), (x + 0.5 * width, y))
    page.until("document.activeElement.id === 'label'")
    time.sleep(0.2)  # the click that ends a drag is swallowed, and Enter in a form is a click
    page.type("yelp")
    page.press("Enter")
    page.until("document.querySelector('#labels').textContent.includes('yelp')")
    row = rows_of(folder / "labels.csv")[-1]
    assert (row["file"], row["labels"]) == (page.chosen(), "yelp")
    assert float(row["start"]) == pytest.approx(1.0, abs=0.1)
    assert float(row["end"]) == pytest.approx(2.5, abs=0.1)


def test_a_label_is_taken_back_and_a_segment_set_by_keys(page: Page, folder: Path) -> None:
    page.press("u")
    page.until("!document.querySelector('#labels').textContent.includes('yelp')")
    page.press("ArrowRight", "ArrowRight", "[", "ArrowRight", "]", "l")
    page.type("bark")
    page.press("Enter")
    page.until("document.querySelector('#labels').textContent.includes('bark')")
    row = rows_of(folder / "labels.csv")[-1]
    assert float(row["end"]) - float(row["start"]) == pytest.approx(0.5, abs=0.05)
    page.press("d")
    page.until("!document.querySelector('#labels').textContent.includes('bark')")


def test_keys_that_follow_each_other_fast_are_all_counted(page: Page) -> None:
    """A browser may say the position of the first of several seeks."""
    page.drawn()
    for _ in range(40):
        page.press("Escape", *["ArrowLeft"] * 10, "ArrowRight", "ArrowRight", "[", "ArrowRight", "]")
        assert page.value("document.getElementById('target').textContent") == "label of 1.00 s to 1.50 s"
    page.press("Escape")


def test_a_rejected_class_is_kept_as_that_and_not_suggested_again(page: Page, folder: Path) -> None:
    page.value("document.getElementById('sort').value = 'name'")
    page.value("document.getElementById('sort').dispatchEvent(new Event('change'))")
    page.until(f"{SHOWN}[0] < {SHOWN}[1] && document.querySelectorAll('[aria-selected=true]').length === 0")
    page.press("j")
    page.until(f"document.getElementById('name').textContent === {SHOWN}[0]")
    page.until("document.querySelectorAll('#tags li').length > 3")
    file = page.chosen()
    before = [row for row in rows_of(folder / "labels.csv") if row["file"] == file]
    guess = before[0]["labels"] if before else page.value(FIRST_TAG)
    page.press("x")
    page.until(f"document.querySelector('#sounds .by-hand').textContent === 'not {guess}'")
    page.until(f"document.getElementById('name').textContent !== {json.dumps(file)}")
    (row,) = [row for row in rows_of(folder / "labels.csv") if row["file"] == file]
    assert row["labels"] == f"!{guess}"
    page.press("k")
    page.until(f"document.getElementById('name').textContent === {json.dumps(file)}")
    page.until("document.getElementById('target').textContent.includes('whole sound: not')")
    page.press("a")
    page.until(f"document.getElementById('name').textContent !== {json.dumps(file)}")
    (row,) = [row for row in rows_of(folder / "labels.csv") if row["file"] == file]
    assert row["labels"] not in (guess, f"!{guess}")


def test_background_has_a_key_of_its_own(page: Page, folder: Path) -> None:
    page.value("document.getElementById('sort').value = 'uncertain'")
    page.value("document.getElementById('sort').dispatchEvent(new Event('change'))")
    page.until("document.querySelectorAll('[aria-selected=true]').length === 0")
    page.press("j")
    page.until(f"document.getElementById('name').textContent === {SHOWN}[0]")
    file = page.chosen()
    page.press("b")
    page.until(f"document.getElementById('name').textContent !== {json.dumps(file)}")
    assert {row["labels"] for row in rows_of(folder / "labels.csv") if row["file"] == file} == {"background"}


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(scheme: str, width: int, page: Page) -> None:
    if not AXE.is_file():
        pytest.skip("npm install in tests/")
    emulated = [{"name": "prefers-color-scheme", "value": scheme}]
    page.ask("Emulation.setEmulatedMedia", features=emulated)
    page.ask("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
    if not page.value("typeof window.axe === 'object'"):
        page.value(AXE.read_text(encoding="utf-8") + ";0")
    found: list[dict[str, Any]] = []
    for opened in ("", "learn", "help"):
        if opened:
            page.value(f"document.getElementById('{opened}').showModal()")
        found += json.loads(page.value("axe.run().then((result) => JSON.stringify(result.violations))"))
        if opened:
            page.value(f"document.getElementById('{opened}').close()")
    serious = [
        (fault["id"], [node["html"] for node in fault["nodes"]])
        for fault in found
        if fault["impact"] in ("serious", "critical")
    ]
    assert serious == []
    too_wide = page.value("document.documentElement.scrollWidth - innerWidth")
    assert too_wide <= 0


def test_learning_changes_the_order(page: Page, folder: Path) -> None:
    page.ask("Emulation.setDeviceMetricsOverride", width=1280, height=800, deviceScaleFactor=1, mobile=False)
    before = page.value(SHOWN)
    text = "".join(f"{file},{'cat' if 'dog' in file else 'rain'}\n" for file in before[:10])
    aside = folder / "by-hand"
    aside.write_text(f"file,labels\n{text}", encoding="utf-8")
    aside.replace(folder / "labels.csv")  # an edit by hand is taken over
    page.press("g")
    page.until("document.getElementById('learn').open")
    page.press("Enter")
    page.until("document.body.dataset.generation === '1'")
    end = time.monotonic() + 60
    while page.value(SHOWN) == before:
        assert time.monotonic() < end
        time.sleep(0.2)
    page.until("document.getElementById('report').textContent.includes('Report of')")
    page.press("Escape")
    assert set(page.value(SHOWN)) == set(before)
