"""Files that appear whole or not at all."""

from etils import epath


def write_whole(path: epath.PathLike, data: bytes) -> None:
    """Writes under a temporary name beside `path` and renames, making the folder if missing."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(data)
    partial.replace(path)
