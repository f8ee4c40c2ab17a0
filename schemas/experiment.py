"""The whole configuration of a model's training, evaluation, inference and export, named as in NvPanoptix3D's documentation.

Made from a file by ``pipelines/experiments/specs.py``; needs nothing but the standard library. Every setting is documented where it
stands: its type, its default, and in its metadata (``schemas.settings.About``) a line of help and its range.

Source of names, defaults and ranges: NvPanoptix3D in NVIDIA TAO Toolkit PyTorch 7.0.1. The sizes of the backbone, which it writes
into its code, are settings here; with their defaults the network is the same.
"""

from dataclasses import dataclass, field
from typing import Final

from scenemill.schemas.dataset import DatasetConfig
from scenemill.schemas.errors import ConfigError
from scenemill.schemas.settings import About, refuse, settle, shorten, walk

ACTIONS: Final = ("train", "evaluate", "inference", "export", "gen_trt_engine")
_LEVELS: Final = ("res2", "res3", "res4", "res5")
_NO_ENGINE: Final = "nothing: engines run outside of this program"


@dataclass(frozen=True)
class WandbConfig:
    """What Weights & Biases is told."""

    enable: bool = field(default=True, metadata=About(help="Log to Weights & Biases where one is logged in; silent elsewhere."))
    project: str = field(default="TAO Toolkit", metadata=About(help="Project."))
    entity: str = field(default="", metadata=About(help="Team or user."))
    group: str = field(default="", metadata=About(help="Group of runs."))
    run_id: str = field(default="", metadata=About(help="Id of the run, to go on with it."))
    tags: tuple[str, ...] = field(default=("training", "tao-toolkit"), metadata=About(help="Tags."))
    name: str = field(default="TAO Toolkit training experiment", metadata=About(help="Name of the run."))
    reinit: bool = field(default=False, metadata=About(help="Allow several runs in one process."))
    sync_tensorboard: bool = field(default=False, metadata=About(help="Copy what TensorBoard gets."))
    save_code: bool = field(default=False, metadata=About(help="Upload the main script."))

    def __post_init__(self) -> None:
        settle(self)


@dataclass(frozen=True)
class BackboneConfig:
    """The VGGT backbone, and its sizes."""

    backbone_type: str = field(default="vggt", metadata=About(help="The backbone.", options=("vggt",)))
    pretrained_model_path: str = field(default="", metadata=About(help="Weights of VGGT-1B."))
    input_width: int = field(default=448, metadata=About(help="Width that images are resized to, pixels.", least=14, multiple=14))
    embed_dim: int = field(default=1024, metadata=About(help="Width of a token.", least=1))
    num_heads: int = field(default=16, metadata=About(help="Attention heads of the frame and global blocks.", least=1))
    depth: int = field(default=24, metadata=About(help="Frame blocks, and as many global blocks.", least=1))
    patch_depth: int = field(default=24, metadata=About(help="Blocks of the patch embedding.", least=1))
    patch_heads: int = field(default=16, metadata=About(help="Attention heads of the patch embedding.", least=1))
    pos_grid: int = field(default=37, metadata=About(help="Side of the stored grid of positions, patches.", least=1))
    tap_layers: tuple[int, int, int, int] = field(
        default=(4, 11, 17, 23), metadata=About(help="Blocks whose tokens the heads read, ascending, below depth.", least=0)
    )
    camera_depth: int = field(default=4, metadata=About(help="Blocks of the camera head.", least=1))
    dpt_features: int = field(default=256, metadata=About(help="Width of the depth head.", least=1))
    dpt_channels: tuple[int, int, int, int] = field(
        default=(256, 512, 1024, 1024), metadata=About(help="Widths of the depth head's four levels.", least=1)
    )
    pixel_channels: tuple[int, int, int, int] = field(
        default=(256, 512, 1024, 2048), metadata=About(help="Widths of the four levels given to the pixel decoder.", least=1)
    )

    def __post_init__(self) -> None:
        settle(self)
        rising = all(low < high for low, high in zip(self.tap_layers, self.tap_layers[1:], strict=False))
        wrong = not rising or self.tap_layers[-1] >= self.depth
        refuse(wrong, "tap_layers", self.tap_layers, f"four blocks, ascending, from 0 to {self.depth - 1}")
        for name in ("num_heads", "patch_heads"):
            refuse(self.embed_dim % getattr(self, name) != 0, name, getattr(self, name), f"a divisor of embed_dim={self.embed_dim}")


@dataclass(frozen=True)
class SemSegHeadConfig:
    """The pixel decoder and its outputs."""

    common_stride: int = field(default=4, metadata=About(help="Stride of the mask features.", least=2))
    transformer_enc_layers: int = field(default=6, metadata=About(help="Layers of the deformable encoder.", least=1))
    convs_dim: int = field(default=256, metadata=About(help="Width of the pixel decoder.", least=1, multiple=32))
    mask_dim: int = field(default=256, metadata=About(help="Width of the mask embedding.", least=1))
    depth_dim: int = field(default=256, metadata=About(help="Width of the depth feature that enters stage 2.", least=1))
    num_classes: int = field(default=13, metadata=About(help="Classes, without no-object.", least=1))
    norm: str = field(
        default="GN",
        metadata=About(help="Norm of the two pyramid convolutions; empty for a bias.", options=("", "GN", "LN", "SyncBN")),
    )
    deformable_transformer_encoder_in_features: tuple[str, ...] = field(
        default=("res3", "res4", "res5"), metadata=About(help="Levels that enter the deformable encoder.", options=_LEVELS)
    )
    ignore_value: int = field(default=255, metadata=About(help="Label that teaches nothing.", least=0, most=255, dead=True))
    in_features: tuple[str, ...] = field(default=_LEVELS, metadata=About(help="Levels of the backbone.", dead=True))

    def __post_init__(self) -> None:
        settle(self)


@dataclass(frozen=True)
class MaskFormerConfig:
    """The decoder of queries, its losses and their weights."""

    dropout: float = field(default=0.0, metadata=About(help="Dropout of the deformable encoder.", least=0, most=1))
    nheads: int = field(default=8, metadata=About(help="Attention heads, everywhere in the heads.", least=1))
    num_object_queries: int = field(default=100, metadata=About(help="Queries.", least=1))
    hidden_dim: int = field(default=256, metadata=About(help="Width of the decoder.", least=1))
    transformer_dim_feedforward: int = field(
        default=1024, metadata=About(help="Feed-forward width of the deformable encoder.", least=1)
    )
    dim_feedforward: int = field(default=2048, metadata=About(help="Feed-forward width of the decoder.", least=1))
    dec_layers: int = field(default=10, metadata=About(help="Layers of the decoder plus one.", least=1))
    pre_norm: bool = field(default=False, metadata=About(help="Normalise before, not after, attention."))
    class_weight: float = field(default=2.0, metadata=About(help="Weight of the class loss, in matching too.", least=0))
    mask_weight: float = field(default=5.0, metadata=About(help="Weight of the mask loss, in matching too.", least=0))
    dice_weight: float = field(default=5.0, metadata=About(help="Weight of the dice loss, in matching too.", least=0))
    depth_weight: float = field(default=5.0, metadata=About(help="Weight of the depth loss.", least=0))
    mp_occ_weight: float = field(default=5.0, metadata=About(help="Weight of the multi-plane occupancy loss.", least=0))
    train_num_points: int = field(default=12544, metadata=About(help="Points drawn for each mask.", least=1))
    oversample_ratio: float = field(default=3.0, metadata=About(help="Candidates for each point.", least=1))
    importance_sample_ratio: float = field(
        default=0.75, metadata=About(help="Share of the points taken where the mask is uncertain.", least=0, most=1)
    )
    deep_supervision: bool = field(default=True, metadata=About(help="Losses for the outputs of every layer."))
    no_object_weight: float = field(default=0.1, metadata=About(help="Class weight of no-object.", least=0))
    size_divisibility: int = field(
        default=32, metadata=About(help="Images are padded to a multiple of this in the model.", least=1)
    )

    def __post_init__(self) -> None:
        settle(self)
        refuse(self.hidden_dim % self.nheads != 0, "nheads", self.nheads, f"a divisor of hidden_dim={self.hidden_dim}")


@dataclass(frozen=True)
class Frustum3dConfig:
    """Stage 2: the sparse decoder and its losses."""

    truncation: float = field(default=3.0, metadata=About(help="Predicted distance is clamped to this, voxels.", above=0))
    iso_recon_value: float = field(default=2.0, metadata=About(help="Surface band of predictions in the metric, voxels.", above=0))
    completion_weights: tuple[float, float, float] = field(
        default=(50.0, 25.0, 10.0), metadata=About(help="Weights of the occupancy loss: quarter, half and full grid.", least=0)
    )
    panoptic_weight: float = field(default=25.0, metadata=About(help="Weight of the panoptic loss, each level.", least=0))
    surface_weight: float = field(default=5.0, metadata=About(help="Weight of the geometry loss.", least=0))
    unet_features: int = field(default=16, metadata=About(help="Width of the decoder.", least=1))
    unet_output_channels: int = field(default=16, metadata=About(help="Width of its output.", least=1))
    use_multi_scale: bool = field(default=False, metadata=About(help="Feature adapters of three levels."))
    grid_dimensions: int = field(default=256, metadata=About(help="Voxels a side of the decoder's grid.", least=64, multiple=32))
    frustum_dims: int = field(
        default=256, metadata=About(help="Voxels a side for back-projection and output; as grid_dimensions.", least=64, multiple=32)
    )
    signed_channel: int = field(default=3, metadata=About(help="Signed channels.", dead=True))

    def __post_init__(self) -> None:
        settle(self)
        same = self.frustum_dims == self.grid_dimensions
        refuse(not same, "frustum_dims", self.frustum_dims, f"grid_dimensions={self.grid_dimensions}: set both")


@dataclass(frozen=True)
class ProjectionConfig:
    """From pixels to voxels. Where the camera stands in the grid is ``dataset.geometry``, which targets need as well."""

    voxel_size: float = field(default=0.03, metadata=About(help="Edge of a voxel, metres.", above=0))
    sign_channel: bool = field(default=True, metadata=About(help="Two channels for a distance, its sign and its size, not one."))
    depth_feature_dim: int = field(default=256, metadata=About(help="Width of the depth feature.", least=1))

    def __post_init__(self) -> None:
        settle(self)


@dataclass(frozen=True)
class MpOccConfig:
    """The multi-plane occupancy head."""

    num_planes: int = field(default=100, metadata=About(help="Planes between the camera and depth_max.", least=1))

    def __post_init__(self) -> None:
        settle(self)


@dataclass(frozen=True)
class ModelConfig:
    """The network."""

    mode: str = field(default="panoptic", metadata=About(help="What the model predicts.", options=("panoptic",)))
    object_mask_threshold: float = field(default=0.4, metadata=About(help="A query's score must exceed this.", least=0, most=1))
    overlap_threshold: float = field(
        default=0.5, metadata=About(help="Share of its mask that a query must own in the image.", least=0, most=1)
    )
    test_topk_per_image: int = field(default=100, metadata=About(help="Instances of an image.", dead=True))
    backbone: BackboneConfig = field(default_factory=BackboneConfig, metadata=About(help="The VGGT backbone, and its sizes."))
    sem_seg_head: SemSegHeadConfig = field(default_factory=SemSegHeadConfig, metadata=About(help="The pixel decoder."))
    mask_former: MaskFormerConfig = field(default_factory=MaskFormerConfig, metadata=About(help="The decoder of queries; losses."))
    frustum3d: Frustum3dConfig = field(default_factory=Frustum3dConfig, metadata=About(help="Stage 2."))
    projection: ProjectionConfig = field(default_factory=ProjectionConfig, metadata=About(help="From pixels to voxels."))
    mp_occ: MpOccConfig = field(default_factory=MpOccConfig, metadata=About(help="Multi-plane occupancy."))

    def __post_init__(self) -> None:
        settle(self)


@dataclass(frozen=True)
class CudnnConfig:
    """What cuDNN may do."""

    benchmark: bool = field(default=False, metadata=About(help="Try algorithms and keep the fastest."))
    deterministic: bool = field(default=True, metadata=About(help="The same numbers every time, at some cost."))

    def __post_init__(self) -> None:
        settle(self)


@dataclass(frozen=True)
class OptimConfig:
    """The optimiser and its schedule."""

    type: str = field(default="AdamW", metadata=About(help="Optimiser.", options=("AdamW", "SGD"), any_case=True))
    lr: float = field(default=2e-4, metadata=About(help="Learning rate.", least=1e-6, most=1e-2, automl=True))
    backbone_multiplier: float = field(
        default=0.1, metadata=About(help="The backbone's learning rate is lr times this.", least=0.01, most=1, automl=True)
    )
    momentum: float = field(default=0.9, metadata=About(help="Momentum of SGD.", least=0.5, most=0.999))
    weight_decay: float = field(default=0.05, metadata=About(help="Weight decay.", least=1e-4, most=0.5, automl=True))
    lr_scheduler: str = field(
        default="MultiStep",
        metadata=About(help="Schedule of the learning rate.", options=("MultiStep", "WarmupPoly"), any_case=True),
    )
    milestones: tuple[int, ...] = field(
        default=(88, 96), metadata=About(help="Epochs at which MultiStep lowers the rate.", least=0)
    )
    gamma: float = field(default=0.1, metadata=About(help="By what MultiStep multiplies it.", least=0))
    max_steps: int = field(default=160000, metadata=About(help="Steps; training stops there, or after num_epochs.", least=1))
    warmup_factor: float = field(default=1.0, metadata=About(help="Share of the rate that warm-up begins with.", least=0))
    warmup_iters: int = field(default=0, metadata=About(help="Steps of warm-up.", least=0))
    monitor_name: str = field(
        default="val_loss", metadata=About(help="Loss to watch; neither schedule does.", options=("val_loss", "train_loss"))
    )

    def __post_init__(self) -> None:
        settle(self)


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained."""

    num_gpus: int = field(default=1, metadata=About(help="GPUs; see gpu_ids.", least=1))
    gpu_ids: tuple[int, ...] = field(
        default=(0,), metadata=About(help="Which GPUs; 0, 1, ... where num_gpus is more than are listed.", least=0)
    )
    num_nodes: int = field(default=1, metadata=About(help="Nodes.", least=1))
    seed: int = field(default=1234, metadata=About(help="Of everything drawn; below 0 is another one each time.", least=-1))
    cudnn: CudnnConfig = field(default_factory=CudnnConfig, metadata=About(help="What cuDNN may do."))
    num_epochs: int = field(default=10, metadata=About(help="Epochs; training stops there, or after optim.max_steps.", least=1))
    checkpoint_interval: int = field(
        default=1, metadata=About(help="Epochs or steps between checkpoints; epochs: at most num_epochs.", least=1)
    )
    checkpoint_interval_unit: str = field(default="epoch", metadata=About(help="What that counts.", options=("epoch", "step")))
    validation_interval: int = field(default=1, metadata=About(help="Epochs between validations; at most num_epochs.", least=1))
    resume_training_checkpoint_path: str | None = field(
        default=None, metadata=About(help="Checkpoint to go on from; null for the newest of the results folder, if there is one.")
    )
    results_dir: str = field(default="", metadata=About(help="Folder of results; empty for results_dir/train."))
    checkpoint_2d: str = field(default="", metadata=About(help="Stage 1 weights to begin with."))
    checkpoint_3d: str = field(default="", metadata=About(help="Stage 2 weights to begin with."))
    freeze: tuple[str, ...] = field(default=(), metadata=About(help="Parts of the model that do not learn, such as backbone."))
    clip_grad_norm: float = field(default=0.1, metadata=About(help="Largest norm of the gradients.", above=0))
    clip_grad_norm_type: float | str = field(
        default=2.0,
        metadata=About(help="Order of that norm where clip_grad_type is not full.", above=0, words="a number above 0, or inf"),
    )
    clip_grad_type: str = field(default="full", metadata=About(help="full: one norm over all parameters. Else: one for each."))
    is_dry_run: bool = field(default=False, metadata=About(help="One batch of everything."))
    precision: str = field(
        default="fp32",
        metadata=About(help="Numbers of the forward pass; bf16 and fp16 are mixed precision.", options=("fp32", "bf16", "fp16")),
    )
    distributed_strategy: str = field(
        default="ddp",
        metadata=About(
            help="On several GPUs. ddp: a copy of the model on each. fsdp: a share of it on each.", options=("ddp", "fsdp")
        ),
    )
    activation_checkpoint: bool = field(
        default=True, metadata=About(help="Compute activations again in the backward pass, to save memory.")
    )
    iters_per_epoch: int | None = field(default=None, metadata=About(help="Steps of an epoch; null for all of the split.", least=1))
    val_check_interval: int = field(default=5, metadata=About(help="Epochs between validations.", dead=True))
    verbose: bool = field(default=False, metadata=About(help="Say more.", dead=True))
    optim: OptimConfig = field(default_factory=OptimConfig, metadata=About(help="The optimiser and its schedule."))

    def __post_init__(self) -> None:
        settle(self)
        _refuse_gpus(self.gpu_ids)
        if isinstance(self.clip_grad_norm_type, str):
            wrong = self.clip_grad_norm_type != "inf"
            refuse(wrong, "clip_grad_norm_type", self.clip_grad_norm_type, "a number above 0, or inf")
        most = f"1..{self.num_epochs} (num_epochs)"
        in_epochs = self.checkpoint_interval_unit == "epoch"
        refuse(in_epochs and self.checkpoint_interval > self.num_epochs, "checkpoint_interval", self.checkpoint_interval, most)
        refuse(self.validation_interval > self.num_epochs, "validation_interval", self.validation_interval, most)


@dataclass(frozen=True)
class EvaluateConfig:
    """How a model is evaluated on the test split."""

    num_gpus: int = field(default=1, metadata=About(help="GPUs; see gpu_ids.", least=1))
    gpu_ids: tuple[int, ...] = field(
        default=(0,), metadata=About(help="Which GPUs; 0, 1, ... where num_gpus is more than are listed.", least=0)
    )
    num_nodes: int = field(default=1, metadata=About(help="Nodes.", least=1))
    checkpoint: str = field(default="", metadata=About(help="Checkpoint to evaluate, a folder of them, or a pattern; needed."))
    results_dir: str | None = field(default=None, metadata=About(help="Folder of results; null for results_dir/evaluate."))
    trt_engine: str | None = field(default=None, metadata=About(help="TensorRT engine.", options=("",), words=_NO_ENGINE))
    batch_size: int = field(
        default=-1, metadata=About(help="Samples in a batch; dataset.test.batch_size counts.", least=-1, dead=True)
    )

    def __post_init__(self) -> None:
        settle(self)
        _refuse_gpus(self.gpu_ids)


@dataclass(frozen=True)
class InferenceConfig:
    """How a model predicts from a folder of images."""

    num_gpus: int = field(default=1, metadata=About(help="GPUs; see gpu_ids.", least=1))
    gpu_ids: tuple[int, ...] = field(
        default=(0,), metadata=About(help="Which GPUs; 0, 1, ... where num_gpus is more than are listed.", least=0)
    )
    num_nodes: int = field(default=1, metadata=About(help="Nodes.", least=1))
    checkpoint: str = field(default="", metadata=About(help="Checkpoint to predict with; needed."))
    results_dir: str | None = field(default=None, metadata=About(help="Folder of results; null for results_dir/inference."))
    trt_engine: str | None = field(default="", metadata=About(help="TensorRT engine.", options=("",), words=_NO_ENGINE))
    images_dir: str = field(default="", metadata=About(help="Folder of *.jpg and *.png; folders within it are not read."))
    batch_size: int = field(
        default=-1, metadata=About(help="Images in a batch; dataset.test.batch_size counts.", least=-1, dead=True)
    )
    mode: str = field(
        default="panoptic",
        metadata=About(help="What is predicted; model.mode counts.", options=("semantic", "instance", "panoptic"), dead=True),
    )

    def __post_init__(self) -> None:
        settle(self)
        _refuse_gpus(self.gpu_ids)


@dataclass(frozen=True)
class ExportConfig:
    """How stage 1 becomes an ONNX file."""

    results_dir: str | None = field(default=None, metadata=About(help="Folder of results; null for results_dir/export."))
    gpu_id: int = field(default=0, metadata=About(help="Which GPU.", least=0))
    checkpoint: str = field(default="", metadata=About(help="Stage 1 or stage 2 checkpoint; needed."))
    onnx_file_2d: str = field(default="", metadata=About(help="File to write."))
    onnx_file_3d: str = field(
        default="", metadata=About(help="File of stage 2.", options=("",), words="nothing: stage 2 is not exported")
    )
    onnx_file: str = field(default="", metadata=About(help="File to write; onnx_file_2d counts.", dead=True))
    on_cpu: bool = field(default=False, metadata=About(help="Trace on the CPU, with GridSample for deformable attention."))
    input_channel: int = field(default=3, metadata=About(help="Channels of the image.", options=(1, 3), dead=True))
    input_width: int = field(default=320, metadata=About(help="Width of the image, pixels.", least=32))
    input_height: int = field(default=256, metadata=About(help="Height of the image, pixels.", least=32))
    opset_version: int = field(default=17, metadata=About(help="ONNX opset.", least=1))
    batch_size: int = field(default=-1, metadata=About(help="Images in a batch; -1 is any number.", least=-1))
    verbose: bool = field(default=False, metadata=About(help="Print the graph."))
    format: str = field(default="onnx", metadata=About(help="Format of the file.", options=("onnx", "xdl"), dead=True))
    max_voxels: int = field(default=700000, metadata=About(help="Voxels of stage 2.", least=1, dead=True))

    def __post_init__(self) -> None:
        settle(self)


@dataclass(frozen=True)
class TensorrtConfig:
    """What a TensorRT engine is built with."""

    workspace_size: int = field(default=1024, metadata=About(help="Memory for the build, MB.", least=0))
    min_batch_size: int = field(default=1, metadata=About(help="Smallest batch.", least=1))
    opt_batch_size: int = field(default=1, metadata=About(help="Batch to be fast at.", least=1))
    max_batch_size: int = field(default=1, metadata=About(help="Largest batch.", least=1))
    layers_precision: tuple[str, ...] = field(default=(), metadata=About(help="Precision of single layers, as NAME:PRECISION."))
    data_type: str = field(default="FP32", metadata=About(help="Numbers of the engine.", options=("FP32", "FP16"), any_case=True))

    def __post_init__(self) -> None:
        settle(self)
        sizes = (self.min_batch_size, self.opt_batch_size, self.max_batch_size)
        refuse(list(sizes) != sorted(sizes), "min_batch_size, opt_batch_size, max_batch_size", sizes, "min <= opt <= max")


@dataclass(frozen=True)
class GenTrtEngineConfig:
    """How an ONNX file becomes a TensorRT engine."""

    results_dir: str | None = field(default=None, metadata=About(help="Folder of results; null for results_dir/gen_trt_engine."))
    gpu_id: int = field(default=0, metadata=About(help="Which GPU.", least=0))
    onnx_file: str = field(default="", metadata=About(help="File to read; needed."))
    trt_engine: str = field(default="", metadata=About(help="File to write; needed."))
    timing_cache: str | None = field(default=None, metadata=About(help="File of timings to use and extend."))
    batch_size: int = field(default=-1, metadata=About(help="Images in a batch; -1 is any number.", least=-1))
    verbose: bool = field(default=False, metadata=About(help="Say more."))
    tensorrt: TensorrtConfig = field(default_factory=TensorrtConfig, metadata=About(help="What the engine is built with."))

    def __post_init__(self) -> None:
        settle(self)


@dataclass(frozen=True)
class ExperimentConfig:
    """Everything that one spec file says.

    Raises:
        ConfigError: a value of another type or out of its range, or two that do not fit; so does every group of settings above.
    """

    model_name: str | None = field(default=None, metadata=About(help="Name of the task, for callers that know no model."))
    encryption_key: str | None = field(default=None, metadata=About(help="Checkpoints are encrypted with this.", secret=True))
    results_dir: str = field(
        default="", metadata=About(help="Folder of results: an action writes to the folder of its name in it.")
    )
    wandb: WandbConfig = field(default_factory=WandbConfig, metadata=About(help="What Weights & Biases is told."))
    dataset: DatasetConfig = field(default_factory=DatasetConfig, metadata=About(help="What a batch holds."))
    model: ModelConfig = field(default_factory=ModelConfig, metadata=About(help="The network."))
    train: TrainConfig = field(default_factory=TrainConfig, metadata=About(help="Training."))
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig, metadata=About(help="Evaluation on the test split."))
    inference: InferenceConfig = field(default_factory=InferenceConfig, metadata=About(help="Prediction from a folder of images."))
    export: ExportConfig = field(default_factory=ExportConfig, metadata=About(help="Export of stage 1 to ONNX."))
    gen_trt_engine: GenTrtEngineConfig = field(
        default_factory=GenTrtEngineConfig, metadata=About(help="From ONNX to a TensorRT engine.")
    )

    def __post_init__(self) -> None:
        settle(self)


def ignored_settings(config: ExperimentConfig) -> list[str]:
    """A warning for every setting that was changed from its default although nothing reads it."""
    return [
        f"{name}={shorten(value)}: changed from {shorten(setting.default)}, but nothing reads it"
        for name, setting, value in walk(config)
        if setting.about.get("dead") and value != setting.default
    ]


def results_folder(config: ExperimentConfig, action: str) -> str:
    """Where an action writes, a path or URI: its own ``results_dir``, else the folder of its name in the common one.

    Raises:
        ConfigError: no such action, or neither is set.

    >>> results_folder(ExperimentConfig(results_dir="out"), "evaluate")
    'out/evaluate'
    >>> results_folder(ExperimentConfig(results_dir="s3://bucket/out/"), "train")
    's3://bucket/out/train'
    """
    if action not in ACTIONS:
        raise ConfigError(f"action {action!r} is not known; use one of {', '.join(ACTIONS)}")
    own: str | None = getattr(config, action).results_dir
    if own:
        return own
    if config.results_dir:
        return f"{config.results_dir.rstrip('/')}/{action}"
    raise ConfigError(f"no folder for results: set results_dir, or {action}.results_dir")


def gpus_of(num_gpus: int, gpu_ids: tuple[int, ...]) -> tuple[int, ...]:
    """The GPUs to use: as many as the larger of the two says; those listed where that suffices, else the first ones.

    >>> gpus_of(1, (0, 1)), gpus_of(4, (0,)), gpus_of(2, (3, 5))
    ((0, 1), (0, 1, 2, 3), (3, 5))
    """
    count = max(num_gpus, len(gpu_ids))
    return gpu_ids if len(gpu_ids) == count else tuple(range(count))


def _refuse_gpus(gpu_ids: tuple[int, ...]) -> None:
    refuse(len(set(gpu_ids)) < max(1, len(gpu_ids)), "gpu_ids", gpu_ids, "one GPU or more, each once")
