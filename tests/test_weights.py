"""Weights files: what goes in comes out, to the precision that a file has."""
import numpy as np

from audiocodec import weights


def test_codebooks_and_large_matrices_take_a_byte_a_number_and_come_back_all_but_the_same(tmp_path):
    rng = np.random.default_rng(0)
    books = rng.normal(size=(3, 16, 8)).astype(np.float32) * np.float32([1, 0.1, 0.01])[:, None, None]
    books[:, 0] = 0
    state = {"quantizer.codebooks": books, "encoder.linear.weight": rng.normal(size=(8, 4)).astype(np.float32),
             "decoder.network.blocks.0.expand.weight": rng.normal(size=(24, 8)).astype(np.float32)}
    path = tmp_path / "model.safetensors"
    path.write_bytes(weights.pack({"codec": {}, "entropy": {}}, weights.codec_tensors(state)))
    loaded = weights.load(str(path))
    in_bytes = {name for name in state if loaded.tensors[f"codec.{name}"].dtype == np.int8}
    assert in_bytes == {"quantizer.codebooks", "decoder.network.blocks.0.expand.weight"}
    found, rounded = loaded.codec(), weights.rounded(state)
    assert found.keys() == rounded.keys() == state.keys()
    assert all(np.array_equal(found[name], rounded[name]) for name in state)
    assert all(np.array_equal(tensor, found[name]) for name, tensor in weights.rounded(found).items())
    assert not found["quantizer.codebooks"][:, 0].any()
    for name in in_bytes:
        error, largest = np.abs(found[name] - state[name]), np.abs(state[name]).max(-1, keepdims=True)
        assert (error <= 0.006 * largest).all()
    assert np.allclose(found["encoder.linear.weight"], state["encoder.linear.weight"], atol=2e-3)
