"""Run folders, listed and shown, and the page about one: whole, still, and safe to open."""

import base64
import html.parser
import io
import json
import re
import shutil
import subprocess

import pytest
import torch

import fmkit
from fmkit import runs
from fmkit.saving import FORMAT, write_tensors
from tests.commands import run

HOSTILE = "</pre><script>alert(1)</script>&'\""


class Page(html.parser.HTMLParser):
    """The tags of a page and the addresses it names."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for key, value in attributes if key in ("src", "href", "xlink:href", "action")]
        assert not any(key.startswith("on") for key, _ in attributes)

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def folder(tmp_path):
    """A run that was killed: hostile texts wherever there can be texts."""
    made = tmp_path / "runs" / "moons"
    made.mkdir(parents=True)
    (made / runs.CONFIG).write_text(f"data: moons  # {HOSTILE}\n")
    (made / runs.FACTS).write_text(json.dumps({"fmkit": HOSTILE, HOSTILE: [HOSTILE]}))
    lines = [{"step": k, "loss": 2.0 / k, HOSTILE: k, "broken": float("nan")} for k in (1, 2, 4)]
    (made / runs.LINES).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (made / runs.METRICS).write_text(json.dumps({"nfe": 12.0, "nothing": None}))
    return made


def test_the_page_runs_nothing_and_asks_for_nothing(folder, capsys):
    (folder / "samples.png").write_bytes(b"png")
    assert run("report", str(folder)) == 0
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert "script" not in page.tags
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert len(page.addresses) == 1
    assert HOSTILE in page.text  # shown, as a text
    assert "default-src 'none'" in text


def test_a_curve_has_its_points_where_they_belong(folder):
    run("report", str(folder))
    text = (folder / "report.html").read_text()
    # Steps 1, 2, 4 over 640, losses 2, 1, 0.5 over 160, upwards.
    assert '<polyline points="0.0,0.0 213.3,106.7 640.0,160.0"/>' in text


def test_every_way_is_drawn_from_its_start_to_its_end(folder):
    torch.manual_seed(0)
    flow = fmkit.Flow(fmkit.sources.Gaussian(), fmkit.fields.MLP(2, width=8), event_shape=2)
    flow.save(folder / runs.FLOW)
    assert run("report", str(folder)) == 0
    text = (folder / "report.html").read_text()
    ways = re.findall(r'class="way" points="([^"]*)"', text)
    assert len(ways) == 128
    ends = [tuple(map(float, end)) for end in re.findall(r'cx="([^"]*)" cy="([^"]*)"', text)]
    for way, end in zip(ways, ends, strict=True):
        points = [tuple(map(float, p.split(","))) for p in way.split()]
        assert len(points) == 21
        assert points[-1] == end


def drawn(folder, step, x, header=None):
    (folder / "samples").mkdir(exist_ok=True)
    header = {"format": FORMAT, "step": step} if header is None else header
    write_tensors(folder / "samples" / f"step_{step:08}.safetensors", {"x": x}, header)


def test_points_over_training_have_the_scale_of_the_last(folder):
    drawn(folder, 5, torch.tensor([[1.0, 0.0], [float("nan"), 0.0], [4.0, 2.0]]))
    drawn(folder, 20, torch.tensor([[0.0, 0.0], [2.0, 2.0]]))
    assert run("report", str(folder)) == 0
    text = (folder / "report.html").read_text()
    row = text.split("Samples over training")[1].split("</div>")[0]
    first, last = row.split("<figure>")[1:]
    assert re.findall(r'cx="([^"]*)" cy="([^"]*)"', first) == [("100.0", "200.0"), ("400.0", "0.0")]
    assert re.findall(r'cx="([^"]*)" cy="([^"]*)"', last) == [("0.0", "200.0"), ("200.0", "0.0")]
    assert "step 5<" in first
    assert "step 20<" in last


def test_images_over_training_are_pictures_pixel_for_pixel(folder):
    from matplotlib.image import imread

    images = torch.zeros(5, 1, 6, 4)
    images[:, :, 2:] = torch.tensor([0.0, 1, 2, 3, 4])[:, None, None, None]
    drawn(folder, 3, images)
    assert run("report", str(folder)) == 0
    page = Page((folder / "report.html").read_text())
    (address,) = page.addresses
    picture = imread(io.BytesIO(base64.b64decode(address.removeprefix("data:image/png;base64,"))))[..., 0]
    assert picture.shape == (2 * 7 - 1, 3 * 5 - 1)
    for k in range(5):
        top, left = k // 3 * 7, k % 3 * 5
        tile = picture[top : top + 6, left : left + 4]
        assert (tile[:2] == 0).all()
        assert tile[2:] == pytest.approx(k / 4, abs=0.02)


@pytest.mark.parametrize("x", [torch.zeros(3), torch.zeros(0, 2), torch.zeros(2, 2, dtype=torch.int64)])
def test_what_are_no_samples_is_said(folder, x, capsys):
    drawn(folder, 1, x)
    assert run("report", str(folder)) == 2
    assert "holds no samples" in capsys.readouterr().err


def test_hostile_samples_stay_text(folder):
    drawn(folder, 1, torch.zeros(2, 2), {"format": FORMAT, "step": HOSTILE})
    assert run("report", str(folder)) == 0
    assert "<script" not in (folder / "report.html").read_text()


@pytest.mark.slow
def test_a_browser_without_a_network_shows_the_page(folder, tmp_path):
    """Needs Chromium on the path. Requests go to a proxy that is not there; the console would say so."""
    browser = next((b for b in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if b), None)
    assert browser, "this test needs Chromium: apt install chromium"
    drawn(folder, 5, torch.tensor([[0.0, 0.0], [2.0, 2.0]]))
    drawn(folder, 9, torch.rand(4, 2))
    assert run("report", str(folder)) == 0
    flags = [
        "--headless",
        "--window-size=1000,2500",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--proxy-server=localhost:1",
    ]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=2000"]
    page = f"file://{folder / 'report.html'}"
    known = {"capture_output": True, "check": True, "timeout": 90}
    shown = subprocess.run([browser, *flags, "--dump-dom", page], text=True, **known)
    assert "Samples over training" in shown.stdout
    assert shown.stdout.count("<circle") == 6
    assert "CONSOLE" not in shown.stderr
    picture = tmp_path / "page.png"
    subprocess.run([browser, *flags, f"--screenshot={picture}", page], **known)
    from matplotlib.image import imread

    pixels = imread(picture)
    assert (pixels[..., 2] - pixels[..., 0] > 0.2).sum() > 200  # the dots and the curves are blue


def test_runs_are_listed_and_shown(folder, capsys):
    (folder.parent / "other").mkdir()
    assert run("runs", "list", str(folder.parent), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found == [{"run": str(folder), "step": 4, "finished": False, "loss": 0.5}]
    assert run("runs", "show", str(folder)) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["checkpoints"] == []
    assert shown["best"] is None
    assert shown["figures"]["nfe"] == 12.0


@pytest.mark.parametrize("text", ["[" * 100_000, "[1]", "{"])
def test_damaged_files_are_said(folder, text, capsys):
    (folder / runs.METRICS).write_text(text)
    assert run("report", str(folder)) == 2
    assert "metrics.json is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("words", [("report",), ("runs", "show"), ("runs", "list")])
def test_a_folder_without_a_run_is_a_mistake(tmp_path, words, capsys):
    assert run(*words, str(tmp_path / "nothing")) == 2
    assert capsys.readouterr().err.count("\n") == 1
