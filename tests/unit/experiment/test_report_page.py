"""The report in a browser, wide and narrow; skipped where Chromium is not installed."""

import html
import json
import re
import shutil
import subprocess

import pytest
from report_speed import generated_results

from experiment.report import write_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTHS = (1400, 380)
# A browser's window has a least width, a frame has none. The last frame has faults, which must be found.
DRIVER = """
<script>
addEventListener("load", () => {
  const found = {};
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument, root = page.documentElement;
    for (const each of page.querySelectorAll("details")) each.open = true;
    const seen = { width: root.clientWidth, content: root.scrollWidth };
    found[frame.id] = seen;
    const [table] = page.querySelectorAll("table.results, [aria-label=Results] table");
    if (!table) continue;
    const headers = [...table.tHead.rows[0].cells];
    const column = headers.findIndex((header) => header.textContent === "mAP");
    const button = headers[column].querySelector("button");
    const figures = () => [...table.tBodies[0].rows].map((row) => parseFloat(row.cells[column].textContent));
    seen.orders = [[headers[column].getAttribute("aria-sort"), figures()]];
    for (let i = 0; i < 3; i++) {
      button.click();
      seen.orders.push([headers[column].getAttribute("aria-sort"), figures()]);
    }
    const classes = page.querySelector('[aria-label="mAP by size and class"]');
    const input = classes.previousElementSibling.querySelector("input");
    input.value = "CLASS 7";
    input.dispatchEvent(new frame.contentWindow.Event("input"));
    seen.shown = [...classes.querySelectorAll("tbody tr")].filter((row) => row.getClientRects().length).length;
    seen.said = classes.previousElementSibling.querySelector("output").textContent;
  }
  document.title = JSON.stringify(found);
});
</script>
"""


def opened(pages, folder):
    """Return what the driver found in each page, and what the browser's console says."""
    frames = [
        f'<iframe id="{name}" style="width:{width}px;height:900px" srcdoc="{html.escape(page)}"></iframe>'
        for name, (width, page) in pages.items()
    ]
    (folder / "frames.html").write_text(f"<!doctype html><title></title>{''.join(frames)}{DRIVER}", encoding="utf-8")
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
    words = (*options, "--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}", "--dump-dom")
    done = subprocess.run(
        [BROWSER, *words, (folder / "frames.html").as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    title = re.search("<title>(.*?)</title>", done.stdout)[1]
    return json.loads(html.unescape(title)), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium: apt-get install chromium")
def test_the_page_works_wide_and_narrow(tmp_path):
    page = write_report(generated_results(40), tmp_path).read_text("utf-8")
    pages = {str(width): (width, page) for width in WIDTHS}
    faulty = "<!doctype html><div style='width:2000px'>wide</div><script>unknown()</script>"
    found, said = opened({**pages, "faulty": (380, faulty)}, tmp_path)
    assert found["faulty"]["content"] > found["faulty"]["width"]
    assert [line for line in said if "unknown is not defined" in line]
    assert len(said) == 1, said  # that of the faulty page
    for width in WIDTHS:
        seen = found[str(width)]
        assert width - 20 <= seen["width"] <= width
        assert seen["content"] <= seen["width"]
        (_, as_written), (up, rising), (down, falling), (none, again) = seen["orders"]
        assert (up, down, none) == ("ascending", "descending", "none")
        assert rising == sorted(as_written)
        assert falling == sorted(as_written, reverse=True)
        assert again == as_written
        assert (seen["shown"], seen["said"]) == (11, "11 of 83 rows")  # class 7, and class 70 to 79
