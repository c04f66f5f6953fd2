"""`completion`: the script by which a shell completes the command line."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from .options import Argument

__all__ = ["Completion"]


class Completion(NamedTuple):
    """Print the script that completes commands with Tab."""

    shell: Annotated[
        Literal["bash", "zsh", "fish"],
        Argument(
            'for bash `eval "$(deploy-runner completion bash)"` in ~/.bashrc; for zsh the same with zsh in '
            "~/.zshrc, after compinit; "
            "for fish `deploy-runner completion fish | source` in ~/.config/fish/config.fish"
        ),
    ]

    def __call__(self) -> int:
        """Print it."""
        from .completing import script

        print(script(self.shell))
        return 0
