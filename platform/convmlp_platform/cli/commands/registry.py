"""The commands `registry`, on registered models, their champions, decisions and lineage, and `reproduce`."""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from convmlp_platform.cli.common import add_overrides
from convmlp_platform.errors import ConfigError
from data_prep.console import say_result as say

if TYPE_CHECKING:
    from convmlp_platform.registry.decision_log import Decision
    from convmlp_platform.registry.promotions import PromotionDesk

_SHOWN_METRICS = 3
_VERSION_HELP = "models:/NAME@ALIAS or models:/NAME/VERSION"


def add_commands(commands: Any) -> None:
    """Add `registry list | show | history | champion | lineage | promote | rollback | adopt` to the commands."""
    parser = commands.add_parser(
        "registry",
        help="registered models: list, compare, promote, roll back, and who was champion when",
        description="Training nominates a version (alias candidate); `promote` measures it beside the champion, and "
        "moves the alias champion if the rules say so. Every decision is on record in the registry.",
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="all models, with champion and candidate")
    listing.set_defaults(call=_list)
    shows = _named(actions, "show", "a model's versions", _show)
    history = _named(actions, "history", "all decisions on a model, oldest first", _history)
    champion = _named(actions, "champion", "the champion now, or on a day", _champion)
    champion.add_argument("--on", metavar="DATE", help="2026-11-30 (its end, UTC) or 2026-11-30T12:00+01:00")
    _add_lineage(actions)
    promote = _named(actions, "promote", "measure candidate and champion, and decide", _promote)
    promote.add_argument("--data", required=True, metavar="PATH", help="the prepared dataset to judge on")
    promote.add_argument("--split", default="val", help="default: val")
    promote.add_argument(
        "--candidate", default="candidate", metavar="VERSION", help="a number or an alias; default: candidate"
    )
    add_overrides(
        promote, "set a value of the job (`convmlp schema --kind promote`), e.g. rules.require=not_worse"
    )
    back = _named(actions, "rollback", "give the alias back to the champion before", _roll_back)
    back.add_argument("--to", metavar="VERSION", help="a version that was champion; default: the one before")
    adopt = _named(actions, "adopt", "put on record an alias that was set without this command", _adopt)
    for action in (back, adopt):
        action.add_argument("--why", required=True, metavar="TEXT", help="the reason, for the record")
    for action in (listing, shows, history, champion):
        action.add_argument("--json", action="store_true", help="for programs")


def _named(actions: Any, name: str, about: str, call: Any) -> Any:
    parser = actions.add_parser(name, help=about, description=about)
    parser.add_argument("name", metavar="NAME", help="of the registered model")
    parser.add_argument("--alias", default="champion", help="default: champion")
    parser.set_defaults(call=call)
    return parser


def _desk(arguments: argparse.Namespace) -> PromotionDesk:
    from convmlp_platform.config.sections.execution import TrackingTarget
    from convmlp_platform.registry.promotions import PromotionDesk

    return PromotionDesk(TrackingTarget(), arguments.name, arguments.alias)


def _list(arguments: argparse.Namespace) -> int:
    from convmlp_platform.config.sections.execution import TrackingTarget
    from convmlp_platform.registry.promotions import list_models

    rows = list_models(TrackingTarget())
    if arguments.json:
        say(json.dumps(rows, indent=2))
    elif not rows:
        say("no registered models")
    for row in rows if not arguments.json else []:
        aliases = ", ".join(f"{alias} {version}" for alias, version in row["aliases"].items()) or "no alias"
        say(f"{row['name']:<32} {row['versions']:>4} versions   {aliases}")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    with _desk(arguments) as desk:
        # MLflow's searches return versions without their aliases.
        holders = desk.client.get_registered_model(desk.name).aliases
        rows = [
            {
                "version": str(one.version),
                "aliases": sorted(alias for alias, held in holders.items() if str(held) == str(one.version)),
                "registered": _time(one.creation_timestamp / 1000),
                "run": one.tags.get("run", ""),
                "dataset": one.tags.get("dataset.digest", ""),
                "split": one.tags.get("dataset.split", ""),
                "metrics": _metrics(one.tags),
            }
            for one in desk.versions()
        ]
    if arguments.json:
        say(json.dumps(rows, indent=2))
        return 0
    for row in rows:
        figures = "  ".join(
            f"{name} {value}" for name, value in list(row["metrics"].items())[:_SHOWN_METRICS]
        )
        names = ", ".join(f"@{alias}" for alias in row["aliases"])
        say(f"{row['version']:>4}  {row['registered']}  run {row['run']}  {figures}  {names}".rstrip())
    return 0


def _metrics(tags: dict[str, str]) -> dict[str, str]:
    """As training or a later evaluation gave them; the deciding one first."""
    first = f"metric.{tags.get('gate.metric', 'top1')}"
    names = sorted(
        (name for name in tags if name.startswith("metric.")), key=lambda name: (name != first, name)
    )
    return {name.removeprefix("metric."): _figure(tags[name]) for name in names}


def _figure(text: str) -> str:
    try:
        return f"{float(text):.4f}"
    except ValueError:
        return repr(text)


def _history(arguments: argparse.Namespace) -> int:
    with _desk(arguments) as desk:
        decisions = [one for one in desk.history() if one.alias == arguments.alias]
    if arguments.json:
        say(json.dumps([_as_json(one) for one in decisions], indent=2))
        return 0
    from convmlp_platform.registry.decision_log import in_force

    done = {one.number for one in in_force(decisions, arguments.alias)}
    if not decisions:
        say(f"no decision on models:/{arguments.name}@{arguments.alias} is on record")
    for one in decisions:
        late = "" if one.number in done or not one.moves else "  (another decision came first: moved nothing)"
        say(
            f"{one.number:>4}  {_time(one.at)}  {one.who}  {one.kind}: {one.held or 'none'} -> {one.version}{late}"
        )
        say(f"      {one.reason}")
    return 0


def _champion(arguments: argparse.Namespace) -> int:
    moment = None if arguments.on is None else _moment(arguments.on)
    found: dict[str, str | None]
    with _desk(arguments) as desk:
        if moment is None:
            held = desk.champion()
            found = {"version": held.version, "note": held.note}
            line = held.note or f"models:/{arguments.name}/{held.version}"
            if held.version is None:
                line = f"models:/{arguments.name} has no {arguments.alias}"
        else:
            reign = desk.champion_on(moment)
            found = {"version": None, "since": None}
            if reign is not None:
                found = {"version": reign.version, "since": _time(reign.since)}
            line = (
                f"models:/{arguments.name} had no {arguments.alias} then, by the log"
                if reign is None
                else f"models:/{arguments.name}/{reign.version}, since {_time(reign.since)} by {reign.decision.who}: "
                f"{reign.decision.reason}"
            )
    say(json.dumps(found) if arguments.json else line)
    return 0


def _promote(arguments: argparse.Namespace) -> int:
    from convmlp_platform.config.load import parse_job
    from convmlp_platform.config.overrides import apply_overrides
    from convmlp_platform.jobs.run_job import launch

    values, names, problems = apply_overrides(
        {
            "kind": "promote",
            "name": f"promote-{arguments.name}",
            "model": {"name": arguments.name, "candidate": arguments.candidate, "alias": arguments.alias},
            "data": {"path": arguments.data, "split": arguments.split},
        },
        arguments.set,
    )
    return launch(parse_job(values, "registry promote", names, problems).resolved(), use_ray=False)


def _roll_back(arguments: argparse.Namespace) -> int:
    from convmlp_platform.registry.decision_log import who

    with _desk(arguments) as desk:
        _say_done(arguments, desk.roll_back(who(), arguments.why, arguments.to))
    return 0


def _adopt(arguments: argparse.Namespace) -> int:
    from convmlp_platform.registry.decision_log import who

    with _desk(arguments) as desk:
        _say_done(arguments, desk.adopt(who(), arguments.why))
    return 0


def _say_done(arguments: argparse.Namespace, decision: Decision) -> None:
    say(
        f"models:/{arguments.name}@{arguments.alias} is version {decision.version} (was {decision.held or 'none'}); "
        f"decision {decision.number} is on record"
    )


def _as_json(decision: Decision) -> dict[str, Any]:
    return decision.facts() | {"at": _time(decision.at)}


def _time(seconds: float) -> str:
    from convmlp_platform.registry.lineage.run_facts import moment_of

    return moment_of(seconds)


def _moment(text: str) -> datetime:
    """A moment; of a day or a second, its end; UTC unless it says otherwise."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"--on {text}: give a day such as 2026-11-30, or 2026-11-30T12:00+01:00") from None
    if len(text) <= len("2026-11-30"):
        found += timedelta(days=1) - timedelta(milliseconds=1)
    elif not found.microsecond:
        found += timedelta(milliseconds=999)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _add_lineage(actions: Any) -> None:
    """Add `lineage` to the actions of `registry`."""
    parser = actions.add_parser(
        "lineage",
        help="what led to a version: run, job, code, data, parents, decisions",
        description="The chain behind a version, read from the registry and its runs. What isn't on record is unknown.",
    )
    parser.add_argument("model", metavar="MODEL", help=_VERSION_HELP)
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(call=_lineage)


def _lineage(arguments: argparse.Namespace) -> int:
    from convmlp_platform.registry.lineage.lineage_text import lineage_lines
    from convmlp_platform.registry.lineage.read_lineage import read_lineage

    found = read_lineage(arguments.model)
    if arguments.json:
        say(json.dumps(found.facts(), indent=2))
        return 0
    for line in lineage_lines(found):
        say(line)
    return 0


def add_reproduce(commands: Any) -> None:
    """Add it to the parser's commands."""
    parser = commands.add_parser(
        "reproduce",
        help="train a registered version again and compare the weights",
        description="Rebuilds the job from the registry alone, says what is at hand here and what can't be equal, "
        "trains again under a new name, and compares the weights. Exit codes: 0 equal, 3 trained but not equal, 2 it "
        "can't be done. With --check-only: 0 everything is at hand and the same, 3 something differs or is unknown.",
    )
    parser.add_argument("model", metavar="MODEL", help=_VERSION_HELP)
    parser.add_argument("--out", metavar="RUN_NAME", help="of the new run; default: reproduce-NAME-VERSION")
    parser.add_argument(
        "--dataset", metavar="PATH", help="where the dataset lies here; default: where it lay then"
    )
    parser.add_argument("--check-only", action="store_true", help="train nothing")
    parser.add_argument("--no-ray", action="store_true", help="train in this process, with one worker")
    parser.add_argument("--register", action="store_true", help="nominate the result as a candidate")
    add_overrides(parser, "set a value of the rebuilt job, e.g. launch.address=local")
    parser.set_defaults(call=_reproduce)


def _reproduce(arguments: argparse.Namespace) -> int:
    from convmlp_platform.reproduction.rebuild import Wishes
    from convmlp_platform.reproduction.reproduce import reproduce
    from convmlp_platform.runs.find_run import find_run, is_remote

    dataset: str | None = arguments.dataset
    if dataset is not None and not is_remote(dataset):
        dataset = str(find_run(dataset, ("data",), "dataset"))
    wishes = Wishes(arguments.out or "", dataset, arguments.register, tuple(arguments.set))
    return reproduce(arguments.model, wishes, check_only=arguments.check_only, use_ray=not arguments.no_ray)
