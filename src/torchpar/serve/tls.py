"""HTTPS: the certificate and key that systemd hands to the service as credentials (LoadCredential= in systemd.exec(5)).

systemd reads the files as root when the service starts, so a renewed certificate needs a restart, which loses nothing.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping

from torchpar.contract.paths import CERTIFICATE, KEY
from torchpar.serve.errors import StartError


def make_tls(environ: Mapping[str, str]) -> ssl.SSLContext | None:
    """Makes the TLS context of HTTPS; None without a certificate. Raises StartError if that is of no use."""
    directory = environ.get("CREDENTIALS_DIRECTORY", "")
    certificate, key = os.path.join(directory, CERTIFICATE), os.path.join(directory, KEY)
    if not directory or not os.path.exists(certificate):
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        # A key with a passphrase would have the server ask for it, and wait for ever.
        context.load_cert_chain(certificate, key, password=lambda: "")
    except (OSError, ssl.SSLError) as error:
        raise StartError(f"TLSCertificate= and TLSKey= cannot be used together: {error}") from None
    return context
