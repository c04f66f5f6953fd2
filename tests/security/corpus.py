"""Live malicious files, made by script: each would run code, or leave its place, if it were trusted.

`samples()` yields them. What a sample executes touches the file `canary`; what it reads is the file
`secret`, which lies outside of everything that it was given.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper

from tests.security.archives import archives
from tests.security.folders import folders
from tests.security.pickles import odd_pickles, pickles, reduce_
from tests.security.samples import Place, Sample, write


def _overlay(place: Place, text: str) -> Path:
    return write(place, "overlay.yaml", text.replace("CANARY", str(place.canary)).encode())


def _model(place: Place, **claims: Any) -> Path:
    return onnx_model(place.folder / "model", **claims)


# Zip archives, safetensors, TorchScript ----------------------------------------------------


def _zip(
    place: Place, *members: tuple[str, bytes], compression: int = zipfile.ZIP_STORED, edit: Any = None
) -> Path:
    buffer = io.BytesIO()
    import warnings

    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", compression) as archive:
        warnings.simplefilter("ignore")
        for name, data in members:
            archive.writestr(name, data)
    data = buffer.getvalue()
    return write(place, "c.pt", edit(data) if edit else data)


def _zips() -> Iterator[Sample]:
    good = ("archive/data.pkl", pickle.dumps({}, protocol=2))

    def bomb(place: Place) -> Path:
        return _zip(place, ("archive/data.pkl", bytes(200_000_000)), compression=zipfile.ZIP_DEFLATED)

    def encrypted(data: bytes) -> bytes:
        view = bytearray(data)
        at = view.index(b"PK\x01\x02")
        view[at + 8] |= 1
        view[6] |= 1
        return bytes(view)

    def larger(data: bytes) -> bytes:
        view = bytearray(data)
        at = view.index(b"PK\x01\x02")
        view[at + 24 : at + 28] = struct.pack("<I", 2**31)
        return bytes(view)

    makers: dict[str, Callable[[Place], Path]] = {
        "a name twice": lambda p: _zip(p, good, good),
        "an absolute name": lambda p: _zip(p, good, (f"/{p.canary}", b"x")),
        "a name with dots": lambda p: _zip(p, good, ("archive/../../canary", b"x")),
        "a compressed bomb": bomb,
        "an lzma member": lambda p: _zip(p, good, compression=zipfile.ZIP_LZMA),
        "an encrypted member": lambda p: _zip(p, good, edit=encrypted),
        "a size beyond the file": lambda p: _zip(p, good, edit=larger),
        "no data": lambda p: _zip(p, ("archive/version", b"3")),
        "another zip": lambda p: _zip(p, ("readme.txt", b"x")),
        "an empty zip": lambda p: _zip(p),
        "a cut directory": lambda p: _zip(p, good, edit=lambda d: d[:-30]),
        "a directory elsewhere": lambda p: _zip(p, good, edit=lambda d: d[:-6] + struct.pack("<I", 2**31) + d[-2:]),
        "two roots": lambda p: _zip(p, good, ("other/data.pkl", reduce_("posix", "system", f"touch {p.canary}"))),
        "a pickle behind a good name": lambda p: _zip(p, ("archive/data.pkl", reduce_("posix", "system", f"touch {p.canary}"))),
        "100,000 members": lambda p: _zip(p, good, *((f"archive/data/{i}", b"") for i in range(100_000))),
    }  # fmt: skip
    for name, make in makers.items():
        yield Sample(f"zip-{name.replace(' ', '_')}", "checkpoint", make)


def _safetensors(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _tensor(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def _safetensor_files() -> Iterator[Sample]:
    files = {
        "huge header": _safetensors({}, length=2**60),
        "header beyond the file": _safetensors({"a": _tensor(0, 4, [1])}, length=500),
        "header that is a list": _safetensors(b"[1, 2]"),
        "header that is cut": _safetensors(b'{"a": {"dtype"'),
        "offset beyond the file": _safetensors({"a": _tensor(0, 4000, [1000])}, bytes(8)),
        "negative offset": _safetensors({"a": _tensor(-4, 4, [2])}, bytes(8)),
        "end before start": _safetensors({"a": _tensor(8, 0, [2])}, bytes(8)),
        "overlap": _safetensors({"a": _tensor(0, 8, [2]), "b": _tensor(4, 12, [2])}, bytes(12)),
        "hole": _safetensors({"a": _tensor(0, 4, [1]), "b": _tensor(8, 12, [1])}, bytes(12)),
        "shape larger than its data": _safetensors({"a": _tensor(0, 8, [1000, 1000])}, bytes(8)),
        "shape that overflows": _safetensors({"a": _tensor(0, 8, [2**62, 4])}, bytes(8)),
        "negative shape": _safetensors({"a": _tensor(0, 8, [-2])}, bytes(8)),
        "unknown type": _safetensors({"a": _tensor(0, 8, [2], "X99")}, bytes(8)),
        "deep header": _safetensors(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        "data behind the end": _safetensors({"a": _tensor(0, 4, [1])}, bytes(4000)),
    }
    for name, data in files.items():
        yield Sample(
            f"safetensors-{name.replace(' ', '_')}",
            "checkpoint",
            partial(write, name="w.safetensors", data=data),
        )
    indexes = {
        "above": {"weight_map": {"a": "../secret"}},
        "absolute": {"weight_map": {"a": "/etc/passwd"}},
        "missing": {"weight_map": {"a": "none.safetensors"}},
        "a number": {"weight_map": {"a": 3}},
        "no map": {"a": 1},
        "itself": {"weight_map": {"a": "model.safetensors.index.json"}},
    }
    for name, index in indexes.items():

        def shards(place: Place, i: Any = index) -> Path:
            folder = place.folder / "shards"
            folder.mkdir()
            (folder / "model.safetensors.index.json").write_text(json.dumps(i))
            return folder

        yield Sample(f"shards-{name.replace(' ', '_')}", "checkpoint", shards)


def _programs() -> Iterator[Sample]:
    def scripted(place: Place) -> Path:
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), place.folder / "c.pt")
        return place.folder / "c.pt"

    def linked(place: Place) -> Path:
        (place.folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "x.safetensors"}}')
        (place.folder / "x.safetensors").symlink_to(place.secret)
        return place.folder

    def exported(place: Place) -> Path:
        return _zip(
            place, ("archive/models/model.json", b"{}"), ("archive/data.pkl", reduce_("os", "system", "x"))
        )

    yield Sample("torchscript-as-a-checkpoint", "checkpoint", scripted)
    yield Sample("pt2-as-a-checkpoint", "checkpoint", exported)
    yield Sample("shards-behind-a-link", "checkpoint", linked)


# ONNX, arrays, archives, YAML --------------------------------------------------------------


def onnx_model(
    folder: Path, *, location: str = "w.bin", offset: str = "0", length: str = "16", dims: Any = (4,)
) -> Path:
    """Write a model whose weight is external data with these claims; return its folder."""
    folder.mkdir(exist_ok=True)
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=value)
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [4]) for n in ("x", "y")]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])], "g", ports[:1], ports[1:], [tensor]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    (folder / "w.bin").write_bytes(np.ones(4, np.float32).tobytes())
    return folder


def _onnx_models() -> Iterator[Sample]:
    claims: dict[str, dict[str, Any]] = {
        "absolute": {"location": "/etc/passwd"},
        "above": {"location": "../secret"},
        "above inside": {"location": "a/../../secret"},
        "backslashes": {"location": "..\\secret"},
        "missing": {"location": "none.bin"},
        "empty": {"location": ""},
        "negative offset": {"offset": "-1"},
        "huge offset": {"offset": "99999999999999"},
        "offset in words": {"offset": "nine"},
        "negative length": {"length": "-16"},
        "short length": {"length": "4"},
        "long length": {"length": "99999999999"},
        "huge shape": {"dims": (2**40,)},
        "negative shape": {"dims": (-4,)},
        "overflowing shape": {"dims": (2**40, 2**40)},
    }
    for name, given in claims.items():
        yield Sample(f"onnx-{name.replace(' ', '_')}", "onnx", partial(_model, **given))

    def behind(place: Place, link: Callable[[Path, Path], Any]) -> Path:
        folder = onnx_model(place.folder / "model")
        (folder / "w.bin").unlink()
        link(place.secret, folder / "w.bin")
        return folder

    def cut(place: Place) -> Path:
        folder = onnx_model(place.folder / "model")
        data = (folder / "model.onnx").read_bytes()
        (folder / "model.onnx").write_bytes(data[: len(data) // 2] + b"\xff" * 20)
        return folder

    def custom(place: Place) -> Path:
        ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [4]) for n in ("x", "y")]
        graph = helper.make_graph(
            [helper.make_node("Run", ["x"], ["y"], domain="evil")], "g", ports[:1], ports[1:]
        )
        (place.folder / "m.onnx").write_bytes(
            helper.make_model(
                graph,
                opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("evil", 1)],
                ir_version=10,
            ).SerializeToString()
        )
        return place.folder / "m.onnx"

    def within(place: Place) -> Path:
        """Data outside of the folder, in a constant of a function of the model's own."""
        tensor = TensorProto(
            name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL
        )
        tensor.external_data.add(key="location", value="../secret")
        constant = helper.make_node("Constant", [], ["c"], value=tensor)
        nodes = [constant, helper.make_node("Add", ["a", "c"], ["b"])]
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
        function = helper.make_function("own", "F", ["a"], ["b"], nodes, opsets[:1])
        ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [4]) for n in ("x", "y")]
        call = helper.make_node("F", ["x"], ["y"], domain="own")
        graph = helper.make_graph([call], "g", ports[:1], ports[1:])
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=[function])
        (place.folder / "m.onnx").write_bytes(model.SerializeToString())
        return place.folder / "m.onnx"

    yield Sample("onnx-data_of_a_function", "onnx", within)
    yield Sample("onnx-symlink", "onnx", lambda p: behind(p, lambda s, t: t.symlink_to(s)))
    yield Sample("onnx-hard_link", "onnx", lambda p: behind(p, os.link))
    yield Sample("onnx-fifo", "onnx", lambda p: behind(p, lambda s, t: os.mkfifo(t)))
    yield Sample("onnx-cut", "onnx", cut)
    yield Sample("onnx-own_operator", "onnx", custom)
    yield Sample("onnx-no_bytes", "onnx", lambda p: write(p, "m.onnx", b""))


def _npy(header: dict[str, Any] | bytes, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else repr(header).encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def _arrays() -> Iterator[Sample]:
    plain = {"descr": "<f4", "fortran_order": False, "shape": (2, 64)}
    members: dict[str, Callable[[Place], bytes]] = {
        "objects": lambda p: _npy({**plain, "descr": "|O"}, reduce_("posix", "system", f"touch {p.canary}")),
        "objects in a record": lambda p: _npy({**plain, "descr": [("a", "|O")]}, reduce_("posix", "system", f"touch {p.canary}")),
        "shape beyond the file": lambda p: _npy({**plain, "shape": (10**12, 64)}, bytes(512)),
        "negative shape": lambda p: _npy({**plain, "shape": (-1, 64)}, bytes(512)),
        "code in the header": lambda p: _npy(f"{{'descr': '<f4', 'fortran_order': False, 'shape': __import__('os').system('touch {p.canary}')}}".encode()),
        "deep header": lambda p: _npy(b"(" * 30_000),
        "no header": lambda p: b"\x93NUMPY",
        "a pickle": lambda p: reduce_("posix", "system", f"touch {p.canary}"),
        "words": lambda p: _npy({**plain, "descr": "<U4", "shape": (2, 64)}, bytes(2048)),
    }  # fmt: skip
    for name, member in members.items():

        def make(place: Place, m: Any = member) -> Path:
            path = place.folder / "a.npz"
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("x.npy", m(place))
            return path

        yield Sample(f"arrays-{name.replace(' ', '_')}", "arrays", make)

    def bomb(place: Place) -> Path:
        path = place.folder / "a.npz"
        with (
            zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive,
            archive.open("x.npy", "w") as file,
        ):
            file.write(_npy({**plain, "shape": (1, 500_000_000)}))
            for _ in range(2000):
                file.write(bytes(1_000_000))
        return path

    yield Sample("arrays-a_bomb", "arrays", bomb)
    yield Sample(
        "arrays-a_bare_pickle",
        "arrays",
        lambda p: write(p, "a.npz", reduce_("posix", "system", f"touch {p.canary}")),
    )
    yield Sample("arrays-cut", "arrays", lambda p: write(p, "a.npz", b"PK\x03\x04" + bytes(60)))


def _yaml() -> Iterator[Sample]:
    head = "version: 1\nname: x\nstages:\n  a: {uses: text.upper, inputs: {text: in.txt}}\n"
    merge = "\n".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 12))
    laughs = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))
    texts = {
        "laughs": f"a0: &a0 [lol]\n{laughs}\n{head}",
        "merge bomb": f"a0: &a0 {{x: 1}}\n{merge}\n{head}",
        "deep brackets": "a: " + "[" * 20_000,
        "deep braces": "a: " + "{a: " * 20_000,
        "deep indents": "\n".join(" " * i + "a:" for i in range(3000)),
        "recursive alias": f"{head}x: &x [*x]\n",
        "unknown alias": f"{head}x: *nowhere\n",
        "huge scalar": f"{head}x: '{'y' * 30_000_000}'\n",
        "duplicate key": f"{head}name: y\n",
        "python object": f"{head}x: !!python/object/apply:os.system ['touch CANARY']\n",
        "python name": f"{head}x: !!python/name:os.system\n",
        "python module": f"{head}x: !!python/module:os\n",
        "own tag": f"{head}x: !evil y\n",
        "binary": f"{head}x: !!binary AAAA\n",
        "two documents": f"{head}---\n{head}",
        "no utf-8": "version: 1\nname: \xff\xfe\n",
        "null byte": f"{head}x: a\0b\n",
        "many keys": head + "\n".join(f"k{i}: 1" for i in range(300_000)),
        "absolute input": head.replace("in.txt", "/etc/passwd"),
        "input above": head.replace("in.txt", "../secret"),
        "code above": "version: 1\nname: x\nstages:\n  a: {uses: model.prepare, inputs: {weights: in.txt}, with: {factory: '../evil.py:run', example: {shape: [1]}}}\n",
        "expression": head.replace("in.txt", "${{ __import__('os').system('touch CANARY') }}"),
        "template": head.replace("in.txt", "{{ ''.__class__.__mro__ }}"),
        "environment": head.replace("in.txt", "${{ env.HOME }}"),
        "stage name above": head.replace("  a:", "  ../../canary:"),
        "output above": "version: 1\nname: x\nstages:\n  a: {uses: run.command, outputs: {o: ../canary}, with: {command: 'touch CANARY'}}\n",
        "absolute output": "version: 1\nname: x\nstages:\n  a: {uses: run.command, outputs: {o: /tmp/canary}, with: {command: 'touch CANARY'}}\n",
    }  # fmt: skip
    for name, text in texts.items():

        def make(place: Place, t: str = text) -> Path:
            data = t.replace("CANARY", str(place.canary))
            return write(place, "pipeline.yaml", data.encode("latin-1" if "\xff" in data else "utf-8"))

        yield Sample(f"yaml-{name.replace(' ', '_')}", "yaml", make)
    overlays = {
        "laughs": f"a0: &a0 [lol]\n{laughs}\n",
        "python object": "x: !!python/object/apply:os.system ['touch CANARY']\n",
        "a list": "- 1\n- 2\n",
        "unknown stage": "stages: {none: {with: {a: 1}}}\n",
    }
    for name, text in overlays.items():
        yield Sample(
            f"overlay-{name.replace(' ', '_')}", "overlay",
            partial(_overlay, text=text),
        )  # fmt: skip


def samples() -> list[Sample]:
    """Return every malicious sample."""
    groups = (
        pickles,
        odd_pickles,
        _zips,
        _safetensor_files,
        _programs,
        folders,
        _onnx_models,
        _arrays,
        archives,
        _yaml,
    )
    return [sample for group in groups for sample in group()]
