"""Pages: text is shown as it is, whatever it holds, and nothing is loaded."""

import re
from html.parser import HTMLParser

from markdown_it import MarkdownIt

from lrmil_cli.evaluation.page import Heading, Picture, Table, Text, to_html, to_markdown

NASTY = '<script>alert("1")</script> & | `code` [x](http://evil) *b* _i_ a_b $m$ \\'
PNG = b"\x89PNG\r\n\x1a\n" + bytes(16)


class Outline(HTMLParser):
    """Tags, attributes and text of a page; fails where tags are not nested."""

    def __init__(self, page: str):
        super().__init__()
        self.open, self.seen, self.words = [], [], []
        self.feed(page)
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_html_is_one_page_that_loads_nothing_and_shows_text_as_it_is():
    blocks = [
        Heading(NASTY),
        Text(NASTY),
        Table([NASTY, "n"], [[NASTY, "0.5 (0.1 to 0.9)"]], NASTY),
        Picture(PNG, NASTY, "x.png"),
        Heading("deep", 9),
    ]
    page = to_html(NASTY, blocks)
    outline = Outline(page)
    tags = [t for t, _ in outline.seen]
    assert not {"script", "link", "iframe", "a", "object"} & set(tags) and tags.count("h1") == 1 and "h6" in tags
    assert sum(w == NASTY for w in outline.words) == 7  # title, h1, heading, paragraph, header, cell, note
    images = [a for t, a in outline.seen if t == "img"]
    assert images[0]["src"].startswith("data:image/png;base64,") and images[0]["alt"] == NASTY
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!data:)|url\(|@import", page)
    assert ("html", {"lang": "en"}) in outline.seen and ("meta", {"charset": "utf-8"}) in outline.seen
    assert ("td", {"class": "number"}) in outline.seen and ("th", {"scope": "row"}) in outline.seen
    assert "prefers-color-scheme: dark" in page and "@media print" in page and "overflow-x: auto" in page
    to_html("\udcff.svs", [Text("\udcff")]).encode("utf-8")  # a file name that is no UTF-8


def test_markdown_shows_text_as_it_is():
    blocks = [
        Text(NASTY),
        Text("1. no list"),
        Text("# no heading"),
        Text("- no list"),
        Text("0.5 is guessing"),
        Table([NASTY, "n"], [[NASTY, "-0.5"], ["two\nlines", "undefined"]], "# note"),
        Picture(PNG, "a picture", "my file.png"),
    ]
    text = to_markdown(NASTY, blocks)
    page = MarkdownIt().enable("table").render(text)
    outline = Outline(page)
    tags = [t for t, _ in outline.seen]
    assert not {"script", "a", "ul", "ol", "em", "strong", "code"} & set(tags), tags
    assert tags.count("h1") == 1 and tags.count("td") == 4 and tags.count("th") == 2
    assert sum(w == NASTY for w in outline.words) == 4  # title, paragraph, header, cell
    assert ("img", {"src": "my%20file.png", "alt": "a picture"}) in outline.seen
    assert "0.5 is guessing" in text and "| -0.5 |" in text and "two lines" in text
