"""Weights files: what goes in comes out, to the precision that a file has."""
import numpy as np

from audiocodec import weights


def test_codebooks_take_a_byte_a_number_and_come_back_all_but_the_same(tmp_path):
    rng = np.random.default_rng(0)
    books = rng.normal(size=(3, 16, 8)).astype(np.float32) * np.float32([1, 0.1, 0.01])[:, None, None]
    books[:, 0] = 0
    state = {"quantizer.codebooks": books, "encoder.linear.weight": rng.normal(size=(8, 4)).astype(np.float32)}
    path = tmp_path / "model.safetensors"
    path.write_bytes(weights.pack({"codec": {}, "entropy": {}}, weights.codec_tensors(state)))
    loaded = weights.load(str(path))
    assert loaded.tensors["codec.quantizer.codebooks"].dtype == np.int8
    found = loaded.codec()
    assert set(found) == set(state)
    assert np.array_equal(found["quantizer.codebooks"], weights.rounded_books(books))
    assert np.array_equal(weights.rounded_books(found["quantizer.codebooks"]), found["quantizer.codebooks"])
    assert not found["quantizer.codebooks"][:, 0].any()
    error = np.abs(found["quantizer.codebooks"] - books).max((1, 2))
    assert (error < 0.006 * np.abs(books).max((1, 2))).all()
    assert np.allclose(found["encoder.linear.weight"], state["encoder.linear.weight"], atol=2e-3)
