"""Certificates of an authority of one's own."""

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


def ip(host: str) -> x509.IPAddress:
    return x509.IPAddress(ipaddress.ip_address(host))


def certificate(
    path: Path,
    issuer: x509.Certificate | None,
    signing_key: ec.EllipticCurvePrivateKey | None,
    *hosts: x509.GeneralName,
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Writes `path`.pem and `path`.key, for these hosts, or else 127.0.0.1; without an issuer it is an authority's."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, path.name)])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name if issuer is None else issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(hosts or [ip("127.0.0.1")]), critical=False)
        .sign(signing_key or key, hashes.SHA256())
    )
    path.with_suffix(".pem").write_bytes(built.public_bytes(serialization.Encoding.PEM))
    path.with_suffix(".key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return built, key
