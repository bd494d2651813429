"""A script that makes an environment of its own: pinned packages for one GPU, and nothing of the machine's around them."""

import shlex
import textwrap
from collections.abc import Sequence

from budgetft.doctor.builds import Build
from budgetft.doctor.children import KEPT_OUT
from budgetft.installed import own_package
from budgetft.profiles import profiles_folder

EXTRA = "nf4"
"""What is installed besides what budgetft cannot do without: a GPU is to train on, QLoRA included."""

_SCRIPT = """\
#!/usr/bin/env bash
{about}
#
#   bash THIS [FOLDER]          makes it (FOLDER: .venv-budgetft)
#   source FOLDER/bin/activate  enters it, and keeps the machine's own libraries out
#
# Modules: none for CUDA, cuDNN or NCCL, torch brings its own. Only Python may need one, for example
#   module load python/3.11 && bash THIS
# conda: this makes a plain virtual environment and leaves yours as they are. To build it on the Python of one:
#   PYTHON="$(conda run -n NAME which python)" bash THIS
# From then on the line with source is enough; conda activate is not needed.
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


def write_recipe(gpu: str, build: Build, package: str | None = None, others: Sequence[Build] = ()) -> str:
    """The script for ``gpu`` on ``build``; ``package`` is what pip installs at the end: budgetft as it is installed here,
    with what 4-bit weights need."""
    return _SCRIPT.format(
        about=_about(gpu, build, others),
        kept_out=" ".join(KEPT_OUT),
        lock="\n".join([*build.requirements, pins()]),
        torch_requirements=" ".join(build.requirements),
        index="" if build.index is None else f" --index-url {build.index}",
        package=shlex.quote(package or own_package(EXTRA)),
    )


def pins() -> str:
    """The versions that were tested together, one a line."""
    return (profiles_folder() / "lock.txt").read_text(encoding="utf-8").strip()


def _about(gpu: str, build: Build, others: Sequence[Build]) -> str:
    """The head of the script: which torch, why this one, and when to take one of ``others`` instead."""
    told = [
        f"An environment for {gpu}: {build.name}. Made by budgetft doctor.",
        f"Why this build: {build.source}.",
        f"It needs driver {build.minimum_driver} or newer.",
    ]
    told += [f"Only where that build does not install: {other.name} ({other.install_line})." for other in others]
    lines = [textwrap.wrap(text, 110, initial_indent="# ", subsequent_indent="#   ", break_on_hyphens=False) for text in told]
    return "\n".join(line for group in lines for line in group)
