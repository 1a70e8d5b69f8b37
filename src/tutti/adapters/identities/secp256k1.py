"""Ethereum's keys (secp256k1, https://www.secg.org/sec2-v2.pdf): one file, for its owner's eyes only."""

from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from tutti.adapters.identities.ed25519 import secret_at

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
_GIVEN = ec.ECDSA(Prehashed(SHA256()))  # any 32 bytes: they are Keccak's here


class Secp256k1Key:
    """A private key. `public` are the coordinates of its public key, 128 hex digits."""

    def __init__(self, secret: bytes) -> None:
        self._key = ec.derive_private_key(int.from_bytes(secret, "big") % (ORDER - 1) + 1, ec.SECP256K1())
        point = self._key.public_key().public_numbers()
        self.public = f"{point.x:064x}{point.y:064x}"

    def sign(self, digest: bytes) -> bytes:
        """64 bytes, r and s, of 32; s is the smaller of the two that would do, as contracts demand."""
        r, s = decode_dss_signature(self._key.sign(digest, _GIVEN))
        return r.to_bytes(32, "big") + min(s, ORDER - s).to_bytes(32, "big")

    @classmethod
    def at(cls, file: Path) -> "Secp256k1Key":
        """The key in a file (64 hex digits), made at the first call; raises UserError or StorageError."""
        return cls(secret_at(file))


def verify(public: str, digest: bytes, signature: bytes) -> bool:
    """Whether the owner of `public` signed; False too for what is no key or signature."""
    try:
        point = ec.EllipticCurvePublicNumbers(int(public[:64], 16), int(public[64:], 16), ec.SECP256K1())
        s = int.from_bytes(signature[32:], "big")
        if len(signature) != 64 or s > ORDER // 2:
            return False
        der = encode_dss_signature(int.from_bytes(signature[:32], "big"), s)
        point.public_key().verify(der, digest, _GIVEN)
    except (InvalidSignature, ValueError):
        return False
    return True
