import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
import torch

from audiocodec.errors import AudioError
from audiocodec.training import data, sources
from audiocodec.training.data import Crops, clips, loader
from audiocodec.training.sources import Index, Shard, open_source

RATE = 24_000


def _noise(seconds, rate, channels, seed=0):
    return 0.1 * np.random.default_rng(seed).normal(size=(round(seconds * rate), channels)).clip(-3, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, request):
    """Sound in six formats, and what else may lie about."""
    folder = tmp_path_factory.mktemp("some audio")
    (folder / "a b" / "ü").mkdir(parents=True)
    shutil.copy(request.config.rootpath / "examples" / "speech.flac", folder)
    soundfile.write(folder / "a b" / "low.wav", _noise(1, 8_000, 1), 8_000)
    soundfile.write(folder / "a b" / "many.wav", _noise(1, 48_000, 6), 48_000, subtype="FLOAT")
    soundfile.write(folder / "a b" / "ü" / "odd.FLAC", _noise(2, 44_056, 2), 44_056, format="FLAC")
    soundfile.write(folder / "a b" / "ü" / "lossy.ogg", _noise(2, 44_100, 2), 44_100)
    soundfile.write(folder / "short.wav", _noise(0.1, 22_050, 1), 22_050)
    soundfile.write(folder / "silent.wav", np.zeros(30_000), 16_000)
    soundfile.write(folder / "no samples.wav", np.zeros(0), 16_000)
    (folder / "empty.mp3").touch()
    (folder / "broken.wav").write_bytes(b"RIFF, but no more than that")
    (folder / "cut.flac").write_bytes((folder / "speech.flac").read_bytes()[:100_000])
    (folder / "not audio.txt").write_text("text")
    (folder / ".hidden.wav").write_text("as some systems leave them")
    (folder / "around").symlink_to(folder, target_is_directory=True)
    (folder / "nowhere.wav").symlink_to(folder / "gone.wav")
    return folder


@pytest.fixture(scope="module")
def index(folder, tmp_path_factory):
    return Index.open(folder, tmp_path_factory.mktemp("run"))


@pytest.fixture
def crops(index):
    return Crops([index], 4800, RATE, seed=3)


def _names(index):
    return [os.fsdecode(os.path.relpath(index.file(number), os.fsencode(index.path)))
            for number in range(len(index.frames))]


def test_an_index_tells_of_each_file(index):
    facts = dict(zip(_names(index), zip(index.frames.tolist(), index.rates.tolist())))
    frames = soundfile.info(index.path / "speech.flac").frames
    assert facts == {"short.wav": (2_205, 22_050), "speech.flac": (frames, 24_000),
                     "a b/low.wav": (8_000, 8_000), "a b/many.wav": (48_000, 48_000),
                     "a b/ü/odd.FLAC": (88_112, 44_056), "a b/ü/lossy.ogg": (88_200, 44_100)}
    assert index.seconds == pytest.approx(frames / 24_000 + 6.1, abs=0.01)


def test_broken_and_silent_files_are_counted_and_told(folder, tmp_path, capsys):
    index = Index.open(folder, tmp_path)
    told = capsys.readouterr().err
    assert index.counts.tolist() == [4, 1]
    for name in ("silent.wav: silent", "no samples.wav", "empty.mp3", "broken.wav", "cut.flac"):
        assert f"left out: {folder}/{name}" in told
    assert told.splitlines()[-1] == f"{folder}: 6 files, 0.3 min; 4 broken, 1 silent left out"


def test_only_a_file_that_is_silent_throughout_is_silent(tmp_path):
    samples = np.zeros((10 * 16_000, 1))
    samples[40_000:44_000] = _noise(0.25, 16_000, 1)           # missed by the first, the middle and the last second
    soundfile.write(tmp_path / "once.wav", samples, 16_000)
    assert Index.open(tmp_path, tmp_path).frames.tolist() == [160_000]


def test_warnings_are_few(tmp_path, capsys):
    for number in range(20):
        (tmp_path / f"{number}.wav").touch()
    with pytest.raises(AudioError, match="no audio found; 20 broken"):
        Index.open(tmp_path, tmp_path)
    assert capsys.readouterr().err.count("left out") == 5


def test_an_index_is_made_once_and_again_when_a_file_changes(tmp_path, monkeypatch):
    looks = []
    look_into = sources._look_into
    monkeypatch.setattr(sources, "_look_into", lambda path: looks.append(path) or look_into(path))
    folder, cache = tmp_path / "folder", tmp_path / "run" / "cache"
    folder.mkdir()
    for name in "abc":
        soundfile.write(folder / f"{name}.wav", _noise(0.2, 16_000, 1), 16_000)
    first, second = (Index.open(folder, cache) for _ in range(2))
    assert len(looks) == 3 and _names(first) == _names(second) == ["a.wav", "b.wav", "c.wav"]
    soundfile.write(folder / "b.wav", _noise(0.3, 16_000, 1), 16_000)
    assert Index.open(folder, cache).frames.tolist() == [3200, 4800, 3200] and len(looks) == 6
    assert len(list(cache.iterdir())) == 1
    next(cache.iterdir()).write_bytes(b"\x93NUMPY, or so it seems")
    assert Index.open(folder, cache).frames.tolist() == [3200, 4800, 3200]


def test_a_cache_that_cannot_be_written_is_told_first(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_survey", lambda *_: pytest.fail("looked through the folder"))
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        open_source(folder, tmp_path / "file", 24_000)


def test_a_flac_of_unknown_length_is_measured(folder, tmp_path):
    flac = bytearray((folder / "speech.flac").read_bytes())
    flac[21] &= 0xF0                                           # the 36 bits of STREAMINFO that count samples
    flac[22:26] = bytes(4)
    (tmp_path / "stream.flac").write_bytes(flac)
    index = Index.open(tmp_path, tmp_path)
    expected, _ = soundfile.read(folder / "speech.flac", dtype="float32")
    assert index.frames.tolist() == [len(expected)]
    assert np.array_equal(index.read(0, 50_000, 1000)[0], expected[50_000:51_000])


@pytest.mark.parametrize("make", [lambda folder: folder, lambda folder: folder / "missing"])
def test_a_folder_without_audio_is_named(tmp_path, make):
    with pytest.raises(AudioError, match=f"{make(tmp_path)}: no audio found"):
        open_source(make(tmp_path), tmp_path / "run", RATE)


def test_a_single_file_is_a_source(folder, tmp_path):
    index = open_source(folder / "short.wav", tmp_path, RATE)
    assert _crop(index, 1200).shape == (1200,)
    assert index.split() == (index, index)


def test_a_million_files_take_little_memory(tmp_path):
    number = 100_000
    names = b"".join(b"%08d.flac" % file for file in range(number))
    file = tmp_path / "index"
    with open(file, "wb") as output:
        for array in (np.zeros(2, np.int64), np.full(number, 48_000), np.arange(13, 13 * number + 1, 13),
                      np.full(number, 16_000, np.int32), np.zeros(number, bool), np.frombuffer(names, np.uint8)):
            np.save(output, array)
    index = Index(tmp_path, *sources._load_arrays(file))
    assert index.file(99_999) == os.fsencode(tmp_path / "00099999.flac")
    assert len(pickle.dumps(index)) < 9 * number              # the sums of durations; the rest stays in its file
    again = pickle.loads(pickle.dumps(index))
    assert again.file(7) == index.file(7) and again.frames[-1] == 48_000
    draws = [again.draw(np.random.default_rng(seed)) for seed in range(200)]
    assert np.mean(draws) == pytest.approx(number / 2, rel=0.15)


def test_held_out_files_are_apart_and_stay(tmp_path):
    names = [b"%d" % number for number in range(1000)]
    chosen = {name for name, held_out in zip(names, sources._choose_held_out(names)) if held_out}
    assert len(chosen) == 10
    more = [*names, b"another"]
    assert len(chosen - {name for name, held_out in zip(more, sources._choose_held_out(more)) if held_out}) <= 1
    assert sources._choose_held_out([b"%d" % number for number in range(50_000)]).sum() == 200

    for number in range(3):
        soundfile.write(tmp_path / f"{number}.wav", np.full(8000, 0.1 * (1 + number)), 8000)
    training, validation = Index.open(tmp_path, tmp_path).split()
    random = np.random.default_rng(0)
    drawn = [{part.draw(random) for _ in range(50)} for part in (training, validation)]
    assert not drawn[0] & drawn[1] and len(drawn[0]) == 2 and len(drawn[1]) == 1
    assert (training.seconds, validation.seconds) == (2, 1)


def _crop(source, num_samples, seed=0):
    return Crops([source], num_samples, RATE, 0).sound(source, np.random.default_rng(seed))


@pytest.mark.parametrize("rate", [8_000, 24_000, 44_100, 47_999, 96_000])
def test_a_sine_stays_a_sine_of_its_frequency(tmp_path, rate):
    times = np.arange(3 * rate) / rate
    soundfile.write(tmp_path / "sine.wav", 0.5 * np.sin(2 * np.pi * 1000 * times), rate, subtype="FLOAT")
    crop = _crop(Index.open(tmp_path, tmp_path), RATE, seed=1)
    tone = np.exp(-2j * np.pi * 1000 * np.arange(RATE) / RATE)
    assert abs(np.mean(crop * tone)) == pytest.approx(0.25, rel=1e-3)
    assert np.mean(crop ** 2) == pytest.approx(0.125, rel=1e-3)           # and nothing else
    assert np.abs(crop).max() < 0.501                                     # at the ends neither


def test_crops_are_where_they_should_be(tmp_path):
    samples = np.linspace(-0.5, 0.5, 96_000)
    soundfile.write(tmp_path / "ramp.wav", samples, 48_000, subtype="FLOAT")
    crops = np.stack([_crop(Index.open(tmp_path, tmp_path), 1000, seed) for seed in range(20)])
    assert np.allclose(np.diff(crops, axis=1)[:, 100:-100], 1 / 48_000, atol=1e-6)
    assert np.ptp(crops[:, 500]) > 0.5


def test_short_files_are_joined(tmp_path):
    for number, level in enumerate((0.1, 0.2, 0.3)):
        soundfile.write(tmp_path / f"{number}.wav", np.full(100, level), RATE, subtype="FLOAT")
    crop = _crop(Index.open(tmp_path, tmp_path), 1050)
    pieces = crop[:1000].reshape(10, 100)
    assert set(np.round(pieces * 10).ravel().astype(int).tolist()) == {1, 2, 3}
    assert not np.ptp(pieces, axis=1).any()


def test_channels_are_mixed_or_one_is_taken(tmp_path):
    soundfile.write(tmp_path / "two.wav", np.tile([0.1, 0.3], (5000, 1)), RATE, subtype="FLOAT")
    index = Index.open(tmp_path, tmp_path)
    crops = Crops([index], 100, RATE, 0)
    for channel, level in ((None, 0.2), (0.0, 0.1), (0.49, 0.1), (0.99, 0.3)):
        assert np.allclose(crops.sound(index, np.random.default_rng(0), channel), level)


def test_batches_depend_on_the_seed_and_their_number_alone(index, crops):
    batch = crops.batch(5, 40)
    crops.batch(6, 3)
    assert np.array_equal(crops.batch(5, 40), batch)
    assert np.array_equal(Crops([index], 4800, RATE, seed=3).batch(5, 40), batch)
    assert batch.shape == (40, 4800) and batch.dtype == np.float32 and np.abs(batch).max() <= 1
    others = crops.batch(6, 40), Crops([index], 4800, RATE, seed=4).batch(5, 40)
    assert len({crop.tobytes() for crop in np.concatenate([batch, *others])}) >= 110     # some are silent


def test_long_silences_are_mostly_avoided(tmp_path):
    samples = np.zeros(RATE * 10)
    samples[RATE * 5:] = _noise(5, RATE, 1)[:, 0]
    soundfile.write(tmp_path / "half.wav", samples, RATE)
    index = Index.open(tmp_path, tmp_path)
    assert sum(not _crop(index, 1000, seed).any() for seed in range(100)) < 10     # 50 without trying again


def test_filters_take_and_leave_what_they_should(index):
    crops = Crops([index], 9600, RATE, 0)
    samples = _noise(0.4, RATE, 1)[:, 0].astype(np.float32)
    random = np.random.default_rng(0)
    filtered = crops._filtered(samples, data._low_pass(random))
    change = np.abs(np.fft.rfft(filtered)) / np.abs(np.fft.rfft(samples))
    assert filtered.dtype == np.float32 and filtered.shape == samples.shape
    assert np.median(change[100:1000]) == pytest.approx(1, abs=0.05) and np.median(change[-300:]) < 0.05
    gains = data._equaliser(random)(np.fft.rfftfreq(9600, 1 / RATE))
    assert gains[0] < 0.01 and 0.3 < gains[400:].min() < gains.max() < 4


@pytest.fixture
def fading(tmp_path):
    for number in range(3):
        soundfile.write(tmp_path / f"{number}.wav", _noise(1, RATE, 1), RATE)
    return Index.open(tmp_path, tmp_path)


def test_files_that_vanish_are_survived(fading, capsys):
    crops = Crops([fading], 1000, RATE, 0)
    (fading.path / "0.wav").unlink()
    (fading.path / "1.wav").write_bytes((fading.path / "1.wav").read_bytes()[:2000])     # ends early
    assert crops.batch(0, 30).shape == (30, 1000)
    assert crops.failures > 10
    told = capsys.readouterr().err
    assert told.count("0.wav") == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_ends_when_nothing_can_be_read(fading, workers):
    for file in fading.path.glob("*.wav"):
        file.unlink()
    batches = loader(Crops([fading], 1000, RATE, 0), 4, workers=workers)
    with pytest.raises(AudioError, match="100 files in a row could not be read"):
        next(batches)
    batches.close()


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker")       # on a machine of one core
def test_workers_change_nothing_and_end(crops):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    batches = loader(crops, 3, first=4, stride=3, workers=2)
    made = [next(batches) for _ in range(5)]
    assert torch.equal(torch.get_rng_state(), before)         # as a resumed run must not depend on loaders
    workers = multiprocessing.active_children()
    assert len(workers) == 2 and 0 < batches.waited
    for worker in workers:
        os.kill(worker.pid, signal.SIGINT)                    # as Ctrl-C does
    assert len([next(batches) for _ in range(20)]) == 20
    assert all(worker.is_alive() for worker in workers)
    assert 0 < batches.share() <= 1
    batches.close()
    deadline = time.monotonic() + 10
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not multiprocessing.active_children()
    alone = loader(crops, 3, first=4, stride=3)
    for number, batch in zip((4, 7, 10, 13, 16), made):
        assert torch.equal(batch, next(alone))
        assert torch.equal(batch, torch.from_numpy(crops.batch(number, 3)))


def test_clips_are_always_the_same_and_unchanged(index, folder, tmp_path):
    speech = open_source(folder / "speech.flac", tmp_path, RATE)
    first, second = (clips([speech, index], RATE, 0.25, 4) for _ in range(2))
    assert np.array_equal(first, second) and first.shape == (4, 6000) and first.dtype == np.float32
    samples, _ = soundfile.read(folder / "speech.flac", dtype="float32")
    for clip in first[::2]:
        starts = np.flatnonzero(samples[:-6000] == clip[0])
        assert any(np.array_equal(samples[start:start + 6000], clip) for start in starts)


_KILLED = """
import multiprocessing, os, pathlib, signal, sys
from audiocodec.training.data import Crops, loader
from audiocodec.training.sources import Shard

if __name__ == "__main__":
    batches = loader(Crops([Shard.open(pathlib.Path(sys.argv[1]), 24_000)], 1000, 24_000, 0), 2, workers=1)
    next(batches)
    print(multiprocessing.active_children()[0].pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self"), reason="asks /proc whether a process lives")
def test_workers_end_with_a_killed_run(shard):
    script = shard.with_name("killed.py")
    script.write_text(_KILLED)
    paths = os.pathsep.join(sys.path)
    result = subprocess.run([sys.executable, script, shard], stdout=subprocess.PIPE, timeout=60,
                            env={**os.environ, "PYTHONPATH": paths})
    worker = int(result.stdout)
    assert _is_gone(worker)


def _is_gone(pid):
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
        time.sleep(0.05)
    return not os.path.exists(f"/proc/{pid}")


@pytest.fixture
def shard(tmp_path):
    samples = np.repeat(np.array([1000, 2000, 3000], np.int16), 5000)
    np.save(tmp_path / "packed.npy", samples)
    (tmp_path / "packed.json").write_text(json.dumps([[0, 5000, "a"], [5000, 10000, "b"], [10000, 15000, "c"]]))
    return tmp_path / "packed.npy"


def test_a_shard_is_a_source(shard):
    source = pickle.loads(pickle.dumps(open_source(shard, shard.parent, RATE)))
    assert isinstance(source.samples, np.memmap) and source.seconds == pytest.approx(15_000 / RATE)
    assert not np.ptp(_crop(source, 4000)) and np.ptp(_crop(source, 6000))       # a second file goes on
    assert np.allclose(_crop(source, 4000) * 32768 % 1000, 0)
    training, validation = source.split()
    assert (training.seconds, validation.seconds) == pytest.approx((10_000 / RATE, 5_000 / RATE))


@pytest.mark.parametrize("spans", ["", "[[0]]", "[]", "{}", "[[0, 20000, 1]]", "[[5, 5, 1]]"])
def test_what_is_not_a_shard_is_refused(shard, spans):
    shard.with_suffix(".json").write_text(spans)
    with pytest.raises(AudioError, match="packed.npy: "):
        Shard.open(shard, RATE)


def test_a_shard_of_something_else_is_refused(shard):
    np.save(shard, np.zeros((2, 15_000), np.float32))
    with pytest.raises(AudioError, match="expected int16 samples, mono"):
        Shard.open(shard, RATE)
    shard.unlink()
    with pytest.raises(AudioError, match="not a shard of audio"):
        Shard.open(shard, RATE)


def test_noise_is_of_every_colour_and_many_levels(crops):
    random = np.random.default_rng(0)
    noises = [crops._noise(random) for _ in range(40)]
    levels = [10 * np.log10(np.mean(noise ** 2)) for noise in noises]
    assert -27 < np.mean(levels) < -21 and 5 < np.std(levels) < 11
    spectra = [np.square(np.abs(np.fft.rfft(noise)))[1:] for noise in noises]
    tilts = [10 * np.log10(power[len(power) // 2:].sum() / power[:len(power) // 2].sum()) for power in spectra]
    assert min(tilts) < -12 and max(tilts) > -3


def test_tones_are_a_few_lines_of_many_levels(crops):
    random = np.random.default_rng(0)
    tones = [crops._tones(random) for _ in range(40)]
    levels = [10 * np.log10(np.mean(tone ** 2)) for tone in tones]
    assert -27 < np.mean(levels) < -21 and 5 < np.std(levels) < 11
    for tone in tones:
        power = np.sort(np.square(np.abs(np.fft.rfft(tone * np.hanning(len(tone))))))[::-1]
        assert power[:6 * 5].sum() > 0.99 * power.sum()
