"""cli.py: options, summaries, exit statuses, one-line errors; whole round trips with the released weights."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiocodec import audio, cli, codec, container, tokens
from audiocodec import info as about
from audiocodec.errors import AudioError, FormatError, NacError

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def nac(monkeypatch, capsys):
    """Return a function that runs nac in this process: (exit status, stdout, stderr)."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    def run(*args) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["nac", *map(str, args)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return end.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture
def calls(monkeypatch):
    """Put stand-ins in place of codec.py's calls; return the list of what they were called with."""
    made = []

    def encode_file(source, target, **options):
        made.append((source, target, options))
        options["progress"](1.0, 2.0)
        if source.name.startswith("bad"):
            raise AudioError(f"{source}: not an audio file")
        target.write_bytes(b"coded")
        return codec.EncodeResult(1500, 2.0, (8,))

    def decode_file(source, target, **options):
        made.append((source, target, options))
        damaged = ("segment 3: checksum 0; expected 1",) if options["salvage"] else ()
        return codec.DecodeResult(2.0, 44100, 2, damaged)

    monkeypatch.setattr(codec, "encode_file", encode_file)
    monkeypatch.setattr(codec, "decode_file", decode_file)
    monkeypatch.setattr(codec, "verify_file", lambda source, **options: made.append((source, options)))
    return made


# Options and files, with stand-ins for the codec

def test_defaults_are_those_of_the_codec():
    assert cli.DEFAULT_MODEL == tokens.DEFAULT_MODEL
    for count in (cli.CODEBOOKS.min, cli.CODEBOOKS.max):
        container.Header(1, 8000, 0, bytes(6), count)
    for count in (cli.CODEBOOKS.min - 1, cli.CODEBOOKS.max + 1):
        with pytest.raises(FormatError):
            container.Header(1, 8000, 0, bytes(6), count)


def test_help_does_not_load_torch():
    script = "import sys, audiocodec.cli; print([name for name in ('torch', 'numpy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_encode_passes_options_on(nac, calls, tmp_path):
    options = ["-k", 12, "--best", "--mono", "--no-entropy", "--device", "cpu", "-f"]
    status, out, err = nac("encode", tmp_path / "a b.wav", *options)
    assert (status, out) == (0, "")
    assert err.startswith(f"{tmp_path / 'a b.nac'}: 1,500 bytes, 6.00 kbps, 8 codebooks, 2.00 s, ")
    assert err.count("\n") == 1
    (source, target, options), = calls
    assert (source, target) == (tmp_path / "a b.wav", tmp_path / "a b.nac")
    del options["progress"]
    assert options == {"kbps": 12, "codebooks": None, "cbr": False, "best": True, "model": "nac-24k", "mono": True,
                       "entropy": False, "device": "cpu", "force": True, "raw": None, "tags": (), "no_tags": False,
                       "live": False}


def test_rate_is_kbps_or_codebooks(nac, calls, tmp_path):
    nac("encode", tmp_path / "a.wav")
    nac("encode", tmp_path / "b.wav", "--codebooks", 4, "--verify")
    assert [(call[2]["kbps"], call[2]["codebooks"]) for call in calls[:2]] == [(6, None), (None, 4)]
    assert calls[2][0] == tmp_path / "b.nac"
    assert nac("encode", tmp_path / "a.wav", "-k", 3, "--codebooks", 4)[0] == 2


def test_decode_passes_options_on(nac, calls, tmp_path):
    status, out, err = nac("decode", tmp_path / "a.nac", "-o", tmp_path / "b.flac", "--subtype", "PCM_24")
    assert (status, out) == (0, "")
    assert err.startswith(f"{tmp_path / 'b.flac'}: 44100 Hz, stereo, 2.00 s, ")
    assert calls[0][1] == tmp_path / "b.flac"
    assert calls[0][2]["subtype"] == "PCM_24"


def test_salvaged_damage_is_told_and_fails(nac, calls, tmp_path):
    status, _, err = nac("decode", tmp_path / "a.nac", "--salvage")
    assert status == 1
    assert err.splitlines() == [f"{tmp_path / 'a.wav'}: 44100 Hz, stereo, salvaged",
                                f"nac: {tmp_path / 'a.nac'}: segment 3: checksum 0; expected 1"]


def test_one_bad_input_does_not_stop_the_rest(nac, calls, tmp_path):
    status, _, err = nac("encode", tmp_path / "a.wav", tmp_path / "bad.wav", tmp_path / "c.wav")
    assert status == 1
    assert [line.split(": ")[:2] for line in err.splitlines()] == [
        [str(tmp_path / "a.nac"), "1,500 bytes, 6.00 kbps, 8 codebooks, 2.00 s, 2000x real time"],
        ["nac", str(tmp_path / "bad.wav")],
        [str(tmp_path / "c.nac"), "1,500 bytes, 6.00 kbps, 8 codebooks, 2.00 s, 2000x real time"],
        ["3 files, 4 s of audio, 1 failed"]]


def test_several_inputs_go_into_a_folder(nac, calls, tmp_path):
    folder = tmp_path / "new" / "folder"
    assert nac("encode", tmp_path / "a.wav", tmp_path / "b.v2.flac", "-o", folder)[0] == 0
    assert [call[1] for call in calls] == [folder / "a.nac", folder / "b.v2.nac"]
    assert nac("encode", tmp_path / "c.wav", "-o", folder)[0] == 0
    assert calls[2][1] == folder / "c.nac"


def test_a_slash_at_the_end_means_a_folder(nac, calls, tmp_path):
    assert nac("encode", tmp_path / "a.wav", "-o", f"{tmp_path}/new/")[0] == 0
    assert calls[0][1] == tmp_path / "new" / "a.nac"
    (tmp_path / "file").touch()
    status, _, err = nac("encode", tmp_path / "a.wav", "-o", f"{tmp_path}/file/")
    assert (status, err) == (1, f"nac: {tmp_path / 'a.wav'}: {tmp_path / 'file'}: is no folder\n")


@pytest.mark.parametrize("command", ["encode", "decode"])
def test_folders_without_audio(nac, calls, command, tmp_path):
    (tmp_path / "notes.txt").touch()
    assert nac(command, tmp_path) == (1, "", f"nac: {tmp_path}: is a folder without files to convert\n")


def test_folders_keep_their_tree(nac, calls, tmp_path):
    for name in ("in/a.wav", "in/deep/er/b.FLAC", "in/deep/notes.txt", "more/a.wav"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    out = tmp_path / "out"
    status, _, err = nac("encode", tmp_path / "in", "-o", out)
    assert status == 0
    assert [call[1] for call in calls] == [out / "a.nac", out / "deep/er/b.nac"]
    assert err.splitlines()[-1] == "2 files, 4 s of audio"
    calls.clear()
    nac("encode", tmp_path / "in", tmp_path / "more", "-o", out)
    assert [call[1] for call in calls] == [out / "in/a.nac", out / "in/deep/er/b.nac", out / "more/a.nac"]
    calls.clear()
    nac("encode", tmp_path / "in")
    assert [call[1] for call in calls] == [tmp_path / "in/a.nac", tmp_path / "in/deep/er/b.nac"]
    status, _, err = nac("encode", tmp_path / "in", "-o", tmp_path / "one.nac")
    assert (status, err) == (1, f"nac: {tmp_path / 'in'}: is a folder, and -o names a file\n")


def test_update_skips_what_is_newer(nac, calls, tmp_path):
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).touch()
    nac("encode", tmp_path)
    calls.clear()
    status, _, err = nac("encode", tmp_path, "--update")
    assert (status, calls, err) == (0, [], "2 files, 0 s of audio, 2 skipped\n")
    os.utime(tmp_path / "a.wav", (time.time() + 60,) * 2)
    status, _, err = nac("encode", tmp_path, "--update")
    assert [call[0].name for call in calls] == ["a.wav"] and calls[0][2]["force"]
    assert err.splitlines()[-1] == "2 files, 2 s of audio, 1 skipped"


def test_inputs_are_deleted_only_when_verified(nac, calls, tmp_path, monkeypatch):
    source = tmp_path / "a.wav"
    source.touch()
    monkeypatch.setattr(codec, "verify_file", lambda *_, **__: (_ for _ in ()).throw(FormatError("spoilt")))
    assert nac("encode", source, "--delete-input")[0] == 1
    assert source.exists()
    monkeypatch.setattr(codec, "verify_file", lambda *_, **__: None)
    assert nac("encode", source, "--delete-input", "-f")[0] == 0
    assert not source.exists()


def test_tags_are_passed_on(nac, calls, tmp_path):
    nac("encode", tmp_path / "a.wav", "--tag", "title=T=1", "--tag", "DATE=", "--no-tags")
    assert calls[0][2]["tags"] == (("TITLE", "T=1"), ("DATE", ""))
    assert calls[0][2]["no_tags"]


def test_encoding_to_an_audio_name_is_a_mistake(nac, calls, tmp_path):
    status, _, err = nac("encode", tmp_path / "a.wav", "-o", tmp_path / "b.WAV")
    assert (status, calls) == (1, [])
    reason = "is named as audio; this command writes .nac files"
    assert err == f"nac: {tmp_path / 'a.wav'}: {tmp_path / 'b.WAV'}: {reason}\n"


def test_rate_that_cannot_be_met_is_told(nac, calls, tmp_path):
    status, _, err = nac("encode", tmp_path / "a.wav", "-k", 3)
    assert status == 0
    assert "6.00 kbps, more than 3, which this clip cannot meet, 8 codebooks" in err


def test_tags_left_out_are_told(nac, tmp_path, monkeypatch):
    source = tmp_path / "a.flac"
    with audio.AudioWriter(source, 8000, 1, "PCM_16", (("TITLE", "T"), ("COMMENT", "x" * 70_000))) as writer:
        writer.write(noise(1, 10))

    def encode_file(source, target, **options):
        with audio.AudioReader(source):
            return codec.EncodeResult(1500, 2.0, (8,))

    monkeypatch.setattr(codec, "encode_file", encode_file)
    status, _, err = nac("encode", source)
    assert status == 0
    assert err.splitlines()[0] == f"nac: {source}: tags left out, too long for a .nac file: COMMENT"
    assert err.count("\n") == 2


def test_two_inputs_for_one_output(nac, calls, tmp_path):
    status, _, err = nac("encode", tmp_path / "a.wav", tmp_path / "a.flac", "-f")
    assert status == 1
    assert len(calls) == 1
    target = tmp_path / "a.nac"
    assert f"nac: {tmp_path / 'a.flac'}: {target}: made from {tmp_path / 'a.wav'} already\n" in err


def test_output_that_is_the_input(nac, calls, tmp_path):
    (tmp_path / "a.wav").write_bytes(b"precious")
    status, _, err = nac("encode", tmp_path / "a.wav", "-o", tmp_path / "a.wav", "-f")
    assert (status, calls) == (1, [])
    assert err == f"nac: {tmp_path / 'a.wav'}: is the input itself; -o names another output\n"


def test_wrong_usage(nac):
    for args, found in [
            (["encode"], "Missing argument"), (["frobnicate"], "No such command"), (["info"], "--model"),
            (["encode", "a", "-k", "0.5"], "0.5 is not in the range 0.75<=x<=48"),
            (["encode", "a", "-k", "49"], "not in the range"),
            (["encode", "a", "--codebooks", "33"], "not in the range 1<=x<=32"),
            (["encode", "a", "b", "-o", "-"], "takes one file"), (["encode", "-", "b"], "the only input"),
            (["encode", "a", "-o", "-", "--verify"], "--verify"), (["decode", "a", "-o", "-", "-j", "2"], "no -j"),
            (["encode", "a", "--raw", "8000,1,mulaw"], "s16le"),
            (["encode", "a", "--raw", "8000,3,s16le"], "3 channels"),
            (["encode", "a", "--tag", "x"], "KEY=VALUE"), (["encode", "a", "--tag", "ü=x"], "KEY=VALUE"),
            (["decode", "a", "--start", "1:60"], "no time"), (["decode", "a", "--end", "x"], "no time"),
            (["decode", "a", "--start", "5", "--end", "4"], "after --start"),
            (["decode", "a", "--codebooks", "0"], "not in the range"),
            (["decode", "a", "--subtype", "PCM_8"], "PCM_16"), (["encode", "a", "--device", "tpu"], "cuda")]:
        status, out, err = nac(*args)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert found in err


def test_training_fails_in_one_line(nac, monkeypatch, tmp_path):
    from audiocodec.training import run

    def train(*_, **__):
        raise NacError("no CUDA device here; use --device cpu")

    monkeypatch.setattr(run, "train", train)
    status, out, err = nac("train", tmp_path, "--out", tmp_path / "run", "--device", "cuda")
    assert (status, out) == (1, "")
    assert err == "nac: no CUDA device here; use --device cpu\n"


def test_version_and_help(nac):
    from audiocodec import __version__
    assert nac("--version") == (0, f"nac {__version__}\n", "")
    status, out, _ = nac("encode", "--help")
    assert status == 0
    assert "--codebooks" in out


def test_interruption_is_one_line(nac, monkeypatch, tmp_path):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(codec, "encode_file", interrupted)
    status, _, err = nac("encode", tmp_path / "a.wav", tmp_path / "b.wav")
    assert status == 130
    assert err.strip() == "nac: interrupted"


# Whole round trips, with the released weights

def noise(channels: int, num_samples: int) -> np.ndarray:
    return np.random.default_rng(num_samples).uniform(-0.3, 0.3, (channels, num_samples)).astype(np.float32)


@pytest.fixture
def clip(tmp_path) -> Path:
    """One second of speech, and what it is about."""
    samples, rate = audio.read(EXAMPLES / "speech.flac")
    path = tmp_path / "a clip.wav"
    tags = (("TITLE", "Ein Satz – 句"), ("ARTIST", "Somebody"), ("DATE", "1999"), ("COMMENT", "a = b"))
    with audio.AudioWriter(path, rate, 1, "PCM_16", tags) as writer:
        writer.write(samples[:, rate:2 * rate])
    return path


@pytest.mark.parametrize("rate, channels, num_samples, subtype", [
    *[(24000, channels, num_samples, "PCM_16")
      for channels in (1, 2) for num_samples in (0, 1, 319, 320, 321, 12345, 24000)],
    *[(rate, 1 + rate % 2, rate // 10 + 7, "PCM_16")
      for rate in (8000, 11025, 16000, 22050, 44100, 47999, 48000, 96000, 192000)],
    *[(44100, 2, 5000, subtype) for subtype in ("PCM_24", "PCM_32", "FLOAT")],
    *[(rate, 2, num_samples, "FLOAT") for rate in (8000, 44100, 192000) for num_samples in (0, 1)]])
def test_layout_is_restored(nac, tmp_path, rate, channels, num_samples, subtype):
    source, coded, restored = tmp_path / "in put.wav", tmp_path / "in put.nac", tmp_path / "out put.wav"
    audio.write(source, noise(channels, num_samples), rate, subtype)
    assert nac("encode", source, "--codebooks", 4)[0] == 0
    assert nac("decode", coded, "-o", restored)[0] == 0
    found = soundfile.info(restored)
    assert (found.samplerate, found.channels, found.frames) == (rate, channels, num_samples)
    assert found.subtype == subtype
    assert len(list(tmp_path.iterdir())) == 3


def test_flac_there_and_back(nac, tmp_path):
    source, restored = tmp_path / "a.flac", tmp_path / "b.flac"
    shutil.copy(EXAMPLES / "music.flac", source)
    assert nac("encode", source)[0] == 0
    assert nac("decode", tmp_path / "a.nac", "-o", restored)[0] == 0
    with audio.AudioReader(source) as before, audio.AudioReader(restored) as after:
        assert (after.sample_rate, after.channels, after.num_samples) == (44100, 2, before.num_samples)
        assert after.tags == before.tags
        assert dict(after.tags)["ARTIST"] == "Martin Strohmeier (K-Pone)"


@pytest.mark.parametrize("ending", [".wav", ".flac"])
def test_tags_are_restored(nac, clip, ending):
    restored = clip.with_name(f"restored{ending}")
    nac("encode", clip)
    nac("decode", clip.with_suffix(".nac"), "-o", restored)
    with audio.AudioReader(clip) as before, audio.AudioReader(restored) as after:
        assert after.tags == before.tags


def test_subtype_can_be_chosen(nac, clip):
    nac("encode", clip)
    coded, restored = clip.with_suffix(".nac"), clip.with_name("b.wav")
    for subtype in ("PCM_16", "PCM_24", "FLOAT"):
        assert nac("decode", coded, "-o", restored, "--subtype", subtype, "-f")[0] == 0
        assert soundfile.info(restored).subtype == subtype


def test_mono_mixes_down(nac, tmp_path):
    audio.write(tmp_path / "a.wav", noise(2, 5000), 24000)
    nac("encode", tmp_path / "a.wav", "--mono")
    nac("decode", tmp_path / "a.nac", "-o", tmp_path / "b.wav")
    assert soundfile.info(tmp_path / "b.wav").channels == 1


def test_encoding_twice_gives_the_same_bytes(nac, clip):
    for name in ("b.nac", "c.nac"):
        assert nac("encode", clip, "-o", clip.with_name(name))[0] == 0
    assert clip.with_name("b.nac").read_bytes() == clip.with_name("c.nac").read_bytes()


@pytest.mark.parametrize("name", ["speech.flac", "music.flac"])
@pytest.mark.parametrize("kbps", [1.5, 6, 12])
def test_kbps_is_a_ceiling(nac, tmp_path, name, kbps):
    target = tmp_path / "a.nac"
    assert nac("encode", EXAMPLES / name, "-o", target, "-k", kbps)[0] == 0
    true_kbps = target.stat().st_size * 8e-3 / soundfile.info(EXAMPLES / name).duration
    assert 0.6 * kbps < true_kbps <= kbps


def test_overwriting_needs_force(nac, clip):
    target = clip.with_suffix(".nac")
    target.write_bytes(b"old")
    status, _, err = nac("encode", clip)
    assert status == 1
    assert err == f"nac: {clip}: {target}: exists already; -f overwrites\n"
    assert target.read_bytes() == b"old"
    assert nac("encode", clip, "-f")[0] == 0
    assert target.read_bytes() != b"old"
    status, _, err = nac("decode", target)
    assert status == 1
    assert "exists already" in err


def test_info(nac, clip):
    nac("encode", clip, "-k", "6.5")
    path = clip.with_suffix(".nac")
    status, out, _ = nac("info", path, "--json")
    assert status == 0
    facts = json.loads(out)
    assert facts["seconds"] == 1
    assert facts["bytes"] == path.stat().st_size
    assert facts["kbps"] == pytest.approx(path.stat().st_size * 8e-3)
    assert facts["requested_kbps"] == 6.5
    assert (facts["sample_rate"], facts["channels"], facts["num_samples"]) == (24000, 1, 24000)
    assert (facts["segments"], facts["subtype"], facts["entropy_coded"]) == (1, "PCM_16", True)
    assert facts["model"] == "nac-24k"
    assert facts["tags"]["TITLE"] == ["Ein Satz – 句"]
    status, out, _ = nac("info", path)
    assert status == 0
    assert "Ein Satz – 句" in out
    assert "nac-24k" in out


def test_info_of_a_model(nac):
    status, out, _ = nac("info", "--model", "nac-24k", "--json")
    facts = json.loads(out)
    assert (facts["sample_rate"], facts["codebooks"]) == (24_000, 32) and 5e6 < facts["parameters"] < 3e7
    assert facts["bytes"] == Path(facts["file"]).stat().st_size
    assert status == 0
    facts = json.loads(out)
    assert len(facts["weights"]) == 12
    assert facts["licence"]
    assert facts["command"]


def test_info_shows_scalars_only_and_escapes(nac, monkeypatch):
    facts = {"file": "a\udcff\x1b[31m.nac", "licence": "CC0\nor not", "seconds": 1.5, "model": None,
             "entropy": {"losses": [1, 2]}, "sources": ["x", "y"]}
    monkeypatch.setattr(about, "describe_model", lambda name: facts)
    monkeypatch.setattr(about, "describe_file", lambda path: facts | {"tags": {"TITLE": ["one\rtwo", "句"]}})
    table = ["file     a\\udcff\\x1b[31m.nac", "licence  CC0\\nor not", "seconds  1.50"]
    assert nac("info", "--model", "any")[1].splitlines() == table
    assert nac("info", "any.nac")[1].splitlines() == [*table, "TITLE    one\\rtwo", "TITLE    句"]
    assert json.loads(nac("info", "--model", "any", "--json")[1]) == facts


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_names_and_tags_of_any_alphabet(nac, clip, encoding):
    path = clip.with_name("\udcff句.nac")
    clip = clip.rename(path.with_suffix(".wav"))
    for args in (["encode", clip, "--codebooks", 1], ["info", path], ["info", path, "--json"]):
        done = subprocess.run([sys.executable, "-m", "audiocodec", *map(str, args)], capture_output=True,
                              env={**os.environ, "PYTHONIOENCODING": encoding})
        assert done.returncode == 0
        assert b"Traceback" not in done.stderr
        assert b"\\udcff" in done.stdout + done.stderr or encoding == "ascii"    # which click takes for UTF-8


def test_verify(nac, clip):
    nac("encode", clip, "--verify")
    path = clip.with_suffix(".nac")
    assert nac("verify", path) == (0, "", f"{path}: sound\n")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    bad = clip.with_name("bad.nac")
    bad.write_bytes(data)
    status, _, err = nac("verify", bad, path)
    assert status == 1
    assert err.splitlines()[0].startswith(f"nac: {bad}: segment 0")
    assert err.splitlines()[1] == f"{path}: sound"


def test_inputs_that_cannot_be_encoded(nac, tmp_path):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_bytes(b"this is not audio, whatever its name may say" * 9)
    soundfile.write(tmp_path / "six.wav", np.zeros((10, 6)), 48000)
    for name, found in [
            ("none.wav", "no such file or directory"), ("", "is a folder, and -o names a file"),
            ("empty.wav", "the file is empty"), ("text.wav", "not an audio file that nac reads"),
            ("six.wav", "6 channels; nac reads 1 or 2")]:
        status, out, err = nac("encode", tmp_path / name, "-o", tmp_path / "out.nac")
        assert (status, out, err.count("\n")) == (1, "", 1)
        assert err.startswith(f"nac: {tmp_path / name}: {found}")
        assert not (tmp_path / "out.nac").exists()


def test_outputs_that_cannot_be_written(nac, clip):
    for command, source, target, found in [
            ("encode", clip, clip.with_name("none") / "a.nac", "cannot be written: no such file"),
            ("encode", clip, clip / "a.nac", "cannot be written: not a directory"),
            ("decode", clip.with_suffix(".nac"), clip.with_name("a.mp3"), "nac writes .wav and .flac")]:
        nac("encode", clip)
        status, _, err = nac(command, source, "-o", target)
        assert (status, err.count("\n")) == (1, 1)
        assert f"{target}: {found}" in err


def test_files_that_cannot_be_decoded(nac, clip):
    nac("encode", clip)
    good = clip.with_suffix(".nac").read_bytes()
    header, tags, segments, num_samples = container.unpack(good)
    other = container.pack(dataclasses.replace(header, weights_id=b"\xab" * 6), tags, segments, num_samples)
    flipped = bytearray(good)
    flipped[-40] ^= 4
    for data, found in [
            (clip.read_bytes(), "not a .nac file"), (b"", "the file"), (good[:100], "the file ends"),
            (good[:4] + b"\x03" + good[5:], "version 3"), (bytes(flipped), "segment 0"), (other, "ab" * 6)]:
        bad = clip.with_name("bad.nac")
        bad.write_bytes(data)
        for command in (["decode", bad, "-o", clip.with_name("out.wav")], ["verify", bad]):
            status, out, err = nac(*command)
            assert (status, out, err.count("\n")) == (1, "", 1)
            assert err.startswith(f"nac: {bad}: ")
            assert found in err
            assert not clip.with_name("out.wav").exists()


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_leave_nothing_behind(tmp_path, number, status):
    source = tmp_path / "long.wav"
    audio.write(source, noise(1, 24000 * 600), 24000)
    command = [sys.executable, "-m", "audiocodec", "encode", source]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and len(list(tmp_path.iterdir())) == 1:
        time.sleep(0.05)
    process.send_signal(number)
    err = process.communicate()[1]
    assert process.returncode == status
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == [source]


# Parts and lower rates

def test_cut_and_truncate(nac, clip):
    path, part, small = clip.with_suffix(".nac"), clip.with_name("part.nac"), clip.with_name("small.nac")
    nac("encode", clip, "--codebooks", 6)
    status, out, err = nac("cut", path, "-o", part, "--start", "0.25", "--end", "0:0.75")
    assert (status, out) == (0, "") and err.startswith(f"{part}: ") and " kbps, 0.50 s, " in err
    assert json.loads(nac("info", part, "--json")[1])["part_from"] == 0.25
    assert "part from       0.25" in nac("info", part)[1]
    assert "part from" not in nac("info", path)[1]
    status, out, err = nac("truncate", part, "-o", small, "--codebooks", 2)
    assert (status, out) == (0, "") and ", 2 codebooks, 0.50 s, " in err
    assert json.loads(nac("info", small, "--json")[1])["part_from"] == 0.25
    nac("decode", path, "-o", clip.with_name("a.wav"), "--codebooks", 2, "--start", ".25", "--end", ".75")
    nac("decode", small, "-o", clip.with_name("b.wav"))
    assert clip.with_name("a.wav").read_bytes() == clip.with_name("b.wav").read_bytes()


def test_truncate_a_folder(nac, clip):
    low = clip.parent.parent / f"{clip.parent.name}-low"
    nac("encode", clip, "--codebooks", 6)
    clip.with_name("bad.nac").write_bytes(b"none")
    status, _, err = nac("truncate", clip.parent, "-o", low, "-k", 3)
    assert status == 1 and "bad.nac: " in err and "2 files, 1 s of audio, 1 failed" in err
    found = json.loads(nac("info", low / "a clip.nac", "--json")[1])
    assert found["kbps"] <= 3 == found["requested_kbps"]
    clip.with_name("bad.nac").unlink()
    assert nac("truncate", clip.parent, "-o", low, "-k", 3, "--update")[::2] == (0, "")


@pytest.mark.parametrize("args", [
    ["cut", "a.nac", "-o", "b.nac"], ["cut", "a.nac", "--start", "1"],
    ["cut", "a.nac", "-o", "b.nac", "--start", "2", "--end", "1"], ["truncate", "a.nac", "-o", "b.nac"],
    ["truncate", "a.nac", "-o", "b.nac", "-k", "3", "--codebooks", "4"],
    ["encode", "a.wav", "--cbr", "--codebooks", "4"]])
def test_usage_of_parts_and_rates(nac, args):
    assert nac(*args)[0] == 2


def test_the_input_is_not_overwritten(nac, clip):
    nac("encode", clip, "--codebooks", 6)
    for command in (["truncate", "-k", "3"], ["cut", "--start", "0.5"]):
        name, *options = command
        status, _, err = nac(name, clip.with_suffix(".nac"), *options, "-o", clip.with_suffix(".nac"), "-f")
        assert status == 1 and "is the input itself; -o names another output" in err


# Pipes

def shell(line: str, folder: Path) -> tuple[list[int], bytes, str]:
    """Run a pipeline in bash, `nac` in it being this program: the statuses of its parts, stdout, stderr."""
    script = f'nac() {{ "{sys.executable}" -m audiocodec "$@"; }}\n{line}\necho "${{PIPESTATUS[@]}}" > statuses'
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(["bash", "-c", script], cwd=folder, env=environment, capture_output=True)
    statuses = [int(status) for status in (folder / "statuses").read_text().split()]
    return statuses, done.stdout, done.stderr.decode()


def test_pipes_give_what_files_give(nac, clip):
    folder, coded = clip.parent, clip.with_suffix(".nac")
    nac("encode", clip, "--codebooks", 4)
    nac("decode", coded, "-o", clip.with_name("b.wav"))
    statuses, out, err = shell('cat "a clip.wav" | nac encode - -o - --codebooks 4 | tee c.nac | nac decode - -o -',
                               folder)
    assert statuses == [0, 0, 0, 0]
    assert clip.with_name("c.nac").read_bytes() == coded.read_bytes()
    clip.with_name("d.wav").write_bytes(out)
    assert np.array_equal(audio.read(clip.with_name("d.wav"))[0], audio.read(clip.with_name("b.wav"))[0])
    assert "Traceback" not in err


def test_a_closed_pipe_ends_quietly(nac, clip):
    nac("encode", clip)
    statuses, out, err = shell('nac decode "a clip.nac" -o - | head -c 10', clip.parent)
    assert (statuses[1], len(out), err) == (0, 10, "")


def test_a_file_cut_in_a_pipe(nac, tmp_path):
    audio.write(tmp_path / "a.wav", noise(1, 24000 * 16), 24000)        # 2.6 s a segment; it ends in the sixth
    nac("encode", tmp_path / "a.wav", "--codebooks", 2)
    nac("decode", tmp_path / "a.nac", "-o", tmp_path / "b.wav")
    size = (tmp_path / "a.nac").stat().st_size
    statuses, out, err = shell(f"head -c {size - 200} a.nac | nac decode - -o c.wav", tmp_path)
    assert statuses == [0, 1]
    assert err.count("\n") == 1 and err.startswith("nac: -: the file ends after")
    whole, _ = audio.read(tmp_path / "b.wav")
    found, _ = audio.read(tmp_path / "c.wav")
    assert found.shape == (1, (5 * 192 - 1) * 320)
    assert np.array_equal(found, whole[:, :found.shape[1]])


def test_a_file_cut_short_announces_no_length(nac, tmp_path):
    audio.write(tmp_path / "a.wav", noise(1, 24000 * 15), 24000)
    nac("encode", tmp_path / "a.wav", "--codebooks", 2, "--no-entropy")
    data = (tmp_path / "a.nac").read_bytes()
    (tmp_path / "a.nac").write_bytes(data[:-200])
    statuses, out, _ = shell("nac decode a.nac -o -", tmp_path)
    assert statuses == [1] and out[out.index(b"data"):][4:8] == b"\xff" * 4


def test_a_sound_cut_in_a_pipe(nac, tmp_path):
    """All that has come goes out; the trailer is missing, which the other end tells."""
    audio.write(tmp_path / "a.wav", noise(1, 24000 * 10), 24000)
    line = "head -c 400044 a.wav | nac encode - -o - --codebooks 2 --no-entropy | nac decode - -o b.wav"
    statuses, _, err = shell(line, tmp_path)
    assert statuses == [0, 1, 1] and "truncated: 200000 samples, 240000 expected" in err and "the file ends" in err
    assert 200_000 <= audio.read(tmp_path / "b.wav")[0].shape[1] <= 200_000 + 640
    statuses, _, err = shell("head -c 400044 a.wav | nac encode - -o c.nac --codebooks 2 --no-entropy", tmp_path)
    assert statuses == [0, 1] and not (tmp_path / "c.nac").exists()


def test_several_processes(nac, clip):
    folder = clip.parent
    shutil.copy(clip, folder / "b.wav")
    (folder / "bad.wav").write_bytes(b"no audio")
    statuses, _, err = shell("nac encode . -o out -j 2 --codebooks 2 --tag TITLE=T", folder)
    assert statuses == [1]
    assert {path.name for path in (folder / "out").iterdir()} == {"a clip.nac", "b.nac"}
    assert "3 files, 2 s of audio, 1 failed\n" in err and "Traceback" not in err
    assert json.loads(nac("info", folder / "out" / "b.nac", "--json")[1])["tags"]["TITLE"] == ["T"]
