"""The chat page as a person uses it: Chromium without a window, the demo model behind it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from devtools import Browser, Page
from serving import serving

STORY = "Tell me a story about a fox."
STATE = "document.querySelector('.turn.model:last-child')?.dataset.state"
LONG = {"type": "array", "items": {"type": "integer"}, "minItems": 1800}  # an answer that nobody waits for


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The address of the demo model, served by the program."""
    with serving("--max-batch", "8", "--max-waiting", "96") as address:
        yield address


@pytest.fixture(scope="module")
def guarded_url() -> Iterator[str]:
    """The same with a key."""
    with serving("--api-key", "open-sesame") as address:
        yield address


@pytest.fixture(scope="module")
def phone(browser: Browser, url: str) -> Iterator[Page]:
    """The page on a small screen."""
    opened = browser.open(url, width=360, height=740)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def tab(browser: Browser, url: str) -> Iterator[Page]:
    """A tab that has loaded the page."""
    opened = browser.open(url)
    yield opened
    opened.close()


@pytest.fixture
def page(tab: Page, url: str) -> Iterator[Page]:
    """The page as at a first visit. At the end nothing may have been thrown, logged, or refused by its policy."""
    tab.begin_anew(url)
    tab.wait_for("document.body.dataset.engine === 'up'")
    yield tab
    complaints = tab.complaints()
    assert [words for words in complaints if "status of 400" not in words] == []  # browsers log refusals by themselves


def ask(page: Page, text: str, until: str = "done") -> None:
    """Write a message, send it with the keyboard, and wait for its answer's state."""
    page.click("#message")
    page.write(text)
    page.press("Enter")
    page.wait_for(f"{STATE} === '{until}'")


def test_an_answer_streams_and_shows_what_it_cost(page: Page, tmp_path: Path) -> None:
    """The text grows piece by piece; figures stand under it; assistive technology hears it once, whole."""
    page.run(
        "window.lengths = new Set(); new MutationObserver(() => "
        f"{STATE} === 'streaming' && lengths.add(document.querySelector('.markdown').textContent.length))"
        ".observe(document.getElementById('turns'), {childList: true, subtree: true, characterData: true})"
    )
    ask(page, STORY)
    assert page.run("[...lengths].length") > 3
    answer = page.text(".turn.model .markdown")
    assert len(answer) > 200 and "fox" in answer
    figures = page.text(".figures")
    assert all(words in figures for words in ("tok/s", "to the first token", " tokens", " of 16 prompt tokens cached"))
    assert page.run("document.getElementById('status').textContent").split() == answer.split()
    assert page.run("document.getElementById('log').ariaLive") == "off"
    page.screenshot(tmp_path / "chat.png")
    assert (tmp_path / "chat.png").stat().st_size > 10_000


def test_the_conversation_goes_on_is_repeated_and_begins_anew(page: Page) -> None:
    """What was said before is sent along: its tokens come from the prefix cache."""
    ask(page, "What is 17 + 25?")
    assert page.text(".turn.model .markdown") == "17 + 25 = 42"
    ask(page, "What is 3 + 4?")
    assert page.run("document.querySelectorAll('.turn').length") == 4
    second = page.text(".turn.model:last-child .figures")
    page.click(".turn.model .actions button:last-child")  # the first answer once more: the second one goes
    page.wait_for(f"document.querySelectorAll('.turn').length === 2 && {STATE} === 'done'")
    assert page.text(".turn.model .markdown") == "17 + 25 = 42"
    first = page.text(".turn.model .figures")
    prompt_tokens = [int(figures.split(" of ")[1].split()[0]) for figures in (first, second)]
    assert prompt_tokens[1] > prompt_tokens[0] + 10
    page.click("#clear")
    assert page.run("document.querySelectorAll('.turn').length") == 0
    assert page.text("#welcome h2") == "Ask away."


def test_keys(page: Page) -> None:
    """Shift+Enter breaks the line, Enter sends, tabs answer to arrows, and whoever uses keys sees where they are."""
    page.click("#message")
    page.write("What is")
    page.press("Enter", shift=True)
    page.write("8 + 1?")
    assert page.run("document.getElementById('message').value") == "What is\n8 + 1?"
    page.press("Tab")
    assert page.run("document.activeElement.id") == "json"
    page.press("Tab")
    focused = "getComputedStyle(document.activeElement)"
    assert page.run(f"document.activeElement.id === 'clear' && {focused}.outlineStyle") == "solid"
    page.click("#tab-chat")
    page.press("ArrowRight")
    assert page.run("document.activeElement.id") == "tab-lanes"
    assert page.run("document.getElementById('chat').hidden && !document.getElementById('lanes').hidden")
    page.press("ArrowRight")
    page.click("#message")
    page.press("Enter")
    page.wait_for(f"{STATE} === 'done'")
    assert page.text(".turn.user") == "What is\n8 + 1?"


@pytest.mark.parametrize("way", ["key", "button"])
def test_stop(page: Page, way: str) -> None:
    """Escape or the button ends an answer: what there is stays, and the engine is free again."""
    page.click(".chip")
    page.run(f"document.getElementById('schema').value = {json.dumps(json.dumps(LONG))}")
    ask(page, "Count!", until="streaming")
    if way == "key":
        page.press("Escape")
    else:
        page.click("#stop")
    page.wait_for(f"{STATE} === 'stopped'")
    assert page.text(".turn.model pre").startswith("[")
    assert page.run("!document.getElementById('send').hidden && document.getElementById('stop').hidden")
    page.wait_for("fetch('metrics').then(r => r.text()).then(t => /num_requests_running\\S* 0\\.0/.test(t))")


def test_an_answer_as_json(page: Page, tmp_path: Path) -> None:
    """The schema is enforced; one that is no JSON is not sent, and an impossible one is the server's to refuse."""
    page.click(".chip")
    page.click("#schema")
    page.run("document.getElementById('schema').value = '{'")
    page.click("#message")
    page.write("Is it so?")
    page.press("Enter")
    assert "This is not JSON" in page.text("#schema-error")
    assert page.run("document.activeElement.id") == "schema"
    verdict = {"enum": ["aye", "nay"]}
    wanted = {"type": "object", "properties": {"verdict": verdict}, "required": ["verdict"]}
    page.run(f"document.getElementById('schema').value = {json.dumps(json.dumps(wanted))}")
    page.click("#message")
    page.press("Enter")
    page.wait_for(f"{STATE} === 'done'")
    answer = page.text("pre[data-language=json]")
    assert json.loads(answer)["verdict"] in verdict["enum"]
    assert page.text("pre .name") == '"verdict"'
    page.screenshot(tmp_path / "json.png")
    page.run("document.getElementById('schema').value = '{\"type\": 7}'")
    ask(page, "And now?", until="failed")
    assert page.text(".turn.model:last-child .error")


def test_settings_are_sent_and_kept(page: Page, url: str) -> None:
    """A token limit cuts the answer; after a reload it still stands there; nonsense is not sent."""
    page.click("[name=max_tokens]")
    page.write("5")
    page.click("[name=temperature]")
    page.write("0")
    ask(page, STORY)
    assert "5 tokens" in page.text(".figures")
    page.visit(url)
    page.wait_for("document.querySelector('[name=max_tokens]').value === '5'")
    page.click("[name=temperature]")
    page.write("9")
    page.click("#message")
    page.write(STORY)
    page.press("Enter")
    assert page.run("document.querySelectorAll('.turn').length") == 0
    assert page.run("document.activeElement.name") == "temperature"
    page.click("#settings button[type=reset]")
    page.wait_for("!JSON.parse(localStorage['dashinfer-settings']).max_tokens")


def test_many_streams_fill_their_lanes_together(page: Page, tmp_path: Path) -> None:
    """More streams than are computed at once: some wait while others are written, and all of them end."""
    page.click("#tab-lanes")
    page.run(
        "window.seen = []; new MutationObserver(() => seen.push(['waiting', 'writing', 'done'].map("
        "(state) => document.querySelectorAll(`.lane[data-state=${state}]`).length)))"
        ".observe(document.getElementById('lanes-total'), {childList: true, characterData: true, subtree: true});"
        "document.getElementById('lanes-count').value = 20; document.getElementById('lanes-tokens').value = 80"
    )
    page.click("#lanes-start")
    page.wait_for("document.querySelectorAll('.lane').length === 20")
    page.wait_for("document.getElementById('scoreboard').dataset.state === 'done'")
    page.screenshot(tmp_path / "lanes.png")
    seen = page.run("seen")
    assert max(writing for _, writing, _ in seen) > 1, "answers are written side by side"
    assert any(waiting and writing for waiting, writing, _ in seen), "some wait while others are written"
    assert page.run("document.querySelectorAll('.lane[data-state=done]').length") == 20
    amounts = page.run("[...document.querySelectorAll('.lane .amount')].map((e) => Number(e.textContent))")
    assert all(0 < amount <= 80 for amount in amounts)
    assert sum(amounts) == int(page.text("#lanes-total").replace(",", ""))
    assert len(set(page.run("[...document.querySelectorAll('.lane .tail')].map((e) => e.textContent)"))) > 8
    painted = "getContext('2d').getImageData(0, 0, e.width, e.height).data.some((value) => value)"
    assert page.run(f"[...document.querySelectorAll('.lane canvas')].every((e) => e.{painted})")
    page.click(".lane:nth-child(1) .tail")
    assert page.text(".lane:nth-child(1) .tail").startswith(STORY)


def test_all_streams_stop_at_once(page: Page) -> None:
    """Escape ends them all, and the next start works."""
    page.click("#tab-lanes")
    page.run("document.getElementById('lanes-count').value = 96")
    page.click("#lanes-start")
    page.wait_for("document.querySelector('.lane[data-state=writing]')")
    page.press("Escape")
    page.wait_for("document.getElementById('scoreboard').dataset.state === 'stopped'")
    assert page.run("document.querySelectorAll('.lane[data-state=stopped]').length") > 0
    page.run(
        "document.getElementById('lanes-count').value = 2;document.getElementById('lanes-prompts').value = 'Hi\\n\\nHo'"
    )
    page.click("#lanes-start")
    page.wait_for("document.getElementById('scoreboard').dataset.state === 'done'")
    assert page.run("document.querySelectorAll('.lane').length") == 2


def test_gauges_follow_the_engine(page: Page) -> None:
    """The second answer finds its prompt in the cache, and the page says so."""
    ask(page, f"{STORY} Make it a long one, with many friends, and let it end well for all of them, whoever they are.")
    page.click(".turn.model .actions button:last-child")
    page.wait_for(f"{STATE} === 'done'")
    page.wait_for("/^[1-9][0-9.]* % of/.test(document.getElementById('prefix-words').textContent)")
    page.wait_for("/^[1-9]/.test(document.getElementById('kv-kept').textContent)")
    page.wait_for("document.querySelector('#prefix .track').ariaValueNow > 0")
    assert "MiB" in page.text("#memory")


def test_a_key_is_asked_for_and_kept_in_the_tab(browser: Browser, guarded_url: str) -> None:
    """A wrong one is asked for again; the right one survives a reload, and lives in this tab alone."""
    page = browser.open(guarded_url)
    page.wait_for("document.querySelector('dialog[open]')")
    page.write("sesame")
    page.press("Enter")
    page.wait_for("/does not know/.test(document.querySelector('dialog[open]')?.innerText)")
    page.write("open-sesame")
    page.press("Enter")
    page.wait_for("document.body.dataset.engine === 'up'")
    assert page.text("#model") == "tiny_chat"
    ask(page, "What is 17 + 25?")
    assert page.text(".turn.model .markdown") == "17 + 25 = 42"
    page.visit(guarded_url)
    page.wait_for("document.body.dataset.engine === 'up'")
    assert page.run("Object.values(localStorage).includes('open-sesame')") is False
    assert all("401" in complaint for complaint in page.complaints())
    page.close()


@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
def test_a_phone(phone: Page, url: str, tmp_path: Path, is_dark: bool) -> None:
    """Nothing is wider than 360 pixels, the panel opens and closes, and the palette is the system's until chosen."""
    page = phone
    page.look(360, 740, is_dark)
    page.begin_anew(url)
    page.wait_for("document.body.dataset.engine === 'up'")
    ask(page, STORY)
    page.screenshot(tmp_path / "chat.png")
    fits = "['html', '.log', '.lanes'].map(s => document.querySelector(s)).every(e => e.scrollWidth <= e.clientWidth)"
    assert page.run(fits)
    page.click("#panel-toggle")
    page.wait_for("getComputedStyle(document.getElementById('panel')).visibility === 'visible'")
    page.press("Escape")
    page.wait_for("getComputedStyle(document.getElementById('panel')).visibility === 'hidden'")
    page.click("#tab-lanes")
    assert page.run(fits)
    page.screenshot(tmp_path / "lanes.png")
    brightness = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).reduce((sum, part) => sum + +part, 0)"
    assert (page.run(brightness) < 384) is is_dark
    page.click("#theme")
    assert (page.run(brightness) < 384) is not is_dark
    page.visit(url + "?again")
    assert (page.run(brightness) < 384) is not is_dark
    assert page.complaints() == []
