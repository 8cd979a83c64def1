"""Signing keys: elliptic-curve key pairs (NIST P-256) as PEM files, by the package cryptography. No cryptography of our own.

P-256 because both OpenSSF model signing and DSSE (securesystemslib) take it; P-384 and P-521 keys from elsewhere work too.
A private key may be encrypted: its password is read from UNDERSONG_KEY_PASSWORD.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from undersong.errors import BadSpec, MissingExtra
from undersong.files import room

PASSWORD = "UNDERSONG_KEY_PASSWORD"
LARGEST = 64 * 2**10
"""Bytes; a larger file is no key."""
EXTRA = MissingExtra("Keys and seals need the extra `provenance`. Run: pip install 'undersong[provenance]'")


def new(path: Path) -> dict[str, str]:
    """Make a key pair: the private key at `path` (mode 0600), the public one at `path`.pub; returns both and the key's
    identity. Raises BadSpec when either file is there already, NoRoom when it cannot be written."""
    try:
        from cryptography.hazmat.primitives import serialization as pem
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError:
        raise EXTRA from None
    made, word = ec.generate_private_key(ec.SECP256R1()), _password()
    locked = pem.BestAvailableEncryption(word) if word else pem.NoEncryption()
    beside = Path(f"{path}.pub")
    for file in (path, beside):
        if file.exists() or file.is_symlink():
            raise BadSpec(f"{str(file)!r} is there already, and a key is never replaced. Choose another name.")
    with room(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _put(path, made.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, locked), 0o600)
        public_pem = made.public_key().public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo)
        _put(beside, public_pem, 0o644)
    return {"private": str(path), "public": str(beside), "key": public(beside).keyid}


def public(path: Path) -> Any:
    """A public key (securesystemslib Key). Raises BadSpec when the file holds none that can be used."""
    try:
        import securesystemslib.signer
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ImportError:
        raise EXTRA from None
    library: Any = securesystemslib.signer  # it re-exports its classes without saying so
    data = _read(path)
    if b"PRIVATE KEY" in data:
        raise BadSpec(f"{str(path)!r} is a private key. Verify with the public one ({path}.pub), and keep this one secret.")
    return _usable(path, lambda: library.SSlibKey.from_crypto(load_pem_public_key(data)))


def signer(path: Path) -> Any:
    """A signer (securesystemslib) of a private key. Raises BadSpec when the file holds none that can be used."""
    try:
        import securesystemslib.signer
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ImportError:
        raise EXTRA from None
    library: Any = securesystemslib.signer  # it re-exports its classes without saying so
    data = _read(path)
    if b"PUBLIC KEY" in data:
        raise BadSpec(f"{str(path)!r} is a public key. Sign with the private one, which lies without .pub beside it.")
    made = _usable(path, lambda: library.CryptoSigner(load_pem_private_key(data, _password())))
    _usable(path, lambda: made.public_key)
    return made


def password() -> str | None:
    """The password of an encrypted private key, from the environment."""
    word = _password()
    return word.decode() if word else None


def _usable(path: Path, load: Callable[[], Any]) -> Any:
    """What `load` gives, if it is a key on a curve that both kinds of signature take."""
    try:
        made = load()
        known = getattr(made, "scheme", getattr(getattr(made, "public_key", None), "scheme", ""))
    except Exception as error:  # cryptography raises a dozen kinds for what is no key
        raise BadSpec(f"{str(path)!r} holds no key that can be used ({type(error).__name__}: {str(error)[:200]}). Make one "
                      f"with `undersong keys new FILE`; the password of an encrypted key goes into {PASSWORD}.") from None
    if known and not str(known).startswith("ecdsa-sha2-nistp"):
        raise BadSpec(f"{str(path)!r} is a {known} key; model signing takes elliptic curves P-256, P-384 and P-521 only. "
                      "Make one with `undersong keys new FILE`.")
    return made


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise BadSpec(f"There is no key file {str(path)!r}. Make a pair with `undersong keys new FILE`.")
    with open(path, "rb") as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise BadSpec(f"{str(path)!r} has more than {LARGEST} bytes: it is no key. Name a PEM file.")
    return data


def _password() -> bytes | None:
    return os.environ[PASSWORD].encode() if os.environ.get(PASSWORD) else None


def _put(path: Path, data: bytes, mode: int) -> None:
    """A new file, with its mode from the first byte on."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
