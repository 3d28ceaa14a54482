"""Fetches what the handler reads. Here it lies in another folder; yours may come from anywhere."""

import shutil
from pathlib import Path

LOCAL_COPY = Path.home() / ".cache" / "hello_world"


def download_model(my_custom_location: str) -> None:
    print("My custom location:", my_custom_location)
    LOCAL_COPY.mkdir(parents=True, exist_ok=True)
    files = sorted(Path(my_custom_location).iterdir())
    for number, file in enumerate(files, start=1):
        shutil.copyfile(file, LOCAL_COPY / file.name)
        print(f"Fetched {number} of {len(files)}: {file.name}, {file.stat().st_size} bytes")
