"""What agents say becomes HTML that can do nothing, whatever they say."""

from __future__ import annotations

import time
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voidbox_lab.widgets.markdown import MAX_URL, blocks
from voidbox_lab.widgets.text import clean

TAGS = {
    *("p", "strong", "em", "s", "code", "pre", "ul", "ol", "li", "blockquote", "hr", "br", "a"),
    *("table", "thead", "tbody", "tr", "th", "td"),
}
ATTRIBUTES = {
    "a": {"href", "title", "target", "rel"},
    "p": {"class"},
    "code": {"class"},
    "ol": {"start"},
    "th": {"style"},
    "td": {"style"},
}


class Checked(HTMLParser):
    """Refuses what is not in the lists above; keeps links and text."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[dict[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS, tag
        names = [name for name, _ in attrs]
        assert set(names) <= ATTRIBUTES.get(tag, set()), (tag, names)
        assert len(names) == len(set(names))
        given = dict(attrs)
        assert given.get("style", "text-align:left").removeprefix("text-align:") in {"left", "right", "center"}
        if tag == "a":
            self.links.append(given)

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_decl(self, decl: str) -> None:
        raise AssertionError(decl)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(data)


def checked(text: str) -> Checked:
    """The HTML of `text`, each block closed in itself."""
    whole = Checked()
    for block in blocks(text):
        whole.feed(block)
    whole.close()
    for link in whole.links:
        assert str(link["href"]).startswith(("http://", "https://"))
        assert set(str(link["rel"]).split()) >= {"noopener", "noreferrer"}
        assert link["target"] == "_blank"
    return whole


def test_markdown_is_read() -> None:
    """Lists, code, tables, quotations, links; a line break is one; headings do not enter the page's outline."""
    made = "".join(
        blocks(
            "# One\ntwo\nthree **four** `<b>`\n\n- a\n  - b\n\n```py\nx = '<i>'\n```\n\n> q\n\n"
            "[site](https://example.org/a?b=1&c=2)"
        )
    )
    assert "<h1" not in made
    assert '<p class="vbx-h"><strong>One</strong></p>' in made
    assert "two<br />\nthree <strong>four</strong> <code>&lt;b&gt;</code>" in made
    assert "x = '&lt;i&gt;'" in made
    assert 'href="https://example.org/a?b=1&amp;c=2"' in made
    assert 'rel="noopener noreferrer nofollow"' in made


def test_columns_of_numbers_are_flush_right() -> None:
    """Unless the table says otherwise."""
    made = "".join(blocks("| a | b | c |\n|---|---|:-:|\n| x | 1.5 | 2 |\n| y | -3 % | 4 |"))
    assert "<th>a</th>" in made
    assert '<th style="text-align:right">b</th>' in made
    assert '<td style="text-align:right">-3 %</td>' in made
    assert '<td style="text-align:center">4</td>' in made


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "<!-- a --><!doctype html><![CDATA[x]]><?x?>",
        "[a](javascript:alert(1))",
        "[a](JaVaScRiPt:alert(1))",
        "[a](&#106;avascript:alert(1))",
        "[a](data:text/html;base64,PHNjcmlwdD4=)",
        "[a](vbscript:x) [b](file:///etc/passwd) [c](//example.org) [d](/lab) [e](#id)",
        "<javascript:alert(1)>",
        "![x](http://example.org/pixel.png)",
        "[![x](http://example.org/pixel.png)](javascript:x)",
        '[a](http://e.org "\\" onmouseover=\\"alert(1)")',
        "[a]: javascript:alert(1)\n[a]",
        '[a](http://e.org/"onmouseover=alert(1)//)',
        '```" onclick=alert(1)\nx\n```',
        "| a |\n|---|\n| <script>x</script> |",
        "http://[::1 [a](http://[) [b](https:///x)",
    ],
)
def test_markup_of_a_guest_is_text(text: str) -> None:
    """No element of its making, no address but http and https, nothing fetched."""
    checked(text)


def test_what_stands_in_markup_is_still_to_be_read() -> None:
    """It is not taken away but shown."""
    assert "<script>alert(1)</script>" in checked("<script>alert(1)</script>").text
    assert "[image: a cat]" in checked("![a cat](http://example.org/cat.png)").text
    assert "[a](javascript:x)" in checked("[a](javascript:x)").text
    assert not checked(f"[a](http://example.org/{'x' * MAX_URL})").links


pieces = st.sampled_from(
    [
        *("<", ">", "&", '"', "'", "[", "]", "(", ")", "!", "`", "```", "*", "_", "~~", "|", "\n", "\n\n", "#"),
        *("- ", "> ", "1. ", "\\", " ", "\t", "|-|\n", "x", "[a]: "),
        *("javascript:", "http://a.b", "<script>", "</p>", "&#x3c;", "onx="),
    ]
)


@settings(max_examples=200, deadline=None)
@given(st.lists(pieces | st.text(max_size=5), max_size=60).map("".join).map(clean))
def test_any_text_is_harmless(text: str) -> None:
    """As a browser would see it."""
    checked(text)


@pytest.mark.parametrize(
    "text",
    [
        *("[", "![", "![a](", "[a](http://b ", "[a]:b\n", "*a **a ", "_", "`" * 5 + " ", "~~a", "<http://", "<a "),
        *("&", "\\", "- ", "> ", "|a|\n", "a|b\n", "|a|\n|-|\n|1|\n"),
        "|" * 2000 + "\n" + "|-" * 2000 + "|\n" + "a\n" * 4000,
    ],
)
def test_no_text_takes_long(text: str) -> None:
    """16 kB, the longest answer that is shown; markdown-it alone took seconds for some. The bound is no speed."""
    text = (text * (16384 // len(text) + 1))[:16384]
    began = time.process_time()
    made = blocks(text)
    assert time.process_time() - began < 2
    assert sum(map(len, made)) < 20 * len(text)
