"""The live page in a headless Chromium: what it shows, that it stays small, and that everyone can use it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import dgpo_lab.watching
from dgpo_lab.watching import server as serving_module
from dgpo_lab.watching.access import Access
from tests.browsing import Browser, chromium, open_browser
from tests.doctored import Written, evaluation, metrics
from tests.reported import write_images, write_run

from .test_watch_server import serving

PAGE = Path(dgpo_lab.watching.__file__).parent / "page"
REFRESH = "import('/watch.js').then(page => page.refresh())"


# -- without a browser -----------------------------------------------------------------------------------------------


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colors #rrggbb (WCAG 2.2)."""

    def luminance(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_text_and_lines_can_be_told_from_the_ground_in_both_themes() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    themes = re.findall(r":root \{(.*?)\}", (PAGE / "watch.css").read_text(), re.DOTALL)
    assert len(themes) == 2
    for theme in themes:
        color = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", theme))
        for name in ("text", "muted", "good", "warn", "bad", *(f"run-{i}" for i in range(6))):
            assert contrast(color[name], color["paper"]) >= 4.5, name
        assert contrast(color["warn"], color["warn-tint"]) >= 4.5
        assert contrast(color["muted"], color["tint"]) >= 4.5


def test_every_file_of_the_page_is_served() -> None:
    assert {name for name, _ in serving_module.PAGE.values()} == {file.name for file in PAGE.iterdir()}


# -- in a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = chromium()
    if program is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    with open_browser(program, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def browser(tab: Browser) -> Iterator[Browser]:
    """A tab whose console must stay empty, and which must ask nobody but the server."""
    tab.size(1180, 900)
    tab.prefer(prefers_color_scheme="light")
    tab.complaints.clear()
    tab.requested.clear()
    yield tab
    assert tab.complaints == []
    assert {url.split("/")[2] for url in tab.requested if not url.startswith(("data:", "about:"))} <= {tab.host}
    tab.open("about:blank")


def visit(browser: Browser, server: Any, fragment: str = "") -> None:
    browser.host = f"127.0.0.1:{server.server_port}"
    browser.open(f"http://{browser.host}/{fragment}")
    browser.wait("document.querySelectorAll('#panels figure').length > 9")


def text(browser: Browser, selector: str) -> str:
    found: str = browser.run(f"document.querySelector({json.dumps(selector)}).innerText")
    return " ".join(found.split())


@pytest.mark.slow
def test_a_finished_run_is_shown_in_full(browser: Browser, tmp_path: Path) -> None:
    with serving(write_run(tmp_path / "quickstart")) as server:
        visit(browser, server)
        assert (text(browser, "h1"), text(browser, "#state")) == ("quickstart", "finished")
        assert text(browser, "#facts").startswith("Iteration 40 of 40 Time left – Per iteration 11 s")
        assert browser.run("document.getElementById('runs').hidden")
        rows = browser.run("[...document.querySelectorAll('#score-rows tr')].map(row => row.innerText.split('\\t'))")
        assert rows[0] == ["all tasks", "0.48", "0.74", "+0.26"]
        assert ["two_object", "0.52", "0.83", "+0.31"] in rows
        browser.wait("document.querySelectorAll('#gallery img').length === 12")
        browser.run("document.getElementById('samples').scrollIntoView()")
        browser.wait("[...document.querySelectorAll('#gallery img')].every(i => i.complete && i.naturalWidth === 32)")
        assert text(browser, "#gallery figcaption") == "a photo of a red circle"
        browser.wait("document.getElementById('doctor').innerText.includes('Examined after iteration 40')")
        titles = browser.run("[...document.querySelectorAll('#panels h3')].map(title => title.innerText)")
        assert {"Training reward", "KL", "σ(S_g)", "Gradient norm", "Throughput", "Memory"} <= set(titles)


@pytest.mark.slow
def test_curves_have_the_points_of_the_log(browser: Browser, tmp_path: Path) -> None:
    """The path of KL, read back from its coordinates, is the logged KL up to the rounding of the drawing."""
    run = write_run(tmp_path / "quickstart")
    with serving(run) as server:
        visit(browser, server)
        figure = "[...document.querySelectorAll('#panels figure')].find(f => f.querySelector('h3').innerText === 'KL')"
        path, table, name = browser.run(
            f"(() => {{ const f = {figure}; f.querySelector('details').open = true; "
            "return new Promise(done => setTimeout(() => done([f.querySelector('path.line').getAttribute('d'), "
            "[...f.querySelectorAll('tbody tr')].map(row => row.innerText.split('\\t')), "
            "f.querySelector('svg').getAttribute('aria-label')]), 100)); })()"
        )
    kl = [json.loads(line)["kl"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    points = [tuple(map(float, point.split(","))) for point in path[1:].split("L")]
    assert len(points) == 40
    xs, ys = zip(*points, strict=True)
    assert xs == pytest.approx([46 + i / 39 * (340 - 46 - 8) for i in range(40)], abs=0.051)
    drawn, logged = ([(v - values[0]) / (values[-1] - values[0]) for v in values] for values in (ys, kl))
    assert drawn == pytest.approx(logged, abs=2e-3)
    assert len(table) == 12
    for iteration, value in table:
        assert float(value) == pytest.approx(kl[int(iteration) - 1], rel=1e-3)
    assert name.startswith("KL. kl: ")


@pytest.mark.slow
def test_a_run_in_progress_grows_on_the_page(browser: Browser, tmp_path: Path) -> None:
    config = {"run": {"iterations": 60}}
    run = Written(n=30, outcome=None, config=config).write(tmp_path / "live")
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    with serving(run) as server:
        visit(browser, server)
        assert (text(browser, "#state"), browser.run("document.title")) == ("running", "30/60 live – dgpo watch")
        assert text(browser, "#facts").startswith("Iteration 30 of 60 Time left 5 min")
        with (run / "metrics.jsonl").open("a") as log:
            log.write(json.dumps(metrics(31, 60, {})) + "\n" + json.dumps(metrics(32, 60, {}))[:50])
        write_images(run, 30)
        browser.run(REFRESH)
        assert text(browser, "#facts").startswith("Iteration 31 of 60")
        assert browser.run("document.querySelectorAll('#gallery img').length") == 6
        (run / "metrics.jsonl").write_text("".join(lines[:20]))  # resumed from an earlier checkpoint
        (run / "evaluations.jsonl").write_text(json.dumps(evaluation(0, "brightness", 0.25)) + "\n")
        browser.run(REFRESH)
        assert text(browser, "#facts").startswith("Iteration 20 of 60")
        path = browser.run("document.querySelector('#panels .plot path.line').getAttribute('d')")
        assert path.count("L") == 19
        (run / "outcome.json").write_text('{"outcome": "failed", "iteration": 20, "ended_by": null}')
        browser.run(REFRESH)
        assert text(browser, "#state") == "failed"


@pytest.mark.slow
def test_runs_are_compared(browser: Browser, tmp_path: Path) -> None:
    for name, n in (("one", 10), ("two", 20), ("three", 5)):
        Written(n=n).write(tmp_path / "runs" / name)
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "config.yaml").write_text("run: {name: x}\n")
    with serving(tmp_path / "runs") as server:
        visit(browser, server, "#run=two&run=one")
        assert browser.run("[...document.querySelectorAll('#legend li')].map(item => item.innerText)") == ["two", "one"]
        assert browser.run("document.querySelectorAll('#panels figure:first-child .plot path.line[d^=M]').length") == 2
        box = "[...document.querySelectorAll('#run-list label')].find(l => l.innerText.includes('NAME')).firstChild"
        browser.run(box.replace("NAME", "three") + ".click()")
        browser.wait("document.querySelectorAll('#panels figure:first-child .plot path.line[d^=M]').length === 3")
        assert browser.run("location.hash") == "#run=two&run=one&run=three"
        for name in ("one", "two", "three"):
            browser.run(box.replace("NAME", name) + ".click()")
        browser.wait("document.getElementById('main').hidden")
        browser.run(box.replace("NAME", "broken") + ".click()")
        browser.wait("!document.getElementById('trouble').hidden")
        assert "run.iterations: is missing" in text(browser, "#trouble")
        assert text(browser, "#state") == "cannot be read"
        browser.run(
            "(f => { f.value = 'tw'; f.dispatchEvent(new Event('input')); })(document.getElementById('filter'))"
        )
        assert browser.run("document.querySelectorAll('#run-list li').length") == 2  # "two", and the chosen one


@pytest.mark.slow
def test_a_thousand_updates_leave_memory_flat(browser: Browser, tmp_path: Path) -> None:
    run = Written(n=1000, outcome=None, config={"run": {"iterations": 9000}}).write(tmp_path / "long")
    timing = (run / "timings.jsonl").read_text().splitlines()[0]
    with serving(run) as server:
        visit(browser, server)
        found = []
        for number in range(1001, 2101):
            with (run / "metrics.jsonl").open("a") as log:
                log.write(json.dumps(metrics(number, 9000, {})) + "\n")
            with (run / "timings.jsonl").open("a") as log:
                log.write(json.dumps({**json.loads(timing), "iteration": number}) + "\n")
            if number % 5 == 0:
                with (run / "evaluations.jsonl").open("a") as log:
                    log.write(json.dumps(evaluation(number, "brightness", 0.5 + number / 1e5)) + "\n")
            browser.run(REFRESH)
            if number in (1100, 2100):
                found.append(browser.measures())
        assert text(browser, "#facts").startswith("Iteration 2,100 of 9,000")
        points = browser.run("document.querySelector('#panels .plot path.line').getAttribute('d').split('L').length")
    before, after = found
    assert 400 <= points <= 800
    assert after["Nodes"] <= before["Nodes"] + 200  # labels of axes come and go, at most 12 in a figure
    assert after["JSEventListeners"] <= before["JSEventListeners"]
    assert after["JSHeapUsedSize"] <= before["JSHeapUsedSize"] + 2**20


@pytest.mark.slow
def test_keyboard_and_screen_reader(browser: Browser, tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "quickstart")
    Written(n=10).write(tmp_path / "runs" / "other")
    with serving(tmp_path / "runs") as server:
        visit(browser, server, "#run=quickstart")
        browser.wait("document.querySelectorAll('#gallery img').length === 12")
        nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
        named = [(n["role"]["value"], n.get("name", {}).get("value", "")) for n in nodes if not n.get("ignored")]
        assert {"banner", "main", "navigation"} <= {role for role, _ in named}
        assert ("navigation", "Runs") in named
        for role in (
            "button",
            "checkbox",
            "searchbox",
            "image",
            "progressbar",
            "region",
            "table",
            "DisclosureTriangle",
        ):
            names = [name for found, name in named if found == role]
            assert all(names), role
            assert names, role
        assert ("searchbox", "Filter by name") in named
        assert any(name == "a photo of a red circle: iteration 40" for _, name in named)
        stops = []
        for _ in range(40):
            browser.press("Tab")
            stops.append(browser.run("document.activeElement.id || document.activeElement.getAttribute('class') "
                                     "|| document.activeElement.tagName"))  # fmt: skip
        assert stops[:3] == ["skip", "pause", "filter"]
        assert "plot" in stops
        browser.run("document.querySelector('#panels .plot').focus()")
        readout = "#panels figure .latest"
        assert text(browser, readout).startswith("now ")
        browser.press("Home")
        assert text(browser, readout).startswith("iteration 1 ")
        browser.press("ArrowRight")
        assert text(browser, readout).startswith("iteration 2 ")
        assert browser.run(f"document.querySelector('{readout}').getAttribute('role')") == "status"
        browser.press("Escape")
        assert text(browser, readout).startswith("now ")
        browser.run("document.getElementById('pause').focus()")
        browser.press(" ")
        assert browser.run("document.getElementById('pause').getAttribute('aria-pressed')") == "true"


@pytest.mark.slow
def test_themes_motion_and_narrow_screens(browser: Browser, tmp_path: Path) -> None:
    run = Written(n=30, outcome=None, config={"run": {"iterations": 60}}).write(tmp_path / "live")
    with serving(run) as server:
        visit(browser, server)
        style = "getComputedStyle(document.querySelector('{}')).{}"
        assert browser.run(style.format("html", "backgroundColor")) == "rgb(255, 255, 255)"
        assert browser.run(style.format("#badge", "animationName")) == "breathe"
        browser.prefer(prefers_color_scheme="dark", prefers_reduced_motion="reduce")
        assert browser.run(style.format("html", "backgroundColor")) == "rgb(20, 23, 27)"
        assert browser.run(style.format("#badge", "animationName")) == "none"
        for width in (320, 400, 800, 1180):
            browser.size(width, 900)
            assert browser.run("document.documentElement.scrollWidth <= innerWidth"), width


@pytest.mark.slow
def test_the_token_leaves_the_address(browser: Browser, tmp_path: Path) -> None:
    access = Access(local=False, names=frozenset(), token="a-token-of-the-tests")
    with serving(Written(n=10).write(tmp_path / "run"), access) as server:
        visit(browser, server, "?token=a-token-of-the-tests")
        assert browser.run("location.href") == f"http://{browser.host}/"
        assert browser.run("document.cookie") == ""  # scripts cannot read it
        browser.run("location.reload()")
        browser.wait("document.querySelectorAll('#panels figure').length > 9")


def connect(browser: Browser, *, offline: bool) -> None:
    limits = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    browser.call("Network.emulateNetworkConditions", offline=offline, **limits)


@pytest.mark.slow
def test_a_server_that_ends_is_told(browser: Browser, tmp_path: Path) -> None:
    with serving(Written(n=10).write(tmp_path / "run")) as server:
        visit(browser, server)
        connect(browser, offline=True)
        browser.run(REFRESH)
        assert text(browser, "#trouble").startswith("The server does not answer; trying again.")
        connect(browser, offline=False)
        browser.run(REFRESH)
        assert browser.run("document.getElementById('trouble').hidden")
    assert all("ERR_INTERNET_DISCONNECTED" in line for line in browser.complaints)
    browser.complaints.clear()
