"""Google Cloud Storage."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from registry_serve.downloaders.addresses import Address
from registry_serve.downloaders.objects import local_copy
from registry_serve.downloaders.plugins import checks_itself, installed
from registry_serve.downloaders.transfers import BLOCK_BYTES, Checksum, ObjectChanged, StoredFile, StoreSilent
from registry_serve.errors import DownloadFailed

#: What one request asks for.
_CHUNK_BYTES = 8 * BLOCK_BYTES
#: Seconds after which a store that does not answer is asked no more.
_PATIENCE_S = 20.0
_DENIED = (
    "access is denied ({code}); check the application default credentials (GOOGLE_APPLICATION_CREDENTIALS, "
    "gcloud auth application-default login, the machine's service account) and their role Storage Object Viewer"
)


@checks_itself
def download(gcp_path: str) -> Path:
    """Download a folder, or one file, and return the directory where it is on this node.

    Args:
        gcp_path: ``gs://bucket/folder``.
    """
    return local_copy(_Gcs(Address.parse(gcp_path, "gs")))


class _Gcs:
    def __init__(self, address: Address) -> None:
        self.uri = str(address)
        self._address = address
        storage, self._http_errors, self._auth_errors, self._web_errors = (
            installed(module, "gcs", self.uri)
            for module in (
                "google.cloud.storage",
                "google.api_core.exceptions",
                "google.auth.exceptions",
                "requests.exceptions",
            )
        )
        self._crc32c = installed("google_crc32c", "gcs", self.uri).Checksum
        self._retry = installed("google.cloud.storage.retry", "gcs", self.uri).DEFAULT_RETRY.with_timeout(_PATIENCE_S)
        with self._explained():
            try:
                self._client = storage.Client()
            except (self._auth_errors.DefaultCredentialsError, OSError):  # what is public needs none
                self._client = storage.Client.create_anonymous_client()
        self._blobs: dict[str, Any] = {}

    def files(self) -> list[StoredFile]:
        for prefix in self._address.prefixes:
            found = list(self._below(prefix))
            if found:
                return found
        return []

    def checksum(self, file: StoredFile) -> Checksum | None:
        blob = self._blobs[file.key]
        if blob.crc32c:
            return Checksum(self._crc32c, base64.b64decode(blob.crc32c))
        return Checksum(hashlib.md5, base64.b64decode(blob.md5_hash)) if blob.md5_hash else None

    def read(self, file: StoredFile, start: int) -> Iterator[bytes]:
        with (
            self._explained(),
            self._blobs[file.key].open(
                "rb",
                chunk_size=_CHUNK_BYTES,
                if_generation_match=int(file.version),
                raw_download=True,  # what the sizes and checksums are of
                retry=self._retry,
            ) as content,
        ):
            content.seek(start)
            while start < file.size and (block := content.read(min(BLOCK_BYTES, file.size - start))):
                start += len(block)
                yield block

    def _below(self, prefix: str) -> Iterator[StoredFile]:
        with self._explained():
            blobs = self._client.list_blobs(self._address.bucket, prefix=prefix, timeout=10, retry=self._retry)
            for blob in blobs:
                name = self._address.name_of(blob.name)
                if name is not None:
                    self._blobs[blob.name] = blob
                    yield StoredFile(name, blob.name, blob.size, str(blob.generation))
                if prefix == self._address.path != "":
                    return  # the name itself comes before all that begins with it

    @contextmanager
    def _explained(self) -> Iterator[None]:
        errors, auth = self._http_errors, self._auth_errors
        try:
            yield
        except errors.PreconditionFailed as error:
            raise ObjectChanged(self.uri) from error
        except errors.NotFound as error:
            if self._blobs:
                raise ObjectChanged(self.uri) from error
            raise DownloadFailed(self.uri, "there is no such bucket; check its name") from error
        except (errors.Unauthorized, errors.Forbidden) as error:
            raise DownloadFailed(self.uri, _DENIED.format(code=error.code.value)) from error
        except (errors.ServerError, errors.TooManyRequests, errors.RetryError) as error:
            raise StoreSilent(self.uri, f"the store does not answer ({type(error).__name__})") from error
        except errors.GoogleAPIError as error:
            raise DownloadFailed(self.uri, f"the store refuses it ({type(error).__name__})") from error
        except (auth.TransportError, self._web_errors.RequestException) as error:
            raise StoreSilent(self.uri, f"the store does not answer ({type(error).__name__})") from error
        except auth.GoogleAuthError as error:
            raise DownloadFailed(self.uri, _DENIED.format(code=type(error).__name__)) from error
