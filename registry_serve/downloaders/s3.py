"""Amazon S3, and everything that speaks its protocol."""

from __future__ import annotations

import base64
import hashlib
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from registry_serve.downloaders.addresses import Address
from registry_serve.downloaders.objects import local_copy
from registry_serve.downloaders.plugins import checks_itself, installed
from registry_serve.downloaders.transfers import (
    BLOCK_BYTES,
    Checksum,
    ChecksumWrong,
    Hash,
    ObjectChanged,
    StoredFile,
    StoreSilent,
)
from registry_serve.errors import DownloadFailed

_MD5 = re.compile(r"[0-9a-f]{32}")
#: What the service says of a request, to what happened and what to do.
_REASONS = {
    "NoSuchBucket": "there is no such bucket; check its name, and AWS_ENDPOINT_URL for another store than Amazon's",
    "InvalidBucketName": "this is no name of a bucket",
    "InvalidObjectState": "it is archived; restore it first",
    "PermanentRedirect": "the bucket is in another region; set AWS_DEFAULT_REGION",
}
_DENIED = (
    "access is denied ({code}); check the credentials that boto3 finds (environment, ~/.aws, the machine's role) and "
    "their permissions s3:ListBucket and s3:GetObject"
)


@checks_itself
def download(s3_path: str) -> Path:
    """Download a folder, or one file, and return the directory where it is on this node.

    Args:
        s3_path: ``s3://bucket/folder``.
    """
    return local_copy(_S3(Address.parse(s3_path, "s3")))


class _S3:
    def __init__(self, address: Address) -> None:
        self.uri = str(address)
        self._address = address
        boto3 = installed("boto3.session", "s3", self.uri)
        self._errors = installed("botocore.exceptions", "s3", self.uri)
        botocore = installed("botocore", "s3", self.uri)
        with self._explained():
            session = boto3.Session()
            settings = {"retries": {"mode": "standard", "total_max_attempts": 3}, "connect_timeout": 10}
            if session.get_credentials() is None:  # what is public needs none
                settings["signature_version"] = botocore.UNSIGNED
            config = installed("botocore.config", "s3", self.uri).Config(**settings)
            self._client = session.client("s3", config=config)

    def files(self) -> list[StoredFile]:
        for prefix in self._address.prefixes:
            found = list(self._below(prefix))
            if found:
                return found
        return []

    def checksum(self, file: StoredFile) -> Checksum | None:
        with self._explained():
            return _checksum(self._client.head_object(ChecksumMode="ENABLED", **self._request(file)))

    def read(self, file: StoredFile, start: int) -> Iterator[bytes]:
        asked = {"Range": f"bytes={start}-"} if start else {"ChecksumMode": "ENABLED"}
        with self._explained(), closing(self._client.get_object(**self._request(file), **asked)["Body"]) as body:
            yield from body.iter_chunks(BLOCK_BYTES)

    def _below(self, prefix: str) -> Iterator[StoredFile]:
        with self._explained():
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._address.bucket, Prefix=prefix)
            for each in (each for page in pages for each in page.get("Contents", ())):
                name = self._address.name_of(each["Key"])
                if name is not None:
                    yield StoredFile(name, each["Key"], each["Size"], each["ETag"])
                if prefix == self._address.path != "":
                    return  # the name itself comes before all that begins with it

    def _request(self, file: StoredFile) -> dict[str, str]:
        return {"Bucket": self._address.bucket, "Key": file.key, "IfMatch": file.version}

    @contextmanager
    def _explained(self) -> Iterator[None]:
        errors = self._errors
        try:
            yield
        except errors.ClientError as error:
            raise self._explanation(error.response) from error
        except errors.FlexibleChecksumError as error:
            raise ChecksumWrong from error
        except (errors.HTTPClientError, errors.ConnectionError, errors.IncompleteReadError) as error:
            raise StoreSilent(self.uri, f"the store does not answer ({type(error).__name__})") from error
        except errors.BotoCoreError as error:
            reason = f"boto3 cannot be set up ({type(error).__name__}); check AWS's variables and files"
            raise DownloadFailed(self.uri, reason) from error

    def _explanation(self, response: Mapping[str, Any]) -> Exception:
        code = str(response.get("Error", {}).get("Code", ""))
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if status == 412 or code == "NoSuchKey" or code == "404":
            return ObjectChanged(self.uri)
        if code in _REASONS:
            return DownloadFailed(self.uri, _REASONS[code])
        if status in (401, 403) or code == "ExpiredToken":
            return DownloadFailed(self.uri, _DENIED.format(code=code))
        if status >= 500 or status == 429 or code in ("SlowDown", "RequestTimeout"):
            return StoreSilent(self.uri, f"the store does not answer ({status})")
        return DownloadFailed(self.uri, f"the store refuses it ({code or status})")


def _checksum(head: Mapping[str, Any]) -> Checksum | None:
    """Return the strongest checksum of a whole object; those of uploads in parts are of the parts."""
    if head.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT":
        known: tuple[tuple[str, Any], ...] = (("SHA256", hashlib.sha256), ("SHA1", _sha1), ("CRC32", _CRC32))
        for name, start in known:
            digest = head.get(f"Checksum{name}", "")
            if digest and "-" not in digest:
                return Checksum(start, base64.b64decode(digest))
    etag = head["ETag"].strip('"')
    # Encrypted with a key of one's own, an object's ETag is not the MD5 of what one reads.
    encrypted = head.get("ServerSideEncryption", "AES256") != "AES256" or "SSECustomerAlgorithm" in head
    return Checksum(_md5, bytes.fromhex(etag)) if _MD5.fullmatch(etag) and not encrypted else None


def _md5() -> Hash:
    return hashlib.md5(usedforsecurity=False)


def _sha1() -> Hash:
    return hashlib.sha1(usedforsecurity=False)


class _CRC32:
    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes, /) -> None:
        self._value = zlib.crc32(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(4, "big")
