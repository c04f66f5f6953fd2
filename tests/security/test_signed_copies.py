"""Packed copies of what is signed: each is verified as the folder would be, or refused."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy_runner.commands.signed import verify
from deploy_runner.errors import DeployRunnerError, GateError
from tests.conftest import Project


@pytest.mark.slow
def test_a_packed_copy_and_a_file_address_are_verified(signed: tuple[Project, Path, Path, str]) -> None:
    project, folder, public, _ = signed
    for name, top in (("flat.tar.gz", "."), ("deep.tar", "out")):
        with tarfile.open(project.folder / name, "w:gz" if name.endswith("gz") else "w") as tar:
            tar.add(folder, arcname=top)
        for address in (name, f"file://{project.folder}/{name}", f"file://{folder}"):
            done = project.cli("verify", address, "--key", str(public))
            assert "verified: 2 files" in done.stdout


MEMBERS: dict[str, tuple[str, bytes, str]] = {
    "a link": ("first.txt", tarfile.SYMTYPE, "/etc/passwd"),
    "a hard link": ("first.txt", tarfile.LNKTYPE, "out/second.txt"),
    "a path upwards": ("../first.txt", tarfile.REGTYPE, ""),
    "an absolute path": ("/tmp/first.txt", tarfile.REGTYPE, ""),
    "a device": ("null", tarfile.CHRTYPE, ""),
    "the same name again": ("out/first.txt", tarfile.REGTYPE, ""),
}


@pytest.mark.parametrize(("name", "kind", "target"), MEMBERS.values(), ids=MEMBERS)
def test_a_packed_copy_with_a_member_that_leads_elsewhere_is_refused(
    signed: tuple[Project, Path, Path, str], name: str, kind: bytes, target: str
) -> None:
    project, folder, public, _ = signed
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    with tarfile.open(project.folder / "x.tar", "w") as tar:
        tar.add(folder, arcname="out")
        tar.addfile(entry)
    done = project.cli("verify", "x.tar", "--key", str(public), exits=1)
    assert done.stderr.count("\n") == 1
    assert (
        "rejected" in done.stderr
        or "outside the archive" in done.stderr
        or "can't be unpacked" in done.stderr
    )


PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "tar": bytes,
}


def packed(folder: Path) -> tuple[bytes, bytes]:
    """Return a signed folder as a tar, and another tar with one more file."""
    tars = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=tars[0], mode="w") as tar:
        tar.add(folder, arcname=".")
    with tarfile.open(fileobj=tars[1], mode="w") as tar:
        entry = tarfile.TarInfo("evil.bin")
        entry.size = 4
        tar.addfile(entry, io.BytesIO(b"evil"))
    return tars[0].getvalue(), tars[1].getvalue()


def refusals(packing: str, whole: bytes, more: bytes) -> dict[str, bytes]:
    """Return archives that hold more than a tar, or less."""
    pack = PACKINGS[packing]
    marker = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    found = {
        "a second stream": pack(whole) + pack(more),
        "another tar inside": pack(whole + more),
        "another tar right after the end's marker": pack(whole[: marker + 1024] + more),
        "a header in place of the end": pack(whole[:marker] + b"x" * 512 + more),
        "trailing bytes": pack(whole) + b"evil",
        "trailing bytes inside": pack(whole + b"evil"),
        "a byte far behind": pack(whole + bytes(1 << 20) + b"!"),
    }
    if packing != "tar":
        found |= {
            "a second stream of nothing": pack(whole) + pack(b""),
            "a second stream of zeros": pack(whole) + pack(bytes(10240)),
            "a cut stream": pack(whole)[: -len(pack(whole)) // 2],
            "a stream without its last byte": pack(whole)[:-1],
        }
    return found


def test_whatever_lies_after_a_packed_copys_end_is_refused(
    signed: tuple[Project, Path, Path, str], tmp_path: Path
) -> None:
    _, folder, public, _ = signed
    whole, more = packed(folder)
    least = whole.rstrip(b"\0") + bytes(-len(whole.rstrip(b"\0")) % 512)
    for packing, pack in PACKINGS.items():
        for name, data in refusals(packing, whole, more).items():
            (tmp_path / "x").write_bytes(data)
            after = "cut" not in name and "without" not in name
            said = "after its end and is rejected" if after else "can't be unpacked|is not a folder or a tar"
            with pytest.raises(DeployRunnerError, match=said):
                print(packing, name, verify(str(tmp_path / "x"), key=str(public), certificates=[]))
        for data in (whole, least, whole + bytes(1 << 20)):
            (tmp_path / "x").write_bytes(pack(data))
            assert len(verify(str(tmp_path / "x"), key=str(public), certificates=[]).files) == 2


TAR = ("czf", "cjf", "cJf", "cf", "-b 1 -cf", "-b 2048 -czf", "--format=gnu -czf", "--format=pax -czf")


def test_what_tar_itself_packs_is_verified(signed: tuple[Project, Path, Path, str]) -> None:
    project, folder, public, _ = signed
    place = project.folder / "made.tar"
    for options in TAR:
        subprocess.run(["tar", *options.split(), place, "-C", folder.parent, folder.name], check=True)
        assert len(verify(str(place), key=str(public), certificates=[]).files) == 2


def test_a_packed_copy_that_names_a_file_twice_is_refused(signed: tuple[Project, Path, Path, str]) -> None:
    project, folder, public, _ = signed
    for other in ("./out/first.txt", "out//first.txt", "out", "out/first.txt/"):
        with tarfile.open(project.folder / "x.tar", "w") as tar:
            tar.add(folder, arcname="out")
            tar.addfile(tarfile.TarInfo(other))
        with pytest.raises(GateError, match="is contained twice"):
            verify(str(project.folder / "x.tar"), key=str(public), certificates=[])


def test_a_packed_copy_that_is_a_bomb_or_damaged_is_refused(signed: tuple[Project, Path, Path, str]) -> None:
    project, folder, public, _ = signed
    with tarfile.open(project.folder / "bomb.tar.gz", "w:gz") as tar:
        entry = tarfile.TarInfo("zeros")
        entry.size = 200 << 20
        tar.addfile(entry, io.BytesIO(bytes(entry.size)))
    done = project.cli("verify", "bomb.tar.gz", "--key", str(public), exits=1)
    assert "unpacks to far more than its size" in done.stderr
    with tarfile.open(project.folder / "cut.tar.gz", "w:gz") as tar:
        tar.add(folder, arcname=".")
    packed = (project.folder / "cut.tar.gz").read_bytes()
    (project.folder / "cut.tar.gz").write_bytes(packed[: len(packed) // 2])
    assert "error: " in project.cli("verify", "cut.tar.gz", "--key", str(public), exits=1).stderr
