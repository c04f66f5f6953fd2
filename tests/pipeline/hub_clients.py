"""The clients of a repository that are no part of the development environment: transformers.js and optimum."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.serve.raw_inputs import tokenizer

__all__ = [
    "Javascript",
    "in_python",
    "install_javascript",
    "install_optimum",
    "install_sentence_transformers",
    "small_tokenizer",
]

_JAVASCRIPT = "@huggingface/transformers@4.3.2"
_OPTIMUM = [
    "optimum-onnx==0.1.0",
    "optimum==2.1.0",
    "transformers==4.57.6",
    "tokenizers==0.22.2",
    "huggingface_hub==0.36.2",
]
_CALL = """
import { pipeline } from "@huggingface/transformers";
const { task, repo, options, inputs } = JSON.parse(process.argv[2]);
const model = await pipeline(task, repo, options);
console.log(JSON.stringify(await model(inputs)));
"""


class Javascript:
    """transformers.js in a folder of its own, which asks a local Hub."""

    def __init__(self, folder: Path, hub: str) -> None:
        self.folder = folder
        self._hub = hub
        self._count = 0

    def run(self, code: str, *arguments: str) -> str:
        """Run a module, which may `import` transformers.js, and return what it prints."""
        self._count += 1
        cache = self.folder / f"cache{self._count}"
        before = f"""
import {{ env }} from "@huggingface/transformers";
env.remoteHost = {json.dumps(self._hub + "/")};
env.cacheDir = {json.dumps(str(cache))};
env.allowLocalModels = false;
"""
        script = self.folder / f"run{self._count}.mjs"
        script.write_text(before + code)
        done = subprocess.run(
            ["node", script.name, *arguments], cwd=self.folder, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def pipeline(self, task: str, repo: str, inputs: Any, **options: Any) -> Any:
        """Return what `pipeline(task, repo, options)` answers."""
        asked = {"task": task, "repo": repo, "options": {"device": "cpu", **options}, "inputs": inputs}
        return json.loads(self.run(_CALL, json.dumps(asked)).splitlines()[-1])


def install_javascript(folder: Path) -> None:
    """Install transformers.js by npm; the scripts of its packages would fetch CUDA's libraries."""
    (folder / "package.json").write_text('{"private": true}')
    subprocess.run(
        ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", _JAVASCRIPT],
        cwd=folder, capture_output=True, check=True,
    )  # fmt: skip


def install_optimum(folder: Path) -> None:
    """Install optimum.onnxruntime and its older transformers; torch and onnxruntime are those installed."""
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder)]
    subprocess.run([*pip, *_OPTIMUM], check=True)


def install_sentence_transformers(folder: Path) -> None:
    """Install sentence-transformers beside what it needs, which is installed."""
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder)]
    subprocess.run([*pip, "sentence-transformers==6.2.0"], check=True)


def in_python(code: str, hub: str, home: Path, *, before: Path | None = None) -> str:
    """Run Python code whose clients ask a local Hub, and return what it prints; `before` is first on its path."""
    env = {
        **os.environ,
        "HF_ENDPOINT": hub,
        "HF_HOME": str(home),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_DISABLE_XET": "1",
    }
    if before is not None:
        env["PYTHONPATH"] = str(before)
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def small_tokenizer(file: Path, folder: Path) -> None:
    """Save a small WordPiece tokenizer, which is written to `file`, as a folder of transformers."""
    from transformers import PreTrainedTokenizerFast

    tokenizer(file)
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_file=str(file), model_max_length=32, **special).save_pretrained(folder)
