"""Names of classes, rows, layers, files and devices stay text in whatever they are written into."""

import csv
import io
import re
import shlex
import warnings
from collections import Counter
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from markdown_it import MarkdownIt
from PIL import Image
from rich.console import Console
from torch import nn

from deploy.text import drawable, printable
from experiment import plots
from experiment.architectures import SlimArchitecture
from experiment.doctor import Finding, report_table
from experiment.histograms import Histogram
from experiment.layer_plots import weight_plots, width_plot
from experiment.prune_show import PruningReport, report_text
from experiment.report import table_latex, table_markdown, table_text, write_report
from experiment.sensitivity import sensitivity_table
from experiment.sensitivity_plot import sensitivity_plot
from experiment.sweep import sweep_table
from prune import LayerCut, PruneSpec, slim_model
from prune.explain import explain

CHOSEN = {"ordering", "budget", "file"}
"""Keys of results whose values no name can be."""


class Page(HTMLParser):
    """The elements of a page with the names of their attributes, its links, and its text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.links, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, *(name for name, _ in attrs)))
        self.links += [value for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data):
        self.text += data


def renamed(value, name):
    """Return results in which every free text and every free key is the name."""
    if isinstance(value, dict):
        return {key: inner if key in CHOSEN else renamed(inner, name) for key, inner in value.items()}
    if isinstance(value, list):
        return [renamed(inner, name) for inner in value]
    return name if isinstance(value, str) else value


def named(results, name):
    named = renamed(results, name) | {"versions": {name: name}, "config": {name: [name]}}
    for row in named["rows"]:
        row.update({"train_epochs": {name: 3}, "stages": [name, name], name: -0.5})
    weights = {"widest": 1.0, "counts": [1, 2], "std": 0.5, "num": 3, "num_zeros": 0}
    named.update(
        {key: {name: {name: inner}} for key, inner in (("per_class", 0.5), ("widths", 4), ("weights", weights))}
    )
    for picture in named["pictures"]:
        picture["detections"] = {name: picture["detections"]["dense"]}
    return named


def visible(text):
    return Counter(letter for letter in text if letter.isprintable() and not letter.isspace())


def shown(renderable, width=200):
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    return console.file.getvalue()


def test_the_report_has_no_element_or_attribute_of_a_name(pictured, tmp_path, hostile):
    texts = [write_report(named(pictured, name), tmp_path).read_bytes().decode() for name in ("plain", hostile)]
    # plots have as many elements as there is room for labels; what may be in them is tested below
    pages = [Page(re.sub("<svg xmlns:xlink.*?</svg>", "", text, flags=re.DOTALL)) for text in texts]
    assert pages[1].elements == pages[0].elements
    assert sum(element == ("script",) for element in pages[1].elements) == 1
    assert all(re.match(r"#|data:image/(webp|png);base64,|results\.|[\w%/.+-]*$", link) for link in pages[1].links)
    assert pages[1].text.count(hostile) > 20


def test_a_spreadsheet_gets_names_as_text_and_numbers_as_numbers(results, tmp_path, hostile):
    write_report(named(results, hostile), tmp_path)
    with (tmp_path / "results.csv").open(encoding="utf-8", newline="") as file:
        header, dense, *_ = csv.reader(file)
    name = hostile.replace("\0", "\ufffd")
    text = f"'{name}" if name.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else name
    assert dict(zip(header, dense, strict=True))["runtime"] == text
    assert [cell for key, cell in zip(header, dense, strict=True) if key == text] == ["-0.5"]


def test_no_cell_of_a_table_begins_a_formula(results, tmp_path, hostile):
    write_report(named(results, hostile), tmp_path)
    files = sorted(tmp_path.glob("*.csv"))
    assert {"classes.csv", "results.csv", "summary.csv", "widths.csv"} <= {file.name for file in files}
    for file in files:
        with file.open(encoding="utf-8", newline="") as content:
            cells = [cell for row in csv.reader(content) for cell in row]
        assert not [cell for cell in cells if re.match(r"[=@\t\r\n+]|-(?!\d)", cell) and cell != "-"]


def test_markdown_shows_a_name_as_it_is(results, hostile):
    results["latency"]["device"] = results["rows"][1]["budget"] = hostile
    tokens = MarkdownIt("commonmark").enable("table").parse(table_markdown(results))
    texts = [token for token in tokens if token.type == "inline"]
    assert {inner.type for token in texts for inner in token.children} == {"text"}
    assert texts[0].children[0].content == f"Latency was measured on {printable(hostile)}."
    assert sum(token.type == "tr_open" for token in tokens) == 1 + len(results["rows"])


def test_latex_keeps_a_row_a_line(results, hostile):
    results["latency"]["device"] = results["rows"][1]["budget"] = hostile
    lines = table_latex(results).splitlines()
    comments = [line for line in lines if line.startswith("%")]
    assert comments[0] == f"% Latency was measured on {printable(hostile)}."
    assert len(lines) == len(comments) + 6 + len(results["rows"])


def test_markdown_leaves_no_template_to_a_site_s_engine(results):
    results["latency"]["device"] = "{{7*7}} {% raw %}"
    assert not re.search("{{|{%", table_markdown(results))


def test_a_terminal_shows_the_results_with_a_name_as_it_is(results, hostile):
    results["latency"]["device"] = results["rows"][1]["budget"] = hostile
    text = shown(table_text(results))
    assert not visible(printable(hostile)) - visible(text)
    assert not re.search(r"[^\n -~±\ufffd─…😀漢]", text)


def sensitivity_figures(name):
    point = {"prune_ratio": 0.5, "num_kept": 5, "macs_won": 10, "drop": 0.1, "lost_per_won": 1.0}
    about = {"kind": "classifier", "model": f"data/{name}", "metric": "top1", "num_images": 500, "score": 0.4}
    advice = {"prune_ratio": 0.5, "max_drop": 0.05, "skip": [name]}
    untouched = [{"group": name, "reason": f"skipped by the recipe ({name})"}]
    curves = [{"group": name, "num_channels": 10, "points": [point]}]
    return {**about, "macs": 1000, "recommendation": advice, "curves": curves, "untouched": untouched}


def sweep_figures(name):
    row = {"prune_ratio": 0.5, "round_to": 1, "macs": 10, "mac_reduction": 1.0, "latency_ms": 1.0, "speedup": 1.0}
    return {"measured_on": name, "network": name, "rows": [row | {"speedup_low": None, "speedup_high": None}]}


def pruning_report(name):
    net = nn.Sequential()
    net.add_module(name.replace(".", "_") or "empty", nn.Conv2d(3, 8, 3))  # as torch demands
    explanation = explain(net, net, (torch.zeros(1, 3, 8, 8),), dict.fromkeys(dict(net.named_modules()), name))
    return PruningReport(name, name, (8, 8), explanation, file=Path(name))


@pytest.mark.parametrize(
    "renderable",
    [
        lambda name: sensitivity_table(sensitivity_figures(name)),
        lambda name: sweep_table(sweep_figures(name)),
        lambda name: report_table([Finding("part", "broken", name, name)]),
        lambda name: report_text(pruning_report(name)),
    ],
    ids=["sensitivity", "sweep", "doctor", "prune show"],
)
def test_a_terminal_takes_no_name_for_markup(renderable, hostile):
    assert not visible(hostile) - visible(shown(renderable(hostile)))


def test_the_next_command_has_a_file_s_name_as_one_word(hostile):
    assert shlex.split(pruning_report(hostile).next_command)[-1] == str(Path(hostile))


def test_the_picture_of_a_study_can_be_drawn_with_any_name(hostile, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # as for a letter that the font lacks
        sensitivity_plot(sensitivity_figures(hostile)).savefig(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (16 * 120, 7 * 120)


def test_the_plots_of_the_report_can_be_drawn_with_any_label(hostile):
    figures = dict.fromkeys(plots.FIGURES, 1.0)
    points = [plots.Point(label, "transfer_prune", score=1.0, spread=0.0, **figures) for label in (hostile, "b")]
    curves = [plots.LossCurve(point.label, point.ordering, (1, 2), (2.0, 1.0)) for point in points]
    cut = [SlimArchitecture(point.label, {point.label: 4}, {point.label: 2.0}) for point in points]
    weights = Histogram(1.0, (1, 2), 0.5, 3, 0)
    drawn = (
        (width_plot, cut),
        (lambda labels: weight_plots({label: {label: weights} for label in labels[:1]})[labels[0]], [hostile, "b"]),
        (plots.accuracy_plot, points),
        (plots.macs_plot, points),
        (plots.speedup_plot, points),
        (partial(plots.loss_plot, unit="nats"), curves),
    )
    for plot, things in drawn:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            image = ElementTree.fromstring(plot(things))
        assert image.get("width") == ElementTree.fromstring(plot(things[1:] * 2)).get("width")
        assert {element.tag.rpartition("}")[2] for element in image.iter()} <= {
            *("svg", "g", "defs", "path", "use", "text", "clipPath", "rect", "style", "metadata")
        }


def test_a_long_name_is_cut_and_missing_letters_are_marked():
    assert drawable("x" * 10_000) == "x" * 79 + "…"
    assert drawable("a\n漢$b$") == "a\ufffd\ufffd$b$"


def test_a_spec_for_a_layer_of_that_name_is_refused(hostile):
    spec = PruneSpec.from_json(PruneSpec({hostile: LayerCut((0,), None, 8, 3)}).to_json())
    with pytest.raises(ValueError, match="the spec is for another model; Conv2d has no such layer"):
        slim_model(nn.Conv2d(3, 8, 3), spec)
