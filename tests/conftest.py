"""What the run as a whole must keep: the budget of the notebooks (mean 12 s and at most 60 s each at `smoke`, on two cores that do nothing else)."""
import pytest

MEAN, MOST = 12, 60  # seconds
SLACK = 2            # a busy machine is slower; beyond twice the budget it is the notebooks
seconds: dict[str, float] = {}


def pytest_runtest_logreport(report):
    "Collect what `test_notebook_says_the_same` measured; with xdist the reports arrive in the main process."
    if report.when == "call":
        for name, value in report.user_properties:
            if name == "seconds": seconds[report.nodeid.split("[")[-1].rstrip("]")] = value


@pytest.fixture
def figures_that_are_closed():
    "Figures are drawn into memory, and none outlives its test."
    import matplotlib
    matplotlib.use("agg")
    yield
    import matplotlib.pyplot as plt
    plt.close("all")


def over_budget(measured: dict[str, float]) -> list[str]:
    "What is over the budget, one sentence each."
    if not measured: return []
    mean = sum(measured.values())/len(measured)
    found = [f"the mean of {len(measured)} notebooks is {mean:.1f} s, the budget {MEAN} s"] if mean > SLACK*MEAN else []
    return found + [f"{name} took {value:.0f} s, the budget is {MOST} s" for name, value in measured.items() if value > SLACK*MOST]


def pytest_sessionfinish(session, exitstatus):
    if not hasattr(session.config, "workerinput") and exitstatus == 0 and over_budget(seconds): session.exitstatus = 1


def pytest_terminal_summary(terminalreporter):
    if not seconds: return
    slowest = sorted(seconds.items(), key=lambda item: -item[1])[:5]
    terminalreporter.section("notebooks at smoke")
    terminalreporter.write_line(f"{len(seconds)} notebooks, {sum(seconds.values()):.0f} s in all, mean {sum(seconds.values())/len(seconds):.1f} s (budget {MEAN} s); slowest: "
                                + ", ".join(f"{name} {value:.0f} s" for name, value in slowest))
    for line in over_budget(seconds): terminalreporter.write_line(f"OVER BUDGET: {line}", red=True)
