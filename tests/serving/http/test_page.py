"""The page, in headless Chromium: writes, forks, rolls back, stops; skipped where there is none."""

import importlib.util
import os
import pathlib
import time

import pytest

CHROMIUM, DRIVER = pathlib.Path("/usr/bin/chromium"), pathlib.Path("/usr/bin/chromedriver")
if not CHROMIUM.exists() or not DRIVER.exists() or not importlib.util.find_spec("selenium"):
    pytest.skip(
        "needs Chromium (apt-get install chromium chromium-driver; pip install selenium)",
        allow_module_level=True,
    )

OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--window-size=1100,860",
)  # fmt: skip


class Page:
    """The page as a user sees it."""

    def __init__(self, driver, address: str) -> None:
        self.driver = driver
        driver.get(address)
        self.wait(lambda: self.shown("write"))

    def find(self, name):
        return self.driver.find_element("id", name)

    def shown(self, name):
        return self.find(name).is_displayed() and self.find(name).is_enabled()

    def wait(self, condition):
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline, self.driver.find_element("tag name", "body").text
            time.sleep(0.02)

    def click(self, name):
        self.find(name).click()
        self.wait(lambda: self.shown("write"))

    def choose(self, **settings):
        for name, value in settings.items():
            self.driver.execute_script(
                "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
                "e.dispatchEvent(new Event('input'));", name, str(value),
            )  # fmt: skip

    def write(self, text=""):
        self.find("text").send_keys(text)
        self.click("write")
        return self.text

    @property
    def parts(self):
        return self.driver.find_elements("css selector", "#paper span")

    @property
    def text(self):
        return self.find("paper").get_property("textContent")

    @property
    def tabs(self):
        return [tab.text for tab in self.driver.find_elements("css selector", "#tabs button")]


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    profile = tmp_path_factory.mktemp("profile")
    for option in (*OPTIONS, f"--user-data-dir={profile}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(str(DRIVER), env={**os.environ, "HOME": str(profile)})
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


@pytest.fixture
def page(driver, server, ask):
    opened = Page(driver, server.address)
    yield opened
    assert opened.find("message").text == ""
    assert driver.get_log("browser") == []  # neither an error nor a breach of the policy
    driver.get("about:blank")


def test_writes_forks_and_rolls_back(page, server, ask):
    """The text on the page is what the session's model has read."""
    page.choose(count=40, seed=3, temperature=0.7, top_k=5)
    first = page.write("abc")
    assert first.startswith("abc")
    assert len(first) == 43
    second = page.write("de")
    assert second.startswith(first + "de")
    page.click("fork")
    assert page.tabs == ["Text 1", "Text 2", "+"]
    page.parts[2].click()  # "de"
    page.wait(lambda: page.text == first)
    assert page.write("de") == second  # the same seed writes the same
    page.choose(seed=4)
    page.parts[2].click()
    page.wait(lambda: page.text == first)
    assert page.write("de") != second
    steps = {s["steps"] for s in ask.ok("GET", "/sessions")["sessions"]}
    assert steps == {len(second)}
    page.click("close")
    assert page.tabs == ["Text 1", "+"]
    assert page.text == second
    assert len(server.service.sessions) == 1


def test_what_was_stopped_is_what_the_model_has_read(page, ask):
    page.choose(count=100, seed=1)
    page.find("text").send_keys("a")
    page.find("write").click()
    page.wait(lambda: page.shown("stop") or page.shown("write"))
    if page.shown("stop"):
        page.find("stop").click()
    page.wait(lambda: page.shown("write"))
    (session,) = ask.ok("GET", "/sessions")["sessions"]
    assert session["steps"] == len(page.text)
    assert not session["writing"]


def test_a_session_that_has_expired_is_read_again(page, server, ask):
    page.choose(count=5, seed=1)
    text = page.write("abcd")
    (session,) = server.service.sessions.all()
    session.used -= 10_000
    longer = page.write()
    assert longer.startswith(text)
    assert len(longer) == len(text) + 5
    assert ask.ok("GET", "/sessions")["sessions"][-1]["steps"] == len(longer)
    page.driver.get_log("browser")  # tells of the 404
