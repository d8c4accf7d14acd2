"""The index in a real browser: how fast it opens, sorting, the filter, links, no request to anybody."""

import pytest

from tests.browser import CHROMIUM, Browser

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")


def test_index_of_two_hundred_slides_in_a_browser(many, tmp_path):
    ids = "[...document.querySelectorAll('tbody tr')].filter((r) => !r.hidden).map((r) => r.cells[1].textContent)"
    with Browser(tmp_path / "profile") as browser:
        browser.open(many / "index.html")
        assert browser.run(ids) == [f"s{n:03d}" for n in range(200)]

        def press(column: str) -> list[str]:
            browser.run(
                f"[...document.querySelectorAll('th button')].find((b) => b.textContent === '{column}').click()"
            )
            return browser.run(ids)

        # Probabilities fall to 0.5 and rise again, as another class is predicted: v or 1 - v, the larger.
        sure = sorted(range(200), key=lambda n: float(f"{max(0.2 + n / 300, 0.8 - n / 300):.9g}"))
        assert press("probability") == [f"s{n:03d}" for n in sure]
        assert press("probability")[0] == f"s{sure[-1]:03d}"
        assert browser.run("document.querySelector('[aria-sort]').getAttribute('aria-sort')") == "descending"
        assert press("slide")[0] == "s000" and press("slide")[0] == "s199"

        browser.run("box.value = 'S01 tumor'; box.dispatchEvent(new Event('input'))")
        assert browser.run(ids) == [] and browser.run("count.textContent") == "0 of 200 shown"
        browser.run("box.value = 's01'; box.dispatchEvent(new Event('input'))")
        assert sorted(browser.run(ids)) == [f"s{n:03d}" for n in range(10, 20)]
        assert browser.run("document.documentElement.scrollWidth <= innerWidth")
        assert [u for u in browser.requested if not u.startswith("file:")] == []

        # The link of a row leads to its page, which leads back, and asks nobody for anything either.
        target = browser.run("document.querySelector('tbody tr:not([hidden]) th a').href")
        browser.open(many / target.rpartition("/")[2])
        assert browser.run("document.querySelector('nav a').href").endswith("/index.html")
        assert browser.run("[...document.images].every((i) => i.complete && i.naturalWidth > 0)")
        assert [u for u in browser.requested if not u.startswith("file:")] == []


@pytest.mark.parametrize("width", [390, 1600])
def test_a_page_needs_no_scrolling_sideways(put, lrmil, tmp_path, width):
    put(tmp_path / "out", "a" * 60, prediction_set={"classes": ["tumor"], "coverage": 0.9, "by": "all"})
    assert lrmil("report", tmp_path / "out").code == 0
    with Browser(tmp_path / "profile") as browser:
        browser.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
        for page in ("index", "a" * 60):
            browser.open(tmp_path / "out" / f"{page}.html")
            assert browser.run("document.documentElement.scrollWidth") <= width
