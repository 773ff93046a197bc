"""The chain: order, skipping, refusals, plans; with stages that only leave a file."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from rbalign import stages
from rbalign.config.load import load_recipe
from rbalign.config.recipe import Recipe
from rbalign.errors import RunError, UsageError
from rbalign.rundir.run import RunDir
from rbalign.stages import chain as chain_module
from rbalign.stages.base import Plan, PlanRow
from rbalign.stages.chain import chain

TABLE = {"name": "demo", "synth": {}, "align": {}, "eval": {}, "report": {}}


class FakeStages:
    """Stands in for the stage modules: counts calls, and fails or is outdone on request."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ran: list[str] = []
        self.fail = ""
        self.outside = "connector-1"
        self.refuse = ""
        self.bytes = 10
        for name in ("synth", "align", "eval", "report"):
            module = SimpleNamespace(plan=self.plan(name), run=self.work(name))
            if name == "align":
                module.inputs = lambda recipe: {"connector": self.outside}
                module.check = self.check
            monkeypatch.setitem(sys.modules, f"rbalign.stages.{name}", module)

    def plan(self, name: str):
        return lambda recipe, run: Plan((PlanRow(f"{name} things", 4, seconds=8.0, bytes=self.bytes),))

    def check(self, recipe: Recipe) -> None:
        if self.refuse:
            raise UsageError(self.refuse)

    def work(self, name: str):
        def run(recipe: Recipe, run: RunDir) -> dict[str, str]:
            self.ran.append(name)
            if name == self.fail:
                raise KeyboardInterrupt
            return {"hash": f"{name}-{recipe.seed}"}

        return run


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeStages:
    return FakeStages(monkeypatch)


def go(root: Path, only: str | None = None, fork: str | None = None, said: list[str] | None = None, **changes: object):
    recipe = Recipe.model_validate({**TABLE, **changes})
    with RunDir.open(root, recipe, fork) as run:
        return chain(run.recipe, run, only, say=(said if said is not None else []).append)


def test_stages_run_in_order_and_finished_ones_are_skipped(tmp_path: Path, fake: FakeStages) -> None:
    said: list[str] = []
    outcomes = go(tmp_path, said=said)
    assert fake.ran == ["synth", "align", "eval", "report"]
    assert said == ["synth: done", "align: done", "eval: done", "report: done"]
    assert outcomes[1].outputs == {"hash": "align-1"}
    fake.ran.clear()
    said.clear()
    go(tmp_path, said=said)
    assert fake.ran == ["report"], "the page is drawn again, the work is not"
    assert said[:3] == [f"{stage}: finished before, skipped" for stage in ("synth", "align", "eval")]


def test_what_a_later_stage_refuses_is_refused_before_the_first_one(tmp_path: Path, fake: FakeStages) -> None:
    fake.refuse = "no such arm"
    with pytest.raises(UsageError, match="no such arm"):
        go(tmp_path)
    assert fake.ran == []
    with RunDir.open(tmp_path, Recipe.model_validate(TABLE)) as run:
        assert len(chain(run.recipe, run, dry_run=True)) == 4, "a plan may be made of anything"
    go(tmp_path, only="synth")
    fake.refuse = ""
    go(tmp_path)
    fake.refuse = "no such arm"
    go(tmp_path)  # what is done is not asked again


def test_an_interrupted_chain_goes_on_with_the_stage_that_was_interrupted(tmp_path: Path, fake: FakeStages) -> None:
    fake.fail = "align"
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path)
    fake.fail = ""
    fake.ran.clear()
    go(tmp_path)
    assert fake.ran == ["align", "eval", "report"]


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"align": {"beta": 0.2}}, "align.beta was 0.1 when align finished"),
        ({"seed": 2}, "seed was 1 when synth finished"),
        ({"teacher": {"model": "other"}}, "teacher.model was"),
        ({"synth": {"filters": {"min_words": 5}}}, "synth.filters.min_words was 4 when synth finished"),
    ],
)
def test_a_changed_recipe_is_refused_before_anything_runs(
    tmp_path: Path, fake: FakeStages, changes: dict, part: str
) -> None:
    go(tmp_path)
    fake.ran.clear()
    with pytest.raises(RunError) as caught:
        go(tmp_path, **changes)
    assert part in str(caught.value)
    assert "--fork NAME" in str(caught.value)
    assert fake.ran == []


def test_a_fork_does_again_only_what_changed_and_what_comes_after(tmp_path: Path, fake: FakeStages) -> None:
    go(tmp_path)
    fake.ran.clear()
    go(tmp_path, fork="other", align={"beta": 0.2})
    assert fake.ran == ["align", "eval", "report"]


def test_one_stage_of_a_fork_takes_over_what_comes_before_it(tmp_path: Path, fake: FakeStages) -> None:
    go(tmp_path)
    fake.ran.clear()
    go(tmp_path, only="align", fork="other", align={"beta": 0.2})
    assert fake.ran == ["align"]
    fake.ran.clear()
    with pytest.raises(RunError, match="align needs synth"):
        go(tmp_path, only="align", fork="third", synth={"train": 9})
    go(tmp_path, only="synth", fork="third", synth={"train": 8})
    assert fake.ran == ["synth"]


def test_fields_that_change_no_result_may_change(tmp_path: Path, fake: FakeStages) -> None:
    go(tmp_path)
    fake.ran.clear()
    go(tmp_path, synth={"workers": 2, "batch_size": 8}, align={"micro_batch": 2}, eval={"batch_size": 1})
    assert fake.ran == ["report"]


def test_every_free_field_is_a_field_of_its_section() -> None:
    for stage, fields in chain_module.FREE_FIELDS.items():
        section = getattr(load_recipe("laptop"), stage)
        assert fields <= set(type(section).model_fields)


def test_a_report_section_may_change(tmp_path: Path, fake: FakeStages) -> None:
    go(tmp_path)
    go(tmp_path, "report", report={"samples": 3})
    with RunDir.open(tmp_path, Recipe.model_validate(TABLE)) as run:
        assert run.status["stages"]["report"]["section"]["report"]["samples"] == 3


def test_a_changed_input_from_outside_the_run_is_noticed(tmp_path: Path, fake: FakeStages) -> None:
    go(tmp_path)
    fake.outside = "connector-2"
    with pytest.raises(RunError, match=r"an input of align: connector was .*connector-1.*connector-2"):
        go(tmp_path)


def test_other_results_of_an_earlier_stage_make_a_later_one_stale(tmp_path: Path, fake: FakeStages) -> None:
    go(tmp_path)
    with RunDir.open(tmp_path, Recipe.model_validate(TABLE)) as run:
        run.status["stages"]["synth"]["outputs"] = {"hash": "edited"}
        run.write_status()
    with pytest.raises(RunError, match=r"an input of align: synth\.hash was"):
        go(tmp_path)


def test_one_stage_alone_needs_the_ones_before_it(tmp_path: Path, fake: FakeStages) -> None:
    with pytest.raises(RunError, match=r"align needs synth.*first `rba synth RECIPE`"):
        go(tmp_path, "align")
    go(tmp_path, "synth")
    go(tmp_path, "align")
    assert fake.ran == ["synth", "align"]


def test_a_stage_that_the_recipe_lacks_is_refused(tmp_path: Path, fake: FakeStages) -> None:
    with pytest.raises(UsageError, match=r"no \[connect\] section; it has \[synth\], \[align\]"):
        go(tmp_path, "connect")
    with pytest.raises(UsageError, match="no stage"):
        go(tmp_path, synth=None, align=None, eval=None, report=None)


def test_a_dry_run_plans_everything_and_makes_nothing(tmp_path: Path, fake: FakeStages) -> None:
    look = RunDir.look(tmp_path, Recipe.model_validate(TABLE))
    outcomes = chain(look.recipe, look, dry_run=True)
    assert [(o.stage, o.plan.rows[0].count, o.plan.seconds, o.plan.bytes) for o in outcomes] == [
        (stage, 4, 8.0, 10) for stage in ("synth", "align", "eval", "report")
    ]
    assert fake.ran == []
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_shows_what_is_finished_and_refuses_what_changed(tmp_path: Path, fake: FakeStages) -> None:
    go(tmp_path)
    look = RunDir.look(tmp_path, Recipe.model_validate(TABLE))
    assert [o.skipped for o in chain(look.recipe, look, dry_run=True)] == [True, True, True, False]
    look = RunDir.look(tmp_path, Recipe.model_validate({**TABLE, "synth": {"train": 9}}))
    with pytest.raises(RunError, match=r"synth\.train was 64"):
        chain(look.recipe, look, dry_run=True)


def test_a_dry_run_of_a_fork_shows_what_it_would_take_over(tmp_path: Path, fake: FakeStages) -> None:
    go(tmp_path)
    look = RunDir.look(tmp_path, Recipe.model_validate({**TABLE, "eval": {"limit": 3}}), fork="other")
    assert [o.skipped for o in chain(look.recipe, look, dry_run=True)] == [True, True, False, False]
    assert not (tmp_path / "other").exists()


def test_a_disk_that_is_too_small_is_refused_before_the_work(tmp_path: Path, fake: FakeStages) -> None:
    fake.bytes = 10**18
    with pytest.raises(RunError, match="GB are free"):
        go(tmp_path)
    assert fake.ran == []


def test_run_recipe_from_python(tmp_path: Path, fake: FakeStages) -> None:
    recipe = Recipe.model_validate(TABLE)
    assert stages.run_recipe(recipe, runs=tmp_path) == tmp_path / "demo"
    assert fake.ran[-1] == "report"


def test_the_public_names_are_there_and_others_are_not() -> None:
    for name in stages.__all__:
        assert getattr(stages, name) is not None
    with pytest.raises(AttributeError):
        _ = stages.nothing_of_that_name
