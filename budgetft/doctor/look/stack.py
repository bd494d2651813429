"""Import packages one after the other; each is announced first, so that a crash tells where it was."""

import importlib
import json
import os
import sys
import warnings


def say(**fields: object) -> None:
    print("@@" + json.dumps(fields), flush=True)


def mapped() -> list[str]:
    """The CUDA libraries that this process has loaded."""
    wanted = ("libcudnn", "libnccl", "libcublas", "libcudart", "libcuda.so", "libnvrtc")
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
            paths = {line.split(maxsplit=5)[-1].strip() for line in file if "/" in line}
    except OSError:
        return []
    return sorted(path for path in paths if os.path.basename(path).startswith(wanted))


def torch_facts() -> dict[str, object]:
    import torch

    flags = torch._C._cuda_getArchFlags() if torch.version.cuda else None
    facts: dict[str, object] = {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "file": torch.__file__,
        "architectures": flags.split() if flags else [],
    }
    try:
        torch.from_numpy(torch.zeros(1).numpy())
    except Exception as error:
        facts["numpy_bridge"] = f"{type(error).__name__}: {error}"
    try:
        facts["cudnn"] = torch.backends.cudnn.version()
    except Exception as error:
        facts["cudnn_error"] = str(error)
    return facts


def main(names: list[str]) -> None:
    for name in names:
        say(begin=name)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                module = importlib.import_module(name)
                if name == "torch":
                    say(torch=torch_facts())
            except BaseException as error:
                say(failed=name, error=f"{type(error).__name__}: {error}"[:1500])
                continue
        told = [str(warning.message)[:300] for warning in caught if "NumPy" in str(warning.message)]
        say(imported=name, file=getattr(module, "__file__", None), warnings=told)
    say(mapped=mapped())


main(sys.argv[1:])
