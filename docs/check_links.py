"""Check the built site: every link leads to a page and an anchor that exist, and nothing is loaded from outside.

``python docs/check_links.py docs/_build/html``
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {
    ("script", "src"),
    ("img", "src"),
    ("link", "href"),
    ("iframe", "src"),
}  # by the browser, without a click
# Results of a search are made by a script. Listings of source link back to the page of a name; where two modules of the
# package have the name, Sphinx names the anchor of one and the page of the other.
WITHOUT_ANCHORS = ("search.html", "_modules/")
TEMPLATES = "_static"  # of the theme, not pages


class Page(HTMLParser):
    """The anchors and the links of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[tuple[str, str, str]] = []  # tag, attribute, address
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep what the tag names and where it leads."""
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.anchors.add(value)
            elif name in ("href", "src") and value:
                self.links.append((tag, name, value))


def pages_of(site: Path) -> list[Path]:
    """Return the pages of the site."""
    return sorted(path for path in site.rglob("*.html") if path.relative_to(site).parts[0] != TEMPLATES)


def _is_page_of(target: Path, site: Path) -> bool:
    """Return whether a file is there and part of the site: what lies beside it is not published."""
    inside = target.is_relative_to(site.resolve())
    return inside and (target / "index.html" if target.is_dir() else target).is_file()


def broken(site: Path) -> list[str]:
    """Return a sentence for each link that leads nowhere, and for each address that a page loads from outside."""
    pages = {
        path.resolve(): Page(path.read_text(encoding="utf-8", errors="replace")) for path in pages_of(site)
    }
    found = [] if pages else [f"{site} holds no page: build the site first."]
    for path, page in pages.items():
        name = path.relative_to(site.resolve()).as_posix()
        for tag, attribute, address in page.links:
            try:
                parts = urlsplit(address)
                outside = parts.scheme or parts.netloc
                target = path.parent / unquote(parts.path) if parts.path and not outside else path
                target = target.resolve()
                there = outside or _is_page_of(target, site)
            except (ValueError, OSError) as error:
                found.append(f"{name}: {address[:80]} is no address ({error})")
                continue
            if outside:
                if (tag, attribute) in LOADED and parts.scheme != "data":
                    found.append(f"{name}: loads {address}")
                continue
            anchor = unquote(parts.fragment)
            if not there:
                found.append(f"{name}: no file for {address}")
            elif name.startswith(WITHOUT_ANCHORS):
                continue
            elif anchor and target in pages and anchor not in pages[target].anchors:
                found.append(f"{name}: no anchor for {address}")
    return found


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("Give the folder of the site: python docs/check_links.py docs/_build/html")
    site = Path(sys.argv[1])
    sentences = broken(site)
    print("\n".join(sentences) or f"{len(pages_of(site))} pages: every link leads somewhere.")
    sys.exit(bool(sentences))
