"""The fingerprint of an arm's code: what must change it, and what must not."""
import textwrap

import pytest

from hclab.core.config import ConfigError
from hclab.lab import sources as tracer

BASE = {
    "hclab.a": """
        from .b import used, Kind
        from . import c
        from numpy import ones
        LIMIT = 3
        OTHER = 4
        def run(config, seed):
            from .d import late
            return used(LIMIT) + late(ones(2)) + c.one()
        class Settings(Kind): size = 1
        def apart(): return OTHER
        """,
    "hclab.b": """
        TABLE = {}
        def used(x): return helper(x)
        def helper(x): return x + TABLE["k"]
        def unused(x): return x
        class Kind:
            def method(self): return deep()
        def deep(): return 1
        TABLE["k"] = 2
        """,
    "hclab.c": "def one(): return 1\ndef two(): return 2\n",
    "hclab.d": "def late(x): return x\ndef _also(): return 1\nfor _f in (_also,): setattr(late, 'also', _f)\n",
    "hclab.e": "def alone(): return 1\n",
}

@pytest.fixture
def library(monkeypatch):
    "Modules that exist in this dictionary only."
    texts = {name: textwrap.dedent(text) for name, text in BASE.items()}
    monkeypatch.setattr(tracer, "module", lambda name: tracer.read_code(texts[name], "hclab") if name in texts else None)
    monkeypatch.setattr(tracer, "_file", lambda name: name if name in texts else None)
    monkeypatch.setattr(tracer, "_files", lambda: tuple(sorted(texts.items())))
    return texts

def fingerprint(): return tracer.sources("hclab.a:run", "Settings")

def test_only_what_is_reached_has_a_fingerprint(library):
    assert list(fingerprint()) == ["hclab.a", "hclab.b", "hclab.c", "hclab.d"]
    assert list(tracer.sources("hclab.a:apart")) == ["hclab.a"]

@pytest.mark.parametrize("module, old, new", [
    ("hclab.a", "LIMIT = 3", "LIMIT = 5"),                        # a constant that is used
    ("hclab.a", "+ c.one()", "+ c.two()"),                        # the function itself
    ("hclab.a", "size = 1", "size = 2"),                          # the class of the settings
    ("hclab.a", "from numpy import ones", "from torch import ones"),  # a name that comes from elsewhere
    ("hclab.b", "return x + TABLE", "return x - TABLE"),          # a helper's helper, in another module
    ("hclab.b", "def deep(): return 1", "def deep(): return 2"),  # through a method of a base class
    ("hclab.b", 'TABLE["k"] = 2', 'TABLE["k"] = 3'),              # an entry made when the module is imported
    ("hclab.c", "def one(): return 1", "def one(): return 7"),    # an attribute of a module
    ("hclab.d", "def late(x): return x", "def late(x): return -x"),  # an import inside a function
    ("hclab.d", "def _also(): return 1", "def _also(): return 2"),   # added to a class by a loop
])
def test_code_that_counts(library, module, old, new):
    before = fingerprint()
    assert old in library[module]
    library[module] = library[module].replace(old, new)
    after = fingerprint()
    assert after[module] != before[module]

@pytest.mark.parametrize("module, old, new", [
    ("hclab.a", "OTHER = 4", "OTHER = 5"),
    ("hclab.b", "def unused(x): return x", "def unused(x): return 2*x"),
    ("hclab.b", "def helper(x): return", "def helper(x):\n    'Doc.'\n    return"),
    ("hclab.b", "def deep", "# a comment\ndef deep"),
    ("hclab.b", "def used", "NEW = 1\ndef used"),
    ("hclab.c", "def two(): return 2", "def two(): return 3"),
    ("hclab.e", "return 1", "return 2"),
])
def test_code_that_does_not_count(library, module, old, new):
    before = fingerprint()
    assert old in library[module]
    library[module] = library[module].replace(old, new)
    assert fingerprint() == before

def test_a_registering_decorator_and_a_whole_module_count(library):
    library["hclab.c"] += "def register(f): return f\n@register\ndef entry(): return 1\n"
    before = fingerprint()
    library["hclab.c"] = library["hclab.c"].replace("def entry(): return 1", "def entry(): return 2")
    assert fingerprint()["hclab.c"] != before["hclab.c"]
    library["hclab.a"] = library["hclab.a"].replace("c.one()", "list(c)[0]")   # the module goes somewhere as a value
    before = fingerprint()
    library["hclab.c"] = library["hclab.c"].replace("def two(): return 2", "def two(): return 3")
    assert fingerprint()["hclab.c"] != before["hclab.c"]

def test_what_does_not_exist_is_said(library):
    for wrong, says in ((("hclab.zzz:run",), "no module 'hclab.zzz'"), (("hclab.a:nothing",), "has no nothing"), (("hclab.a:run", "Absent"), "has no Absent")):
        with pytest.raises(ConfigError, match=says): tracer.sources(*wrong)

def test_pictures_are_no_part_of_a_lifter():
    found = tracer.sources("hclab.methods.baselines.martinez:train_arm", "MartinezArm")
    assert {"hclab.tasks.lift_data", "hclab.train.loop", "hclab.core.metrics"} <= found.keys()
    assert not any(name.startswith(("hclab.viz", "hclab.lab")) for name in found)
