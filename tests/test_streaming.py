"""streaming.py: the same bytes and samples as files, and packets that get lost."""
import io
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import soundfile

import audiocodec
from audiocodec import StreamDecoder, StreamEncoder, audio, codec, container, packets, pcm
from audiocodec.errors import AudioError, FormatError, NacError

RATE, HOP = 24_000, 320


@pytest.fixture(scope="module")
def speech(request):
    samples, _ = soundfile.read(request.config.rootpath / "examples/speech.flac", dtype="float32", frames=130 * HOP)
    return samples[None]                                     # (1, N), 130 frames


def pieces(data, most: int):
    """Cut samples (C, n) or bytes into pieces of 1 to `most`."""
    rng, at = np.random.default_rng(0), 0
    length = data.shape[1] if isinstance(data, np.ndarray) else len(data)
    while at < length:
        size = int(rng.integers(1, most + 1))
        yield data[..., at:at + size] if isinstance(data, np.ndarray) else data[at:at + size]
        at += size


def encoded(encoder: StreamEncoder, samples: np.ndarray, most: int = 3000) -> bytes:
    return b"".join([*map(encoder.push, pieces(samples, most)), encoder.flush()])


def sent(encoder: StreamEncoder, samples: np.ndarray) -> list[bytes]:
    return packets.split(encoded(encoder, samples))


def received(decoder: StreamDecoder, data) -> np.ndarray:
    return np.concatenate([*map(decoder.push, data), decoder.flush()], 1)


def snr(samples, decoded):
    return 10 * np.log10(np.square(samples).sum() / np.square(samples - decoded).sum())


# The bytes of a .nac file

@pytest.mark.parametrize("rate, channels", [(24_000, 1), (44_100, 2)])
@pytest.mark.parametrize("wish", [{"codebooks": 3}, {"codebooks": 2, "entropy": False}])
def test_the_same_file_as_in_one_go(speech, rate, channels, wish):
    samples = speech if channels == 1 else np.concatenate([speech, 0.5 * speech[:, ::-1]])
    whole = audiocodec.encode(samples, rate, **wish)
    data = encoded(StreamEncoder(rate, channels, num_samples=samples.shape[1], **wish), samples)
    assert data == whole
    decoder = StreamDecoder(channels=channels)
    assert np.array_equal(received(decoder, pieces(data, 200)), audiocodec.decode(whole)[0])
    assert (decoder.sample_rate, decoder.channels) == (rate, channels)


def test_files_of_any_length(speech):
    for length in (0, 1, 319, 320, 321):
        data = encoded(StreamEncoder(codebooks=2), speech[:, :length])
        assert np.array_equal(received(StreamDecoder(), pieces(data, 1)), audiocodec.decode(data)[0])


def test_short_segments_come_at_once(speech):
    encoder, decoder = StreamEncoder(kbps=6, segment_frames=16), StreamDecoder()
    num_samples = 0
    for at in range(0, speech.shape[1], HOP):
        num_samples += decoder.push(encoder.push(speech[:, at:at + HOP])).shape[1]
        assert at + HOP - num_samples <= 16 * HOP + 3 * HOP
    assert num_samples + decoder.push(encoder.flush()).shape[1] + decoder.flush().shape[1] == speech.shape[1]


@pytest.mark.parametrize("segment_frames", [16, 64])
@pytest.mark.parametrize("entropy", [True, False])
def test_a_stream_stays_below_its_ceiling_all_the_time(speech, segment_frames, entropy):
    encoder = StreamEncoder(kbps=8, segment_frames=segment_frames, entropy=entropy)
    num_bytes = 0
    for at in range(0, speech.shape[1], HOP):
        num_bytes += len(encoder.push(speech[:, at:at + HOP]))
        assert num_bytes <= max(32, 8 * 125 * (at + HOP) / RATE)     # the header comes first
    data_end = encoder.flush()
    assert 0.85 < (num_bytes + len(data_end)) / (8 * 125 * speech.shape[1] / RATE) <= 1


def test_a_file_that_breaks_off(speech):
    data = encoded(StreamEncoder(codebooks=2, segment_frames=16), speech)
    decoder = StreamDecoder()
    found = decoder.push(data[:len(data) // 2])
    assert np.array_equal(found, audiocodec.decode(data)[0][:, :found.shape[1]]) and found.shape[1] > RATE // 4
    with pytest.raises(FormatError):
        decoder.flush()
    with pytest.raises(FormatError):
        StreamDecoder().push(b"RIFF" + bytes(100))


# Live pipes

def test_a_live_pipe_gives_what_has_come():
    reading, writing = os.pipe()
    with open(reading, "rb") as source, open(writing, "wb", buffering=0) as sink:
        blocks = pcm.PcmReader(source, "-", 8000, 2, "PCM_16", is_live=True).blocks(8000)
        sink.write(bytes(4 * 100 + 3))
        assert next(blocks).shape == (2, 100)
        sink.write(bytes(1 + 4))                             # the rest of a sample
        assert next(blocks).shape == (2, 2)
        sink.close()
        assert list(blocks) == []


def test_live_segments_flow_while_the_input_is_open(tmp_path, speech):
    for name in ("in", "out"):
        os.mkfifo(tmp_path / name)
    work = threading.Thread(target=codec.encode_file, args=(tmp_path / "in", tmp_path / "out"), daemon=True,
                            kwargs={"codebooks": 2, "raw": pcm.RawFormat(RATE, 1, "FLOAT"), "live": True})
    work.start()
    with open(tmp_path / "in", "wb", buffering=0) as sink, open(tmp_path / "out", "rb") as source:
        sink.write(speech[:, :50 * HOP].astype("<f4").tobytes())
        reader = container.Reader(source)
        segments = iter(reader)
        assert [next(segments).num_frames for _ in range(3)] == 3 * [16]     # of 50 frames
        sink.close()
        assert [segment.num_frames for segment in segments] == [3] and reader.trailer.num_samples == 50 * HOP
    work.join()


def test_ctrl_c_ends_a_live_recording_and_keeps_it(tmp_path, speech):
    command = [sys.executable, "-m", "audiocodec", "encode", "--live", "--raw", f"{RATE},1,f32le", "--codebooks", "2"]
    process = subprocess.Popen([*command, "-", "-o", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdin.write(speech[:, :50 * HOP].astype("<f4").tobytes())
    process.stdin.flush()                                    # and stays open
    head = process.stdout.read(80)                           # header and first segment: all has been taken
    process.send_signal(signal.SIGINT)
    data = head + process.stdout.read()
    assert process.wait(60) == 0
    process.stdin.close()
    reader = container.Reader(io.BytesIO(data))
    assert sum(segment.num_frames for segment in reader) == 51 and reader.trailer.num_samples == 50 * HOP


def test_live_audio_has_to_be_readable_at_once(tmp_path, request):
    os.mkfifo(tmp_path / "in")
    data = (request.config.rootpath / "examples/speech.flac").read_bytes()
    threading.Thread(target=lambda: (tmp_path / "in").write_bytes(data[:1000]), daemon=True).start()
    with pytest.raises(AudioError, match="not a WAV stream"):
        codec.encode_file(tmp_path / "in", tmp_path / "a.nac", live=True)


# Packets

@pytest.mark.parametrize("wish", [{"codebooks": 3}, {"codebooks": 3, "entropy": False}, {"kbps": 6}])
@pytest.mark.parametrize("packet_frames", [1, 3])
def test_packets_give_the_samples_of_the_file(speech, wish, packet_frames):
    speech = speech[:, 9000:25_000]
    encoder, decoder = (kind(packet_frames=packet_frames, **more)
                        for kind, more in ((StreamEncoder, wish), (StreamDecoder, {})))
    data = sent(encoder, speech)
    found = received(decoder, data)
    assert found.shape == speech.shape
    if "codebooks" in wish:
        whole, _ = audiocodec.decode(audiocodec.encode(speech, RATE, codebooks=3))     # which tells no levels, either
        assert np.array_equal(found, whole)
    else:
        assert sum(map(len, data)) <= 6 * 125 * (speech.shape[1] / RATE + 0.25)


@pytest.mark.parametrize("rate, channels", [(8000, 1), (44_100, 2), (47_999, 1)])
@pytest.mark.parametrize("length", [0, 1, 5000])
def test_lengths_and_rates_come_back(speech, rate, channels, length):
    samples = np.repeat(speech[:, :length], channels, 0)
    data = sent(StreamEncoder(rate, channels, codebooks=2, packet_frames=2), samples)
    assert received(StreamDecoder(rate, channels, packet_frames=2), data).shape == samples.shape


def test_the_delay_is_two_frames(speech):
    encoder, decoder = StreamEncoder(codebooks=2, packet_frames=1), StreamDecoder(packet_frames=1)
    counts = [decoder.push(encoder.push(speech[:, at:at + HOP])).shape[1] for at in range(0, 10 * HOP, HOP)]
    assert counts == [0] + 9 * [HOP]         # when a sample is pushed, at most 640 before it have yet to come


def test_reset_is_as_good_as_new(speech):
    encoder, decoder = StreamEncoder(codebooks=3, packet_frames=2), StreamDecoder(packet_frames=2)
    encoder.push(speech[:, 5000:9000])
    decoder.push(encoder.flush())
    encoder.reset()
    decoder.reset()
    data = sent(encoder, speech[:, :9000])
    assert data == sent(StreamEncoder(codebooks=3, packet_frames=2), speech[:, :9000])
    assert np.array_equal(received(decoder, data), received(StreamDecoder(packet_frames=2), data))


def test_a_loop_of_13_ms_packets_with_losses(request):
    speech, _ = soundfile.read(request.config.rootpath / "examples/speech.flac", dtype="float32", start=15_000,
                               frames=225 * HOP)
    speech = speech[None]
    encoder = StreamEncoder(codebooks=8, packet_frames=1, entropy=False)
    whole = received(StreamDecoder(packet_frames=1), sent(encoder, speech))
    encoder.reset()
    pushed = [encoder.push(speech[:, at:at + HOP]) for at in range(0, speech.shape[1], HOP)]
    end = encoder.flush()
    gains = []
    for seed in range(3, 7):
        told, untold = StreamDecoder(packet_frames=1), StreamDecoder(packet_frames=1)
        is_lost = np.random.default_rng(seed).random(225) < 0.05
        is_lost[[0, 50, 51, 52]] = True
        heard, heard_late = [], []
        for number, (packet, lost) in enumerate(zip(pushed, is_lost)):
            heard.append(told.push(None if lost else packet))
            assert heard[-1].shape[1] == (HOP if number else 0)
            if not lost:
                heard_late.append(untold.push(packet))
        heard, heard_late = (np.concatenate([*samples, decoder.push(end), decoder.flush()], 1)
                             for samples, decoder in ((heard, told), (heard_late, untold)))
        assert heard.shape == whole.shape
        assert heard_late.shape[1] == whole.shape[1] - HOP       # it could not know of the first packet
        assert np.abs(heard).max() < 1.2
        silent = whole.copy()
        for frame in np.flatnonzero(is_lost):
            silent[:, max(0, frame - 1) * HOP:(frame + 1) * HOP] = 0
        gains.append(snr(whole, heard) - snr(whole, silent))
    assert np.mean(gains) > 1        # dB; one pattern of losses alone may have little to win


def test_after_a_loss_predicted_packets_go_on_with_the_next_key_packet(speech):
    data = sent(StreamEncoder(codebooks=4, packet_frames=1, key_frames=16), speech)
    keys = [packet.is_key for piece in data for packet in packets.unpack(piece)]
    assert [at for at, is_key in enumerate(keys) if is_key] == list(range(0, len(data), 16))
    decoder = StreamDecoder(packet_frames=1)
    whole, found = received(StreamDecoder(packet_frames=1), data), received(decoder, data[:20] + data[21:])
    assert found.shape == whole.shape
    assert np.array_equal(found[:, :19 * HOP], whole[:, :19 * HOP])
    recovered = (32 + 48 + 1) * HOP          # the next key packet, and as far as the network looks back
    assert np.array_equal(found[:, recovered:], whole[:, recovered:])
    assert np.abs(found[:, 20 * HOP:32 * HOP] - whole[:, 20 * HOP:32 * HOP]).max() > 0.01


def test_damaged_late_and_doubled_packets(speech):
    data = sent(StreamEncoder(codebooks=2, packet_frames=1, entropy=False), speech[:, :9000])
    wanted = received(StreamDecoder(packet_frames=1), [*data[:10], None, *data[11:]])
    damaged = bytearray(data[10])
    damaged[5] ^= 1
    assert np.array_equal(received(StreamDecoder(packet_frames=1), [*data[:10], bytes(damaged), *data[11:]]), wanted)
    late = [*data[:10], None, data[11], data[10], data[11], *data[12:], data[-1]]
    assert np.array_equal(received(StreamDecoder(packet_frames=1), late), wanted)


def test_a_listener_may_join_at_a_key_packet(speech):
    data = sent(StreamEncoder(codebooks=4, packet_frames=2, key_frames=8), speech)
    found = received(StreamDecoder(packet_frames=2), data[9:])     # the 13th is the next key packet
    whole = received(StreamDecoder(packet_frames=2), data)
    assert not found[:, :5 * HOP].any()
    assert np.array_equal(found[:, -54 * HOP:], whole[:, -54 * HOP:])      # further on than a decoder looks back


def test_a_long_gap_is_silent_and_as_long(speech):
    data = sent(StreamEncoder(codebooks=2, packet_frames=1), np.tile(speech, 2)[:, :180 * HOP])
    whole = received(StreamDecoder(packet_frames=1), data)
    found = received(StreamDecoder(packet_frames=1), data[:30] + data[110:])
    assert found.shape == whole.shape and not found[:, 50 * HOP:108 * HOP].any()
    assert np.array_equal(found[:, 165 * HOP:], whole[:, 165 * HOP:])


def test_silence_is_concealed_by_silence():
    data = sent(StreamEncoder(codebooks=4, packet_frames=1, entropy=False), np.zeros((1, 9000), np.float32))
    assert not received(StreamDecoder(packet_frames=1), [*data[:10], None, None, *data[12:]]).any()


# Misuse

def test_what_streams_refuse(speech):
    for arguments in ({"packet_frames": 9}, {"key_frames": 513}, {"segment_frames": 8}, {"codebooks": 33},
                      {"kbps": 99}):
        with pytest.raises(NacError):
            StreamEncoder(**arguments)
    encoder = StreamEncoder(codebooks=2)
    for samples in (speech[0], np.zeros((2, 10), np.float32), np.zeros((1, 10), int), np.full((1, 2), np.nan)):
        with pytest.raises(AudioError):
            encoder.push(samples)
    encoder.flush()
    with pytest.raises(NacError, match="reset"):
        encoder.push(speech)
    with pytest.raises(NacError):
        StreamDecoder().push(None)
    stereo = encoded(StreamEncoder(channels=2, codebooks=1, packet_frames=1), np.zeros((2, 700), np.float32))
    with pytest.raises(NacError, match="2 channels"):
        StreamDecoder(packet_frames=1).push(stereo)


def test_short_pieces_resample_alike(speech):
    resampler = audio.Resampler(24_000, 44_100, chunk=160)
    short = np.concatenate([*map(resampler.push, pieces(speech, 500)), resampler.flush()], 1)
    resampler = audio.Resampler(24_000, 44_100)
    assert np.abs(short - np.concatenate([resampler.push(speech), resampler.flush()], 1)).max() < 1e-5
