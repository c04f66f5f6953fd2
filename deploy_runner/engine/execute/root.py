"""A root folder of a worker's own: it holds what the worker may see, read-only but for its workdir.

What is missing in it can't be opened, connected to or altered, whatever the user may do elsewhere: no UNIX
socket, no folder for temporary files, no other process. It is put together in a mount namespace of the
process's own (Linux 3.8) and made read-only at once by mount_setattr(2) (Linux 5.12).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cache

from .kernel import NEWNS, attempt, bind, make_read_only, make_writable, mount, unshare

__all__ = ["OwnRoot", "resolved"]

_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REC, _MS_PRIVATE = 2, 4, 8, 1 << 14, 1 << 18
_PLACE = "/sys"
"""Where the root is put together: a folder that every machine has, and whose content isn't needed there."""
_SHARED_MEMORY = "/dev/shm"
_MOST_LINKS = 40
"""That the kernel follows, path_resolution(7)."""
_LINKS = {"/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0",
          "/dev/stdout": "/proc/self/fd/1", "/dev/stderr": "/proc/self/fd/2"}  # fmt: skip


class OwnRoot:
    """The root of one process, entered by `enter`. Raises OSError where the kernel doesn't allow one.

    `own_processes` says that this process is in a namespace of processes, which /proc is then of.
    """

    def __init__(self, paths: Iterable[str], *, own_processes: bool) -> None:
        unshare(NEWNS)
        mount("none", "/", "none", _MS_REC | _MS_PRIVATE)
        hidden = os.open(_PLACE, os.O_PATH | os.O_CLOEXEC)
        try:
            mount("tmpfs", _PLACE, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=755")
            os.mkdir(self.inside(_PLACE))
            bind(f"/proc/self/fd/{hidden}", self.inside(_PLACE))
        finally:
            os.close(hidden)
        self.shows_processes = not self._mount_proc(own=own_processes)
        os.makedirs(self.inside(_SHARED_MEMORY))
        mount("tmpfs", self.inside(_SHARED_MEMORY), "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=1777")
        self._shown = ["/proc/", f"{_PLACE}/"]
        self._hidden: list[str] = []
        for path in paths:
            self.show(path)
        for name, target in _LINKS.items():
            os.symlink(target, _PLACE + name)

    def _mount_proc(self, *, own: bool) -> bool:
        """Mount /proc, of this process's namespace where it has its `own`; say whether it is that."""
        os.mkdir(self.inside("/proc"))
        with attempt():
            if own:
                mount("proc", self.inside("/proc"), "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
                return True
        bind("/proc", self.inside("/proc"))
        return False

    def inside(self, path: str) -> str:
        """Return where a path of the root is before it has been entered."""
        return _PLACE + path

    def show(self, path: str) -> None:
        """Make a file or folder visible where it is; links on its way stay links.

        A missing path is left out.
        """
        place = self._show_links(path)
        if not self._is_shown(place) and os.path.exists(place):
            self._mount_point(place, folder=os.path.isdir(place))
            bind(place, self.inside(place))
            self._shown.append(f"{place}/")

    def _show_links(self, path: str) -> str:
        """Make the links on a path visible; return the place without any."""
        links, place = resolved(path)
        for link in links:
            if not self._is_shown(link):
                os.makedirs(os.path.dirname(self.inside(link)), exist_ok=True)
                os.symlink(os.readlink(link), self.inside(link))
                self._shown.append(f"{link}/")
        return place

    def hide(self, place: str) -> None:
        """Put an empty folder over one that is visible, for what of it is shown from then on."""
        mount("tmpfs", self.inside(place), "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=755")
        self._hidden.append(f"{place}/")

    def _is_shown(self, path: str) -> bool:
        around = [known for known in (*self._shown, *self._hidden) if f"{path}/".startswith(known)]
        return bool(around) and max(around, key=len) not in self._hidden

    def _mount_point(self, path: str, *, folder: bool) -> None:
        target = self.inside(path)
        os.makedirs(target if folder else os.path.dirname(target), exist_ok=True)
        if not folder:
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def seal(self, write: Iterable[str]) -> None:
        """Make all read-only but the folders `write`, and shared memory, which is its own."""
        writable = [self._show_links(path) for path in write if os.path.isdir(path)]
        for path in writable:
            os.makedirs(self.inside(path), exist_ok=True)
        make_read_only(_PLACE)
        make_writable(self.inside(_SHARED_MEMORY))
        for path in writable:
            bind(path, self.inside(path))

    def enter(self) -> None:
        """Make this the process's root; its working folder is the same one in it."""
        here = os.getcwd()
        os.chroot(_PLACE)
        os.chdir(here)


@cache
def resolved(path: str) -> tuple[list[str], str]:
    """Return the links on the way to a path, and where they lead.

    Those of the system and of Python are found before a worker runs.
    """
    links: list[str] = []
    place, rest = "/", path.split("/")
    while rest:
        step = os.path.normpath(os.path.join(place, rest.pop(0)))
        if os.path.islink(step) and len(links) < _MOST_LINKS:
            links.append(step)
            rest = os.readlink(step).split("/") + rest
            step = "/" if os.readlink(step).startswith("/") else place
        place = step
    return links, place
