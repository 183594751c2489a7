"""Whether a page is valid, readable by a screen reader, and asks no network for anything; by Python's own parser."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "img", "br", "hr", "input", "link"}
# Within SVG these end themselves.
SHAPES = {"line", "rect", "circle", "path", "polyline", "polygon"}
FORBIDDEN = {
    "script",
    "iframe",
    "object",
    "embed",
    "link",
    "form",
    "base",
    "audio",
    "video",
    "foreignobject",
    "use",
}
ADDRESSES = {"src", "href", "xlink:href", "srcset", "action", "formaction", "poster", "background", "data"}


class PageChecker(HTMLParser):
    """Collects what is wrong (`problems`) and what is there (`text`, `images`, `tables`, `headings`)."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.problems: list[str] = []
        self.text = ""
        self.headings: list[tuple[int, str]] = []
        self.images: list[dict[str, str]] = []
        self.sections: dict[str, str] = {}
        self._stack: list[str] = []
        self._ids: list[str] = []
        self._pointers: list[str] = []
        self._language = self._policy = ""
        self._first_in: list[str | None] = []
        self._doctype = False
        self._svg: list[set[str]] = []
        self._section = ""

    def handle_decl(self, decl: str) -> None:
        self._doctype = decl.lower() == "doctype html" and not self._stack

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._look(tag, attrs)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._look(tag, attrs)
        if tag not in VOID:
            self._stack.append(tag)
            self._first_in.append(None)
            if tag == "svg":
                self._svg.append(set())

    def handle_endtag(self, tag: str) -> None:
        if not self._stack or self._stack[-1] != tag:
            self.problems.append(f"</{tag}> within {self._stack[-3:]}")
            return
        self._stack.pop()
        first = self._first_in.pop()
        if tag == "table" and first != "caption":
            self.problems.append("a table without a caption")
        if tag == "details" and first != "summary":
            self.problems.append("details without a summary")
        if tag == "svg" and not {"title", "desc"} <= self._svg.pop():
            self.problems.append("an svg without title and desc")

    def handle_data(self, data: str) -> None:
        if self._stack and self._stack[-1] == "style":
            if "url(" in data or "@import" in data:
                self.problems.append("the style asks for something")
            return
        self.text += data
        if self._section:
            self.sections[self._section] = self.sections.get(self._section, "") + data
        if self._stack and self._stack[-1] in ("h1", "h2", "h3"):
            level, before = self.headings[-1]
            self.headings[-1] = (level, before + data)

    def _look(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if self._first_in and self._first_in[-1] is None:
            self._first_in[-1] = tag
        if self._svg and self._stack[-1] == "svg":
            self._svg[-1].add(tag)
        if tag in FORBIDDEN:
            self.problems.append(f"<{tag}>")
        if tag in SHAPES and "svg" not in self._stack:
            self.problems.append(f"<{tag}> outside of an svg")
        for name, value in values.items():
            if name.startswith("on"):
                self.problems.append(f"<{tag} {name}>")
            if name in ADDRESSES and not value.startswith(("#", "data:image/")):
                self.problems.append(f"<{tag} {name}={value[:60]}>")
            if name == "id":
                self._ids.append(value)
            if name in ("aria-labelledby", "aria-describedby"):
                self._pointers += value.split()
            if name == "href" and value.startswith("#"):
                self._pointers.append(value[1:])
        if tag == "html":
            self._language = values.get("lang", "")
        if tag == "meta" and values.get("http-equiv") == "Content-Security-Policy":
            self._policy = values["content"]
        if tag in ("h1", "h2", "h3", "h4"):
            level, before = int(tag[1]), self.headings[-1][0] if self.headings else 0
            if level > before + 1:
                self.problems.append(f"a heading of level {level} after one of {before}")
            self.headings.append((level, ""))
        if tag == "h2":
            self._section = values.get("id", "")
        if tag == "img":
            self.images.append(values)
            if not values.get("alt"):
                self.problems.append("an image without a description")
        if tag == "th" and values.get("scope") not in ("row", "col"):
            self.problems.append("a header cell of nothing")
        if tag == "svg" and (values.get("role") != "img" or "aria-labelledby" not in values):
            self.problems.append("an svg that no screen reader reads")

    def finish(self) -> None:
        """Look at the whole."""
        self.close()
        if self._stack:
            self.problems.append(f"not closed: {self._stack}")
        if not self._doctype or self._language != "en":
            self.problems.append("no doctype, or no language")
        if len([level for level, _ in self.headings if level == 1]) != 1:
            self.problems.append("not one h1")
        if len(self._ids) != len(set(self._ids)):
            self.problems.append(f"ids twice: {sorted(one for one in self._ids if self._ids.count(one) > 1)}")
        if missing := set(self._pointers) - set(self._ids):
            self.problems.append(f"points to nothing: {missing}")
        allowed = {"default-src 'none'", "img-src data:", "style-src 'unsafe-inline'", "base-uri 'none'"}
        if not allowed <= {part.strip() for part in self._policy.split(";")}:
            self.problems.append(f"the policy is {self._policy!r}")


def checked(page: bytes) -> PageChecker:
    """The page, read; an AssertionError says all that is wrong with it."""
    checker = PageChecker()
    checker.feed(page.decode("utf-8"))
    checker.finish()
    assert checker.problems == []
    return checker
