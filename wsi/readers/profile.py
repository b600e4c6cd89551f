"""A slide's ICC profile: its name, and what its pixels are in sRGB (littlecms, through Pillow)."""

from __future__ import annotations

from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from wsi.errors import SlideFormatError

if TYPE_CHECKING:
    from PIL.ImageCms import ImageCmsTransform

MOST_BYTES = 2**26
"""Of a profile: scanners write up to some 14 MB."""


@dataclass(slots=True, kw_only=True, eq=False)
class ColourProfile:
    """The profile of a level, as stored.

    Attributes:
        path: of the slide, for messages.
        data: the profile (ICC.1).
    """

    path: str
    data: bytes
    _transform: ImageCmsTransform | None = field(default=None, init=False, repr=False)

    @property
    def name(self) -> str:
        """The description that the profile gives itself; "unreadable" if it is damaged."""
        from PIL import ImageCms  # noqa: PLC0415  (slow import)

        try:
            return " ".join(ImageCms.getProfileDescription(BytesIO(self.data)).split()) or "unnamed"
        except (ImageCms.PyCMSError, OSError):
            return "unreadable"

    def to_srgb(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Pixels in sRGB by the rendering intent that the profile asks for: uint8 (rows, columns, 3), as given.

        Raises:
            SlideFormatError: the profile is damaged or not one of RGB.
        """
        from PIL import ImageCms  # noqa: PLC0415  (slow import)

        try:
            if self._transform is None:
                own = ImageCms.getOpenProfile(BytesIO(self.data))
                self._transform = ImageCms.buildTransform(
                    own,
                    ImageCms.createProfile("sRGB"),
                    "RGB",
                    "RGB",
                    renderingIntent=ImageCms.Intent(ImageCms.getDefaultIntent(own)),
                )
            return np.asarray(self._transform.apply(Pillow.fromarray(pixels)))
        except (ImageCms.PyCMSError, OSError, ValueError) as error:
            raise SlideFormatError(
                self.path, f"has an ICC profile that cannot be applied: {error}", mend='read it with colour="stored"'
            ) from error
