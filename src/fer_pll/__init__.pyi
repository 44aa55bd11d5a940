# The public names, each with its module: the one list that type checkers and `fer_pll/__init__.py` read.

from .audit.label_audit import LabelAudit as LabelAudit
from .audit.report import run_audit as run_audit
from .data.candidate_sets import add_candidates as add_candidates
from .data.copies import find_copies as find_copies
from .data.dataset import load_dataset as load_dataset
from .data.prepare import prepare as prepare
from .data.sources.arrays import from_arrays as from_arrays
from .faces.crops import load_crop as load_crop
from .hub.push import push_checkpoint as push_checkpoint
from .inference.explanation import draw_explanation as draw_explanation
from .inference.loading import load_default as load_default
from .inference.onnx_export import export_onnx as export_onnx
from .inference.pipeline import FacialExpressionPipeline as FacialExpressionPipeline
from .inference.pipeline import load_recognizer as load_recognizer
from .labels.confidence_table import ConfidenceTable as ConfidenceTable
from .labels.revision import REVISION_RULES as REVISION_RULES
from .labels.revision import RevisionRule as RevisionRule
from .metrics.fer_metrics import FerMetrics as FerMetrics
from .model.configuration_fer_pll import FerPllConfig as FerPllConfig
from .model.configuration_fer_pll_resnet import FerPllResNetConfig as FerPllResNetConfig
from .model.face_alignment import FaceCrop as FaceCrop
from .model.image_processing_fer_pll import FerPllImageProcessor as FerPllImageProcessor
from .model.modeling_fer_pll import FerPllBackbone as FerPllBackbone
from .model.modeling_fer_pll import FerPllForImageClassification as FerPllForImageClassification
from .model.modeling_fer_pll import FerPllForPreTraining as FerPllForPreTraining
from .model.modeling_fer_pll import FerPllModel as FerPllModel
from .model.modeling_fer_pll_resnet import FerPllResNetBackbone as FerPllResNetBackbone
from .training.arguments import FerPllPreTrainingArguments as FerPllPreTrainingArguments
from .training.arguments import FerPllTrainingArguments as FerPllTrainingArguments
from .training.calibrated import calibrate as calibrate
from .training.evaluation import evaluate as evaluate
from .training.methods import METHODS as METHODS
from .training.methods import Method as Method
from .training.pretraining import FerPllPreTrainer as FerPllPreTrainer
from .training.trainer import FerPllTrainer as FerPllTrainer

__version__: str
