from . import data as data
from . import errors as errors
from . import plot as plot
from . import testbed as testbed
from .data.datasets import Case as Case
from .data.request import EditRequest as EditRequest
from .editing import methods as methods
from .editing import stats as stats
from .editing.edit import Edit as Edit
from .editing.methods import METHODS as METHODS
from .editing.methods import compute as compute
from .editing.methods import hparams_for as hparams_for
from .editing.stats import second_moment as second_moment
from .engine.perplexity import Perplexity as Perplexity
from .engine.perplexity import perplexity as perplexity
from .engine.prefixes import prefix_contexts as prefix_contexts
from .engine.prefixes import test_prefixes as test_prefixes
from .errors import EditlibError as EditlibError
from .measuring import scores as scores
from .measuring.causal import causal_trace as causal_trace
from .models.language_model import LanguageModel as LanguageModel
from .models.language_model import Layout as Layout
from .models.loading import load as load
from .models.trace import trace as trace
from .sweeps.sequential import sequence as sequence
from .sweeps.single import sweep as sweep

__version__: str
