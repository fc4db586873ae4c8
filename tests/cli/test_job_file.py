"""Every option of a job, from a file, from --set and from the command line: none is listed here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.core import TyperGroup
from typer.testing import CliRunner

from castor.app import app
from castor.commands.job_flags import given_flags
from castor_configs.dump import table_toml
from castor_configs.errors import InputError
from castor_configs.job import Flag, Job, LaunchOptions, options_by_key
from castor_configs.job_file import GivenJob, job_toml
from castor_configs.written_options import names_of, written_value
from castor_policy.agents.job_spec import JobSpec
from castor_policy.option import Option, Unit, default_of, flag_of
from castor_runtime.launcher.train_options import job_spec
from castor_runtime.trainer.agent_link import TrainerSettings

EXAMPLE = Path(__file__).parents[2] / "examples" / "gpt2_tiny.toml"
OPTIONS = [pytest.param(*one, id=".".join(one[0])) for one in options_by_key()]
every_option = pytest.mark.parametrize(("key", "group", "name", "one"), OPTIONS)


def another(one: Option, default: Any) -> Any:
    """Return a value of an option that is not its default."""
    if names := names_of(one):
        return names[-1]
    if one.several:
        return ("other", "another", "s3://bucket/prefix")
    changed = {
        Unit.SHARE: lambda: default / 2,
        Unit.COUNT: lambda: default + 1,
        Unit.FLAG: lambda: not default,
        Unit.TEXT: lambda: "other",
        Unit.PATH: lambda: "other",
    }
    return changed.get(one.unit, lambda: 2 * default or 8 << 20)()


def tables(key: tuple[str, ...], value: object) -> dict[str, Any]:
    return {key[0]: value} if len(key) == 1 else {key[0]: {key[1]: value}}


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    (tmp_path / "train.py").write_text("raise SystemExit('it must not run')")
    path = tmp_path / "job.toml"
    path.write_text('script = "train.py"\n')
    return path


def on_command_line(*words: str) -> Job:
    command = typer.main.get_command(app)
    assert isinstance(command, TyperGroup)
    train = command.commands["train"]
    with train.make_context("train", list(words)) as context:
        given = GivenJob(context.params["script"], flags=given_flags(context))
    return given.checked()


@every_option
def test_an_option_arrives_from_everywhere(
    job_file: Path, key: tuple[str, ...], group: type, name: str, one: Option
) -> None:
    value = another(one, default_of(group, name))
    written = written_value(one, value)
    plain = GivenJob(job_file).checked()
    by_set = GivenJob(job_file, [f"{'.'.join(key)}={toml_value(written)}"]).checked()
    flag = flag_of(name, one)
    values = written if one.several else [written]
    words = [flag] if one.unit == Unit.FLAG else [f"{flag}={each}" for each in values]
    by_flag = on_command_line(str(job_file), *words)
    job_file.write_text(table_toml({"script": "train.py", **tables(key, written)}))
    by_file = GivenJob(job_file).checked()
    if one.several:
        below = tuple(each if ":" in each else str(job_file.parent / each) for each in value)
        assert option_of(by_file, key, name) == below, "beside the file"
        below = tuple(each if ":" in each else str(Path(each).resolve()) for each in value)
        assert option_of(by_flag, key, name) == below
    elif one.unit == Unit.PATH:
        assert option_of(by_file, key, name) == str(job_file.parent / value), "beside the file"
        assert option_of(by_flag, key, name) == str(Path(value).resolve())
    else:
        assert option_of(by_file, key, name) == value
        assert by_file == by_flag
    assert by_set == by_flag
    assert option_of(plain, key, name) == default_of(group, name)
    if group is not LaunchOptions:
        spec = JobSpec.from_json(job_spec(by_flag).to_json())
        trainer = TrainerSettings("j", spec.run, 0, 0, 0, 1, 1, ((0,),), "", "", 0, **spec.groups())
        told = TrainerSettings.from_json(trainer.to_json())
        for held in (spec, told):
            assert getattr(held, key[0]) == getattr(by_flag, key[0])


def option_of(job: Job, key: tuple[str, ...], name: str) -> Any:
    return getattr(getattr(job, key[0]) if len(key) > 1 else job.launch, name)


def toml_value(written: object) -> str:
    return table_toml({"a": written}).removeprefix("a = ").strip()


@every_option
def test_a_bad_value_is_told_with_its_place(
    job_file: Path, key: tuple[str, ...], group: type, name: str, one: Option
) -> None:
    takes_any = one.unit in (Unit.TEXT, Unit.PATH) and not names_of(one)
    bad: object = 7 if takes_any else "bad?"
    dotted = ".".join(key)
    with pytest.raises(InputError, match=rf"^--set: {dotted}: expected "):
        GivenJob(job_file, [f"{dotted}={toml_value(bad)}"]).checked()
    flag = flag_of(name, one)
    with pytest.raises(InputError, match=rf"^{flag}: expected "):
        GivenJob(job_file, flags=[Flag(key, flag, bad)]).checked()
    job_file.write_text(table_toml({"script": "train.py", **tables(key, bad)}))
    line = 3 + (len(key) > 1) if len(key) > 1 else 2
    with pytest.raises(InputError, match=rf"^{re.escape(str(job_file))}:{line}: {dotted}: exp"):
        GivenJob(job_file).checked()


def test_what_is_given_last_holds(job_file: Path) -> None:
    job_file.write_text('script = "train.py"\narguments = ["-a"]\nnodes = 5\n[traffic]\nmu = 0.5\n')
    own = job_file.with_name("own.toml")
    own.write_text('extends = "job.toml"\n[limits]\nlease = "2s"\n')
    words = ("--mu", "0.7", "--nodes", "3", "--lease", "9s")
    changed = GivenJob(own, ["traffic.mu=0.6"], arguments=("-b",)).checked()
    assert (changed.traffic.mu, changed.limits.lease_s, changed.launch.nodes) == (0.6, 2.0, 5)
    assert changed.arguments == ("-a", "-b")
    assert changed.script == str(job_file.with_name("train.py"))
    flagged = on_command_line(str(own), *words)
    assert (flagged.traffic.mu, flagged.limits.lease_s, flagged.launch.nodes) == (0.7, 9.0, 3)


def test_all_faults_are_told_at_once(job_file: Path) -> None:
    job_file.write_text('script = "train.py"\n[traffic]\nmu = 2\nchnk = "1MiB"\n[limit]\n')
    with pytest.raises(InputError) as raised:
        GivenJob(job_file, flags=[Flag(("nodes",), "--nodes", 0)]).checked()
    told = str(raised.value)
    assert "4 faults" in told
    assert f"{job_file}:3: traffic.mu: expected a share" in told
    assert f"{job_file}:4: traffic.chnk: unknown key `chnk`; did you mean `chunk`?" in told
    assert "unknown key `limit`; did you mean `limits`?" in told
    assert "--nodes: expected 1 or more, not 0" in told


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("nodes = 2\n", "script"),
        ('script = "none.py"\n', "job.toml:1: script: there is no such script"),
        ('script = "train.py"\nnodes = 2\nreplicas = 3\n', "job.toml:3: replicas: expected 1 to 2"),
        ('script = "train.py"\nstore = "redis://h"\n', "job.toml:2: store: "),
        ('script = "train.py"\njob = "a/b"\n', "job.toml:2: job: expected at most"),
        ('script = "train.py"\n[traffic]\nbuffer = "3B"\n', "job.toml:3: traffic.buffer: each of"),
        (
            'script = "train.py"\n[traffic]\nscheme = "none"\n[persistence]\ntiers = "p"\n',
            "job.toml:5: persistence.tiers: scheme none takes no checkpoint",
        ),
        ('script = "train.py"\nnodes = \n', "job.toml:2: not valid TOML"),
    ],
)
def test_a_job_that_cannot_be_leaves_nothing_behind(
    job_file: Path, text: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(job_file.parent)
    job_file.write_text(text)
    before = sorted(job_file.parent.rglob("*"))
    with pytest.raises(InputError, match=re.escape(part)):
        CliRunner().invoke(app, ["train", str(job_file)], catch_exceptions=False)
    assert sorted(job_file.parent.rglob("*")) == before


def test_a_job_is_printed_as_a_file_that_is_the_same_job(tmp_path: Path) -> None:
    words = ["train", str(EXAMPLE), "--print-job", "--mu", "0.75", "--", "--seed", "7"]
    printed = CliRunner().invoke(app, words, catch_exceptions=False)
    assert printed.exit_code == 0, printed.output
    again = tmp_path / "again.toml"
    again.write_text(printed.stdout)
    job = GivenJob(again).checked()
    assert job_toml(job) == printed.stdout
    assert (job.traffic.mu, job.arguments[-2:]) == (0.75, ("--seed", "7"))


def test_the_example_is_read() -> None:
    job = GivenJob(EXAMPLE).checked()
    spec = job_spec(job)
    assert spec.script == str(EXAMPLE.with_suffix(".py").resolve())
    assert (spec.machines, spec.traffic.scheme, spec.traffic.mu) == (4, "pipelined", 0.8)
    assert (spec.limits.lease_s, spec.recovery.max_attempts, job.launch.standby) == (3.0, 3, 1)
