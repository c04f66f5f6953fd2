"""Models that were written for the zoo, in the style of strangers."""

from __future__ import annotations

from collections.abc import Mapping

from .entries import Entry, Given, Sizes

__all__ = ["ENTRIES"]

_AREA: Mapping[str, Sizes] = {"height": (32, 45, 70), "width": (40, 33, 58)}
_EVEN: Mapping[str, Sizes] = {"height": (32, 48, 72), "width": (40, 36, 60)}
_TIME: Mapping[str, Sizes] = {"time": (12, 9, 23)}
_SOUND: Mapping[str, Sizes] = {"time": (512, 640, 1024)}
_GRAPH: Mapping[str, Sizes] = {"nodes": (9, 14, 25), "edges": (20, 11, 47)}


def _picture(channels: int = 3) -> Given:
    return Given(("batch", channels, "height", "width"))


def _whole(*shape: int | str, high: int) -> Given:
    return Given(shape, "int64", 1, high)


def _mask() -> Given:
    return Given(("batch", "time"), "int64", fill="mask")


_LENGTHS = Given(("batch",), "int64", fill="lengths")
_EDGES = {"nodes": Given(("nodes", 8)), "edges": Given((2, "edges"), "int64", 0, 9)}

_ALL: dict[str, tuple[str, dict[str, Given], Mapping[str, Sizes]]] = {
    "unet": ("vision.py:UNet", {"x": _picture()}, _AREA),
    "pad_to_multiple": ("vision.py:PadToMultiple", {"x": _picture()}, _AREA),
    "super_resolution": ("vision.py:SuperResolution", {"x": _picture()}, _AREA),
    "yolo": ("vision.py:Yolo", {"x": _picture()}, {"height": (64, 96, 160), "width": (96, 64, 128)}),
    "spatial_transformer": ("vision.py:SpatialTransformer", {"image": _picture(1)}, _AREA),
    "roi_reader": (
        "vision.py:RoiReader",
        {"image": Given((1, 3, "height", "width")), "boxes": Given(("boxes", 4))},
        {**_AREA, "boxes": (3, 5, 8)},
    ),
    "patch_fold": ("vision.py:PatchFold", {"x": _picture()}, _EVEN),
    "mlp_mixer": ("vision.py:MlpMixer", {"x": Given(("batch", 3, 32, 32))}, {}),
    "capsules": ("vision.py:Capsules", {"x": Given(("batch", 1, 32, 32))}, {}),
    "haar": ("vision.py:Haar", {"x": _picture(1)}, {"height": (32, 48, 72), "width": (40, 36, 60)}),
    "spectral_norm": ("vision.py:Spectral", {"x": _picture()}, _AREA),
    "packed_lstm": (
        "sequence.py:PackedLstm", {"tokens": _whole("batch", "time", high=50), "lengths": _LENGTHS}, _TIME
    ),
    "masked_gru": (
        "sequence.py:MaskedGru", {"series": Given(("batch", "time", 6)), "lengths": _LENGTHS}, _TIME
    ),
    "masked_attention": (
        "sequence.py:MaskedAttention", {"ids": _whole("batch", "time", high=60), "mask": _mask()}, _TIME
    ),
    "encoder_layers": (
        "sequence.py:EncoderLayers", {"tokens": _whole("batch", "time", high=40), "mask": _mask()}, _TIME
    ),
    "tcn": ("sequence.py:Tcn", {"x": Given(("batch", 4, "time"))}, _TIME),
    "kalman": ("sequence.py:Kalman", {"z": Given(("batch", 6, 2))}, {}),
    "seq2seq": ("sequence.py:Seq2Seq", {"source": _whole("batch", "time", high=20)}, _TIME),
    "bag_of_words": ("sequence.py:BagOfWords", {"words": _whole("batch", "time", high=80)}, _TIME),
    "tied_language_model": (
        "sequence.py:TiedLanguageModel", {"ids": _whole("batch", "time", high=70)}, _TIME
    ),
    "perceiver": ("sequence.py:Perceiver", {"x": Given(("batch", "time", 5))}, _TIME),
    "graph_net": ("sets.py:GraphNet", _EDGES, _GRAPH),
    "graph_attention": ("sets.py:GraphAttention", _EDGES, _GRAPH),
    "deep_sets": ("sets.py:DeepSets", {"points": Given(("batch", "time", 3)), "mask": _mask()}, _TIME),
    "experts": ("sets.py:Experts", {"x": Given(("batch", "time", 12))}, _TIME),
    "routed_experts": ("sets.py:RoutedExperts", {"x": Given(("batch", 8))}, {}),
    "real_nvp": ("sets.py:RealNvp", {"x": Given(("batch", 6))}, {}),
    "vae": ("sets.py:Vae", {"x": Given(("batch", 20))}, {}),
    "mixture_density": ("sets.py:MixtureDensity", {"x": Given(("batch", 5)), "y": Given(("batch", 1))}, {}),
    "ranker": ("sets.py:Ranker", {"user": Given(("batch", 6)), "items": Given(("batch", "time", 6))}, _TIME),
    "running_norm": ("sets.py:RunningNorm", {"x": Given(("batch", 5))}, {}),
    "tensorised": ("sets.py:Tensorised", {"x": Given(("batch", 4)), "y": Given(("batch", 2))}, {}),
    "stft": ("signal.py:StftNet", {"sound": Given(("batch", "time"))}, _SOUND),
    "fourier_mixer": ("signal.py:FourierMixer", {"ids": _whole("batch", "time", high=30)}, _TIME),
    "spectral_conv": ("signal.py:SpectralConv", {"u": Given(("batch", "time"))}, {"time": (24, 31, 50)}),
    "complex_net": (
        "signal.py:ComplexNet", {"real": Given(("batch", 6)), "imaginary": Given(("batch", 6))}, {}
    ),
    "wave_rnn": ("signal.py:WaveRnn", {"sound": Given(("batch", "time"))}, _SOUND),
    "attentive_pooling": ("signal.py:AttentivePooling", {"x": Given(("batch", 10, "time"))}, _TIME),
}  # fmt: skip

ENTRIES = [
    Entry(f"hand/{name}", "handwritten", inputs, factory, sizes=sizes)
    for name, (factory, inputs, sizes) in _ALL.items()
]
