"""The server's options, each declared once: command line, environment and documentation come from here."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from .devices import DEVICES, Device
from .placement import PLACES

__all__ = ["OPTIONS", "Option", "Settings", "add_options", "from_environment", "read_settings"]

_PREFIX = "SERVE_"
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "server": ("fastapi", "flask"),
    "device": DEVICES,
    "run_in": PLACES,
}
_GIVEN_BY_SAGEMAKER = {"port": "SAGEMAKER_BIND_TO_PORT"}
"""https://docs.aws.amazon.com/sagemaker/latest/dg/build-multi-model-build-container.html"""
_UNITS = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def _positive(text: str) -> int:
    if (number := _whole(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return number


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 0 or more")
    return number


def _bytes(text: str) -> int:
    digits = text.rstrip("KMGiB")
    unit = text[len(digits) :]
    if not digits.isdecimal() or unit not in _UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 16MiB")
    return int(digits) * _UNITS[unit]


class Option(NamedTuple):
    """One option: `parse` is None for a switch, `metavar` names what it takes."""

    name: str
    default: Any
    text: str
    parse: Callable[[str], Any] | None = str
    metavar: str = ""

    @property
    def flag(self) -> str:
        """Return the option as it is written on the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """Return the environment variable that sets it in a container."""
        return _PREFIX + self.name.upper()


OPTIONS = (
    Option("host", "127.0.0.1", "the address to listen on", str, "ADDRESS"),
    Option("port", 8000, "the port; 0 chooses a free one and prints it", _whole, "N"),
    Option("name", "", "the model's name in /v2 (default: the pipeline's, or `model`)", str, "NAME"),
    Option("reference", "", "the bundle of model.prepare, with the input names of a TorchScript file and the "
           "samples that a model must answer correctly before it is served", str, "PATH"),
    Option("atol", None, "absolute tolerance on the reference samples (default: the share of each "
           "output's largest value given in model.json, else 0.001)", _number, "X"),
    Option("rtol", None, "relative tolerance on the reference samples", _number, "X"),
    Option("io", "", "the output of model.io: takes pictures, texts and rows, answers with labels "
           "(default: the folder io beside the model)", str, "PATH"),
    Option("trust", False, "run TorchScript, which contains code, what torch.aot compiled, or an io's own "
           "functions", None),
    Option("watch", False, "reload when the artifact changes, as SIGHUP does", None),
    Option("server", "fastapi", "fastapi, or flask", str, "KIND"),
    Option("device", "cpu", "cpu, or cuda: a GPU of NVIDIA's, by onnxruntime-gpu or torch", str, "KIND"),
    Option("workers", 0, "processes that answer, at most one for each core (default: by the cores and the "
           "model)", _positive, "N"),
    Option("threads", 0, "cores for one inference of a worker (default: 1 for small models, else its share)",
           _positive, "N"),
    Option("run_in", "auto", "where batches run: auto (by their CPU time, against that of a hand-over), "
           "loop (the event loop), thread (beside it)", str, "PLACE"),
    Option("max_batch", 64, "largest number of samples run as one batch; 1 disables batching",
           _positive, "N"),
    Option("max_delay_us", 0, "how long a batch waits for more samples under load, in µs", _whole, "N"),
    Option("max_queue", 4096, "most samples that may wait; beyond that, requests get 429", _positive, "N"),
    Option("max_samples", 1024, "most samples in a request; a larger request gets 422", _positive, "N"),
    Option("max_body", 16 << 20, "largest size of a request; a larger one gets 413", _bytes, "SIZE"),
    Option("timeout_s", 30.0, "timeout of a request's arrival, and of its answer, in seconds", _number, "S"),
    Option("drain_s", 30.0, "how long SIGTERM waits for running requests, in seconds", _number, "S"),
    Option("lame_duck_s", 0.0, "how long requests are still accepted after SIGTERM, while /v2/health/ready "
           "already returns 503, in seconds", _number, "S"),
    Option("access_log", False, "log each request", None),
    Option("json", False, "print the address and the log as JSON", None),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Settings:
    """The options' values, with the artifact to serve."""

    artifact: str
    host: str
    port: int
    name: str
    reference: str
    atol: float | None
    rtol: float | None
    io: str
    trust: bool
    watch: bool
    server: str
    device: Device
    workers: int
    threads: int
    run_in: str
    max_batch: int
    max_delay_us: int
    max_queue: int
    max_samples: int
    max_body: int
    timeout_s: float
    drain_s: float
    lame_duck_s: float
    access_log: bool
    json: bool


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options to a parser; what isn't given is absent from its result."""
    for option in OPTIONS:
        default = "" if option.default in (None, 0, "", False) or "default" in option.text else _shown(option)
        text = option.text + default
        if option.parse is None:
            parser.add_argument(option.flag, action="store_true", default=argparse.SUPPRESS, help=text)
        else:
            choices = _CHOICES.get(option.name)
            parser.add_argument(
                option.flag, type=option.parse, default=argparse.SUPPRESS, help=text,
                metavar=None if choices else option.metavar, choices=choices,
            )  # fmt: skip


def _shown(option: Option) -> str:
    value = f"{option.default >> 20}MiB" if option.name == "max_body" else f"{option.default:}"
    return f" (default: {value})"


def read_settings(given: Mapping[str, Any], environ: Mapping[str, str]) -> Settings:
    """Return the settings: what the command line gave, else the environment's, else the defaults.

    Raises argparse.ArgumentTypeError that names the variable.
    """
    values = {option.name: _value(option, given, environ) for option in OPTIONS}
    found = Settings(artifact=given["artifact"], **values)
    if found.max_samples > found.max_queue:
        said = f"max_samples {found.max_samples} is more than max_queue {found.max_queue}"
        raise argparse.ArgumentTypeError(f"{said}: such a request would always be rejected")
    for name, choices in _CHOICES.items():
        if (value := getattr(found, name)) not in choices:
            raise argparse.ArgumentTypeError(f"{name} {value!r} is neither {' nor '.join(choices)}")
    return found


def from_environment(name: str, environ: Mapping[str, str]) -> Any:
    """Return an option's value without a command line. Raises argparse.ArgumentTypeError."""
    return _value(next(option for option in OPTIONS if option.name == name), {}, environ)


def _value(option: Option, given: Mapping[str, Any], environ: Mapping[str, str]) -> Any:
    if option.name in given:
        return given[option.name]
    variables = (_GIVEN_BY_SAGEMAKER.get(option.name, ""), option.variable)
    variable = next((name for name in variables if name in environ), "")
    if not variable:
        return option.default
    if option.parse is None:
        return environ[variable] not in ("", "0", "false")
    try:
        return option.parse(environ[variable])
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{variable}: {error}") from None


assert [o.name for o in OPTIONS] == [f.name for f in fields(Settings)][1:]
