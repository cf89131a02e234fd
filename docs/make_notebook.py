"""Make docs/tour.ipynb, the tour as a notebook with its outputs, from docs/tour.md.

    python docs/make_notebook.py

Text becomes Markdown cells. A python block becomes a code cell, and the text block after it becomes
its output. A bash block becomes a cell that runs the command. A picture becomes a cell that shows
it, because Colab does not have the files next to a notebook. A paragraph that begins with PAGE_ONLY
is left out.
"""

import json
import re
from pathlib import Path

DOCS = Path(__file__).resolve().parent
PAGE_ONLY = "<!-- page only -->"
BLOCK = re.compile(r"```(python|bash)\n(.*?)\n*```\n"
                   r"(?:(?:<!-- varies -->\n)?```text\n(.*?)```\n)?", re.DOTALL)
PICTURE = re.compile(r"^!\[.*\]\((\w+\.svg)\)$", re.MULTILINE)

SETUP = """\
# Run this cell first. If the notebook was opened without the program, as in Colab, the cell
# downloads the program and installs the packages that it needs.
import os
import subprocess
import sys

if os.path.exists("tour.md"):  # Jupyter starts in docs/
    os.chdir("..")
if os.path.exists("glassgpt/model.py"):  # the cell ran before
    os.chdir("glassgpt")
if not os.path.exists("model.py"):
    repository = "https://github.com/OWNER/glassgpt"  # OWNER: where you found this notebook
    subprocess.run(["git", "clone", repository, "glassgpt"], check=True)
    os.chdir("glassgpt")
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "."], check=True)
sys.path.insert(0, os.getcwd())"""


def code_cell(source, outputs=()):
    return {"cell_type": "code", "execution_count": None, "metadata": {},
            "outputs": list(outputs), "source": lines(source)}


def printed(text):
    return {"output_type": "stream", "name": "stdout", "text": lines(text)}


def lines(text):
    return text.splitlines(keepends=True)


def text_cells(text):
    """Yields the cells of the text between two blocks. text: Markdown."""
    text = re.sub(rf"{PAGE_ONLY}\n.*?(\n\n|\Z)", "", text, flags=re.DOTALL)
    parts = PICTURE.split(text)  # text, picture, text, ..., text
    for i, part in enumerate(parts):
        part = part.strip()
        if i % 2 == 1:
            yield picture_cell(part)
        elif part:
            yield {"cell_type": "markdown", "metadata": {}, "source": lines(part)}


def picture_cell(name):
    svg = (DOCS / name).read_text(encoding="utf-8")
    data = {"image/svg+xml": lines(svg), "text/plain": ["<IPython.core.display.SVG object>"]}
    output = {"output_type": "display_data", "data": data, "metadata": {}}
    code = f'from IPython.display import SVG, display\n\ndisplay(SVG("docs/{name}"))'
    return code_cell(code, [output])


def notebook(page):
    """The notebook as a dict, in nbformat 4.5. page: the text of docs/tour.md."""
    cells = [code_cell(SETUP)]
    end = 0
    for block in BLOCK.finditer(page):
        cells += text_cells(page[end:block.start()])
        language, source, output = block.groups()
        if language == "bash":
            source = re.sub("^python ", '!"{sys.executable}" ', source, flags=re.MULTILINE)
        cells.append(code_cell(source, [printed(output)] if output else []))
        end = block.end()
    cells += text_cells(page[end:])
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def main():
    page = (DOCS / "tour.md").read_text(encoding="utf-8")
    text = json.dumps(notebook(page), indent=1, ensure_ascii=False)
    (DOCS / "tour.ipynb").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
