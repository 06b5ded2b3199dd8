# Every public name, once: `__init__.py` imports each of them when it is first used.
from .clustering.clusters import Clusters as Clusters
from .clustering.clusters import ImageClusters as ImageClusters
from .clustering.near_duplicates import NearDuplicateGroups as NearDuplicateGroups
from .clustering.near_duplicates import NearDuplicates as NearDuplicates
from .distances.anomalies import Anomalies as Anomalies
from .distances.compare_datasets import CompareDatasets as CompareDatasets
from .distances.dataset_comparison import DatasetComparison as DatasetComparison
from .distances.layer_similarity import LayerSimilarity as LayerSimilarity
from .distances.representational_similarity import (
    RepresentationalSimilarity as RepresentationalSimilarity,
)
from .embedding.embedding import Embedding as Embedding
from .embedding.embedding_map import EmbeddingMap as EmbeddingMap
from .embedding.nearest_neighbours import NearestNeighbours as NearestNeighbours
from .embedding.nearest_neighbours import Neighbours as Neighbours
from .units.activation_maps import ActivationMaps as ActivationMaps
from .units.activation_maps import UnitMaps as UnitMaps
from .units.filters import Filters as Filters
from .units.top_patches import TopPatches as TopPatches
from .units.unit_report import JudgeUnits as JudgeUnits
