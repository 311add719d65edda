from __future__ import annotations

import json
import typing
from typing import Annotated

import pytest

from adatad_ds.config.loading import from_dict, load, override
from adatad_ds.config.numbers import Range
from adatad_ds.config.parsing import literal
from adatad_ds.config.schema import Config, RecognitionConfig
from adatad_ds.distributed.ds_config import split_batch
from adatad_ds.errors import ConfigError
from adatad_ds.recipes.catalog import all_recipes, find_recipe, recipe_table
from adatad_ds.system.json_text import write_json
from adatad_ds.system.launch import complete_environment, launched_ranks


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[flip,rand_augment]", ["flip", "rand_augment"]),
        ("[ flip , 'rand_augment' ]", ["flip", "rand_augment"]),
        ('(a b, "c,d", 007)', ("a b", "c,d", "007")),
        ("[0.3, 1e-3, none, True, -1]", [0.3, 1e-3, None, True, -1]),
        ("[[0,4],[4,inf]]", [[0, 4], [4, "inf"]]),
        ("[v_1-a.b, $x$, 跳]", ["v_1-a.b", "$x$", "跳"]),
        ("[]", []),
        ("[a", "[a"),
        ("{[a]}", "{[a]}"),
        ("{{}}", "{{}}"),
        ("a, b", "a, b"),
        ("/data/a (1)/x.json", "/data/a (1)/x.json"),
    ],
)
def test_values_as_users_write_them(text, value):
    assert literal(text) == value


def test_lists_of_words_need_no_quotes():
    config = override(Config(), ["data.augment=[flip,rand_augment]", "data.exclude=[v_1,v_2]"])
    assert config.data.augment == ("flip", "rand_augment")
    assert config.data.exclude == ("v_1", "v_2")


@pytest.mark.parametrize(("text", "value"), [("auto", "auto"), ("3", 3.0), ("1.5", 1.5), ("null", None)])
def test_a_budget_is_a_number_or_auto(text, value, tmp_path):
    config = override(Config(), [f"backbone.activation_memory_gb={text}"])
    assert config.backbone.activation_memory_gb == value
    write_json(tmp_path / "config.json", config.to_dict())
    assert load(tmp_path / "config.json") == config


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"activation_checkpointing": False}, "activation_checkpointing=false keeps everything"),
        ({"stored_on_device_gb": 1.0}, "set one of them"),
        ({"tuning": "frozen"}, "is for adapters, LoRA, biases and norms, not tuning=frozen"),
    ],
)
def test_a_budget_is_refused_where_it_says_nothing(changes, said):
    with pytest.raises(ConfigError, match=said):
        override(Config(), ["backbone.activation_memory_gb=1", *(f"backbone.{key}={changes[key]}" for key in changes)])


def test_round_trip_through_a_file(tmp_path):
    for recipe in all_recipes().values():
        path = tmp_path / "config.json"
        write_json(path, recipe.config.to_dict())
        assert load(path) == recipe.config


def test_overrides_reach_typed_values():
    config = override(
        Config(),
        [
            "train.lr_head=1e-3",
            "backbone.adapter_blocks=[3,5]",
            "data.crop_ratio=none",
            "backbone.name=tiny",
            "head.drop_path=0",
        ],
    )
    assert config.train.lr_head == 1e-3
    assert config.backbone.adapter_blocks == (3, 5)
    assert config.data.crop_ratio is None
    assert config.backbone.name == "tiny"
    assert isinstance(config.head.drop_path, float)


@pytest.mark.parametrize(
    ("tuning", "adapter", "now"),
    [
        ("tia", "plain", "plain"),
        ("side", "plain", "side_plain"),
        ("tia+lora", "plain", "plain+lora"),
        ("lora", "plain", "lora"),  # had no effect there
        ("tia", "tia", "tia"),
        (None, "plain", "plain"),
    ],
)
def test_the_adapter_of_an_older_version_is_part_of_the_tuning(tuning, adapter, now, tmp_path):
    saved = {"backbone": {"adapter": adapter, "adapter_ratio": 0.5} | ({"tuning": tuning} if tuning else {})}
    (tmp_path / "config.json").write_text(json.dumps(saved))
    config = load(tmp_path / "config.json")
    assert (config.backbone.tuning, config.backbone.adapter_ratio) == (now, 0.5)
    assert "adapter" not in config.to_dict()["backbone"]
    written = override(Config(), [f"backbone.tuning={tuning or 'tia'}", f"backbone.adapter={adapter}"])  # as then
    assert written.backbone.tuning == now


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("backbone.adapter=tai", "was 'tia' or 'plain'"),
        ("train.lr_heads=1", "did you mean 'lr_head'"),
        ("trian.lr_head=1", "did you mean 'train'"),
        ("train.lr_head", "section.key=value"),
        ("train.lr_head=high", "train.lr_head must be float"),
        ("train.global_batch=2.5", "train.global_batch must be int"),
        ("train.global_batch=True", "train.global_batch must be int"),
        ("backbone.tuning=loar", "must be one of 'frozen', 'full', 'tia', 'plain', 'side'"),
        ("head.arch=[2,2]", "head.arch must hold 3 values"),
        ("head.arch=[2,2,5,5]", "head.arch must hold 3 values"),
        ("train.lr_head=true", "train.lr_head must be float; got True"),
        ("backbone.activation_memory_gb=all", "must be one of 'auto'; got 'all'"),
        ("test.tiou=0.5", "test.tiou must be a list"),
        ("data.window_size=100", "not a multiple of 16"),
        ("data.window_size=16", "not a multiple of 32"),
        ("backbone.tuning=full", "train.lr_backbone"),
        ("backbone.lora_targets=['kv']", "'qkv'"),
        ("head.arch=[2,2,4]", "6 ranges for 5 levels"),
        ("data.frames_per_feature=3", "not a multiple of frames_per_feature"),
    ],
)
def test_what_cannot_be_run_is_named(assignment, said):
    with pytest.raises(ConfigError, match=said.replace("(", r"\(").replace("[", r"\[")):
        override(Config(), [assignment])


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("data.window_size=0", "[1, inf)"),
        ("backbone.activation_memory_gb=-1", "[0, inf) GB"),
        ("backbone.lora_rank=0", "[1, inf)"),
        ("data.frames_per_feature=0", "[1, inf)"),
        ("data.feature_stride_frames=-4", "[1, inf)"),
        ("data.fixed_fps=0", "(0, inf) frames per second"),
        ("data.trunc_thresh=75", "data.trunc_thresh must be in [0, 1]; got 75"),
        ("data.crop_ratio=[0.9,0.5]", "must not decrease"),
        ("data.crop_ratio=[0,1]", "(0, 1] of the video's length"),
        ("data.test_window_overlap=1", "[0, 1) of a window"),
        ("data.resolution=150", "not a multiple of 16 pixels"),
        ("data.resolution=-160", "[1, inf) pixels"),
        ("data.workers=-1", "[0, inf)"),
        ("data.prefetch=0", "[1, inf)"),
        ("train.hang_timeout_sec=0", "[1, inf) seconds"),
        ("train.stop_timeout_sec=0", "[1, inf) seconds"),
        ("data.worker_timeout_sec=0", "[1, inf) seconds"),
        ("backbone.adapter_blocks=[]", "at least one block"),
        ("backbone.adapter_blocks=[3,3]", "none twice"),
        ("backbone.adapter_blocks=[-1]", "[0, inf)"),
        ("backbone.adapter_ratio=0", "(0, inf) of the backbone's width"),
        ("backbone.adapter_kernel=-3", "[1, inf)"),
        ("backbone.drop_path=1", "[0, 1)"),
        ("head.arch=[2,-2,5]", "[0, inf)"),
        ("head.heads=0", "[1, inf)"),
        ("head.attn_window=0", "no step attend"),
        ("head.attn_window=-2", "[-1, inf) feature steps"),
        ("head.cls_prior=0", "(0, 1)"),
        ("head.regression_range=[[4,0],[4,8],[8,16],[16,32],[32,64],[64,10000]]", "must increase"),
        ("head.loss_normalizer=0", "(0, inf)"),
        ("head.loss_normalizer_momentum=1.5", "[0, 1)"),
        ("head.label_smoothing=2", "[0, 1)"),
        ("head.reg_loss_weight=-1", "[0, inf)"),
        ("train.seed=-1", "[0, 4294967295]"),
        ("train.lr_head=-1", "[0, 1]"),
        ("train.lr_head=nan", "train.lr_head must be float"),
        ("train.grad_clip=1e999", "[0, inf)"),
        ("data.worker_timeout_sec=1800", "must be below train.hang_timeout_sec = 1800"),
        ("train.stop_epoch=200", "train.stop_epoch = 200 must be in 1..train.schedule_epochs = 100"),
        ("train.log_every_steps=0", "[1, inf)"),
        ("test.sigma=0", "(0, inf)"),
        ("test.tiou=[50]", "(0, 1] of temporal overlap"),
        ("test.tiou=[]", "at least"),
        ("test.recall_topk=[0]", "[1, inf)"),
        ("test.pre_nms_thresh=30", "[0, 1)"),
    ],
)
def test_what_cannot_be_meant_is_refused(assignment, said):
    with pytest.raises(ConfigError) as error:
        override(Config(), [assignment])
    assert assignment.partition("=")[0].partition(".")[2] in str(error.value)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("recipe", "assignments", "said"),
    [
        ("", ["head.max_len=64"], "head.max_len = 64 is less than data.window_size"),
        ("", ["head.name=temporalmaxer"], "head.arch[1] = 2, but head.name=temporalmaxer has no transformer blocks"),
        ("", ["head.width=510"], "head.width = 510 is not a multiple of head.heads"),
        ("", ["head.name=tridet", "head.width=510"], "the groups of head.name=tridet's norms"),
        ("", ["head.boundary_kernel=2"], "head.boundary_kernel = 2 must be odd"),
        ("", ["head.sgp_window=2"], "head.sgp_window = 2 must be odd"),
        ("", ["head.regression_range=[[0,4],[4,4],[8,16],[16,32],[32,64],[64,10000]]"], "[4.0, 4.0] must increase"),
        ("", ["data.feature_stride_frames=null"], "data.feature_stride_frames must be given"),
        ("", ["backbone.name=features"], "backbone.name=features needs data.features"),
        ("", ["data.features=a"], "data.features are read with backbone.name=features"),
        ("", ["head.source_widths=[1,2]"], "head.source_widths is for several data.features"),
        ("quickstart_features", ["backbone.feature_channels=[3,4]"], "is of 2 sources, data.features of 1"),
        ("quickstart_features", ["parallel.temporal=2"], "features need no more than one"),
        ("quickstart_aim", ["parallel.temporal=2"], "recognition does not split clips over ranks"),
        ("quickstart_aim", ["backbone.name=features", "data.features=a"], "backbone.name=features is for detection"),
        (
            "quickstart_aim",
            ["backbone.tuning=frozen", "backbone.aim_adapters=[temporal,temporal]"],
            "names an adapter twice",
        ),
        ("", ["backbone.tuning=lora", "backbone.lora_targets=[qkv,qkv]"], "none twice"),
        ("", ["backbone.lora_targets=[qkv,qkv]", "backbone.tuning=tia+lora"], "and none twice"),
        ("", ["backbone.ladder_dilations=[]"], "backbone.ladder_dilations must name at least one"),
        ("", ["backbone.name=vjepa2_l", "backbone.clip_frames=15"], "is odd"),
        (
            "",
            ["backbone.name=vit_base_patch16_clip_224", "backbone.tuning=tia", "backbone.clip_frames=8"],
            "each frame of an image transformer attends to itself alone",
        ),
        (
            "",
            ["backbone.name=vit_base_patch16_clip_224", "backbone.tuning=tia", "backbone.aim_adapters=[spatial]"],
            "each frame of an image transformer attends to itself alone",
        ),
        ("", ["train.stop_epoch=101"], "train.stop_epoch = 101 must be in 1..train.schedule_epochs = 100"),
        ("", ["train.warmup_epochs=100"], "must be below train.schedule_epochs = 100"),
        (
            "",
            ["train.hang_timeout_sec=300", "data.worker_timeout_sec=300"],
            "data.worker_timeout_sec = 300 must be below train.hang_timeout_sec = 300",
        ),
        ("", ["data.short_side_before_crop=100"], "must be at least data.resolution"),
        (
            "",
            [
                "data.features=[a,b]",
                "backbone.name=features",
                "backbone.feature_channels=[3,4]",
                "head.source_widths=[1,2]",
            ],
            "and head.width = 3",
        ),
    ],
)
def test_what_contradicts_itself_is_refused(recipe, assignments, said):
    """A recipe's settings; without one, the defaults."""
    config = find_recipe(recipe).config if recipe else Config()
    with pytest.raises(ConfigError) as error:
        override(config, assignments)
    assert said in str(error.value)


def test_values_may_be_written_in_other_ways():
    assignments = [
        "train.eval_pictures=FALSE",
        "train.micro_batch=Null",
        "data.sampling= resize",
        "data.crop_ratio=[1,1]",
    ]
    config = override(Config(), assignments)
    assert (config.train.eval_pictures, config.train.micro_batch) == (False, None)
    assert (config.data.sampling, config.data.crop_ratio) == ("resize", (1.0, 1.0))


def test_the_giant_takes_its_own_patches_and_those_published():
    for resolution in (154, 160, 224):
        override(
            Config(), ["backbone.name=videomaev2_g", f"data.resolution={resolution}", "data.short_side_before_crop=256"]
        )
    override(Config(), ["backbone.name=vit_base_patch14_dinov2", "backbone.tuning=aim", "data.resolution=154"])
    with pytest.raises(ConfigError, match="multiple of 14"):
        override(Config(), ["backbone.name=vit_base_patch14_dinov2", "backbone.tuning=aim"])


def _numbers_without_range(hint: object, has_range: bool = False) -> bool:
    if typing.get_origin(hint) is Annotated:
        base, *limits = typing.get_args(hint)
        return _numbers_without_range(base, any(isinstance(limit, Range) for limit in limits))
    if typing.get_origin(hint) is typing.Literal:
        return False
    return (hint in (int, float) and not has_range) or any(
        _numbers_without_range(part) for part in typing.get_args(hint) if part is not Ellipsis
    )


def test_each_number_states_its_range():
    sections = [type(section) for section in vars(Config()).values() if section is not None] + [RecognitionConfig]
    fields = {
        f"{section.__name__}.{name}": hint
        for section in sections
        for name, hint in typing.get_type_hints(section, include_extras=True).items()
    }
    assert len(fields) > 90
    assert not [name for name, hint in fields.items() if _numbers_without_range(hint)]
    assert _numbers_without_range(tuple[int, ...] | None), "a new field without one would pass"


def test_all_problems_at_once():
    with pytest.raises(ConfigError) as error:
        from_dict({"data": {"window_size": 100}, "backbone": {"tuning": "full"}})
    assert "not a multiple of 16" in str(error.value)
    assert "lr_backbone" in str(error.value)


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(ConfigError, match="thumos14_videomae_s"):
        find_recipe("thumos_videomae_s")
    assert all(name in recipe_table() for name in all_recipes())


def test_saved_config_is_plain_json():
    assert from_dict(json.loads(json.dumps(Config().to_dict()))) == Config()


def test_batch_split_or_what_would_fit():
    assert split_batch(global_batch=8, data_ranks=2, micro_batch=None) == (4, 1)
    assert split_batch(global_batch=8, data_ranks=2, micro_batch=2) == (2, 2)
    with pytest.raises(ConfigError, match=r"use 1, 2 ranks; or --set train\.global_batch=4"):
        split_batch(global_batch=2, data_ranks=4, micro_batch=None)
    with pytest.raises(ConfigError, match="use 1, 2, 4"):
        split_batch(global_batch=8, data_ranks=2, micro_batch=3)


def test_rank_comes_from_the_launcher():
    srun = {"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_STEP_ID": "0", "MASTER_PORT": "1"}
    assert complete_environment(srun) == 1
    assert (srun["RANK"], srun["WORLD_SIZE"]) == ("3", "8")
    torchrun = srun | {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    assert complete_environment(torchrun) == 0
    assert torchrun["WORLD_SIZE"] == "2"
    alone: dict[str, str] = {}
    assert complete_environment(alone) == 0
    assert alone["WORLD_SIZE"] == "1"
    assert int(alone["MASTER_PORT"]) > 0


def test_a_shell_of_salloc_is_one_rank():
    """It lies in a step that counts the allocation's tasks, which srun has yet to start."""
    shell = {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0", "SLURM_STEP_ID": "4294967290"}
    assert launched_ranks(shell) == 1
    assert complete_environment(shell) == 0
    assert (shell["RANK"], shell["WORLD_SIZE"]) == ("0", "1")
    meeting = {"MASTER_ADDR": "node1", "MASTER_PORT": "29500"}  # for srun; nobody is there to meet
    for lone in (shell, {}):
        environment = {name: value for name, value in lone.items() if name.startswith("SLURM")} | meeting
        complete_environment(environment)
        assert environment["MASTER_ADDR"] == "127.0.0.1"
    launched = {"RANK": "0", "WORLD_SIZE": "1"} | meeting
    complete_environment(launched)
    assert launched["MASTER_ADDR"] == "node1"


@pytest.mark.parametrize(
    ("recipe", "changes", "said"),
    [
        ("thumos14_clip_b16", ["backbone.tuning=frozen"], "of an image transformer the last norm is trained"),
        ("activitynet_videomae_s", [], r"it needs backbone\.tuning=frozen"),
        ("activitynet_videomae_s", [], r"use --set data\.augment=\[\] --set data\.short_side_before_crop=160"),
        ("activitynet_videomae_s_frozen", ["parallel.temporal=2"], "none are left"),
        ("kinetics400_clip_b16_8", [], "of a detector"),
        ("quickstart_features", [], r"with backbone\.name=features, none runs"),
        ("quickstart_frozen", ["backbone.drop_path=0.1"], r"use --set backbone\.drop_path=0"),
    ],
)
def test_features_that_cannot_be_cached(recipe, changes, said):
    with pytest.raises(ConfigError, match=said):
        override(find_recipe(recipe).config, [*changes, "backbone.cache_features=true"])


def test_frozen_recipes_can_cache():
    for recipe in ("activitynet_videomae_s_frozen", "quickstart_frozen"):
        plain = ["data.augment=[]", f"data.short_side_before_crop={find_recipe(recipe).config.data.resolution}"]
        assert override(find_recipe(recipe).config, [*plain, "backbone.cache_features=true"])
