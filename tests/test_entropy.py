"""The integer entropy model: one set of tables however, and wherever, they are computed."""
import hashlib
import itertools
import os
import signal
import subprocess
import sys
from dataclasses import replace
from math import isqrt

import numpy as np
import pytest

from audiocodec import weights
from audiocodec.entropy import BOOK_SIZE, TOTAL, UNTOLD, EntropyConfig, EntropyModel, counts
from audiocodec.errors import ModelError
from audiocodec.paths import Codes, Paths

TINY = EntropyConfig(num_books=6, detailed_books=4, context_books=3, layers=2, width=32, heads=2,
                     feed_forward=48, window=10, head_width=24, head_hidden=16, turns=(1, 2))
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


def random_depths(books: int, frames: int, sequences: int) -> tuple[np.ndarray, np.ndarray]:
    """Depths (S, T) of sequences that tell them and, from the second on in turn, of such that do not; which do (S,)."""
    depths = np.random.default_rng(1).integers(0, min(books, 31) + 1, (sequences, frames))
    is_told = np.arange(sequences) % 2 == 0
    return np.where(is_told[:, None], depths, np.arange(sequences)[:, None] % books + 1), is_told


def joined(found) -> np.ndarray:
    """The tables of all sequences, one after another."""
    return np.concatenate([tables for tables, _ in found])


def step_by_step(model: EntropyModel, codes: np.ndarray, depths: np.ndarray, is_told: np.ndarray) -> np.ndarray:
    """The tables in the order in which a decoder computes them, then one sequence after another."""
    sequences, books, frames = codes.shape
    places = model.places(codes)
    tables = [[] for _ in range(sequences)]
    state = model.start(sequences)
    last, last_told = np.full((sequences, books), BOOK_SIZE), np.full(sequences, UNTOLD)
    for t in range(frames):
        sums = model.contexts(state, last[:, :, None], last_told[:, None])[:, 0]
        found = model.depth_counts(sums, last_told)
        last_told = np.where(is_told, depths[:, t], UNTOLD)
        model.add_depth(sums, last_told)
        for sequence in np.flatnonzero(is_told):
            tables[sequence].append(found[sequence])
        for turn in model.config.books(books):
            here = places[:, turn.start:turn.stop, t].T
            hidden = model.hidden(turn, sums, last[:, turn.start:turn.stop].T)
            both = model.class_counts(turn, hidden), model.member_counts(turn, hidden, here // 32)
            model.add(turn, sums, here)
            for sequence, level in itertools.product(range(sequences), both):
                tables[sequence] += list(level[:max(0, depths[sequence, t] - turn.start), sequence])
        last = np.where(np.arange(books) < depths[:, t, None], places[:, :, t], BOOK_SIZE)
    return np.concatenate(tables)


def test_whole_segments_and_single_frames_give_the_same_tables(model):
    books = model.config.num_books
    codes, (depths, is_told) = random_codes((3, books, 75)), random_depths(books, 75, 3)
    assert digest(step_by_step(model, codes, depths, is_told)) == digest(joined(model.tables(codes, depths, is_told)))


def test_one_two_and_eight_sequences_at_once_give_the_same_tables(model):
    books = model.config.num_books
    codes, (depths, is_told) = random_codes((8, books, 30)), random_depths(books, 30, 8)
    digests = set()
    for together in (1, 2, 8):
        groups = np.split(np.arange(8), 8 // together)
        found = [joined(model.tables(codes[group], depths[group], is_told[group])) for group in groups]
        digests.add(digest(np.concatenate(found)))
    assert len(digests) == 1


def test_tables_agree_with_a_plain_integer_reference():
    tensors = random_tensors(TINY)
    codes, (depths, is_told) = random_codes((3, TINY.num_books, 25)), random_depths(TINY.num_books, 25, 3)
    found = EntropyModel(TINY, tensors).tables(codes, depths, is_told)
    for sequence, (tables, symbols) in enumerate(found):
        expected, taken = reference_tables(TINY, tensors, codes[sequence], depths[sequence], is_told[sequence])
        assert digest(tables) == digest(expected)
        assert symbols.tolist() == taken


def test_released_tables_agree_with_a_plain_integer_reference():
    model, tensors = released_model(), weights.load("nac-24k").part("entropy")
    codes, depths = random_codes((2, 8, 5)), np.array([[8] * 5, [0, 3, 8, 1, 5]])
    for sequence, (tables, _) in enumerate(model.tables(codes, depths, np.array([False, True]))):
        expected, _ = reference_tables(model.config, tensors, codes[sequence], depths[sequence], bool(sequence))
        assert digest(tables) == digest(expected)


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
    codes, told = random_codes((4, 4, 128)), random_depths(4, 128, 4)
    return [digest(joined(model.tables(codes, *told))) for model in models]


def test_tables_do_not_depend_on_later_books_or_later_frames():
    model = EntropyModel(TINY, random_tensors(TINY))
    codes, few = random_codes((1, 6, 20)), TINY.context_books

    def constant(codes: np.ndarray) -> np.ndarray:
        (tables, _), = model.tables(codes, np.full_like(codes[:, 0], codes.shape[1]), np.array([False]))
        return tables.reshape(codes.shape[2], codes.shape[1], 2, 32)

    assert (constant(codes)[:, :few] == constant(codes[:, :few])).all()
    assert (constant(codes)[:7] == constant(codes[:, :, :7])).all()


def test_cost_adds_up_the_chosen_frequencies():
    model = EntropyModel(TINY, random_tensors(TINY))
    codes = random_codes((2, 6, 9))
    found = model.tables(codes, np.full((2, 9), 6), np.array([False, False]))
    chosen = np.concatenate([tables[np.arange(len(symbols)), symbols] + 1 for tables, symbols in found])
    assert model.cost(codes).shape == (2, 6)
    assert model.cost(codes).sum() == pytest.approx(np.log2(TOTAL / chosen).sum())


def test_activations_stay_in_float32(model):
    """In float64 all is as exact, but every product would convert its weights anew and take more than twice as long."""
    sums = model.contexts(model.start(2), random_codes((2, 3, 4)), np.full((2, 4), UNTOLD))
    hidden = model.hidden(range(1), sums[:, 0], np.array([[5, BOOK_SIZE]]))
    assert sums.dtype == hidden.dtype == (hidden @ model._class[:1]).dtype == np.float32


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
    codes, form = rng.integers(0, 4, (4, 6, 400)) * 200, Codes(codebooks)
    config, tensors, report = training.train_entropy(
        codes, form, codebooks, config=TINY, updates=12, batch=2, rate=0.02)
    assert EntropyModel(config, tensors).answer() == config.answer
    assert np.mean(report["integer"]) < 9
    assert report["integer"] == pytest.approx(report["float"], rel=0.03)
    begun, again, goes_on = training.train_entropy(
        codes, form, codebooks, config=TINY, updates=1, batch=2, rate=1e-6, begun=tensors)
    assert begun.answer == config.answer and all((again[name] == tensors[name]).all() for name in tensors)
    assert goes_on["integer"] == report["integer"]
    deeper, more, goes_on = training.train_entropy(          # a new layer adds nothing yet
        codes, form, codebooks, config=replace(TINY, layers=3), updates=1, batch=2, rate=1e-6, begun=tensors)
    assert deeper.layers == 3 and more["layers.2.first"].any()
    assert goes_on["integer"] == report["integer"]

    net = training.EntropyNet(TINY)
    net.start_from(codebooks, training.class_ranks(codebooks))
    net.layers[0].second.data.normal_(0, 0.2)
    for book in net.books:
        torch.nn.init.normal_(getattr(book, "class"), 0, 0.5)
    net.limit()
    net.rounding, net.layers[1].distance.data[:, 3] = True, 0.5
    model = EntropyModel(TINY, net.integers() | {"order": training.class_ranks(codebooks).astype(np.int16)})
    places = training._Stream(codes[:1, :, :300], form, training.class_ranks(codebooks)).segments()
    twin, integer = training.twin_bits(net, places, "cpu"), training.integer_bits(model, places)
    assert integer == pytest.approx(twin, rel=2e-3)

    depths, is_told = random_depths(6, 300, 1)
    depth_nats, nats = net.losses(places, torch.from_numpy(depths), torch.from_numpy(is_told), list(range(6)))
    is_there = torch.arange(6)[:, None, None] < torch.from_numpy(depths)
    (tables, symbols), = model.tables(codes[:1, :, :300], depths, is_told)
    bits = np.log2(TOTAL / (tables[np.arange(len(symbols)), symbols] + 1)).sum()
    assert (depth_nats.sum() + (nats * is_there).sum()).item() / np.log(2) == pytest.approx(bits, rel=2e-3)


@pytest.mark.parametrize("num_books, counts", [(32, (4, 3, 2)), (12, (4, 3, 0)), (2, (2, 0, 0))])
def test_books_learn_in_turn_the_first_ones_most(num_books, counts):
    torch = pytest.importorskip("torch")
    from audiocodec.training import entropy as training
    random = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(100):
        chosen = training._choose_books(num_books, random)
        assert chosen == sorted(set(chosen))
        assert tuple(np.histogram(chosen, [0, 8, 16, 100])[0]) == counts
        seen.update(chosen)
    assert seen == set(range(num_books))


def test_an_interrupted_training_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    from audiocodec.training import entropy as training
    rng = np.random.default_rng(0)
    codebooks, codes = rng.normal(size=(6, BOOK_SIZE, 5)).astype(np.float32), rng.integers(0, BOOK_SIZE, (3, 6, 400))
    form = Codes(codebooks)
    options = {"config": TINY, "updates": 5, "batch": 2}
    _, straight, _ = training.train_entropy(codes, form, codebooks, **options)
    update = training._Learner.update

    def interrupted(learner, *arguments):
        if learner.updates == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return update(learner, *arguments)

    monkeypatch.setattr(training._Learner, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        training.train_entropy(codes, form, codebooks, checkpoint=tmp_path / "entropy.pt", **options)
    monkeypatch.undo()
    _, resumed, report = training.train_entropy(codes, form, codebooks, checkpoint=tmp_path / "entropy.pt", **options)
    assert report["updates"] == 5
    assert all(np.array_equal(straight[name], resumed[name]) for name in straight)


def test_the_entropy_model_is_shown_the_codes_that_files_have():
    torch = pytest.importorskip("torch")
    from audiocodec.quantizer import ResidualQuantizer
    from audiocodec.training import entropy as training
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(TINY.num_books, BOOK_SIZE, 4)
    quantizer.codebooks.normal_()
    quantizer.codebooks.mul_(0.8 ** torch.arange(TINY.num_books)[:, None, None])
    latents, paths = torch.randn(3, 4, 250), Paths([4] * TINY.num_books)
    rows, ranks = quantizer.follow(latents, paths), np.arange(BOOK_SIZE)[::-1][None].repeat(TINY.num_books, 0)
    stream = training._Stream(rows, paths, ranks)
    places, depths, _ = stream.draw(16, TINY, torch.Generator().manual_seed(2))
    assert places.shape == (16, TINY.num_books, 512) and len(depths.unique()) > TINY.num_books
    joined = np.concatenate(rows, 1)
    for number, depth in enumerate(depths):
        wanted = [BOOK_SIZE - 1 - paths.plain(joined[None, :, start:start + 512], depth[None].numpy())
                  for start in range(750 - 511)]
        assert any(np.array_equal(codes[0], places[number]) for codes in wanted)


def test_class_ranks_number_similar_entries_alike():
    from audiocodec.training.entropy import class_ranks
    line = np.random.default_rng(0).permutation(BOOK_SIZE)
    ranks, = class_ranks(line[None, :, None].astype(np.float32))
    assert sorted(ranks) == list(range(BOOK_SIZE))
    assert all(np.ptp(line[ranks // 32 == group]) == 31 for group in range(32))


# The reference: int64 and Python integers only, one sequence, one frame and one value after the other.

def reference_tables(config, tensors, codes, depths, is_told):
    """Codes (K, T) and depths (T,) -> tables (n, 32) and symbols, in the order of coding."""
    tensors = {name: value.astype(np.int64) for name, value in tensors.items()}
    memory = [[] for _ in range(config.layers)]
    tables, symbols = [], []
    last, last_told = {}, UNTOLD
    for codes_now, depth in zip(codes.T, depths):
        told = depth if is_told else UNTOLD
        x = 8 * tensors["depth.input"][last_told]
        for k in range(config.context_books):
            x = x + 8 * tensors["input"][k, last.get(k, BOOK_SIZE)]
        for i in range(config.layers):
            x = x + reference_layer(config, tensors, f"layers.{i}.", x, memory[i])
        sums = nearest(tensors["context"] @ reference_norm(x) + tensors["context_bias"], 128)
        if is_told:
            hidden = reference_hidden(tensors, "depth.", (), sums + tensors["depth.before"][last_told])
            tables.append(reference_counts(tensors, tensors["depth.class"] @ hidden + tensors["depth.class_bias"]))
            symbols.append(depth)
        sums = sums + tensors["depth.here"][told]
        here = {k: tensors["order"][k, codes_now[k]] for k in range(depth)}
        sizes, start = list(config.turns), 0
        while start < depth:
            turn, hidden = range(start, min(start + sizes[0], depth)), {}
            for k in turn:
                past = tensors["before"][k, last.get(k, BOOK_SIZE)] if k < config.detailed_books else 0
                hidden[k] = reference_hidden(tensors, "", k, sums + past)
                tables.append(reference_counts(tensors, tensors["class"][k] @ hidden[k] + tensors["class_bias"][k]))
                symbols.append(here[k] // 32)
            for k in turn:
                if k < config.detailed_books:
                    group = here[k] // 32
                    scores = tensors["member"][k, group] @ hidden[k] + tensors["member_bias"][k, group]
                    tables.append(reference_counts(tensors, scores))
                    sums = sums + tensors["here"][k, here[k]]
                else:
                    tables.append(np.full(32, 2 ** 24 // 32 - 1))
                symbols.append(here[k] % 32)
            start, sizes = turn.stop, sizes[1:] or sizes
        last, last_told = here, told
    return np.array(tables), symbols


def reference_hidden(tensors, name, book, inputs):
    weights, bias = tensors[f"{name}hidden"][book], tensors[f"{name}hidden_bias"][book]
    return nearest(weights @ inputs.clip(-127, 127) + bias, 128).clip(0, 127)


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
