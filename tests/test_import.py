"""What importing tffed must not do, each in a fresh process."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def python(code):
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()


def test_import_loads_no_engine_and_not_even_tensorflow():
    heavy = ["tensorflow", "keras", "ray", "flwr", "tensorflow_privacy", "matplotlib", "loky"]
    assert python(f"import tffed, sys; print(*(m for m in {heavy} if m in sys.modules))") == []


def test_all_public_names_start_no_device_and_define_no_flag():
    found = python(
        "import tffed, sys\n"
        "for name in tffed.__all__: getattr(tffed, name)\n"
        "from tensorflow.python.eager import context\n"
        "from absl import flags\n"
        "print(context.context()._initialized)\n"
        "print(sum('tffed' in m for m in flags.FLAGS.flags_by_module_dict()))\n"
        "print(*(m for m in ('ray', 'flwr', 'tensorflow_privacy') if m in sys.modules))"
    )
    assert found == ["False", "0"]


def test_dir_and_unknown_names():
    import tffed

    assert set(dir(tffed)) == set(tffed.__all__)
    assert not hasattr(tffed, "no_such_name")
