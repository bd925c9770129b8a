"""The dashboard over a real run: its interface, and what a browser shows."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from search.cli import main
from tests.processes import Process

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1400,2400",
)
WAIT_SECONDS = 60


@pytest.fixture(scope="module")
def run(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the finished run elsewhere, that lost its artifacts and was reported again."""
    run = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(finished_run, run)
    shutil.rmtree(run / "artifacts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("search.drawing.figure.DPI", 50)
        assert main(["report", "--out", str(run)]) == 0
    return run


@pytest.fixture(scope="module")
def address(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A dashboard of the run on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    told = tmp_path_factory.mktemp("dashboard") / "told.txt"
    process = Process(told, "search", "dashboard", "--out", str(run), "--port", str(port))
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                urllib.request.urlopen(url, timeout=2).close()
                break
            except OSError:
                assert process.is_alive, process.told
                assert time.monotonic() < deadline, "the dashboard does not answer"
                time.sleep(0.3)
        yield url
    finally:
        process.kill(signal.SIGTERM)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    """A headless Chromium with a profile of its own."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no chromium and chromedriver on this machine")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path}"):
        options.add_argument(flag)
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    yield chrome
    chrome.quit()


def get(url: str) -> dict[str, object]:
    with urllib.request.urlopen(url, timeout=20) as answer:  # noqa: S310 - our own server
        content: dict[str, object] = json.load(answer)
    return content


def test_the_interface_serves_trials_with_their_artifacts(address: str, run: Path) -> None:
    (summary,) = get(f"{address}/api/studies")["study_summaries"]  # type: ignore[misc]
    number = summary["study_id"]  # type: ignore[index]
    study = get(f"{address}/api/studies/{number}?after=0")
    trials = study["trials"]
    states = [trial["state"] for trial in trials]  # type: ignore[attr-defined]
    assert sorted(states) == ["Complete"] * 4 + ["Waiting"] * 5
    complete = ["history.csv", "history.png", "roc.png"]
    for state, files in (("Complete", complete), ("Waiting", complete[:2])):
        trial = trials[states.index(state)]  # type: ignore[index]
        served = {}
        for artifact in trial["artifacts"]:
            url = f"{address}/artifacts/{number}/{trial['trial_id']}/{artifact['artifact_id']}"
            with urllib.request.urlopen(url, timeout=20) as answer:  # noqa: S310 - our own server
                served[artifact["filename"]] = answer.read()
        assert sorted(served) == files
        folder = run / "candidates" / f"{trial['number']:04d}"
        assert served["history.csv"] == (folder / "history.csv").read_bytes()
        assert all(served[name].startswith(b"\x89PNG") for name in files[1:])


@pytest.mark.browser
def test_a_browser_finds_a_trials_auc_and_its_note(
    address: str, run: Path, browser: webdriver.Chrome
) -> None:
    leaderboard = pd.read_csv(run / "leaderboard.csv", dtype={"candidate": str})
    row = leaderboard[leaderboard["candidate"] == "0001"].iloc[0]
    (summary,) = get(f"{address}/api/studies")["study_summaries"]  # type: ignore[misc]
    study = summary["study_id"]  # type: ignore[index]
    browser.get(f"{address}/dashboard/studies/{study}/trials?numbers=1")

    def shown(driver: webdriver.Chrome) -> str:
        return str(driver.find_element(By.TAG_NAME, "body").text)

    WebDriverWait(browser, WAIT_SECONDS).until(
        lambda driver: "Verdict of the rules" in shown(driver)
    )
    text = shown(browser)
    assert f"{row['auc']:.4f}" in text
    assert str(row["backbone"]) in text
    assert "learning_rate" in text


def test_a_taken_port_is_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["dashboard", "--out", str(run), "--port", str(port)]) == 2
    error = capsys.readouterr().err
    assert f"127.0.0.1:{port}" in error
    assert error.count("\n") == 1
