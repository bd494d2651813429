"""A script that makes an environment of its own: pinned packages for one card, and nothing of the machine's around them."""

import json
import shlex
from importlib.metadata import PackageNotFoundError, distribution
from urllib.parse import unquote, urlparse

from budgetft import __version__
from budgetft.doctor.builds import Build
from budgetft.doctor.children import KEPT_OUT
from budgetft.profiles import profiles_folder

_SCRIPT = """\
#!/usr/bin/env bash
# An environment for {card}: torch {torch} with CUDA {cuda}. Made by budgetft doctor.
# Why this build: {source}.
# It needs driver {driver} or newer.
#   bash THIS [FOLDER]          makes it (FOLDER: .venv-budgetft)
#   source FOLDER/bin/activate  enters it, and keeps the machine's own libraries out
set -euo pipefail
folder=${{1:-.venv-budgetft}}
python=${{PYTHON:-python3}}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {{ echo "needs Python 3.11 or newer" >&2; exit 1; }}

isolate=$(cat <<'ISOLATE'
# The driver's own folder stays: containers find libcuda there.
kept=""
for entry in $(printf %s "${{LD_LIBRARY_PATH:-}}" | tr : '\n'); do
  if [ -n "$(find "$entry" -maxdepth 1 -name 'libcuda.so*' 2> /dev/null)" ] &&
    [ -z "$(find "$entry" -maxdepth 1 -name 'libcudart.so*' 2> /dev/null)" ]; then
    kept="${{kept:+$kept:}}$entry"
  fi
done
unset {kept_out}
if [ -n "$kept" ]; then export LD_LIBRARY_PATH="$kept"; fi
unset kept entry
export PYTHONNOUSERSITE=1 PIP_USER=0
ISOLATE
)
eval "$isolate"

"$python" -m venv "$folder"
cat > "$folder/lock.txt" <<'LOCK'
{lock}
LOCK
"$folder/bin/python" -m pip install {torch_requirements}{index}
"$folder/bin/python" -m pip install --constraint "$folder/lock.txt" {package}
printf '\\n# the machine'"'"'s own libraries stay out\\n%s\\n' "$isolate" >> "$folder/bin/activate"
"$folder/bin/python" - <<'CHECK'
import torch
print("torch", torch.__version__, "for", " ".join(torch.cuda.get_arch_list()) or torch._C._cuda_getArchFlags())
CHECK
echo "next: source $folder/bin/activate && budgetft doctor"
"""


def write_recipe(card: str, build: Build, package: str | None = None) -> str:
    """The script for ``card`` on ``build``; ``package`` is what pip installs at the end: budgetft as it is installed here."""
    pins = (profiles_folder() / "lock.txt").read_text(encoding="utf-8").strip()
    return _SCRIPT.format(
        card=card,
        torch=build.torch,
        cuda=build.cuda,
        source=build.source,
        driver=build.minimum_driver,
        kept_out=" ".join(KEPT_OUT),
        lock="\n".join([*build.requirements, pins]),
        torch_requirements=" ".join(build.requirements),
        index="" if build.index is None else f" --index-url {build.index}",
        package=shlex.quote(package or _own_package()),
    )


def _own_package() -> str:
    """The folder or wheel that budgetft was installed from, else its name and version."""
    try:
        own = distribution("budgetft")
    except PackageNotFoundError:
        return f"budgetft=={__version__}"
    origin = json.loads(own.read_text("direct_url.json") or "{}").get("url", "")
    return unquote(urlparse(origin).path) if origin.startswith("file:") else f"budgetft=={own.version}"
