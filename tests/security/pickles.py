"""Pickles that would run code: every call by every opcode, in every container of torch."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.security.samples import Place, Sample, write

__all__ = ["odd_pickles", "pickles", "reduce_"]


def _text(value: Any) -> bytes:
    """Return the opcodes that push a plain value."""
    return pickle.dumps(value, protocol=2)[2:-1]


def _global(module: str, name: str) -> bytes:
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


def _stack_global(module: str, name: str) -> bytes:
    return _text(module) + _text(name) + b"\x93"


def reduce_(module: str, name: str, *arguments: Any) -> bytes:
    """GLOBAL, arguments, REDUCE."""
    return b"\x80\x02" + _global(module, name) + _text(arguments) + b"R."


def reduce_4(module: str, name: str, *arguments: Any) -> bytes:
    """STACK_GLOBAL of protocol 4, arguments, REDUCE."""
    return b"\x80\x04" + _stack_global(module, name) + _text(arguments) + b"R."


def inst(module: str, name: str, *arguments: Any) -> bytes:
    """MARK, arguments, INST of protocol 0."""
    pushed = b"".join(_text(a) for a in arguments)
    return b"(" + pushed + b"i" + module.encode() + b"\n" + name.encode() + b"\n."


def obj(module: str, name: str, *arguments: Any) -> bytes:
    """MARK, class, arguments, OBJ."""
    return b"\x80\x02(" + _global(module, name) + b"".join(_text(a) for a in arguments) + b"o."


def newobj(module: str, name: str, *arguments: Any) -> bytes:
    """Class, arguments, NEWOBJ."""
    return b"\x80\x02" + _global(module, name) + _text(arguments) + b"\x81."


def newobj_ex(module: str, name: str, *arguments: Any) -> bytes:
    """Class, arguments, keywords, NEWOBJ_EX."""
    return b"\x80\x04" + _stack_global(module, name) + _text(arguments) + _text({}) + b"\x92."


def build(module: str, name: str, *arguments: Any) -> bytes:
    """A harmless object whose state is made by a call: BUILD."""
    call = _global(module, name) + _text(arguments) + b"R"
    return b"\x80\x02" + _global("argparse", "Namespace") + b")R" + call + b"b."


def in_a_dict(module: str, name: str, *arguments: Any) -> bytes:
    """A state_dict's neighbour: the call is one of the values."""
    call = _global(module, name) + _text(arguments) + b"R"
    return b"\x80\x02}" + _text("epoch") + call + b"s."


OPCODES = (reduce_, reduce_4, inst, obj, newobj, newobj_ex, build, in_a_dict)


def calls(place: Place) -> list[tuple[Any, ...]]:
    """Return (module, name, arguments…) of calls that touch the canary or lead there."""
    canary, secret = str(place.canary), str(place.secret)
    touch, code = f"touch {canary}", f"open({canary!r}, 'w').close()"
    return [
        ("os", "system", touch), ("posix", "system", touch), ("nt", "system", touch),
        ("os", "popen", touch), ("os", "mkdir", canary), ("posix", "mkdir", canary), ("os", "rename", secret, canary),
        ("os", "link", secret, canary), ("posix", "symlink", secret, canary), ("os", "execv", "/bin/touch", ["touch", canary]),
        ("os", "spawnv", 0, "/bin/touch", ["touch", canary]), ("os", "posix_spawn", "/bin/touch", ["touch", canary], {}),
        ("subprocess", "Popen", ["touch", canary]), ("subprocess", "call", ["touch", canary]),
        ("subprocess", "run", ["touch", canary]), ("subprocess", "check_output", ["touch", canary]),
        ("subprocess", "getoutput", touch), ("pty", "spawn", ["touch", canary]),
        ("builtins", "eval", code), ("builtins", "exec", code), ("__builtin__", "eval", code), ("builtins", "open", canary, "w"),
        ("builtins", "compile", code, "x", "exec"), ("builtins", "__import__", "os"), ("builtins", "getattr", "x", "upper"),
        ("builtins", "setattr", {}, "x", 1), ("builtins", "breakpoint"), ("builtins", "input"), ("builtins", "globals"),
        ("io", "open", canary, "w"), ("io", "FileIO", canary, "w"), ("_io", "FileIO", canary, "w"), ("io", "open_code", secret),
        ("codecs", "open", canary, "w"), ("codecs", "decode", b"x", "bz2"), ("pathlib", "Path.touch", canary),
        ("runpy", "run_path", canary), ("runpy", "_run_code", code, {}), ("importlib", "import_module", "antigravity"),
        ("importlib.util", "spec_from_file_location", "x", canary), ("imp", "load_source", "x", canary),
        ("webbrowser", "open", "http://127.0.0.1:9/"), ("urllib.request", "urlopen", "http://127.0.0.1:9/"),
        ("urllib.request", "urlretrieve", f"file://{secret}", canary), ("socket", "create_connection", ("127.0.0.1", 9)),
        ("http.client", "HTTPConnection", "127.0.0.1"), ("ftplib", "FTP", "127.0.0.1"), ("smtplib", "SMTP", "127.0.0.1", 9),
        ("shutil", "copyfile", secret, canary), ("shutil", "move", secret, canary), ("shutil", "rmtree", str(place.folder)),
        ("ctypes", "CDLL", "libc.so.6"), ("ctypes.util", "find_library", "c"), ("cffi", "FFI"),
        ("operator", "attrgetter", "system"), ("operator", "methodcaller", "system", touch), ("functools", "partial", len),
        ("itertools", "accumulate", []), ("types", "FunctionType"), ("types", "CodeType"), ("types", "ModuleType", "x"),
        ("marshal", "loads", b"x"), ("pickle", "loads", reduce_("os", "system", touch)), ("_pickle", "loads", b"."),
        ("pickle", "load"), ("dill", "loads", b"."), ("cloudpickle", "loads", b"."), ("joblib", "load", canary),
        ("shelve", "open", canary), ("dbm.dumb", "open", canary, "c"), ("sqlite3", "connect", canary),
        ("timeit", "timeit", code), ("cProfile", "run", code), ("pdb", "run", code), ("code", "interact"),
        ("asyncio", "run"), ("threading", "Thread"), ("multiprocessing", "Process"), ("signal", "raise_signal", 9),
        ("logging", "FileHandler", canary), ("logging.config", "fileConfig", canary), ("tempfile", "mktemp"),
        ("zipfile", "ZipFile", canary, "w"), ("tarfile", "open", canary, "w"), ("gzip", "open", canary, "wb"),
        ("site", "addsitedir", str(place.folder)), ("sys", "exit", 3), ("sys", "setrecursionlimit", 10), ("pkgutil", "resolve_name", "os:system"),
        ("torch", "load", canary), ("torch", "save", {}, canary), ("torch.hub", "load", "a/b", "c"), ("torch.jit", "load", canary),
        ("torch.hub", "download_url_to_file", f"file://{secret}", canary), ("torch.storage", "_load_from_bytes", reduce_("os", "system", touch)),
        ("torch.utils.cpp_extension", "load_inline", "x", code), ("torch.utils.model_zoo", "load_url", f"file://{secret}"),
        ("torch.ops", "load_library", canary), ("torch._C", "_jit_set_profiling_mode", True), ("torch.serialization", "load", canary),
        ("torch.serialization", "add_safe_globals", []), ("torch.fx.graph_module", "reduce_graph_module", {}, ""),
        ("torch.package.package_importer", "PackageImporter", canary), ("torch.distributed.rpc", "init_rpc", "x"),
        ("torch.nn.modules.linear", "Linear", 2, 2), ("torch.multiprocessing", "spawn", len),
        ("numpy", "load", canary), ("numpy", "save", canary, []), ("numpy", "fromfile", secret), ("numpy", "memmap", canary),
        ("numpy.testing._private.utils", "runstring", code, {}), ("numpy.core.multiarray", "fromfile", secret),
        ("numpy", "frompyfunc", len, 1, 1), ("sklearn.utils", "all_estimators"), ("pandas", "read_pickle", canary),
    ]  # fmt: skip


def _legacy(pickled: bytes) -> bytes:
    """Return a file of torch's old format: magic, protocol, system, then the content's pickle."""
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
    head = magic + pickle.dumps(1001, protocol=2) + pickle.dumps({"little_endian": True}, protocol=2)
    return head + pickled + pickle.dumps([], protocol=2)


def _zipped(pickled: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/version", "3\n")
    return buffer.getvalue()


CONTAINERS: dict[str, Callable[[bytes], bytes]] = {"zip": _zipped, "legacy": _legacy, "bare": bytes}


def pickles() -> Iterator[Sample]:
    """Every call once, by turns in each container and by each opcode."""
    shown = calls(Place(Path(), Path("canary"), Path("secret")))
    containers = list(CONTAINERS)
    for index, call in enumerate(shown):
        container, opcode = containers[index % len(containers)], OPCODES[index % len(OPCODES)]

        def make(place: Place, i: int = index, c: str = container, o: Any = opcode) -> Path:
            module, name, *arguments = calls(place)[i]
            arguments = [a for a in arguments if not callable(a)]
            return write(place, "c.pt", CONTAINERS[c](o(module, name, *arguments)))

        yield Sample(f"pickle-{call[0]}.{call[1]}-{opcode.__name__}-{container}", "checkpoint", make)
    for opcode in OPCODES:
        for container in CONTAINERS:

            def system(place: Place, o: Any = opcode, c: str = container) -> Path:
                return write(place, "c.pt", CONTAINERS[c](o("posix", "system", f"touch {place.canary}")))

            yield Sample(f"pickle-system-{opcode.__name__}-{container}", "checkpoint", system)


def odd_pickles() -> Iterator[Sample]:
    """Opcodes that reach code by another way, and streams that no pickler writes."""
    streams = {
        "persistent id": b"\x80\x02(U\x07storageU\x01xU\x010U\x03cpuK\x01tQ.",
        "extension": b"\x80\x02\x82\x01.",
        "memo of nothing": b"\x80\x02h\x05.",
        "no stop": b"\x80\x02}",
        "deep nesting": b"\x80\x02" + b"(" * 100_000 + b"l" * 100_000 + b".",
        "long name": _global("a" * 1_000_000, "b") + b".",
        "huge string": b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b"x.",
        "huge bytearray": b"\x80\x05\x96" + struct.pack("<Q", 2**60) + b".",
        "huge long": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b".",
        "negative long": b"\x80\x02\x8b" + struct.pack("<i", -5) + b".",
        "next buffer": b"\x80\x05\x97.",
        "many dups": b"\x80\x02]" + b"2a" * 50_000 + b".",
        "frame beyond the end": b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"}.",
    }
    for name, stream in streams.items():
        for container in ("zip", "legacy"):

            def make(place: Place, s: bytes = stream, c: str = container) -> Path:
                return write(place, "c.pt", CONTAINERS[c](s))

            yield Sample(f"pickle-{name.replace(' ', '_')}-{container}", "checkpoint", make)
