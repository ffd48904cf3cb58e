"""report.html in a headless Chromium, where there is one: it plays, switches, sorts and complains of nothing."""

import numpy as np
import pytest
from chromium import PROGRAM, Page

from audiocodec import report_html, scores
from audiocodec.peers import SAMPLE_RATE

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium")
CODECS = {"nac 3": 2.8, "nac 6": 5.9, "opus 6": 6.6}
CARD = "document.querySelector('#clips .card')"
AUDIOS = f"[...{CARD}.querySelectorAll('audio')]"
PRESSED = f"{CARD}.querySelector('.family [aria-pressed=true]').firstChild.data"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    pytest.importorskip("matplotlib")      # which draws the pictures
    from audiocodec import plots

    rows = [{"clip": clip, "kind": kind, "codec": codec, "kbps": kbps + at / 10, "mel": 1 / kbps + at / 100,
             "si_sdr": kbps, "pesq": kbps / 2 if kind == "speech" else float("nan"), "clip_id": clip, "identity": ""}
            for at, (clip, kind) in enumerate((("one", "speech"), ("two", "speech"), ("three", "music")))
            for codec, kbps in CODECS.items()]
    tone = (0.3 * np.sin(np.arange(8 * SAMPLE_RATE) * 0.1)).astype(np.float32)
    clips = [report_html.Played(
        row["clip"], row["kind"], [report_html.Sound("reference", tone, None),
                                   *(report_html.Sound(codec, tone / 2, row) for codec in CODECS)])
             for row in rows[::len(CODECS)]]
    summary = scores.summarise(rows)
    pairs = [("nac 3", "nac 6"), ("nac 3", "opus 6"), ("nac 6", "opus 6")]
    folder = tmp_path_factory.mktemp("a report")
    report = folder / "report.html"
    curves = plots.rate_curves(summary, ["mel", "si_sdr", "pesq"])
    report.write_text(report_html.render(summary, scores.compare(rows, pairs), clips, curves), encoding="utf-8")
    page = Page(folder / "profile", report.as_uri())
    page.wait_for(f"{AUDIOS}.every(audio => audio.readyState >= 3)")
    yield page
    page.close()
    assert page.complaints == []


@pytest.fixture(autouse=True)
def at_rest(page):
    """Begin with the first clip at its start, not playing, its reference chosen, and nothing focused."""
    page.run(f"""(() => {{
        {CARD}.querySelector('.family button').click();
        for (const audio of document.querySelectorAll('audio')) {{ audio.pause(); audio.currentTime = 0; }}
        document.activeElement.blur(); scrollTo(0, 0);
    }})()""")
    page.wait_for(f"{AUDIOS}.every(audio => audio.paused && !audio.seeking)")


def test_pictures_show(page):
    page.wait_for("[...document.images].every(image => image.complete)")
    sizes = page.run("[...document.images].map(image => [image.naturalWidth, image.clientHeight])")
    assert len(sizes) == 4 and all(width > 100 and height > 100 for width, height in sizes)


def test_players_play_and_switching_keeps_the_position(page):
    page.run(f"{CARD}.querySelector('.play').click()")
    page.wait_for(f"{AUDIOS}[0].currentTime > 0.3")
    assert page.run(f"{CARD}.querySelector('.play').textContent") == "Pause"
    before, after, again = page.run(f"""(async () => {{
        const audios = {AUDIOS}, positions = [];
        for (const key of ['3', 'x', 'x']) {{
            const old = audios.find(audio => !audio.paused), left = old.currentTime;
            document.dispatchEvent(new KeyboardEvent('keydown', {{key}}));
            positions.push([{PRESSED}, audios.filter(audio => !audio.paused).length,
                            Math.abs(audios.find(audio => !audio.paused).currentTime - left)]);
            await new Promise(done => setTimeout(done, 150));
        }}
        return positions;
    }})()""")
    for (name, playing, jump), expected in zip((before, after, again), ("nac 6", "reference", "nac 6")):
        assert name == expected and playing == 1 and jump < 0.1
    page.wait_for(f"{AUDIOS}[2].currentTime > 0.5")
    assert page.run(f"{CARD}.querySelector('.seek').valueAsNumber") > 0.05


def test_only_one_clip_plays_at_a_time(page):
    page.run("[...document.querySelectorAll('.play')].forEach(button => button.click())")
    page.wait_for("[...document.querySelectorAll('audio')].filter(audio => !audio.paused).length === 1")
    assert page.run("document.querySelectorAll('.card.current h3')[0].textContent") == "three"


def test_picture_and_slider_lead_to_a_position(page):
    page.run(f"""(() => {{ const box = {CARD}.querySelector('.picture').getBoundingClientRect();
        {CARD}.querySelector('.picture').dispatchEvent(
            new MouseEvent('click', {{bubbles: true, clientX: box.left + box.width / 4}})); }})()""")
    assert page.run(f"{AUDIOS}[0].currentTime") == pytest.approx(2, abs=0.05)
    page.run(f"""(() => {{ const seek = {CARD}.querySelector('.seek'); seek.value = 0.5;
        seek.dispatchEvent(new Event('input')); }})()""")
    assert page.run(f"{AUDIOS}[0].currentTime") == pytest.approx(4, abs=0.05)
    assert page.run(f"{CARD}.querySelector('.time').textContent") == "0:04 / 0:08"


def test_everything_by_the_keyboard(page):
    page.press(" ")
    page.wait_for(f"!{AUDIOS}[0].paused")
    page.press("ArrowRight")
    assert page.run(f"{AUDIOS}[0].currentTime") > 0.95
    page.press(" ")
    page.wait_for(f"{AUDIOS}[0].paused")
    reached = []
    for _ in range(8):
        page.press("Tab")
        reached.append(page.run("document.activeElement.className || document.activeElement.firstChild.data"))
    switch = reached.pop(3)
    assert reached == ["play", "seek", "Loop", "reference", "nac 3", "nac 6", "opus 6"]
    assert switch.startswith("A/B: reference ⇄ ")
    page.press("Enter", "\r")
    assert page.run(PRESSED) == "opus 6"


def test_loop(page):
    page.run(f"{CARD}.querySelectorAll('.row button')[1].click()")
    assert page.run(f"{AUDIOS}.every(audio => audio.loop)")
    page.run(f"{CARD}.querySelectorAll('.row button')[1].click()")
    assert not page.run(f"{AUDIOS}.some(audio => audio.loop)")


def column(page, table, at):
    return page.run(f"[...document.querySelectorAll('#{table} tbody tr')].map(row => row.cells[{at}].textContent)")


def test_tables_sort(page):
    heads = page.run("[...document.querySelectorAll('#summary th')].map(head => head.textContent)")
    at = heads.index("kbps")
    button = f"document.querySelectorAll('#summary th button')[{at}]"
    page.run(f"{button}.click()")
    found = [float(cell) for cell in column(page, "summary", at)]
    assert found == sorted(found) and len(found) == 6
    page.run(f"{button}.click()")
    assert [float(cell) for cell in column(page, "summary", at)] == found[::-1]
    assert page.run(f"{button}.parentNode.ariaSort") == "descending"
    pesq = heads.index("PESQ-wb")
    page.run(f"document.querySelectorAll('#summary th button')[{pesq}].click()")
    assert [bool(cell) for cell in column(page, "summary", pesq)] == 3 * [True] + 3 * [False]   # missing ones last


def test_differences_can_be_turned_round(page):
    assert page.run("[first.value, second.value]") == ["nac 6", "opus 6"]
    there = column(page, "comparisons", 3)
    page.run("[first.value, second.value] = ['opus 6', 'nac 6']; first.onchange()")
    turned = [{"+": "-", "-": "+"}[cell[0]] + cell[1:] for cell in column(page, "comparisons", 3)]
    assert turned == there and column(page, "comparisons", 5)[:2] == ["opus 6", "opus 6"]
    page.run("[first.value, second.value] = ['nac 6', 'opus 6']; first.onchange()")


def test_narrow_screens(page):
    page.resize(360, 740)
    assert page.run("document.documentElement.scrollWidth") <= 360
    boxes = page.run("[...document.querySelectorAll('.card button:not(th button)')].map(button =>"
                     "[button.getBoundingClientRect().right, button.getBoundingClientRect().height])")
    assert all(right <= 360 and height >= 36 for right, height in boxes)
    page.resize(1100, 1000)


def test_dark_screens(page):
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.run(ground)
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert page.run(ground) != light
    page.call("Emulation.setEmulatedMedia", features=[])
