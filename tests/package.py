"""What `make package` runs with the installed wheel alone: the import without extras, and the README's ten lines."""

import importlib.util
import re
import sys
from pathlib import Path

import jflow as jf

assert Path(jf.__file__).is_relative_to(sys.prefix), f"jflow must be the installed wheel. Got {jf.__file__}."
extras = [name for name in ("grain", "tyro", "matplotlib", "PIL", "sklearn") if importlib.util.find_spec(name)]
assert not extras, f"The environment must have no package of an extra. Got {extras}."
assert "flax" not in sys.modules and "optax" not in sys.modules
lines = re.search(r"^## Ten lines\n+```python\n(.*?)^```", Path(sys.argv[1]).read_text(), re.MULTILINE | re.DOTALL)
exec(lines[1], {"__name__": "readme"})
print(f"jflow {jf.__version__} from {Path(jf.__file__).parent}: imported without extras, and the ten lines ran")
