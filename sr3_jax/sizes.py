"""Heights and widths of images, in pixels, and the axis of devices that shares heights."""

SPATIAL_AXIS = "spatial"  # the axis of a mesh of devices over which the height of images is split

Size = int | tuple[int, int]  # height and width, or one number for squares


def sides(size: Size) -> tuple[int, int]:
    """Returns height and width of a size."""
    return (size, size) if isinstance(size, int) else size


def scaled(size: tuple[int, int], factor: int | float) -> tuple[int, int]:
    """Returns height and width of an image that is `factor` times as large, rounded."""
    return tuple(max(1, round(n * factor)) for n in size)


def text(size: Size, *, short: bool = False) -> str:
    """Returns a height and width as text: 64x96; `short`: 64 for 64x64."""
    height, width = sides(size)
    return str(height) if short and height == width else f"{height}x{width}"
