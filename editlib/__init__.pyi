from . import data as data
from . import errors as errors
from . import methods as methods
from . import plot as plot
from . import scores as scores
from . import stats as stats
from . import testbed as testbed
from .causal import causal_trace as causal_trace
from .data.datasets import Case as Case
from .edit import Edit as Edit
from .edit import EditRequest as EditRequest
from .engine.perplexity import Perplexity as Perplexity
from .engine.perplexity import perplexity as perplexity
from .engine.prefixes import prefix_contexts as prefix_contexts
from .engine.prefixes import test_prefixes as test_prefixes
from .errors import EditlibError as EditlibError
from .methods import METHODS as METHODS
from .methods import compute as compute
from .methods import hparams_for as hparams_for
from .models.language_model import LanguageModel as LanguageModel
from .models.language_model import Layout as Layout
from .models.language_model import load as load
from .models.trace import trace as trace
from .sequence import sequence as sequence
from .stats import second_moment as second_moment
from .sweep import sweep as sweep

__version__: str
