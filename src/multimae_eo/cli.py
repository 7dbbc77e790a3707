"""The command line: options are typed dataclasses, work is imported only when it starts, user errors exit with 2."""

import difflib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from jsonargparse import ArgumentParser, Namespace, get_loader, set_loader, set_parsing_settings

from multimae_eo import __version__
from multimae_eo.commands import COMMANDS
from multimae_eo.documents import check_yaml
from multimae_eo.errors import IncompleteError, MultiMAEError, TerminatedError, reason


@dataclass
class CompletionOptions:
    """Print a script that completes commands and options in your shell; needs shtab.

    Args:
        shell: which shell.
    """

    shell: Literal["bash", "zsh", "tcsh"]


def _completion(options: CompletionOptions) -> None:
    import shtab  # noqa: F401  (the parser uses it)

    print(build_parser().get_completion_script(f"shtab-{options.shell}"))


# What the command exits with after SIGTERM, once the state is saved: EX_TEMPFAIL of sysexits.h, "try again later".
TERMINATED = 75

ALL = {**COMMANDS, "completion": (CompletionOptions, _completion)}

# The extra that brings what a command may lack: of some packages one of their own, else that of the command.
EXTRAS = {"upath": "remote", "shtab": "completion", "onnx": "export", "onnxscript": "export"}
_NEEDS = {"maps": ("predict", "embed", "fill", "import"), "data": ("pack", "synthesize", "verify")}
_OTHERS = {"h5py": "data", "isal": "data", "rasterio": "maps", "tqdm": "maps", "matplotlib": "train"}


def extra_for(command: str, module: str) -> str | None:
    """The extra to install where a command lacks a module; None for a module that is nobody's."""
    known = {*EXTRAS, *_OTHERS, "lightning", "torchmetrics", "sklearn"}
    if module not in known:
        return None
    own = next((extra for extra, commands in _NEEDS.items() if command in commands), "train")
    if command in ("inspect", "synthesize") and module in _OTHERS:  # what these need depends on what they are given
        own = _OTHERS[module]
    return EXTRAS.get(module, own)


# What the parser says in words of its own, and what it means.
_NO_CODE = r"config: '\1' is not accepted as class_path: an option is a value, neither code nor another file."
_MEANT = (
    (r"Does not validate .* Expected a <class 'list'> .*Given value: (.*)\.$", r"Expected a list. Got value: \1."),
    (r"^Unexpected config:.*", "config: the file holds no options; expected lines such as 'seed: 1'."),
    (r"^Option '([\w.]+)' is not accepted\.$", r"option '\1' is not accepted."),
    (r"^(?:Parser key .*: )?Importing '([^']*)' is not allowed, .*", _NO_CODE),
    (r"^Subclasses are disabled for .*, thus '([^']*)' is not accepted as class_path\..*", _NO_CODE),
    (r"^'utf-8' codec can't decode .*", "config: the file is no text in UTF-8. Save it so."),
)


class Parser(ArgumentParser):
    """A parser whose errors take few lines, suggest the nearest option, and exit with 2."""

    def error(self, message: str, ex: Exception | None = None) -> None:  # type: ignore[override]
        text = shorten(message, options_of(self))
        if "Did you mean" not in text:
            text += f" See {self.prog.replace(' [options]', '')} --help."
        print(f"error: {text}", file=sys.stderr)
        raise SystemExit(2)


def options_of(parser: ArgumentParser) -> list[str]:
    """The names of all options of a parser and its commands."""
    words = [word for action in parser._actions for word in (action.option_strings or [action.dest])]
    names = [word.removeprefix("--") for word in words if word and not word.endswith("help")]
    commands = getattr(getattr(parser, "_subcommands_action", None), "_name_parser_map", {})
    return names + [name for command in commands.values() for name in options_of(command)]


def shorten(message: str, known: list[str]) -> str:
    """The lines of a parser's message that say something, with the nearest option for one that is unknown."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    text = " ".join(lines[:8]).removesuffix(".") + "."
    for found, meant in _MEANT:
        text = re.sub(found, meant, text)
    unknown = re.search(r"(?:[Kk]ey|option) ['\"]([\w.]+)['\"]|[Uu]nrecognized arguments: --([\w.]+)", text)
    name = unknown and (unknown.group(1) or unknown.group(2))
    if name and name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
        leaf = difflib.get_close_matches(name.split(".")[-1], [k.split(".")[-1] for k in known], n=1, cutoff=0.6)
        guess = near or [k for k in known if leaf and k.split(".")[-1] == leaf[0]][:1]
        if guess:
            text += f" Did you mean '{guess[0]}'?"
    return text


_load_yaml = get_loader("yaml")


def load_yaml(text: str) -> object:
    """YAML of a config or an option; raises ValueError where it is too much, also in texts that are YAML in turn."""
    from yaml import YAMLError

    check_yaml(text)
    try:
        value = _load_yaml(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    left = [value]
    while left and "*" in text:
        one = left.pop()
        left += [*one, *one.values()] if isinstance(one, dict) else one if isinstance(one, list) else ()
        if isinstance(one, str):
            with suppress(YAMLError):
                check_yaml(one)
    return value


@contextmanager
def restricted() -> Iterator[None]:
    """Keep a config from naming code, which jsonargparse would import to see whether it fits, and from growing.

    Its settings are the process's, so they are put back: others in it, such as TerraTorch's command, name classes.
    """
    from jsonargparse._common import parsing_settings  # there is no public way to take back what is denied
    from yaml import YAMLError

    before = dict(parsing_settings)
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=["multimae_eo"])
    set_loader("yaml", load_yaml, (YAMLError, ValueError))
    try:
        yield
    finally:
        parsing_settings.update(before)
        set_loader("yaml", _load_yaml, (YAMLError,))


def build_parser(named: frozenset[str] = frozenset(ALL)) -> Parser:
    """The parser of all commands; those that are not named have no options, which take a while to build."""
    parser = Parser(
        prog="multimae-eo", allow_abbrev=False, description="Multi-modal masked autoencoders for Earth observation."
    )
    parser.add_argument("--version", action="version", version=f"multimae-eo {__version__}")
    commands = parser.add_subcommands(metavar="COMMAND", help="see multimae-eo COMMAND --help")
    for name, (options, _) in ALL.items():
        command = Parser(allow_abbrev=False, description=(options.__doc__ or "").split("\n")[0])
        command.add_argument("--config", action="config", help="a YAML file with any of the options below")
        if name in named:
            command.add_class_arguments(options, None, as_positional=True)
        commands.add_subcommand(name, command, help=(options.__doc__ or "").split("\n")[0])
    return parser


parser_of = lru_cache(build_parser)  # for who calls `main` more than once


def as_parsed(arguments: list[str]) -> list[str]:
    """Arguments as jsonargparse spells them: options with underscores, repeated ones with +, flags with a value.

    A source, `--source NAME=PATH`, is spelt out, and the second word of a command that maps is its scene.
    """
    arguments = list(arguments)
    for i, argument in enumerate(arguments):
        if argument == "--source" and "=" in "".join(arguments[i + 1 : i + 2]):
            name, _, path = arguments[i + 1].partition("=")
            arguments[i : i + 2] = [f"--source.{name}.path={path}", ""]
    arguments = [a for a in arguments if a]
    two = len(arguments) > 2 and not any(argument.startswith("-") for argument in arguments[1:3])
    if arguments[:1] in (["embed"], ["fill"]) and two:
        arguments.insert(2, "--scene")
    spelt = []
    for argument, following in zip(arguments, [*arguments, ""][1:], strict=True):
        name, equals, value = argument.partition("=")
        if name.startswith("--source."):
            pass  # names of sources are the user's own
        elif name.startswith("--"):
            name = "--" + name[2:].replace("-", "_")
            name += "+" * (name in ("--drop", "--only"))
            if name in ("--all_subsets", "--dry_run") and not equals and following not in ("true", "false"):
                equals, value = "=", "true"
        spelt.append(name + equals + value)
    return spelt


def parse(arguments: list[str]) -> tuple[str, Namespace]:
    """The command and its options; exits with 2 where they make no sense."""
    with restricted():
        parser = parser_of(frozenset(argument for argument in arguments if argument in ALL) or frozenset(ALL))
        try:
            parsed = parser.parse_args(as_parsed(arguments))
            chosen: Namespace = parser.instantiate(parsed)[parsed.subcommand]
        except Exception as error:  # what jsonargparse leaves of a config that makes no sense
            parser.error(str(error) or type(error).__name__)
    chosen.pop("config", None)
    return parsed.subcommand, chosen


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the `multimae-eo` command."""
    name, chosen = parse(sys.argv[1:] if arguments is None else arguments)
    options, run = ALL[name]
    try:
        run(options(**{key: getattr(chosen, key) for key in vars(chosen)}))
    except IncompleteError as error:
        print(f"incomplete: {error}", file=sys.stderr)
        raise SystemExit(3) from None
    except TerminatedError as error:
        print(f"terminated: {error}", file=sys.stderr)
        raise SystemExit(TERMINATED) from None
    except MultiMAEError as error:
        print(f"error: {reason(error)}", file=sys.stderr)
        raise SystemExit(2) from None
    except ModuleNotFoundError as error:
        module = (error.name or "").split(".")[0]
        extra = extra_for(name, module)
        if extra is None:
            raise
        need = f"{name} needs {module}, which is not installed: pip install 'multimae-eo[{extra}]'."
        print(f"error: {need}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        if error.filename is None:
            raise
        print(
            f"error: '{error.filename}' cannot be read or written: {error.strerror}. Mend that, or name another.",
            file=sys.stderr,
        )
        raise SystemExit(2) from None
    except KeyboardInterrupt as error:
        print("; ".join(["interrupted", *map(str, error.args)]), file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
