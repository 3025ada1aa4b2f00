"""examples/quickstart.ipynb, run as Jupyter runs it."""

import nbformat
import pandas as pd
from conftest import ROOT
from nbclient import NotebookClient


def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    notebook = nbformat.read(ROOT / "examples" / "quickstart.ipynb", as_version=4)
    out = tmp_path / "out"
    settings = notebook.cells[2]
    settings.source = settings.source.replace('OUT = "notebook"', f'OUT = "{out}"')
    here = {"metadata": {"path": str(ROOT / "examples")}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=here).execute()
    assert pd.read_csv(out / "results" / "results.csv").role.value_counts().to_dict() == {
        "teacher": 1,
        "student": 2,
        "distill": 8,
    }
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    said = "".join(output.get("text", "") for output in outputs)
    assert "error" not in said and f"{out / 'one.png'}\t" in said
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == 2  # the heatmap, and what was classified
