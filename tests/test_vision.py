"The door to torchvision: opens beside a CPU torch, says what is missing, and loads nothing before it is asked."
import subprocess
import sys

import pytest

from hclab.core import vision


def run(code):
    "What a fresh process prints."
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_a_fresh_process_opens_it():
    done = run("import sys\nfrom hclab.core import vision\nassert 'torch' not in sys.modules and 'torchvision' not in sys.modules\n"
               "tv = vision.load_torchvision()\nfrom torchvision import tv_tensors\nimport torch, torchvision\nassert torchvision is tv\n"
               "x = torch.arange(12.).reshape(1, 3, 4)\nassert torch.equal(vision.image_functions().vertical_flip(x), x.flip(-2))\n"
               "print(tv_tensors.Mask(x).shape[0], vision.has_operators() in (True, False))")
    assert done.returncode == 0 and done.stdout.split() == ["1", "True"], done.stderr


def test_where_it_is_missing_the_message_says_what_to_do():
    done = run("import sys\nsys.modules['torchvision'] = None\nfrom hclab.core.vision import image_functions, VisionMissing\n"
               "try: image_functions()\nexcept VisionMissing as e: print(isinstance(e, ImportError), e)")
    assert done.stdout.startswith("True torchvision is not installed; pip install torchvision"), done.stdout + done.stderr


@pytest.mark.parametrize("code, message", [
    ("raise RuntimeError('undefined symbol')", "does not load beside this torch: undefined symbol"),
    ("import nothing_of_this_name", None)])
def test_another_failure_is_not_mended(tmp_path, monkeypatch, code, message):
    "Only the one known error leads to declared operators."
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision/__init__.py").write_text(code)
    for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]: monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    vision.load_torchvision.cache_clear()
    declared = len(vision._declared)
    try:
        with pytest.raises(ImportError) as caught: vision.load_torchvision()
    finally: vision.load_torchvision.cache_clear()
    assert isinstance(caught.value, vision.VisionMissing) == bool(message) and (message or "nothing_of_this_name") in str(caught.value)
    assert len(vision._declared) == declared
