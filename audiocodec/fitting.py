"""The codes of a whole file -> a .nac file that stays within a budget of bytes."""
import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from audiocodec import container, payloads, rate
from audiocodec.depths import MAX_DEPTH
from audiocodec.paths import Codes, Paths
from audiocodec.pricing import Pricing
from audiocodec.rangecoder import LEVEL_BITS
from audiocodec.tokens import Codec

_IN_MEMORY = 1 << 26     # bytes of a finished file; more than that go to a temporary one
_FEW = 6                 # segments that are coded again until the file fits, about

Books = tuple[int, ...]
Made = tuple[list[container.Segment], list[np.ndarray]]      # segments, and the depths (C, t) of their frames


class Count:
    """The mean depth of frames, per channel."""

    def __init__(self, channels: int):
        self._sums, self._frames = np.zeros(channels), 0

    def add(self, depths: Iterable[np.ndarray]) -> None:
        """depths: (C, t) of each segment."""
        for part in depths:
            self._sums += part.sum(1)
            self._frames += part.shape[1]

    @property
    def mean(self) -> tuple[float, ...]:
        """Books per channel; those of silence if there was no frame."""
        return tuple((self._sums / self._frames).tolist()) if self._frames else (1.0,) + (0.0,) * (len(self._sums) - 1)


@dataclass(frozen=True)
class Fitted:
    """What became of a file."""

    num_bytes: int
    books: tuple[float, ...]     # per channel, the mean of all frames


@dataclass(frozen=True)
class Fitter:
    """Writes codes to a file of `num_samples` that takes at most `budget` bytes, or the least that is possible.

    segments: the rows, in order, of a form. progress: hears of the share that is done.
    """

    codec: Codec
    form: Paths | Codes
    header: container.Header
    tags: container.Tags
    segments: rate.Spool
    num_samples: int
    budget: float
    progress: Callable[[float], None] = lambda share: None

    def write(self, file) -> Fitted:
        """With equally many books in all frames, unless the header says that they differ."""
        if self.segments and self.header.has_depths:
            return self._write_priced(file)
        if self.segments:
            return self._write_constant(file)
        draft = self._draft((1,) + (0,) * (self.header.channels - 1))
        draft.copy_to(file)
        return Fitted(len(draft), draft.books)

    def _rungs(self) -> list[Books]:
        return rate.ladder(sum(added_energy(self.codec, self._codes(rows)) for rows in self.segments))

    def _codes(self, rows: np.ndarray) -> np.ndarray:
        """Of all books, (C, K, t)."""
        return self._plain(rows, (self.header.codebooks,) * self.header.channels)[:, :self.header.codebooks]

    def _plain(self, rows: np.ndarray, books: Books) -> np.ndarray:
        """With so many books of each channel in all frames."""
        return self.form.plain(rows, np.array(books)[:, None])

    def _write_constant(self, file) -> Fitted:
        """The most books that fit, the same in all segments."""
        bits = rate.costs(self._model, self.segments, self._codes, self.header.codebooks)
        overhead = self._overhead(0) + self._level_bits() / 8
        books, draft = rate.largest(self._draft, self._rungs(), bits, overhead, self.budget)
        draft.copy_to(file)
        return Fitted(len(draft), books)

    def _draft(self, books: Books) -> "_Draft":
        draft = _Draft(books)
        writer = self._writer(draft.file, max(books))
        for at in range(0, len(self.segments), payloads.BATCH):
            batch = self.segments[at:at + payloads.BATCH]
            for segment in payloads.pack(self._coder, [self._plain(rows, books) for rows in batch], books):
                writer.write(segment)
            self.progress((at + len(batch)) / len(self.segments))
        writer.close(self.num_samples)
        return draft

    def _write_priced(self, file) -> Fitted:
        """At one price of books for all frames, nearly.

        Segments are coded once, in batches: what a batch takes more or less than was estimated, those after it make
        up for. Only some of the last ones are coded again until the file fits.
        """
        pricing = Pricing(self.form, self.segments)
        writer = self._writer(file, min(self.header.codebooks, MAX_DEPTH))
        count = Count(self.header.channels)
        last = max(0, len(self.segments) - payloads.BATCH // 2) // payloads.BATCH * payloads.BATCH
        for at in range(0, last, payloads.BATCH):
            made, depths = self._guessed(pricing, writer, slice(at, at + payloads.BATCH))
            for segment in made:
                writer.write(segment)
            count.add(depths)
            self.progress((at + payloads.BATCH) / len(self.segments))
        made, depths = self._last(pricing, writer, last)
        for segment in made:
            writer.write(segment)
        count.add(depths)
        writer.close(self.num_samples)
        return Fitted(writer.size, count.mean)

    def _guessed(self, pricing: Pricing, writer: container.Writer, which: slice, taken: int = 0) -> Made:
        """Some of the segments, at the price that all from the first of them on should have.

        taken: bits of payloads before them that are not written yet.
        """
        budget = 8 * (self.budget - writer.size - self._overhead(which.start)) - taken
        price = pricing.find(which.start, budget)
        made, depths = self._priced(pricing, which, price)
        pricing.learn(price, which.start, which.stop, _payload_bits(made))
        return made, depths

    def _last(self, pricing: Pricing, writer: container.Writer, first: int) -> Made:
        """The segments from `first` on, so that the file fits.

        Half of what is left is coded at a guess, and half of that again, so that little is left to be coded twice.
        """
        made, depths, at, end = [], [], first, len(self.segments)
        while end - at >= _FEW:
            half = slice(at, (at + end) // 2)
            more, used = self._guessed(pricing, writer, half, _payload_bits(made))
            made, depths, at = made + more, depths + used, half.stop
        if made:
            fitted = self._fitted(pricing, writer, first, at, (made, depths))
            if writer.size_with(fitted[0], self.num_samples) <= self.budget:
                return fitted
        return self._fitted(pricing, writer, first, first, ([], []))

    def _fitted(self, pricing: Pricing, writer: container.Writer, first: int, free: int, before: Made) -> Made:
        """The segments from `first` on: those before `free` as they are, the others so that the file fits."""
        def code(price: float) -> tuple[Made, int, float]:
            made, depths = self._priced(pricing, slice(free, None), price)
            both = before[0] + made, before[1] + depths
            return both, writer.size_with(both[0], self.num_samples), _payload_bits(made)

        overhead = writer.size + _payload_bits(before[0]) // 8 + self._overhead(first)
        return pricing.fit(code, free, self.budget, overhead)[0]

    def _priced(self, pricing: Pricing, which: slice, price: float) -> Made:
        """Some of the segments, coded at a price, and the depths of their frames."""
        segments = self.segments[which]
        depths = [pricing.depths(rows, price) for rows in segments]
        return payloads.pack_depths(self._coder, list(map(self.form.plain, segments, depths)), depths, True), depths

    def _level_bits(self) -> float:
        """What the levels of all segments take."""
        frames, num_bands, levels = self.header.level_frames, self._coder.num_bands, self.codec.levels
        if not frames:
            return 0.0
        told = (channel[-num_bands:, ::frames] for rows in self.segments for channel in rows)
        return sum(levels.bits(part, frames) if self.header.entropy_coded else LEVEL_BITS * part.size for part in told)

    @property
    def _coder(self):
        return self.codec.coder(self.header.entropy_coded, self.header.level_frames)

    @property
    def _model(self):
        return self.codec.entropy if self.header.entropy_coded else None

    def _writer(self, file, most: int) -> container.Writer:
        header = dataclasses.replace(self.header, num_samples=self.num_samples, codebooks=most)
        return container.Writer(file, header, self.tags)

    def _overhead(self, at: int) -> int:
        """About how many bytes are still to be written before segment `at`, besides payloads."""
        whole = 0 if at else 32 + sum(len(f"{name}={text}".encode()) + 3 for name, text in self.tags)
        return whole + 24 + (10 + 3 * self.header.channels) * (len(self.segments) - at)


def _payload_bits(segments: Sequence[container.Segment]) -> int:
    return 8 * sum(len(payload) for segment in segments for payload in segment.payloads)


class _Draft:
    """A finished file, in memory while it is small."""

    def __init__(self, books: Books):
        self.books = books
        self.file = tempfile.SpooledTemporaryFile(_IN_MEMORY)

    def __len__(self) -> int:
        return self.file.tell()

    def copy_to(self, file) -> None:
        size = len(self)
        self.file.seek(0)
        shutil.copyfileobj(self.file, file)
        self.file.seek(size)


def added_energy(codec: Codec, codes: np.ndarray) -> np.ndarray:
    """Codes (C, K, T) -> the energy of what each book adds to each channel, (C, K)."""
    energies = [entries.square().sum(-1).cpu().numpy() for entries in codec.quantizer.entries()]
    return np.array([[energy[index].sum() for energy, index in zip(energies, channel)] for channel in codes])
