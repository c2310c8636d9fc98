"""`--engine ray`: the same arms, spread by Ray; here over two workers of this machine."""
import pytest

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'hclab[cluster]'")

from hclab.lab.arms import Arm, ArmsFailed, ExampleConfig, run_arms

RUN = "hclab.lab.arms:example_arm"


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=None, configure_logging=False)
    yield
    ray.shutdown()


def test_arms_over_ray_give_what_they_give_here(cluster, tmp_path):
    arms = [Arm("a", RUN, ExampleConfig(steps=4), seed) for seed in range(3)]
    there = run_arms(arms, engine="ray", root=tmp_path/"ray")
    here = run_arms(arms[:1], root=tmp_path/"local")
    assert [s.state for s in there.values()] == ["done"]*3
    assert there["a", 0].row["result"] == here["a", 0].row["result"]
    with pytest.raises(ArmsFailed, match="broken s0: RuntimeError: the example fails"):
        run_arms([Arm("broken", RUN, ExampleConfig(fail_at=1)), *arms], engine="ray", root=tmp_path/"ray")
