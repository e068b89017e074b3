"""The command line: hf-tinybert distill | augment | evaluate | report | ship | export | push | doctor.

Without a verb it prints this help. `accelerate launch -m hf_tinybert.cli distill …` runs in several processes. The
result is printed on stdout, notes and progress bars on stderr. Exit codes: 0 done, or help or version printed; 1
failed, with one line that says what to change; 2 flags not understood.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from accelerate import PartialState
from transformers.hf_argparser import string_to_bool

from ..training.arguments import flag_parser
from ..version import __version__
from .flags import augmentation_flags, data_flags, student_flags, transfer_flags, with_config
from .inputs import Options
from .shipping import export, export_flags, ship, ship_flags
from .terminal import Outcome, is_first_process, running
from .verbs import augment, distill, doctor, evaluate, push, report

EXAMPLES = """examples:
  hf-tinybert doctor --task sst2 --teacher bert-base-uncased
  hf-tinybert distill --task sst2 --teacher bert-base-uncased --output_dir runs/sst2 --bf16
  hf-tinybert distill --data reviews.csv --text review --label stars --metric macro_f1 --teacher runs/classifier \\
      --output_dir runs/reviews --transfer more_reviews.txt --compare labels
  hf-tinybert distill --transfer reviews.txt --teacher runs/classifier --output_dir runs/reviews
  hf-tinybert evaluate runs/reviews/student --data reviews.csv --text review --label stars --json
  hf-tinybert report --task sst2 --teacher runs/sst2/teacher --student runs/sst2/student --output_dir runs/report
  hf-tinybert ship runs/sst2/student --to runs/shipped --task sst2
  hf-tinybert export runs/sst2/student --output_dir runs/onnx
  hf-tinybert push runs/sst2/student --to user/tinybert-sst2 --private

Every verb also takes --config FILE.yaml, whose keys are the flags; flags on the command line win over the file.
hf-tinybert VERB --help explains a verb."""
USER_ERRORS = (ValueError, TypeError, OSError, RuntimeError, LookupError, ImportError)


def _parser() -> argparse.ArgumentParser:
    """The flags of every verb."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("hf-tinybert", description=__doc__, epilog=EXAMPLES, formatter_class=layout)
    parser.add_argument("--version", action="version", version=f"hf_tinybert {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    augmentations = augmentation_flags(["auto", "random_words", "masked_words", "none"])
    _add_verb(verbs, distill, data_flags(), transfer_flags(), student_flags(), augmentations, flag_parser())
    _add_verb(verbs, doctor, data_flags(), transfer_flags(), student_flags(), flag_parser())
    add = _add_verb(verbs, augment, data_flags(), augmentation_flags(["masked_words", "random_words"])).add_argument
    add("--seed", type=int, default=0, help="seed of the augmentation (default: 0)")
    add("--output", required=True, metavar="FILE.parquet", help="file to write")
    add = _add_verb(verbs, evaluate, data_flags()).add_argument
    add("model", help="Hub id or folder")
    add("--batch_size", type=int, default=32, help="rows of a forward pass (default: 32)")
    add = _add_verb(verbs, report, data_flags()).add_argument
    add("--teacher", required=True, help="Hub id or folder")
    add("--student", required=True, help="Hub id or folder")
    add("--output_dir", type=Path, required=True, help="folder to write")
    add("--batch_size", type=int, default=32, help="rows of a forward pass (default: 32)")
    add(
        "--engines", nargs="+", default=["torch", "onnx", "onnx_int8"], help="of torch, onnx, onnx_int8 (default: all)"
    )
    _add_verb(verbs, ship, data_flags(), ship_flags())
    _add_verb(verbs, export, data_flags(), export_flags())
    add = _add_verb(verbs, push).add_argument
    add("model", help="folder of the student")
    add("--to", required=True, metavar="USER/NAME", help="repository on the Hub, created if it does not exist")
    add("--private", nargs="?", type=string_to_bool, const=True, help="make the repository private")
    add("--revision", help="branch to push to (default: main)")
    return parser


def _add_verb(verbs, function: Callable[[Options], Outcome], *flags: argparse.ArgumentParser):
    """A parser for a verb, which its function names and explains."""
    text, epilog = " ".join(function.__doc__.split()), flags[-1].epilog if flags else None
    parser = verbs.add_parser(
        function.__name__, parents=flags, help=text, description=text, epilog=epilog, allow_abbrev=False
    )
    parser.add_argument("--config", metavar="FILE.yaml", help="file whose keys are flags")
    parser.add_argument("--quiet", action="store_true", help="show errors and the result alone")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    parser.set_defaults(run=function)
    return parser


def main(flags: list[str] | None = None) -> int:
    """Run the verb of these flags, by default those of the command line, and return the exit code."""
    flags = sys.argv[1:] if flags is None else flags
    parser = _parser()
    if not flags:
        parser.print_help()
        return 0
    try:
        options = parser.parse_args(with_config(flags))
        with running(options.quiet):
            outcome = options.run(options)
        outcome.show(options.json)
        return outcome.code
    except USER_ERRORS as error:
        if "--traceback" in flags:
            raise
        if is_first_process():
            print(f"hf-tinybert {flags[0]}: {_in_one_line(error)} (--traceback shows where)", file=sys.stderr)
        return 1
    finally:
        PartialState().destroy_process_group()  # or a thread of it may abort the process while it ends


def _in_one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
