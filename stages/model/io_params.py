"""What a pipeline may say of raw input and of the answer: the parameters of model.io."""

from __future__ import annotations

from typing import Annotated, Literal

from deploy_runner.sdk import Field, StageParams

__all__ = ["Answer", "Column", "Mel", "Picture", "Row", "Sound", "Text"]

Size = Annotated[int, Field(ge=1)]
Channel = Annotated[list[float], Field(min_length=1, max_length=4)]
Label = str | int


class Picture(StageParams):
    """How a picture becomes a tensor; what isn't said is as most training code has it."""

    mode: Literal["RGB", "L"] | None = Field(None, description="colours or grey (default: by the channels)")
    exif: bool = Field(True, description="turn pictures as their EXIF orientation says")
    background: list[int] | None = Field(
        None, description="the colour [r, g, b] behind transparent pixels (default: transparency is dropped)"
    )
    resize: Size | list[Size] | None = Field(
        None, description="the length of the shorter side, or [height, width]"
    )
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"] = Field(
        "bilinear", description="as Pillow has it, always with antialias"
    )
    crop: Size | list[Size] | None = Field(
        None, description="cut the centre of this size, or [height, width]"
    )
    scale: bool = Field(True, description="divide by 255")
    mean: Channel | None = Field(None, description="subtracted, by channel, after scaling")
    std: Channel | None = Field(None, description="divided by, by channel")
    channels: Literal["RGB", "BGR"] = Field("RGB", description="the order of the channels")
    max_pixels: int = Field(50_000_000, ge=1, description="larger pictures are refused before they are read")


class Text(StageParams):
    """How a text becomes ids; the rest is read from the tokenizer's files."""

    max_length: Size | None = Field(
        None, description="tokens of a text, special ones included (default: what tokenizer and model say)"
    )
    truncation: Literal["longest_first", "only_first", "only_second"] | None = Field(
        "longest_first", description="how longer texts are shortened; null refuses them"
    )
    padding: Literal["longest", "max_length"] | None = Field(
        None, description="to the longest of a batch, or to max_length (default: longest, if the model may)"
    )
    pad_to: Size | None = Field(None, description="pad to a multiple of this number")
    special_tokens: bool = Field(True, description="add [CLS], </s> and the like")
    pairs: bool = Field(False, description="a sample is two texts: `text` and `text_pair`")
    max_characters: int = Field(200_000, ge=1, description="longer texts are refused before they are read")


class Mel(StageParams):
    """A mel spectrogram; what isn't said is as torchaudio.transforms.MelSpectrogram has it."""

    n_mels: Size = Field(128, description="how many filters")
    n_fft: Size = Field(400, description="samples of a frame")
    win_length: Size | None = Field(None, description="samples of the window (default: n_fft)")
    hop_length: Size | None = Field(
        None, description="samples from a frame to the next (default: half of win_length)"
    )
    window: Literal["hann", "hamming"] = Field("hann", description="the window, periodic")
    pad: Literal["reflect", "constant"] | None = Field(
        "reflect",
        description="what is beyond the ends, frames being centred; null: they begin at their sample",
    )
    power: Literal[1, 2] = Field(2, description="of the magnitudes")
    f_min: float = Field(0, ge=0, description="the lowest frequency in Hz")
    f_max: float | None = Field(None, description="the highest frequency in Hz (default: half of rate)")
    scale: Literal["htk", "slaney"] = Field("htk", description="whose mel scale")
    norm: Literal["slaney"] | None = Field(
        None, description="filters of the same area, or of the same height"
    )
    log: Literal["ln", "log10", "db", "whisper"] | None = Field(
        None, description="the logarithm of it: db is 10 log10; whisper is log10, down to 8 below the "
        "largest, then (x + 4) / 4"
    )  # fmt: skip
    add: float = Field(0, ge=0, description="added before the logarithm")
    floor: float = Field(1e-10, ge=0, description="the least value of which the logarithm is taken")
    top_db: float | None = Field(None, gt=0, description="db: how far below the largest one may be")
    drop_last: bool = Field(False, description="drop the last frame")
    mean: float | None = Field(None, description="subtracted at last")
    std: float | None = Field(None, gt=0, description="divided by at last")


class Sound(StageParams):
    """How a sound becomes a tensor: a wave from -1 to 1 of one channel, or its spectrogram."""

    rate: Size | None = Field(None, description="samples a second (default: as the folder says)")
    resample: Literal["hq", "vhq"] | None = Field(
        "hq", description="soxr's quality, for sounds of another rate; null refuses them"
    )
    seconds: float | None = Field(
        None, gt=0, description="every sound is cut, or filled up with zeros, to this length"
    )
    scale: float = Field(1, gt=0, description="multiplied with; 32768 for values of 16 bits")
    normalize: bool = Field(False, description="a mean of 0 and a variance of 1, as Wav2Vec2 has them")
    mel: Mel | None = Field(None, description="a spectrogram of it")
    max_seconds: float = Field(60, gt=0, description="longer sounds are refused before they are read")


class Column(StageParams):
    """One column of a row."""

    name: str = Field(description="its name in requests, and in the header of a CSV")
    tensor: str | None = Field(
        None, description="the model's input that it goes into (default: the only one)"
    )
    kind: Literal["number", "category", "flag"] = Field("number", description="what its values are")
    vocabulary: list[str | int] | None = Field(
        None, description="the categories; the place of one is its number"
    )
    unknown: int | None = Field(None, description="the number of any other category (default: refused)")
    missing: float | int | str | bool | None = Field(
        None, description="the value of one that is missing or null (default: refused)"
    )
    mean: float | None = Field(None, description="subtracted from a number")
    std: float | None = Field(None, gt=0, description="a number is divided by it")


class Row(StageParams):
    """How named columns become tensors."""

    columns: list[Column] = Field(min_length=1, description="in the order that the model was trained with")


class Answer(StageParams):
    """What is answered."""

    kind: Literal["classes", "labels", "number", "embedding", "boxes", "mask"] | None = Field(
        None,
        description="the best classes, all labels from a threshold on, a number, an embedding, boxes, or a "
        "class for each pixel (default: classes or a number, by the shape of the first output)",
    )
    output: str | None = Field(None, description="the model's output that it is made of (default: the first)")
    activation: Literal["softmax", "sigmoid", "none"] | None = Field(
        None, description="what makes scores of the output (default: softmax; none where they add up to 1)"
    )
    top: Size = Field(5, description="how many classes are listed")
    threshold: float = Field(0.5, description="the lowest score of a label or box")
    labels: list[Label] | None = Field(None, description="the classes' names, in order")
    pooling: Literal["mean", "max", "cls", "last"] = Field(
        "mean", description="how the vectors of tokens become one"
    )
    normalize: bool = Field(False, description="embeddings of length 1")
    boxes: str | None = Field(None, description="the output with boxes [N, K, 4]")
    classes: str | None = Field(None, description="the output with the boxes' classes [N, K]")
    scores: str | None = Field(None, description="the output with the boxes' scores [N, K]")
