"""What a pipeline may say of raw input and of the answer: the parameters of model.io."""

from __future__ import annotations

from typing import Annotated, Literal

from deploy_runner.sdk import Field, StageParams

__all__ = ["Answer", "Column", "Picture", "Row", "Text"]

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
