"""A proxy that ends TLS in front of a gateway, as a load balancer does, and cuts the bytes anew on their way."""

import asyncio
import datetime
import ipaddress
import random
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

MOST_BYTES = 700


@asynccontextmanager
async def tls_proxy(folder: Path, port: int) -> AsyncIterator[tuple[int, ssl.SSLContext]]:
    """Its port before the gateway on `port`, and a client's context that trusts it."""
    certificate = _certificate(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind_reader, behind_writer = await asyncio.open_connection("127.0.0.1", port)
        pipes = {
            asyncio.create_task(_pipe(reader, behind_writer)),
            asyncio.create_task(_pipe(behind_reader, writer)),
        }
        tasks.update(pipes)
        await asyncio.wait(pipes)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1], ssl.create_default_context(cafile=str(certificate))
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    cuts = random.Random(1)
    try:
        while data := await reader.read(MOST_BYTES):
            while data:
                size = cuts.randint(1, MOST_BYTES)
                writer.write(data[:size])
                await writer.drain()
                data = data[size:]
    except ConnectionError:
        pass
    finally:
        writer.close()


def _certificate(folder: Path) -> Path:
    """Key and certificate for 127.0.0.1, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "gateway")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file = folder / "certificate.pem"
    file.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    return file
