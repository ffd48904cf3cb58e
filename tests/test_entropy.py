"""The integer entropy model: one set of tables however, and wherever, they are computed."""
import hashlib
import os
import signal
import subprocess
import sys
from dataclasses import replace
from math import isqrt

import numpy as np
import pytest

from audiocodec import weights
from audiocodec.entropy import BOOK_SIZE, TOTAL, EntropyConfig, EntropyModel, counts
from audiocodec.errors import ModelError

TINY = EntropyConfig(num_books=6, detailed_books=4, context_books=3, layers=2, width=32, heads=2,
                     feed_forward=48, window=10, head_width=24, head_hidden=16)
KERNELS = ("Prescott", "Nehalem", "Sandybridge", "Haswell", "Zen", "SkylakeX")


def random_tensors(config: EntropyConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Tensors of any values that the model accepts, large enough to reach its limits."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, (dtype, shape) in config.shapes().items():
        limit = {"int8": 127, "int16": 40, "int32": 50_000}.get(dtype, 0)
        tensors[name] = rng.integers(-limit, limit + 1, shape).astype(dtype)
    tensors["order"] = np.argsort(rng.random((config.num_books, BOOK_SIZE)), 1).astype(np.int16)
    tensors["attention_table"] = (255 * 0.95 ** np.arange(256)).astype(np.uint8)
    tensors["count_table"] = (1 + 2 ** (np.arange(448) / 24)).astype(np.int32)
    return tensors


def random_codes(shape: tuple[int, ...], seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, BOOK_SIZE, shape)


def digest(tables: np.ndarray) -> str:
    return hashlib.sha256(tables.astype("<i4").tobytes()).hexdigest()


def released_model() -> EntropyModel:
    try:
        found = weights.load("nac-24k")
    except ModelError:
        pytest.skip("no released weights here")
    return EntropyModel(EntropyConfig(**found.config["entropy"]), found.part("entropy"))


@pytest.fixture(params=["tiny", "released"])
def model(request) -> EntropyModel:
    return EntropyModel(TINY, random_tensors(TINY)) if request.param == "tiny" else released_model()


def step_by_step(model: EntropyModel, codes: np.ndarray, num_books: np.ndarray) -> np.ndarray:
    """The tables in the order in which a decoder computes them."""
    sequences, books, frames = codes.shape
    places = model.places(codes)
    tables = np.empty((sequences, frames, books, 2, 32))
    state = model.start(num_books)
    previous = np.full((sequences, books), BOOK_SIZE)
    for t in range(frames):
        sums = model.contexts(state, previous[:, :, None])[:, 0]
        for k in range(books):
            hidden = model.hidden(k, sums, previous[:, k])
            tables[:, t, k, 0] = model.class_counts(k, hidden)
            tables[:, t, k, 1] = model.member_counts(k, hidden, places[:, k, t] // 32)
            model.add(k, sums, places[:, k, t])
        previous = places[:, :, t]
    return tables


def test_whole_segments_and_single_frames_give_the_same_tables(model):
    books = model.config.num_books
    codes, num_books = random_codes((3, books, 75)), np.array([books, 1, 2])
    tables, _ = model.tables(codes, num_books)
    assert digest(step_by_step(model, codes, num_books)) == digest(tables)


def test_one_two_and_eight_sequences_at_once_give_the_same_tables(model):
    books = model.config.num_books
    codes, num_books = random_codes((8, books, 30)), np.arange(8) % books + 1
    digests = set()
    for together in (1, 2, 8):
        groups = np.split(np.arange(8), 8 // together)
        digests.add(digest(np.concatenate([model.tables(codes[group], num_books[group])[0] for group in groups])))
    assert len(digests) == 1


def test_tables_agree_with_a_plain_integer_reference():
    tensors = random_tensors(TINY)
    codes = random_codes((2, TINY.num_books, 25))
    tables, symbols = EntropyModel(TINY, tensors).tables(codes, np.array([TINY.num_books, 2]))
    for sequence, books in enumerate((TINY.num_books, 2)):
        expected, places = reference_tables(TINY, tensors, codes[sequence], books)
        assert digest(tables[sequence]) == digest(expected)
        assert symbols[sequence].tolist() == places.tolist()


def test_released_tables_agree_with_a_plain_integer_reference():
    model, tensors = released_model(), weights.load("nac-24k").part("entropy")
    codes = random_codes((1, 8, 5))
    expected, _ = reference_tables(model.config, tensors, codes[0], 8)
    assert digest(model.tables(codes, np.array([8]))[0]) == digest(expected)


@pytest.mark.parametrize("setting", [("OPENBLAS_NUM_THREADS", "2"), *(("OPENBLAS_CORETYPE", k) for k in KERNELS)])
def test_every_kernel_set_and_thread_count_gives_the_same_tables(setting, expected_at_full_size):
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", **dict([setting])}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    if done.returncode == -signal.SIGILL:
        pytest.skip("this processor lacks the instructions")
    assert done.stdout.split() == expected_at_full_size, done.stderr


@pytest.fixture(scope="module")
def expected_at_full_size() -> list[str]:
    return digests_at_full_size()


def digests_at_full_size() -> list[str]:
    """One digest with random tensors; with released weights, if there are any, another."""
    config = EntropyConfig(num_books=4, detailed_books=3)
    models = [EntropyModel(config, random_tensors(config))]
    if any(path.stem == "nac-24k" for path in weights.released()):
        models.append(released_model())
    codes = random_codes((4, 4, 128))
    return [digest(model.tables(codes, np.array([4, 4, 2, 1]))[0]) for model in models]


def test_tables_do_not_depend_on_later_books_or_later_frames():
    model = EntropyModel(TINY, random_tensors(TINY))
    codes, whole = random_codes((1, 6, 20)), np.array([6])
    tables, _ = model.tables(codes, whole)
    fewer, _ = model.tables(codes[:, :TINY.context_books], np.array([TINY.context_books]))
    shorter, _ = model.tables(codes[:, :, :7], whole)
    assert (tables[:, :, :TINY.context_books] == fewer).all()
    assert (tables[:, :7] == shorter).all()


def test_cost_adds_up_the_chosen_frequencies():
    model = EntropyModel(TINY, random_tensors(TINY))
    codes = random_codes((2, 6, 9))
    tables, symbols = model.tables(codes, np.array([6, 6]))
    chosen = np.take_along_axis(tables, symbols[..., None].astype(int), -1) + 1
    assert model.cost(codes).shape == (2, 6)
    assert model.cost(codes).sum() == pytest.approx(np.log2(TOTAL / chosen).sum())


def test_counts_of_a_hand_worked_table():
    found = counts(np.float32([[2.5, 2, -90], [900, 1, 0]]), np.float64([1, 2, 5]))
    # weights 5, 5, 1: 5/11 of 16777213 is 7626005.9, 1/11 is 1525201.2, two left over; then 5, 2, 1 likewise
    assert found.tolist() == [[7626007, 7626005, 1525201], [10485759, 4194303, 2097151]]


def test_counts_always_sum_to_what_the_coder_expects():
    scores = np.random.default_rng(0).normal(200, 150, (500, 32)).astype(np.float32)
    found = counts(scores, random_tensors(TINY)["count_table"].astype(np.float64))
    assert (found.sum(1) == TOTAL - 32).all() and (found >= 0).all() and (found == np.floor(found)).all()


def test_a_wrong_answer_is_refused():
    tensors = random_tensors(TINY)
    config = replace(TINY, answer=EntropyModel(TINY, tensors).answer())
    EntropyModel(config, tensors)
    tensors["hidden"] = -tensors["hidden"]
    with pytest.raises(ModelError, match="other tables"):
        EntropyModel(config, tensors)


def test_tensors_that_do_not_fit_are_refused():
    good = random_tensors(TINY)
    wrong = [("here", None), ("here", good["here"][:2]), ("here", good["here"].astype(np.int16)),
             ("order", np.zeros_like(good["order"])), ("hidden_bias", good["hidden_bias"] + (1 << 23)),
             ("class", np.full_like(good["class"], -128)), ("count_table", good["count_table"] * 0)]
    for name, tensor in wrong:
        tensors = {**good, name: tensor}
        if tensor is None:
            del tensors[name]
        with pytest.raises(ModelError):
            EntropyModel(TINY, tensors)
    with pytest.raises(ModelError, match="exact"):
        large = replace(TINY, feed_forward=1100)
        EntropyModel(large, random_tensors(large))


def test_training_ends_in_an_integer_model_that_does_what_its_twin_does():
    torch = pytest.importorskip("torch")
    from audiocodec.training import entropy as training
    rng = np.random.default_rng(0)
    codebooks = rng.normal(size=(6, BOOK_SIZE, 5)).astype(np.float32)
    codes = rng.integers(0, 4, (6, 1500)) * 200
    config, tensors, report = training.train_entropy(
        codes[None], codebooks, config=TINY, updates=12, batch=2, rate=0.02)
    assert EntropyModel(config, tensors).answer() == config.answer
    assert np.mean(report["integer"]) < 9
    assert report["integer"] == pytest.approx(report["float"], rel=0.03)

    net = training.EntropyNet(TINY)
    net.start_from(codebooks, training.class_ranks(codebooks))
    net.layers[0].second.data.normal_(0, 0.2)
    for book in net.books:
        torch.nn.init.normal_(getattr(book, "class"), 0, 0.5)
    net.limit()
    net.rounding, net.layers[1].distance.data[:, 3] = True, 0.5
    model = EntropyModel(TINY, net.integers() | {"order": training.class_ranks(codebooks).astype(np.int16)})
    stream = training._stream(codes[None, :, :300], training.class_ranks(codebooks))
    twin, integer = training.twin_bits(net, stream, "cpu"), training.integer_bits(model, stream)
    assert integer == pytest.approx(twin, rel=2e-3)


def test_class_ranks_number_similar_entries_alike():
    from audiocodec.training.entropy import class_ranks
    line = np.random.default_rng(0).permutation(BOOK_SIZE)
    ranks, = class_ranks(line[None, :, None].astype(np.float32))
    assert sorted(ranks) == list(range(BOOK_SIZE))
    assert all(np.ptp(line[ranks // 32 == group]) == 31 for group in range(32))


# The reference: int64 and Python integers only, one sequence, one frame and one value after the other.

def reference_tables(config, tensors, codes, num_books):
    """Codes (K, T) -> tables (T, K, 2, 32) and symbols (T, K, 2)."""
    tensors = {name: value.astype(np.int64) for name, value in tensors.items()}
    books, frames = codes.shape
    places = np.stack([tensors["order"][k, codes[k]] for k in range(books)])
    memory = [[] for _ in range(config.layers)]
    tables, symbols = np.empty((frames, books, 2, 32), np.int64), np.empty((frames, books, 2), np.int64)
    for t in range(frames):
        previous = places[:, t - 1] if t else np.full(books, BOOK_SIZE)
        x = np.zeros(config.width, np.int64)
        for k in range(config.context_books):
            x += 8 * tensors["input"][k, previous[k] if k < num_books else BOOK_SIZE]
        for i in range(config.layers):
            x = x + reference_layer(config, tensors, f"layers.{i}.", x, memory[i])
        sums = nearest(tensors["context"] @ reference_norm(x) + tensors["context_bias"], 128)
        for k in range(books):
            past = tensors["before"][k, previous[k]] if k < config.detailed_books else 0
            inputs = (sums + past).clip(-127, 127)
            hidden = nearest(tensors["hidden"][k] @ inputs + tensors["hidden_bias"][k], 128).clip(0, 127)
            symbols[t, k] = divmod(places[k, t], 32)
            scores = tensors["class"][k] @ hidden + tensors["class_bias"][k]
            tables[t, k, 0] = reference_counts(tensors, scores)
            if k < config.detailed_books:
                group = symbols[t, k, 0]
                scores = tensors["member"][k, group] @ hidden + tensors["member_bias"][k, group]
                tables[t, k, 1] = reference_counts(tensors, scores)
            else:
                tables[t, k, 1] = 2 ** 24 // 32 - 1
            if k < config.detailed_books:
                sums = sums + tensors["here"][k, places[k, t]]
    return tables, symbols


def reference_layer(config, tensors, name, x, memory):
    inner = nearest(tensors[name + "first"] @ reference_norm(x) + tensors[name + "first_bias"], 128)
    query, key, value, feed = np.split(inner, [config.width, 2 * config.width, 3 * config.width])
    memory.append((key.clip(-127, 127), value.clip(-127, 127)))
    query, attended = query.clip(-127, 127), []
    for head in range(config.heads):
        part = slice(head * config.width // config.heads, (head + 1) * config.width // config.heads)
        recent = memory[-config.window:][::-1]
        scores = [int(query[part] @ key[part]) + (int(tensors[name + "distance"][head, distance]) << 9)
                  for distance, (key, _) in enumerate(recent)]
        weights = [int(tensors["attention_table"][min((max(scores) - score) >> 9, 255)]) for score in scores]
        total = sum(weight * value[part] for weight, (_, value) in zip(weights, recent))
        attended.append(nearest(total, sum(weights)))
    inner = np.concatenate(attended + [feed.clip(0, 127)])
    return nearest(tensors[name + "second"] @ inner + tensors[name + "second_bias"], 16)


def reference_norm(x):
    root = isqrt(int((x * x).sum()) + 1)
    return nearest(x * isqrt(len(x) * 1024), root).clip(-127, 127)


def reference_counts(tensors, scores):
    weights = tensors["count_table"][(scores // 128).clip(0, 447)]
    found = weights * (2 ** 24 - 32) // weights.sum()
    found[0] += 2 ** 24 - 32 - found.sum()
    return found


def nearest(numbers, divisor):
    """Divide and round to the nearest integer, halves to even."""
    quotient, rest = np.divmod(numbers, divisor)
    return quotient + ((2 * rest > divisor) | (2 * rest == divisor) & (quotient % 2 == 1))


if __name__ == "__main__":
    print(*digests_at_full_size())
