"""A stranger's net works with shape and dtype alone: masks, lengths, positions and ids are what they are called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy_runner.stages.model.npz import read_arrays
from tests.pipeline.nets import prepare, run

ROWS, BATCH = {"0": "batch", "1": "length"}, {"0": "batch"}
SQUARE = {"0": "length", "1": "length"}


def whole(*shape: int) -> dict[str, Any]:
    return {"shape": shape, "dtype": "int64"}


def flags(*shape: int) -> dict[str, Any]:
    return {"shape": shape, "dtype": "bool"}


NETS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "key_padding_mask": ("""
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.e = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)
    def forward(self, x, src_key_padding_mask):
        found = self.e(x, src_key_padding_mask=src_key_padding_mask)
        return found.masked_fill(src_key_padding_mask[..., None], 0)
""", {"x": {"shape": [2, 6, 8]}, "src_key_padding_mask": flags(2, 6)}, {"x": ROWS, "src_key_padding_mask": ROWS}),
    "attn_mask": ("""
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.m = nn.MultiheadAttention(8, 2, batch_first=True)
    def forward(self, x, attn_mask, key_padding_mask):
        return self.m(x, x, x, attn_mask=attn_mask, key_padding_mask=key_padding_mask)[0]
""", {"x": {"shape": [2, 6, 8]}, "attn_mask": flags(6, 6), "key_padding_mask": flags(2, 6)},
        {"x": ROWS, "key_padding_mask": ROWS, "attn_mask": SQUARE}),
    "ids, types, positions, mask of four axes": ("""
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.w, self.t, self.p = nn.Embedding(30, 8), nn.Embedding(2, 8), nn.Embedding(32, 8)
    def forward(self, input_ids, attention_mask, token_type_ids, position_ids):
        h = self.w(input_ids) + self.t(token_type_ids) + self.p(position_ids)
        scores = (h @ h.transpose(1, 2)).unsqueeze(1).masked_fill(attention_mask == 0, float("-inf"))
        return (scores.softmax(-1) @ h.unsqueeze(1)).squeeze(1)
""", {"input_ids": whole(2, 6), "attention_mask": whole(2, 1, 6, 6), "token_type_ids": whole(2, 6),
      "position_ids": whole(2, 6)},
        {"input_ids": ROWS, "token_type_ids": ROWS, "position_ids": ROWS,
         "attention_mask": {"0": "batch", "2": "length", "3": "length"}}),
    "mask from ids": ("""
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.a = nn.Embedding(30, 8), nn.Linear(8, 1)
    def forward(self, input_ids):
        x = self.e(input_ids)
        scores = self.a(x).squeeze(-1).masked_fill(input_ids == 0, float("-inf"))
        return (scores.softmax(-1)[..., None] * x).sum(1)
""", {"input_ids": whole(2, 4)}, {"input_ids": ROWS}),
    "timestep": ("""
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.c, self.o = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 8)
    def forward(self, sample, timestep):
        angles = timestep[:, None].float() / 10 ** torch.arange(4)
        shift = self.o(torch.cat([angles.sin(), angles.cos()], 1))
        return self.c(sample) + shift[:, :, None, None]
""", {"sample": {"shape": [2, 3, 8, 8]}, "timestep": whole(2)}, {"sample": BATCH, "timestep": BATCH}),
    "lengths of features": ("""
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.c = nn.Conv1d(40, 5, 3, padding=1)
    def forward(self, features, feature_lengths):
        h = self.c(features)
        return h.masked_fill(torch.arange(h.shape[2]) >= feature_lengths[:, None, None], 0), feature_lengths
""", {"features": {"shape": [2, 40, 20]}, "feature_lengths": whole(2)},
        {"features": {"0": "batch", "2": "time"}, "feature_lengths": BATCH}),
    "packed": ("""
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.r = nn.Embedding(9, 4), nn.GRU(4, 5, batch_first=True)
    def forward(self, tokens, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(self.e(tokens), lengths, batch_first=True)
        return self.r(packed)[1]
""", {"tokens": whole(2, 6), "lengths": whole(2)}, {"tokens": ROWS, "lengths": BATCH}),
    "the batch second": ("""
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.e = nn.Embedding(9, 4)
    def forward(self, src, wav_lens):
        kept = torch.arange(src.shape[0])[:, None] < (wav_lens * src.shape[0]).round()
        return (self.e(src) * kept[..., None]).sum(0) / kept.sum(0)[:, None]
""", {"src": whole(6, 2), "wav_lens": {"shape": [2]}}, {"src": {"0": "length", "1": "batch"}, "wav_lens": BATCH}),
    **{f"mask of {kind}": (f"""
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(8, 1)
    def forward(self, x, mask):
        scores = self.a(x).squeeze(-1).masked_fill({hidden}, float("-inf"))
        return (scores.softmax(-1)[..., None] * x).sum(1)
""", {"x": {"shape": [2, 6, 8]}, "mask": flags(2, 6)}, {"x": ROWS, "mask": ROWS})
       for kind, hidden in {"what is hidden": "mask", "what is kept": "~mask"}.items()},
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", NETS)
def test_inputs_are_what_they_are_called(tmp_path: Path, kind: str) -> None:
    source, example, dynamic = NETS[kind]
    bundle = prepare(tmp_path, source, example, dynamic=dynamic)["model"]
    made = run("torch.trace", tmp_path, inputs={"model": bundle})
    assert made.figures["cosine"] > 0.9999


def inputs(tmp_path: Path, kind: str, name: str) -> list[Any]:
    """Return the reference values of an input, case by case."""
    source, example, dynamic = NETS[kind]
    bundle = prepare(tmp_path, source, example, dynamic=dynamic)["model"]
    return [a for key, a in read_arrays(bundle / "reference.npz").items() if key.endswith(f"/in/{name}")]


def test_padding_is_on_the_right_and_leaves_something_in_every_row(tmp_path: Path) -> None:
    found = inputs(tmp_path, "key_padding_mask", "src_key_padding_mask")
    assert all((np.diff(mask.astype(int)) >= 0).all() and not mask[:, 0].any() for mask in found)
    assert all(mask[:, -1].any() for mask in found)


def test_a_mask_of_unknown_sense_hides_and_keeps_something_in_every_row(tmp_path: Path) -> None:
    found = inputs(tmp_path, "mask of what is kept", "mask")
    assert all(mask[:, 0].all() and not mask[:, -1].any() for mask in found)


def test_positions_count_and_begin_elsewhere_in_another_case(tmp_path: Path) -> None:
    first, second, *_ = inputs(tmp_path, "ids, types, positions, mask of four axes", "position_ids")
    assert first.tolist() == [[0, 1, 2, 3, 4, 5]] * 2
    assert second[0].tolist() == np.roll(np.arange(second.shape[1]), 1).tolist()


def test_ids_are_drawn_from_the_whole_table_that_they_look_up(tmp_path: Path) -> None:
    kind = "ids, types, positions, mask of four axes"
    words = np.concatenate([a.ravel() for a in inputs(tmp_path / "ids", kind, "input_ids")])
    types = np.concatenate([a.ravel() for a in inputs(tmp_path / "types", kind, "token_type_ids")])
    assert 20 < words.max() < 30
    assert set(types) == {0, 1}


def test_lengths_are_those_of_the_axis_that_varies(tmp_path: Path) -> None:
    found = inputs(tmp_path, "lengths of features", "feature_lengths")
    assert found[0].tolist() == [20, 14]
    shares = inputs(tmp_path, "the batch second", "wav_lens")
    assert shares[0].tolist() == pytest.approx([1.0, 4 / 6])
