"""The page in Debian's Chromium, in both languages; nothing is asked of any other host."""

import shutil

import pytest

sync_api = pytest.importorskip("playwright.sync_api")

from .conftest import SlowPainter, make_studio  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt-get install chromium"),
]
WORDS = {
    "en": {"first": "a red cat and a blue dog on the beach", "snow": "put them in the snow", "page": "Page"},
    "zh": {"first": "海滩上一只红猫和一只蓝狗", "snow": "把背景换成雪地", "page": "页面"},
}


@pytest.fixture
def painter():
    return SlowPainter(0.15)


@pytest.fixture(params=["en", "zh"])
def tab(request, tmp_path, serve, painter):
    """Return a page of a fresh studio in one language, and look after what it asked for and complained about."""
    served = serve(make_studio(tmp_path / "data", painter), rate=10_000)
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(locale="zh-CN" if request.param == "zh" else "en-GB")
        page = context.new_page()
        asked, said = [], []
        page.on("request", lambda call: asked.append(call.url))
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(f"{served.url}/")
        page.wait_for_selector("html[data-ready]")
        page.set_default_timeout(30_000)
        page.words, page.lang = WORDS[request.param], request.param
        yield page
        assert [url for url in asked if not url.startswith((served.url, "data:", "blob:"))] == []
        assert said == []
        browser.close()


def test_language_and_theme_are_switched_and_remembered(tab):
    other = "zh" if tab.lang == "en" else "en"
    assert tab.locator("hb-sheet h2").first.inner_text() == tab.words["page"]
    tab.locator(f'hb-top button[lang="{other}"]').click()
    assert tab.locator("hb-sheet h2").first.inner_text() == WORDS[other]["page"]
    tab.get_by_role("button", name=WORDS and ("浅色或深色" if other == "zh" else "Light or dark")).click()
    theme = tab.locator("html").get_attribute("data-theme")
    tab.reload()
    tab.wait_for_selector("html[data-ready]")
    assert tab.locator("html").get_attribute("data-theme") == theme
    assert tab.locator("html").get_attribute("lang") == other
