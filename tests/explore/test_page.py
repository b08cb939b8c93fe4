"""pareto.html in headless Chromium: what is drawn, what hovering says, what a click copies, and how quick it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcompiler.exploration.models import Model
from qcompiler.exploration.run import Exploration
from qcompiler.sim import hardware
from qcompiler.sim.explore import pareto
from qcompiler.sim.explore.merit import Cost, Merit, Outcome, Quality
from qcompiler.sim.explore.sensitivity import Effect
from qcompiler.sim.explore.space import ModelOptions
from qcompiler.sim.explore.space_file import loads
from qcompiler.sim.widths import FULL

pytest.importorskip("plotly")
playwright = pytest.importorskip("playwright.sync_api")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs chromium (.ci/run installs it)")

SPACE = """
name: page
base: edge-16x16
fields:
  matrix.rows: {low: 2, high: 26}
  matrix.columns: {low: 2, high: 26}
  vector.lanes: {low: 1, high: 16}
  main_memory.technology: [lpddr4, hbm2]
variables: {tiles: [2]}
derived: {weight_memory.size_bytes: 'max(256, tiles * matrix.rows * matrix.columns)'}
objectives: [latency, energy, area]
constraints: ["area < 2"]
"""


def exploration(count: int, objectives: tuple[str, ...] = ()) -> Exploration:
    """As many points with made-up costs that depend on their fields; every 50th is impossible."""
    space = loads(SPACE)
    measured = {"net": ("sqnr_db", "accuracy")} if objectives else {}
    merit = Merit({"net": ModelOptions()}, objectives or space.objectives, space.constraints, measured)
    points = [p for _, p in zip(range(count), space.points(), strict=False)]
    outcomes, figures, broken = [], [], []
    for number, (rows, columns, lanes, technology, _) in enumerate(points):
        if number % 50 == 7:
            outcomes.append(Outcome("layer <b>'conv'</b> does not fit"))
            figures.append(None)
            broken.append({})
            continue
        work = 100_000 / ((rows + 2) * (columns + 2)) + 20_000 / (lanes + 1)
        area = 0.2 + 0.004 * (rows + 2) * (columns + 2) + 0.03 * lanes
        outcome = Outcome("", 500.0, area, 0.1, (Cost(round(work * 10), 1e5 * (4 - technology + work / 1e4), 5000),),
                          (Quality(20.0 - lanes / 4, 0.5 + rows / 100),))  # fmt: skip
        outcomes.append(outcome)
        figures.append(merit.figures(outcome))
        broken.append(merit.violations(outcome, merit.figures(outcome), {}))
    good = [i for i, (f, b) in enumerate(zip(figures, broken, strict=True)) if f is not None and not b]
    costs = np.array([[o.cost(figures[i] or {}) for o in merit.objectives] for i in good])
    front = [good[i] for i in np.flatnonzero(pareto.front(costs))]
    simulated = {n: outcomes[n] for n in front}
    following = {n: {"clock": outcomes[front[0]], "vector lanes": outcomes[front[-1]]} for n in front}
    effects = {o.figure: [Effect(0.5, 0.625)] * len(space.axes) for o in merit.objectives}
    identity: dict[str, Any] = {"models": {"net": [{"w8a8": "0" * 64}, 1.0, None]}}
    program: Any = None
    return Exploration(
        space,
        merit,
        "exhaustive",
        0,
        identity,
        points,
        outcomes,
        figures,
        broken,
        front,
        simulated,
        effects,
        following,
        (Model("net", "net.onnx", "given", {FULL: program}, {FULL: program}),),
        {FULL: (Quality(20.0, 0.5),)} if objectives else {},
        (0.75,) if objectives else (),
    )


def page_of(found: Exploration, path: Path) -> Path:
    from qcompiler.exploration.output import summarise
    from qcompiler.report.pareto import render

    path.write_text(render(found, summarise(found)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as p:
        found = p.chromium.launch(
            executable_path=BROWSER,
            args=["--no-sandbox", "--enable-unsafe-swiftshader", "--use-angle=swiftshader", "--disable-dev-shm-usage"],
        )
        yield found
        found.close()


class Page:
    """An open page and what its console said."""

    def __init__(self, browser: Any, path: Path) -> None:
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        self.page = context.new_page()
        self.session = context.new_cdp_session(self.page)
        self.session.send("Performance.enable", {"timeDomain": "threadTicks"})
        self.page.set_default_timeout(120_000)  # a busy machine is slow, not wrong
        self.said: list[str] = []
        self.page.on("console", lambda m: self.said.append(f"{m.type}: {m.text}"))
        self.page.on("pageerror", lambda e: self.said.append(f"error: {e}"))
        self.page.goto(path.as_uri())
        self.page.wait_for_function("document.documentElement.dataset.ready")

    def evaluate(self, script: str, *arguments: Any) -> Any:
        return self.page.evaluate(script, *arguments)

    def busy(self) -> float:
        """Seconds of processor time that the page's thread has taken, whatever else the machine was doing."""
        metrics = self.session.send("Performance.getMetrics")["metrics"]
        return float(next(m["value"] for m in metrics if m["name"] == "TaskDuration"))

    def loneliest(self) -> int:
        """The machine of the front whose point is farthest from all others: nothing else answers there."""
        return int(
            self.evaluate("""() => { const l = document.getElementById("plot")._fullLayout;
            const at = i => [l.xaxis.c2p(D.figures[$("x").value][i]), l.yaxis.c2p(D.figures[$("y").value][i])];
            const all = [...groups.violates, ...groups.dominated, ...D.front].map(i => [i, at(i)]);
            const far = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]);
            const room = i => Math.min(...all.filter(o => o[0] !== i).map(o => far(o[1], at(i))));
            return D.front.map(i => [room(i), i]).sort((a, b) => b[0] - a[0])[0][1]; }""")
        )

    def hover(self, number: int) -> str:
        """What the plot says where the machine's point is drawn."""
        x, y = self.evaluate(
            """n => { const plot = document.getElementById("plot"), box = plot.getBoundingClientRect();
            const l = plot._fullLayout; return [box.left + l.xaxis._offset + l.xaxis.c2p(D.figures[$("x").value][n]),
                    box.top + l.yaxis._offset + l.yaxis.c2p(D.figures[$("y").value][n])]; }""",
            number,
        )
        self.page.mouse.move(x - 30, y - 30)
        self.page.mouse.move(x, y, steps=3)
        self.page.wait_for_selector(".hoverlayer .hovertext")
        lines = self.evaluate(
            "[...document.querySelectorAll('.hoverlayer .hovertext tspan.line')].map(e => e.textContent)"
        )
        return "\n".join(lines)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Exploration, Path]:
    found = exploration(700)
    return found, page_of(found, tmp_path_factory.mktemp("page") / "pareto.html")


@pytest.fixture(scope="module")
def page(browser: Any, small: tuple[Exploration, Path]) -> Page:
    """The small page, opened once: tests leave it as they like."""
    return Page(browser, small[1])


def test_points_hover_and_copied_machine(page: Page, small: tuple[Exploration, Path]) -> None:
    found, _ = small
    page.page.locator("#plot").scroll_into_view_if_needed()
    counts = page.evaluate("document.getElementById('plot').data.map(t => [t.name, t.x.length])")
    violating = sum(bool(b) for b in found.broken)
    feasible = sum(f is not None and not b for f, b in zip(found.figures, found.broken, strict=True))
    assert counts == [["violates", violating], ["dominated", feasible - len(found.front)], ["front", len(found.front)]]
    drawn = page.evaluate("document.querySelectorAll('#plot .scatterlayer .point').length")
    assert drawn == violating + feasible
    number = page.loneliest()
    assert number in found.front
    figures, choices = found.figures[number], found.space.choices(found.points[number])
    assert figures is not None
    told = page.hover(number)
    assert told.splitlines()[:6] == [
        found.name(number), f"matrix.rows = {choices['matrix.rows']}", f"matrix.columns = {choices['matrix.columns']}",
        f"vector.lanes = {choices['vector.lanes']}", f"main_memory.technology = {choices['main_memory.technology']}",
        "tiles = 2",
    ]  # fmt: skip
    shown = dict(line.split(": ") for line in told.splitlines() if ": " in line)
    assert {k: float(v) for k, v in shown.items()} == pytest.approx(
        {n: figures[n] for n in ("latency_ms", "energy_uj", "area_mm2")}, rel=1e-4
    )
    page.page.mouse.down()
    page.page.mouse.up()
    page.page.wait_for_function("document.getElementById('copied').classList.contains('on')")
    copied = hardware.loads(page.evaluate("navigator.clipboard.readText()"))
    assert copied.hash == found.machine(number).hash and copied.name == found.machine(number).name
    assert page.evaluate("document.querySelectorAll('#next tr').length") == 3
    assert page.said == []


def test_every_machine_copies_as_it_is(page: Page, small: tuple[Exploration, Path]) -> None:
    found, _ = small
    for number in range(0, len(found.points), 37):
        if found.figures[number] is not None:
            assert hardware.loads(page.evaluate("n => yaml(n)", number)).hash == found.machine(number).hash


def test_the_table_sorts_filters_and_turns_its_pages(page: Page, small: tuple[Exploration, Path]) -> None:
    found, _ = small
    column = "n => [...document.querySelectorAll('#table tbody tr')].map(r => r.children[n].textContent)"
    heads = page.evaluate("[...document.querySelectorAll('#table th')].map(h => h.textContent.replace(/ .$/, ''))")
    at = heads.index("area_mm2")
    page.page.locator("#which").select_option("all")
    page.page.locator("#table th").nth(at).click()
    first = [float(v) for v in page.evaluate(column, at)]
    known = sorted(f["area_mm2"] for f in found.figures if f is not None)
    assert first == pytest.approx(known[:100], rel=1e-4)
    page.page.locator("#after").click()
    assert [float(v) for v in page.evaluate(column, at)] == pytest.approx(known[100:200], rel=1e-4)
    page.page.locator("#filter").fill("matrix.columns=4 vector.lanes=3")
    wanted = [found.space.choices(p) for p in found.points]
    assert page.page.locator("#count").text_content() == (
        f"{sum(c['matrix.columns'] == 4 and c['vector.lanes'] == 3 for c in wanted)} machines"
    )
    page.page.locator("#filter").fill("does")
    assert "layer <b>'conv'</b> does not fit" in page.evaluate(column, len(heads) - 1)[0]
    assert page.said == []


def test_accuracy_is_drawn_as_it_is(browser: Any, tmp_path: Path) -> None:
    """On a linear axis, the best first, with a table of what each width is worth."""
    found = exploration(200, ("accuracy", "latency"))
    page = Page(browser, page_of(found, tmp_path / "pareto.html"))
    layout = "(() => { const l = document.getElementById('plot')._fullLayout; return [l.xaxis.type, l.yaxis.type]; })()"
    assert page.evaluate(layout) == ["linear", "log"]
    first = "document.querySelector('#table tbody tr').dataset.point"
    best = max(found.front, key=lambda n: (found.figures[n] or {})["accuracy"])
    assert (found.figures[int(page.evaluate(first))] or {})["accuracy"] == (found.figures[best] or {})["accuracy"]
    cells = "[...document.querySelectorAll('#quality tbody tr')].map(r => [...r.children].map(c => c.textContent))"
    assert page.evaluate(cells) == [["net", "float", "float", "", "0.75"], ["net", "8", "8", "20", "0.5"]]
    assert page.said == []


def test_a_narrow_window_does_not_scroll_sideways(page: Page) -> None:
    page.page.set_viewport_size({"width": 380, "height": 800})
    page.page.locator("#filter").fill("")
    page.page.locator("#table tbody tr.front").first.click()
    page.page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.said == []


def test_ten_thousand_points_are_usable(browser: Any, tmp_path: Path) -> None:
    found = exploration(10_000)
    page = Page(browser, page_of(found, tmp_path / "pareto.html"))
    assert page.evaluate("[type, N]") == ["scattergl", 10_000]
    ready = page.busy()
    page.page.locator("#plot").scroll_into_view_if_needed()
    number = page.loneliest()
    assert page.hover(number).splitlines()[0] == found.name(number)
    begin = page.busy()
    page.evaluate("async () => { $('y').value = 'power_mw'; await draw(); }")
    redraw = page.busy() - begin
    page.page.locator("#which").select_option("all")
    begin = page.busy()
    page.evaluate("() => { sorted = 2; list(); }")
    sort = page.busy() - begin
    wall = int(page.evaluate("document.documentElement.dataset.ready")) / 1000
    print(json.dumps({"ready_s": ready, "redraw_s": redraw, "sort_s": sort, "ready_wall_s": wall}))
    assert ready < 12 and redraw < 3 and sort < 1
    assert page.said == []
