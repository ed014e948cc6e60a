"""Low-rank adapters (LoRA, Hu et al., arXiv 2106.09685) for the linear layers of any network, using peft.

peft is an optional dependency, `pip install 'dgpo[lora]'`, imported when an adapter is created. Saved files of every
format have the scale folded into B, and store alpha = rank if the format has a field for it, so that programs apply the
same strength whether or not they read alpha.
"""

from dgpo_core.lora.adapter import LoraAdapter
from dgpo_core.lora.files import AdapterFile, Pair, Pairs, Update, named
from dgpo_core.lora.targets import select_targets

__all__ = ["AdapterFile", "LoraAdapter", "Pair", "Pairs", "Update", "named", "select_targets"]
