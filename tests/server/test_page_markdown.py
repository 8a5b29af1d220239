"""Markdown in the chat page: what it becomes, and that nothing a model writes becomes anything else."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from devtools import Browser, Page
from serving import serving_apps

from dashinfer_lite.server import create_app

HARMLESS = {"a", "blockquote", "br", "code", "del", "div", "em", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre"}
HARMLESS |= {"span", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul"}


@pytest.fixture(scope="module")
def tab(browser: Browser) -> Iterator[Page]:
    """A tab that has loaded the page's files; no model stands behind them."""
    with serving_apps() as serve:
        opened = browser.open(serve(create_app()) + "/")
        opened.run("import('/page/markdown.js').then(({show}) => { window.show = show; })")
        yield opened
        opened.close()


@pytest.fixture
def page(tab: Page) -> Page:
    """The same, without anything in it."""
    tab.run("document.body.replaceChildren()")
    return tab


def shown(page: Page, *texts: str) -> str:
    """The HTML that stands there when the texts have been shown in one element, one after the other."""
    return str(
        page.run(
            "(() => { const e = document.createElement('div'); document.body.append(e);"
            f"for (const text of {json.dumps(texts)}) show(e, text); return e.innerHTML; }})()"
        )
    )


CASES: dict[str, tuple[str, str]] = {
    "paragraphs": ("one\ntwo\n\nthree", "<p>one\ntwo</p><p>three</p>"),
    "heading": ("# Big `x`\ntext", "<h3>Big <code>x</code></h3><p>text</p>"),
    "emphasis": (
        "**b** *i* ***bi*** __b__ _i_ ~~d~~",
        "<p><strong>b</strong> <em>i</em> <strong><em>bi</em></strong> <strong>b</strong> <em>i</em> <del>d</del></p>",
    ),
    "no emphasis": ("2 * 3 * 4, snake_case_name, \\*x\\*", "<p>2 * 3 * 4, snake_case_name, *x*</p>"),
    "unfinished": ("**bo", "<p>**bo</p>"),
    "code": ("`a*b*` ``c`d``", "<p><code>a*b*</code> <code>c`d</code></p>"),
    "fence": (
        "```py\nif a < b:\n\n    # *c*\n```\nend",
        '<pre tabindex="0" data-language="py"><code>if a &lt; b:\n\n    # *c*</code></pre><p>end</p>',
    ),
    "open fence": ("~~~\n<b>", '<pre tabindex="0"><code>&lt;b&gt;</code></pre>'),
    "list": (
        "3. a\n4. b\n   - c\n   - d\n5. e",
        '<ol start="3"><li>a</li><li>b<ul><li>c</li><li>d</li></ul></li><li>e</li></ol>',
    ),
    "list after words": ("Look:\n- a\n- b", "<p>Look:</p><ul><li>a</li><li>b</li></ul>"),
    "quote": ("> a\n> > b", "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote>"),
    "rule": ("a\n\n---\nb", "<p>a</p><hr><p>b</p>"),
    "table": (
        "| a | b |\n|---|--:|\n| 1 | *2* \\| 3 |",
        '<div class="wide-table"><table><thead><tr><th>a</th><th class="right">b</th></tr></thead>'
        '<tbody><tr><td>1</td><td class="right"><em>2</em> | 3</td></tr></tbody></table></div>',
    ),
    "link": (
        "[a](https://x.org/b_(c)) <https://y.org>.",
        '<p><a href="https://x.org/b_(c)" target="_blank" rel="noopener noreferrer nofollow">a</a> '
        '<a href="https://y.org" target="_blank" rel="noopener noreferrer nofollow">https://y.org</a>.</p>',
    ),
    "bad link": ("[a](javascript:alert(1))", "<p>[a](javascript:alert(1))</p>"),
    "markup": ("<b onclick=x>&amp;", "<p>&lt;b onclick=x&gt;&amp;amp;</p>"),
}


def test_what_it_becomes(page: Page) -> None:
    """Each form of Markdown that the page knows, in the tags that it becomes."""
    found = {name: shown(page, text).replace(' class=""', "") for name, (text, _) in CASES.items()}
    assert found == {name: html for name, (_, html) in CASES.items()}


def test_growing_text_ends_as_if_it_came_at_once(page: Page) -> None:
    """Letter by letter, every document of the cases; what stands already is kept, not made anew."""
    text = "\n\n".join(source for source, _ in CASES.values())
    grown = shown(page, *(text[:end] for end in range(1, len(text) + 1)))
    assert grown == shown(page, text)
    kept = page.run(
        "(() => { const e = document.createElement('div'); show(e, 'a\\n\\nb'); const first = e.firstChild;"
        "show(e, 'a\\n\\nb c\\n\\nd'); return e.firstChild === first && e.childNodes.length; })()"
    )
    assert kept == 3


HOSTILE: dict[str, str] = {
    "image": "<img src=x onerror=alert(1)> ![x](https://x.org/y.png) ![x](data:image/svg+xml,<svg onload=alert(1)>)",
    "script": "<script>alert(1)</script>\n\n```html\n</code></pre><script>alert(1)</script>\n```",
    "links": '[a](JavaScript:alert(1)) [b](data:text/html,x) [c](vbscript:x) [d](//x.org) [e](https://x"onclick=y)',
    "frame": "<iframe srcdoc='<script>alert(1)</script>'></iframe>\n<style>*{display:none}</style>\n<base href=//x>",
    "language": '```"><img/src=x>\nx\n```\n\n```__proto__\nx\n```',
    "marks": "*" * 50_000 + "_" * 50_000 + "`" * 50_000 + "~" * 50_000,
    "brackets": "[" * 20_000 + "](" * 20_000,
    "alternating": "*_" * 20_000 + "**a " * 5_000,
    "quotes": ">" * 50_000 + " deep",
    "lists": "\n".join(" " * (2 * depth) + "- x" for depth in range(300)),
    "table": "|" * 5_000 + "\n" + "|-" * 5_000 + "|\n" + "|" * 5_000,
    "controls": "\u202e\u0000\u2028\ud7ff\ufeff a\r\nb",
}


def test_nothing_else_comes_of_it(page: Page) -> None:
    """No tag but the harmless ones, no address but the web's, no attribute that acts; and it comes to an end."""
    every = "[...document.body.querySelectorAll('*')]"
    for name, text in HOSTILE.items():
        assert shown(page, text), name
        assert set(page.run(f"{every}.map((e) => e.localName)")) <= HARMLESS, name
        attributes = set(page.run(f"{every}.flatMap((e) => e.getAttributeNames())"))
        assert attributes <= {"href", "target", "rel", "class", "tabindex", "data-language", "start"}, name
        for address in page.run("[...document.querySelectorAll('a')].map((e) => e.href)"):
            assert address.startswith(("https://", "http://", "mailto:")), (name, address)
        page.run("document.body.replaceChildren()")


def test_the_policy_refuses_strings_of_html(page: Page) -> None:
    """Even a mistake in the renderer could not make markup of a model's words."""
    refused = page.run("(() => { try { document.body.innerHTML = '<b>x</b>'; } catch (e) { return e.name; } })()")
    assert refused == "TypeError"
