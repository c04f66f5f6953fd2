"""Keys to sign with, and a pipeline that signs."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

__all__ = ["PIPELINE", "new_key", "pem"]

PIPELINE = """
a: {uses: text.upper, inputs: {text: in.txt}, with: {suffix: "!"}}
b: {uses: text.upper, inputs: {text: "${{ stages.a.outputs.text }}"}, with: {times: 2}}
signed:
  uses: package.sign
  inputs:
    artifacts: {first: "${{ stages.a.outputs.text }}", second: "${{ stages.b.outputs.text }}"}
    reports: {accuracy: accuracy.json}
  with: {key: "${{ secrets.SIGNING_KEY }}", name: shout, license: Apache-2.0}
"""


def new_key(folder: Path, name: str) -> tuple[str, Path]:
    """Return a private key as PEM, and the file of its public key."""
    key = ec.generate_private_key(ec.SECP256R1())
    public = folder / f"{name}.pem"
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return pem(key), public


def pem(key: ec.EllipticCurvePrivateKey) -> str:
    """Return a private key as PEM."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
