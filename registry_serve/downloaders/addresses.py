"""Addresses of folders in object stores."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from registry_serve.downloaders.plugins import without_credentials
from registry_serve.errors import DownloadFailed


@dataclass(frozen=True)
class Address:
    """A folder of a bucket, or a single file.

    Attributes:
        scheme: ``s3`` or ``gs``.
        bucket: its name.
        path: inside the bucket, without slashes around it; empty for all of the bucket.
    """

    scheme: str
    bucket: str
    path: str

    @classmethod
    def parse(cls, uri: str, scheme: str) -> Address:
        """Read ``scheme://bucket/path``.

        Raises:
            DownloadFailed: it is something else, or has credentials in it.
        """
        example = f"{scheme}://bucket/folder"
        shown = without_credentials(uri) if isinstance(uri, str) else repr(uri)
        parts = _split(uri) if isinstance(uri, str) else None
        if parts is None or parts.scheme != scheme or not parts.netloc:
            raise DownloadFailed(shown or "An empty path", f"it is no address such as {example}")
        if "@" in parts.netloc:
            reason = "its address has credentials in it; take them out, they come from where the client looks for them"
            raise DownloadFailed(shown, reason)
        # A question mark or a hash is a character like any other in the name of an object.
        return cls(scheme, parts.netloc, uri.removeprefix(f"{scheme}://{parts.netloc}").strip("/"))

    def __str__(self) -> str:
        """Return the address of the same folder in one form."""
        return f"{self.scheme}://{self.bucket}/{self.path}".rstrip("/")

    def name_of(self, key: str) -> str | None:
        """Return an object's name below the folder; None: it is the mark of a folder, or not in it."""
        if key == self.path:
            return key.rpartition("/")[2]
        below = f"{self.path}/" if self.path else ""
        return key.removeprefix(below) if key.startswith(below) and not key.endswith("/") else None

    @property
    def prefixes(self) -> tuple[str, ...]:
        """What to list: the folder, and where that is empty the file of this name."""
        return (f"{self.path}/", self.path) if self.path else ("",)


def _split(uri: str) -> SplitResult | None:
    try:
        return urlsplit(uri)
    except ValueError:
        return None
