"""`python -m eval.harness`: lm-evaluation-harness' own command line, with our models in it.

python -m eval.harness run --model braid --model_args path=runs/NAME --tasks TASK --include_path DIR
"""

from lm_eval.__main__ import cli_evaluate

import eval.harness.model  # noqa: F401  (registers `braid`)

if __name__ == "__main__":
    cli_evaluate()
