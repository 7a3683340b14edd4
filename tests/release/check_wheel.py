"""Before a release: the built wheel holds only `fmkit`, and the README's Python example runs on it, installed."""

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

wheel, readme = sys.argv[1:]
names = zipfile.ZipFile(wheel).namelist()
tops = {name.split("/")[0] for name in names}
assert tops == {"fmkit"} | {t for t in tops if t.endswith(".dist-info")}, tops
assert "fmkit/py.typed" in names

blocks = re.findall(r"```python\n(.*?)```", Path(readme).read_text(), flags=re.DOTALL)
program = "\n".join(blocks[:2]).replace("steps=3000", "steps=20").replace("range(2000)", "range(20)")
program += "\nassert 'site-packages' in fmkit.__file__, fmkit.__file__\n"
with tempfile.TemporaryDirectory() as folder:
    subprocess.run([sys.executable, "-c", program], cwd=folder, check=True)
print(f"{Path(wheel).name}: top level {sorted(tops)}, README example runs")
