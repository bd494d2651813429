"""The site's files for mkdocs: README, CONTRIBUTING, CHANGELOG, docs and reports, at their places in the repository.

So that a link means the same here and where the repository is read. Files that pages link to are taken along.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.structure.files import Files

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("*.md", "docs/*.md", "reports/**/*.md")
LINK = re.compile(r"\]\(([^)#\s]+)")


def on_files(files: "Files", config: Any) -> "Files":
    """mkdocs asks for the files of the site: all pages, and what they link to. Themes' own files stay."""
    from mkdocs.structure.files import File

    for each in list(files):
        if each.src_uri.endswith((".md", ".svg", ".py", ".txt")):
            files.remove(each)
    pages = [path for pattern in PAGES for path in sorted(ROOT.glob(pattern))]
    linked = (page.parent / target for page in pages for target in LINK.findall(page.read_text()) if "://" not in target)
    others = {path.resolve() for path in linked}
    for path in [*pages, *sorted(path for path in others if path.is_file() and path not in pages)]:
        if path.is_relative_to(ROOT):
            place = str(path.relative_to(ROOT))
            files.append(File(place, str(ROOT), config["site_dir"], use_directory_urls=False))
    return files
