"""Hooks of the site: pages made of files outside `docs/`, links to these, options, and formulas as MathML."""

import base64
import html
import json
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.structure.files import File
from options import tables

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"benchmarks.md": "benchmarks/README.md", "changelog.md": "CHANGELOG.md"}  # of the site, and where they are
SPACED = re.compile(r"\\(sin|cos|log|max)(?=[ \\])")  # a function whose argument stands in no brackets
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([\[(])(.*?)\\[\])]</\1>', re.DOTALL)


def on_files(files, config):
    """Adds the pages that are made of files elsewhere: benchmarks, changelog, and the course's notebooks."""
    for name, source in PAGES.items():
        files.append(File.generated(config, name, content=(ROOT / source).read_text()))
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        _add_notebook(files, config, notebook)
    return files


def on_page_markdown(markdown, page, config, files):
    """Links as they are in the repository lead to the pages of the site; the options of the command line are added."""
    top = "../" * page.file.src_uri.count("/")
    for name, source in PAGES.items():
        markdown = markdown.replace(f"](../{source})", f"]({top}{name})")
    if "<!-- options -->" in markdown:
        markdown = markdown.replace("<!-- options -->", tables())
    return markdown.replace("](../docs/", f"]({top}")


def on_page_content(content, page, config, files):
    """Formulas become MathML, which browsers draw themselves."""

    def drawn(found):
        display = "block" if found[2] == "[" else "inline"
        latex = html.unescape(found[3]).replace(r"\|", r"\Vert ")  # the first of these it does not know
        latex = SPACED.sub(r"\\\1\\,", latex)
        return convert(latex, display=display)

    return FORMULA.sub(drawn, content)


def _add_notebook(files, config, notebook):
    """A notebook as it was executed: its text, its code, what it printed, and its pictures."""
    parts = []
    for cell in json.loads(notebook.read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                name = f"course/images/{notebook.stem}_{len(parts)}.png"
                files.append(File.generated(config, name, content=base64.b64decode("".join(data["image/png"]))))
                parts.append(f"![](images/{Path(name).name})")
            elif text := "".join(output.get("text", data.get("text/plain", ""))).rstrip():
                parts.append(f"```text\n{text}\n```")
    files.append(File.generated(config, f"course/{notebook.stem}.md", content="\n\n".join(parts)))
