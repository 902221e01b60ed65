"""
A real headless Chromium for the tests of report.html, and pictures of a report for the README:

    apt-get install chromium && .venv/bin/pip install -r requirements-dev.txt
    python -m pytest tests/test_report_browser.py
    python tests/browser.py out/demo/report.html results/report    # results/report_{curves,rollouts,phone}.png

ONEBOX_CHROMIUM names another browser than chromium, chromium-browser or google-chrome on the PATH.
"""

import os
import shutil
import sys
from contextlib import contextmanager

DESKTOP, PHONE = {"width": 1280, "height": 860}, {"width": 390, "height": 844}


def missing():
    """-> why there is no browser here, or "" """
    try:
        import playwright  # noqa: F401
    except ImportError:
        return "playwright is not installed: pip install -r requirements-dev.txt"
    return "" if binary() else "no Chromium on the PATH: apt-get install chromium, or set ONEBOX_CHROMIUM"


def binary():
    return os.environ.get("ONEBOX_CHROMIUM") or next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextmanager
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=binary(), args=["--no-sandbox"])  # root in a container has none
        yield browser
        browser.close()


def open_page(browser, path, viewport=DESKTOP, scheme="light"):
    """-> (page, list that collects console messages, page errors and requests other than the file's own)"""
    page = browser.new_context(viewport=viewport, color_scheme=scheme).new_page()
    url, events = "file://" + os.path.abspath(path), []
    page.on("console", lambda message: events.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: events.append(f"error: {error}"))
    page.on("dialog", lambda dialog: (events.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("requestfinished", lambda request: None if request.url == url else events.append(f"request: {request.url}"))
    page.on("requestfailed", lambda request: events.append(f"request: {request.url}, {request.failure}"))
    page.goto(url)
    return page, events


def main():
    if len(sys.argv) != 3 or missing():
        raise SystemExit(missing() or __doc__)
    path, out = sys.argv[1:]
    with chromium() as browser:
        page, _ = open_page(browser, path)
        page.screenshot(path=f"{out}_curves.png")
        page.eval_on_selector("#rollouts", "node => node.scrollIntoView()")
        page.select_option("#view-sort", "reward")
        if page.locator("#view-color option[value=entropy]").count():
            page.select_option("#view-color", "entropy")
        page.screenshot(path=f"{out}_rollouts.png")
        page, _ = open_page(browser, path, PHONE, "dark")
        page.eval_on_selector("#rollouts", "node => node.scrollIntoView()")
        page.screenshot(path=f"{out}_phone.png")
    print(f"pictures: {out}_curves.png, {out}_rollouts.png, {out}_phone.png")


if __name__ == "__main__":
    main()
