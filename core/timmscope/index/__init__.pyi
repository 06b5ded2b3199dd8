from .backend import Backend as Backend
from .backend import BuildHints as BuildHints
from .backend import RecallBenchmark as RecallBenchmark
from .queries import Hits as Hits
from .search import Found as Found
from .search import search as search
from .strongest import strongest as strongest
from .vector_index import VectorIndex as VectorIndex
