"""Writes the report of a run, or of several side by side: one HTML file that needs nothing else.

examples:
  python -m vivit_jax.report runs/my_videos
  python -m vivit_jax.report runs/my_videos runs/my_videos_wider --output=comparison.html
  python -m vivit_jax.report runs/my_videos --no-clips

A run writes its report at its end by itself. Of a run under way, or stopped, there is a report as well.

exit codes:
  0 the report is written; 2 a mistake in the command, or a folder that is no workdir; 130 stopped by Ctrl-C
"""

import sys
import warnings
from collections.abc import Sequence

from vivit_jax import help_text, report
from vivit_jax.telling.printable import printable, warning_line


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    warnings.formatwarning = warning_line
    parser = help_text.parser(__doc__, prog='python -m vivit_jax.report')
    parser.add_argument('workdirs', nargs='+', metavar='WORKDIR', help='of a run, finished or not')
    parser.add_argument(
        '--output',
        metavar='FILE.html',
        help='the report; by default WORKDIR/report.html, of several runs ./comparison.html',
    )
    parser.add_argument(
        '--no-clips',
        action='store_true',
        help='open neither data nor checkpoint: without clips and attention',
    )
    parsed = parser.parse_args(arguments)
    try:
        path = report.write(parsed.workdirs, parsed.output, clips=not parsed.no_clips)
    except KeyboardInterrupt:
        print('stopped', file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(printable(f'error: {error}'), file=sys.stderr)
        return 2
    print(f'written to {path}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
