"""stunet_rank: which pre-trained model to fine-tune. Its action evaluate is in rank_evaluate.py."""

import sys
from collections.abc import Sequence

from stunet.cli import common, rank_evaluate
from stunet.errors import UsageError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["evaluate"]:
        return rank_evaluate.main(words[1:])
    parser = common.new_parser("stunet_rank", "Judge scores of pre-trained models.", "stunet_rank evaluate --help")
    parser.add_argument("action", nargs="?", help="evaluate")

    def command(args: object) -> None:
        raise UsageError("which action?", "stunet_rank evaluate SCORES RESULTS")

    return common.run(parser, command, words)
