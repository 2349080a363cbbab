"""Makes the pictures of plots.md by running its code: `python docs/pictures.py`."""

import os
import re
from pathlib import Path

from PIL import Image

DOCS = Path(__file__).parent
CODE = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)

if __name__ == "__main__":
    os.chdir(DOCS / "pictures")
    namespace: dict = {}
    for block in CODE.findall((DOCS / "plots.md").read_text()):
        exec(block, namespace)
    for path in Path().glob("*.png"):
        with Image.open(path) as picture:
            small = picture.convert("RGB").quantize(128)
        small.save(path, optimize=True)
