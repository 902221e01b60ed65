"""python -m pytest tests/test_report_browser.py: report.html in a real headless Chromium; tests/browser.py says how."""

import os

import pytest
from browser import PHONE, chromium, missing, open_page
from fake_run import HOSTILE, guard_event, make_run

from tools.report import page as report

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "-")


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """-> paths of a run's page and of a comparison's"""
    folder = tmp_path_factory.mktemp("pages")
    runs = {}
    for name, seed in (("a", 0), ("b", 1)):
        events = [guard_event(4, saw=HOSTILE, line=HOSTILE, settings={HOSTILE: HOSTILE}),
                  guard_event(12, "roll back", True)]
        run = report.read_run(make_run(folder / name, seed=seed, skill=0.4 + 0.3 * seed, events=events))
        report.read_rollouts(run)
        runs[name] = [run]
    report.write_page(report.page_data({"a": runs["a"]}), str(folder / "report.html"))
    report.write_page(report.page_data(runs), str(folder / "compare.html"))
    return str(folder / "report.html"), str(folder / "compare.html")


def rewards(page):
    return [float(text) for text in page.locator("#group .card .head b").all_inner_texts()]


def go_to(page, step, uid):
    page.select_option("#view-step", label=str(step))
    page.select_option("#view-prompt", label=uid)


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_opens_without_a_message_or_a_request(browser, pages, kind, scheme):
    page, events = open_page(browser, pages[kind], scheme=scheme)
    for name in ("curves", "analyses", "examples", "rollouts", "settings", *(("verdict", "differences") if kind else
                                                                             ())):
        assert page.locator(f"#{name}").count() == 1, name
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 27)")
    assert page.locator("#curves svg").count() >= 8 and events == []


def test_what_the_guard_saw_is_a_table_and_marks_in_every_chart(browser, pages):
    page, events = open_page(browser, pages[0])
    cells = page.locator("details.guard tbody tr").nth(1).locator("td").all_inner_texts()
    assert cells == ["12", "divergence", "10", "reward 0.5 \u2192 0.125", "roll back to step 10: lr 2e-05", "done"]
    charts = page.locator("#curves svg")
    for i in range(charts.count()):
        kinds = charts.nth(i).locator(".mark").evaluate_all("marks => marks.map(m => m.getAttribute('class'))")
        assert kinds == ["mark observed", "mark"]
    assert charts.nth(0).locator("title").nth(1).evaluate("t => t.textContent").startswith("step 12: divergence since")
    assert "it went back to earlier weights" in page.locator("#marks").inner_text() and events == []
    page, events = open_page(browser, pages[1])
    assert page.locator("details.guard").count() == 2 and events == []
    strokes = page.locator("#curves svg").nth(0).locator(".mark").evaluate_all(
        "marks => marks.map(m => m.getAttribute('stroke'))")
    assert strokes == ["var(--c0)"] * 2 + ["var(--c1)"] * 2


def test_the_viewer_shows_the_group_of_the_chosen_step_and_prompt(browser, pages):
    page, events = open_page(browser, pages[0])
    go_to(page, 7, "train/7/1")
    assert page.locator("#group .prompt").inner_text() == "numbers train/7/1 <think>"
    cards = page.locator("#group .card .text").all_inner_texts()
    assert len(cards) == 4 and all(text.startswith(f"1 + {k} = {1 + k} no wait {k}") for k, text in enumerate(cards))
    assert all("end of thinking" in text and text.index("end of thinking") < text.index("</think>") for text in cards)
    page.select_option("#view-step", label="10")
    page.select_option("#view-prompt", label="held-out test/2")
    assert (page.locator("#group .prompt").inner_text() == "numbers test/2 <think>" and
            page.locator("#group .card").count() == 2)
    page.click("button[aria-label='Next step']")  # no held-out rollouts there: the first prompt
    assert page.locator("#group .prompt").inner_text() == "numbers train/11/0 <think>" and events == []


def test_tokens_have_the_stored_numbers_and_the_chosen_color(browser, pages):
    page, _ = open_page(browser, pages[0])
    go_to(page, 7, "train/7/0")
    first = page.locator("#group .card").nth(0).locator(".t")
    assert [first.nth(i).inner_text() for i in range(3)] == ["0", " +", " 0"]
    assert first.count() == 12 + 1 + 1  # words, the stop token, and " </think>" is cut where the thinking ends
    for name in ("advantage", "ratio", "entropy", "mismatch", "surprise"):
        page.select_option("#view-color", name)
        colors = page.evaluate("[...document.querySelectorAll('#group .t')].map(t => t.style.backgroundColor)")
        assert len(set(colors)) > (1 if name == "advantage" else 5), name
        assert page.locator("#scale").inner_text().strip()
    page.select_option("#view-color", "clipped")
    painted = page.evaluate("[...document.querySelectorAll('#group .t')].every(t => "
                            "(t.style.backgroundColor !== 'transparent') === t.classList.contains('clipped'))")
    assert painted and page.locator("#group .t.clipped").count() > 0
    first.nth(1).hover()
    told = page.locator("#rollouts > .tip").inner_text()
    assert all(word in told for word in ("token 2 of 13", "log-prob", "ratio", "entropy", "advantage"))


def test_completions_are_sorted_and_found(browser, pages):
    page, _ = open_page(browser, pages[0])
    go_to(page, 12, "train/12/0")
    page.select_option("#view-sort", "reward")
    assert rewards(page) == sorted(rewards(page), reverse=True) and len(rewards(page)) == 4
    page.select_option("#view-sort", "mismatch")
    values = [float(t.split("mismatch ")[1].split()[0]) for t in page.locator("#group .head").all_inner_texts()]
    assert values == sorted(values, reverse=True)
    page.fill("#view-search", "1 + 3 = 4 NO")
    assert "21 rollouts found" in page.locator("#rollouts [aria-live]").inner_text()
    page.locator(".results button").nth(5).click()
    assert "train/5/1" in page.locator("#group .prompt").inner_text()
    assert page.locator("#group .card.found").inner_text().count("#3") == 1
    assert page.evaluate("CSS.highlights.get('found').size") == 1


def test_the_keyboard_alone_reaches_everything(browser, pages):
    page, events = open_page(browser, pages[0])
    go_to(page, 7, "train/7/0")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("j")
    assert page.locator("#group .prompt").inner_text() == "numbers train/7/1 <think>"
    page.keyboard.press("k")
    assert page.locator("#group .prompt").inner_text() == "numbers train/7/0 <think>"
    page.keyboard.press("]")
    assert page.locator("#view-step option:checked").inner_text() == "8"
    page.keyboard.press("[")
    page.keyboard.press("[")
    assert page.locator("#view-step option:checked").inner_text() == "6"
    color = page.input_value("#view-color")
    page.keyboard.press("c")
    page.keyboard.press("s")
    assert page.input_value("#view-color") != color and page.input_value("#view-sort") == "reward"
    page.keyboard.press("]")  # the choice of color and order stays
    assert page.input_value("#view-color") != color and page.input_value("#view-sort") == "reward"
    page.keyboard.press("/")
    page.keyboard.type("jk[]")  # typed, not obeyed
    assert page.input_value("#view-search") == "jk[]" and page.locator("#view-step option:checked").inner_text() == "7"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement === document.body")
    page.focus("#curves svg")
    page.keyboard.press("Home")
    assert "step 0" in page.locator("#curves figure").nth(0).locator(".tip").inner_text() and events == []
    named = """[...document.querySelectorAll('button, select, input, svg[tabindex], [role=region]')].every(n =>
        (n.getAttribute('aria-label') || (n.labels && n.labels[0] && n.labels[0].textContent) || n.textContent)
        .trim())"""
    assert page.evaluate(named)


def test_hostile_text_stays_text(browser, pages):
    for path in pages:
        page, events = open_page(browser, path)
        if path.endswith("compare.html"):
            page.select_option("#view-run", label="a")
        page.select_option("#view-step", label="20")
        page.select_option("#view-prompt", index=0)
        page.fill("#view-search", "window.broken")
        page.locator(".results button").nth(0).click()
        shown = page.locator("#group .card .text").nth(0).evaluate("node => node.textContent")
        for piece in ("</script><script>window.broken=1</script>", "<img src=x onerror=", "\\x1b[31mred", "nul \\x00",
                      "U+202Egnp.exe", "U+2028 line", "U+D800 lone", "\U0001f600", "&lt;b&gt;"):
            assert piece in shown, piece
        assert not any(c in shown for c in "\x00\x1b\u202e\u2028\u200b")
        assert page.evaluate("window.broken") is None and page.locator("img, iframe, svg[onload]").count() == 0
        assert page.locator("script").count() == 2 and page.locator("style").count() == 1 and events == []


def test_a_script_that_got_into_the_page_would_not_run(browser, pages, tmp_path):
    """The policy is the second wall: with the first one torn down, an inline script and a request are still refused."""
    with open(pages[0], encoding="utf-8") as f:
        text = f.read().replace(
            "<main",
            "<script>window.broken = 1</script><img src='https://example.org/x.png' onerror='window.broken = 2'><main",
            1)
    path = tmp_path / "torn.html"
    path.write_text(text, encoding="utf-8")
    page, events = open_page(browser, path)
    page.wait_for_timeout(200)
    assert page.evaluate("window.broken") is None and page.locator("#rollouts").count() == 1
    assert sum("Content Security Policy" in event for event in events) >= 2
    assert [event for event in events
            if "request" in event] == ["request: https://example.org/x.png, csp"]  # asked, never sent


@pytest.mark.parametrize("kind", [0, 1])
def test_nothing_is_wider_than_a_phone(browser, pages, kind):
    page, events = open_page(browser, pages[kind], PHONE)
    page.select_option("#view-step", label="20")
    for width in (390, 320):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = page.evaluate("[...document.querySelectorAll('#group .card')].map(c => c.getBoundingClientRect().width)")
    assert all(box <= 320 for box in boxes) and events == []


def test_a_run_with_nothing_to_show_still_opens(browser, tmp_path):
    os.makedirs(tmp_path / "bare")
    (tmp_path / "bare" / "metrics.jsonl").write_text("")
    run = report.read_run(str(tmp_path / "bare"))
    report.read_rollouts(run)
    report.write_page(report.page_data({"bare": [run]}), str(tmp_path / "x.html"))
    page, events = open_page(browser, tmp_path / "x.html")
    assert "metrics.jsonl holds no complete step yet" in page.locator(".notes").inner_text() and events == []
    assert HOSTILE not in page.content()
