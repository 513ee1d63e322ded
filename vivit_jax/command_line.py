"""What all commands share: the keys of a configuration as options, `--config.KEY=VALUE`."""

import argparse
import re
from collections.abc import Sequence


def overrides(parser: argparse.ArgumentParser, options: Sequence[str]) -> dict[str, str]:
    """Returns new values by key, as `config.load` takes them.

    Args:
        parser: Ends the command, with a line, where an option is none.
        options: What the parser itself does not know, as `--config.model.width=96` or `--config.model.width 96`.
    """
    values, rest = {}, list(options)
    while rest:
        option = rest.pop(0)
        match = re.fullmatch(r'--config\.([^=]+)(?:=(.*))?', option, re.DOTALL)
        if not match:
            parser.error(
                f'{option!r} is no option; keys of the configuration are --config.KEY=VALUE; see --help'
            )
        if match[2] is None and not rest:
            parser.error(f'{option} needs a value, as {option}=VALUE')
        values[match[1]] = rest.pop(0) if match[2] is None else match[2]
    return values
