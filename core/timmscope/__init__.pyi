# Every public name, once: `timmscope/__init__.py` imports each of them when it is first used.
from .atlas import (
    Atlas as Atlas,
)
from .atlas import (
    atlas_folder as atlas_folder,
)
from .atlas import (
    make_atlas as make_atlas,
)
from .atlas import (
    open_atlas as open_atlas,
)
from .collectors import (
    Collector as Collector,
)
from .collectors import (
    Column as Column,
)
from .collectors import (
    LayerBatch as LayerBatch,
)
from .collectors import (
    RowCollector as RowCollector,
)
from .draws import (
    another_draw as another_draw,
)
from .draws import (
    image_rows as image_rows,
)
from .errors import (
    ImageError as ImageError,
)
from .errors import (
    LayerNotFound as LayerNotFound,
)
from .errors import (
    ModelError as ModelError,
)
from .errors import (
    ObjectiveError as ObjectiveError,
)
from .errors import (
    ParameterError as ParameterError,
)
from .errors import (
    PluginError as PluginError,
)
from .errors import (
    StoreCorrupted as StoreCorrupted,
)
from .errors import (
    StoreError as StoreError,
)
from .errors import (
    StoreMismatch as StoreMismatch,
)
from .errors import (
    TechniqueError as TechniqueError,
)
from .errors import (
    TimmscopeError as TimmscopeError,
)
from .errors import (
    UnsupportedModel as UnsupportedModel,
)
from .errors import (
    VectorIndexError as VectorIndexError,
)
from .evaluation import (
    CascadingRandomisation as CascadingRandomisation,
)
from .evaluation import (
    Case as Case,
)
from .evaluation import (
    Comparison as Comparison,
)
from .evaluation import (
    Deletion as Deletion,
)
from .evaluation import (
    Evaluation as Evaluation,
)
from .evaluation import (
    Insertion as Insertion,
)
from .evaluation import (
    Measurement as Measurement,
)
from .evaluation import (
    Metric as Metric,
)
from .evaluation import (
    PointingGame as PointingGame,
)
from .evaluation import (
    Robustness as Robustness,
)
from .evaluation import (
    SensitivityN as SensitivityN,
)
from .evaluation import (
    Share as Share,
)
from .evaluation import (
    compare as compare,
)
from .evaluation import (
    evaluate as evaluate,
)
from .evaluation import (
    robustness as robustness,
)
from .images import (
    ImageSource as ImageSource,
)
from .images import (
    open_image as open_image,
)
from .images import (
    open_images as open_images,
)
from .index import (
    Backend as Backend,
)
from .index import (
    BuildHints as BuildHints,
)
from .index import (
    Found as Found,
)
from .index import (
    Hits as Hits,
)
from .index import (
    RecallBenchmark as RecallBenchmark,
)
from .index import (
    VectorIndex as VectorIndex,
)
from .index import (
    search as search,
)
from .index import (
    strongest as strongest,
)
from .mining import (
    Damage as Damage,
)
from .mining import (
    Report as Report,
)
from .mining import (
    merge as merge,
)
from .mining import (
    mine as mine,
)
from .mining import (
    verify as verify,
)
from .models import (
    ClassNames as ClassNames,
)
from .models import (
    HookedModel as HookedModel,
)
from .models import (
    PassCounter as PassCounter,
)
from .models import (
    Preprocessing as Preprocessing,
)
from .models import (
    ensemble as ensemble,
)
from .models import (
    load_model as load_model,
)
from .models import (
    load_trained as load_trained,
)
from .models import (
    pooled_features as pooled_features,
)
from .objectives import (
    ModelLike as ModelLike,
)
from .objectives import (
    Objective as Objective,
)
from .objectives import (
    as_objective as as_objective,
)
from .objectives import (
    channel as channel,
)
from .objectives import (
    class_logit as class_logit,
)
from .objectives import (
    cosine as cosine,
)
from .objectives import (
    direction as direction,
)
from .objectives import (
    each as each,
)
from .objectives import (
    guide as guide,
)
from .objectives import (
    interpolate as interpolate,
)
from .objectives import (
    layer_energy as layer_energy,
)
from .objectives import (
    log_probability as log_probability,
)
from .objectives import (
    match as match,
)
from .objectives import (
    neuron as neuron,
)
from .objectives import (
    parse_objective as parse_objective,
)
from .objectives import (
    probability as probability,
)
from .objectives import (
    top as top,
)
from .parameters import (
    Parameters as Parameters,
)
from .patches import (
    UnitPatches as UnitPatches,
)
from .patches import (
    unit_patches as unit_patches,
)
from .progress import (
    Reporter as Reporter,
)
from .progress import (
    reporting as reporting,
)
from .progress import (
    task as task,
)
from .progress import (
    track as track,
)
from .receptive_fields import (
    ReceptiveField as ReceptiveField,
)
from .receptive_fields import (
    receptive_field as receptive_field,
)
from .results import (
    Provenance as Provenance,
)
from .results import (
    Result as Result,
)
from .results import (
    Scores as Scores,
)
from .results import (
    Sheet as Sheet,
)
from .results import (
    Table as Table,
)
from .results import (
    csv_text as csv_text,
)
from .results import (
    load_result as load_result,
)
from .results import (
    sheet_of_results as sheet_of_results,
)
from .store import (
    Store as Store,
)
from .store import (
    StoreLayer as StoreLayer,
)
from .store import (
    StorePictures as StorePictures,
)
from .store import (
    TopEntry as TopEntry,
)
from .store import (
    store_model as store_model,
)
from .techniques import (
    Adversarial as Adversarial,
)
from .techniques import (
    AttackTechnique as AttackTechnique,
)
from .techniques import (
    Attribution as Attribution,
)
from .techniques import (
    AttributionTechnique as AttributionTechnique,
)
from .techniques import (
    Ball as Ball,
)
from .techniques import (
    Baseline as Baseline,
)
from .techniques import (
    BestImages as BestImages,
)
from .techniques import (
    CamTechnique as CamTechnique,
)
from .techniques import (
    Certificates as Certificates,
)
from .techniques import (
    CertificationOutcome as CertificationOutcome,
)
from .techniques import (
    CertificationTechnique as CertificationTechnique,
)
from .techniques import (
    Climb as Climb,
)
from .techniques import (
    CppnParameterisation as CppnParameterisation,
)
from .techniques import (
    CropViews as CropViews,
)
from .techniques import (
    DefenceTechnique as DefenceTechnique,
)
from .techniques import (
    Defended as Defended,
)
from .techniques import (
    FourierParameterisation as FourierParameterisation,
)
from .techniques import (
    Goal as Goal,
)
from .techniques import (
    GradientCheck as GradientCheck,
)
from .techniques import (
    ImageBatches as ImageBatches,
)
from .techniques import (
    ImageName as ImageName,
)
from .techniques import (
    ImageSet as ImageSet,
)
from .techniques import (
    ImageSetName as ImageSetName,
)
from .techniques import (
    ImageSetRun as ImageSetRun,
)
from .techniques import (
    LaplacianParameterisation as LaplacianParameterisation,
)
from .techniques import (
    LayerName as LayerName,
)
from .techniques import (
    LayerView as LayerView,
)
from .techniques import (
    Loss as Loss,
)
from .techniques import (
    ModelName as ModelName,
)
from .techniques import (
    ModelTechnique as ModelTechnique,
)
from .techniques import (
    NearestFound as NearestFound,
)
from .techniques import (
    NetworkName as NetworkName,
)
from .techniques import (
    Norm as Norm,
)
from .techniques import (
    NormalisedSteps as NormalisedSteps,
)
from .techniques import (
    Parameterisation as Parameterisation,
)
from .techniques import (
    PerImageTechnique as PerImageTechnique,
)
from .techniques import (
    PhaseParameterisation as PhaseParameterisation,
)
from .techniques import (
    PixelParameterisation as PixelParameterisation,
)
from .techniques import (
    RandomViews as RandomViews,
)
from .techniques import (
    Rows as Rows,
)
from .techniques import (
    StoreName as StoreName,
)
from .techniques import (
    StoresTechnique as StoresTechnique,
)
from .techniques import (
    StoreTechnique as StoreTechnique,
)
from .techniques import (
    StyleOutcome as StyleOutcome,
)
from .techniques import (
    StyleTechnique as StyleTechnique,
)
from .techniques import (
    Stylization as Stylization,
)
from .techniques import (
    Synthesis as Synthesis,
)
from .techniques import (
    SynthesisOutcome as SynthesisOutcome,
)
from .techniques import (
    SynthesisTechnique as SynthesisTechnique,
)
from .techniques import (
    Technique as Technique,
)
from .techniques import (
    TechniqueName as TechniqueName,
)
from .techniques import (
    TrainedWeights as TrainedWeights,
)
from .techniques import (
    Training as Training,
)
from .techniques import (
    TrainingBatch as TrainingBatch,
)
from .techniques import (
    TrainingProgress as TrainingProgress,
)
from .techniques import (
    TrainingTechnique as TrainingTechnique,
)
from .techniques import (
    UnitNumbers as UnitNumbers,
)
from .techniques import (
    UniversalAttack as UniversalAttack,
)
from .techniques import (
    UniversalPerturbation as UniversalPerturbation,
)
from .techniques import (
    Views as Views,
)
from .techniques import (
    WeightsName as WeightsName,
)
from .techniques import (
    alpha_norm as alpha_norm,
)
from .techniques import (
    baseline_images as baseline_images,
)
from .techniques import (
    change_size as change_size,
)
from .techniques import (
    check_size as check_size,
)
from .techniques import (
    chosen_units as chosen_units,
)
from .techniques import (
    default_layer as default_layer,
)
from .techniques import (
    evaluating as evaluating,
)
from .techniques import (
    falling_spectrum as falling_spectrum,
)
from .techniques import (
    frame_steps as frame_steps,
)
from .techniques import (
    gaussian_blur as gaussian_blur,
)
from .techniques import (
    image_generators as image_generators,
)
from .techniques import (
    images_per_forward as images_per_forward,
)
from .techniques import (
    images_per_pass as images_per_pass,
)
from .techniques import (
    layer_activation as layer_activation,
)
from .techniques import (
    layer_view as layer_view,
)
from .techniques import (
    loop_model as loop_model,
)
from .techniques import (
    mean_over_draws as mean_over_draws,
)
from .techniques import (
    mean_spectrum as mean_spectrum,
)
from .techniques import (
    memory_format as memory_format,
)
from .techniques import (
    noise_like as noise_like,
)
from .techniques import (
    per_image as per_image,
)
from .techniques import (
    perturbed_scores as perturbed_scores,
)
from .techniques import (
    project_change as project_change,
)
from .techniques import (
    project_l1_in_box as project_l1_in_box,
)
from .techniques import (
    projected_ascent as projected_ascent,
)
from .techniques import (
    step_to_plane as step_to_plane,
)
from .techniques import (
    technique as technique,
)
from .techniques import (
    total_variation as total_variation,
)
from .units import (
    UnitReport as UnitReport,
)
from .units import (
    UnitThresholds as UnitThresholds,
)
from .units import (
    judge_units as judge_units,
)

__version__: str
