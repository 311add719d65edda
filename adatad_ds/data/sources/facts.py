"""Facts about each data set: publishers, customary exclusions, published counts.

A count is given only if a publication or a file of the owners states it; otherwise it is `None`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from adatad_ds.data.sources import formats
from adatad_ds.data.sources.formats import TESTING, TRAINING, VALIDATION, Annotations


@dataclass(frozen=True)
class Counts:
    """Counts of one subset; `classes`: those that occur in it. None: no published count known."""

    videos: int | None = None
    instances: int | None = None
    classes: int | None = None


@dataclass(frozen=True)
class Dataset:
    """Facts about one data set."""

    title: str
    read: Callable[[Sequence[Path]], Annotations]
    num_classes: int  # in both subsets together
    published: Mapping[str, Counts]  # after the exclusions
    counts_from: str
    annotations_from: str
    videos_from: str
    terms: str
    features_from: str  # public features of this data set
    feature_terms: str
    exclusions: Mapping[str, str] = field(default_factory=dict)  # video: why it is customarily left out
    read_test: Callable[[Sequence[Path]], Annotations] | None = None  # of a challenge's videos, from separate files


EPIC_VIDEOS = "https://github.com/epic-kitchens/epic-kitchens-download-scripts"
EPIC_TERMS = "Creative Commons BY-NC 4.0: with credit, not for commercial purposes."
OPENTAD = "https://github.com/sming256/OpenTAD/tree/main/tools/prepare_data"
ACTIONFORMER = "https://github.com/happyharrycn/actionformer_release"
NO_FEATURE_TERMS = "these pages state none of their own for features; those of the videos' owners apply."
THUMOS_FEATURES = f"{ACTIONFORMER} (I3D), {OPENTAD}/thumos (I3D, TSN, SlowFast, VideoMAE, VideoMAEv2)"
THUMOS_VIDEOS = "https://www.crcv.ucf.edu/THUMOS14/download.html (validation set, test set)"

DATASETS: Mapping[str, Dataset] = {
    "thumos14": Dataset(
        title="THUMOS14",
        read=formats.thumos14,
        num_classes=20,
        published={TRAINING: Counts(200, 3007, 20), VALIDATION: Counts(210, 3311, 20)},
        counts_from="the JSON file commonly used in the field; 213 test videos before the exclusions",
        annotations_from="https://www.crcv.ucf.edu/THUMOS14/download.html (temporal annotations, both archives)",
        videos_from=THUMOS_VIDEOS,
        terms="read them on the owners' page; the videos are from YouTube.",
        features_from=THUMOS_FEATURES,
        feature_terms=NO_FEATURE_TERMS,
        exclusions={
            "video_test_0000270": "wrong annotations",
            "video_test_0001292": "no annotations",
            "video_test_0001496": "wrong annotations",
        },
    ),
    "activitynet": Dataset(
        title="ActivityNet 1.3",
        read=formats.activitynet,
        num_classes=200,
        published={TRAINING: Counts(10024, 15410), VALIDATION: Counts(4926, 7654)},
        counts_from="http://activity-net.org/download.html",
        annotations_from="http://activity-net.org/download.html (activity_net.v1-3.min.json)",
        videos_from="http://activity-net.org/download.html (a form asks for access, which lasts seven days)",
        terms="read them in the owners' form; the videos are from YouTube.",
        features_from=f"{ACTIONFORMER} (TSP, I3D), {OPENTAD}/activitynet (TSP, TSN, SlowFast, VideoMAE)",
        feature_terms=NO_FEATURE_TERMS,
    ),
    "epic_verb": Dataset(
        title="EPIC-Kitchens-100, verbs",
        read=formats.epic_verb,
        num_classes=97,
        published={TRAINING: Counts(495, 67217), VALIDATION: Counts(138, 9668, 78), TESTING: Counts(videos=67)},
        read_test=formats.epic_test,
        counts_from="the literature; those of validation and test, and 97 classes, also counted in the owners' files",
        annotations_from="https://github.com/epic-kitchens/epic-kitchens-100-annotations",
        videos_from=EPIC_VIDEOS,
        terms=EPIC_TERMS,
        features_from=f"{ACTIONFORMER} (SlowFast, for verbs and nouns)",
        feature_terms=NO_FEATURE_TERMS,
    ),
    "epic_noun": Dataset(
        title="EPIC-Kitchens-100, nouns",
        read=formats.epic_noun,
        num_classes=293,
        published={TRAINING: Counts(495, 67217), VALIDATION: Counts(138, 9668, 211), TESTING: Counts(videos=67)},
        read_test=formats.epic_test,
        counts_from="the literature, and the owners' files, whose 300 classes include 7 of the test videos alone",
        annotations_from="https://github.com/epic-kitchens/epic-kitchens-100-annotations",
        videos_from=EPIC_VIDEOS,
        terms=EPIC_TERMS,
        features_from=f"{ACTIONFORMER} (SlowFast, for verbs and nouns)",
        feature_terms=NO_FEATURE_TERMS,
    ),
    "ego4d_mq": Dataset(
        title="Ego4D moment queries",
        read=formats.ego4d_mq,
        read_test=formats.ego4d_test,
        num_classes=110,
        published={TRAINING: Counts(), VALIDATION: Counts()},
        counts_from="the literature, which counts classes and (with the test clips) 2,488 clips of version 1",
        annotations_from="https://ego4d-data.org/docs/start-here (moments_train.json, moments_val.json)",
        videos_from="https://ego4d-data.org/docs/start-here (the clips of the episodic memory benchmark)",
        terms="a licence agreement to be signed with the owners before the download.",
        features_from=(
            "https://ego4d-data.org/docs/start-here (SlowFast, Omnivore), https://github.com/showlab/EgoVLP/issues/1 "
            f"(EgoVLP), {OPENTAD}/ego4d (InternVideo, SlowFast, EgoVLP)"
        ),
        feature_terms="the licence agreement of Ego4D; ActionFormer's authors may not pass these features on.",
    ),
    "multithumos": Dataset(
        title="MultiTHUMOS",
        read=formats.multithumos,
        num_classes=65,
        published={TRAINING: Counts(200, 18482, 65), VALIDATION: Counts(213, 20208, 65)},
        counts_from="counted in a public conversion of the owners' files, whose 38,690 instances it keeps",
        annotations_from="https://ai.stanford.edu/~syyeung/everymoment.html (multithumos.zip)",
        videos_from=f"THUMOS14's: {THUMOS_VIDEOS}",
        terms="the owners' page states none for the annotations; for the videos, THUMOS14's.",
        features_from=f"THUMOS14's: {THUMOS_FEATURES}",
        feature_terms=NO_FEATURE_TERMS,
    ),
    "charades": Dataset(
        title="Charades",
        read=formats.charades,
        num_classes=157,
        published={TRAINING: Counts(7985, 49809, 157), VALIDATION: Counts(1863, 16691, 157)},
        counts_from="counted in a public conversion, whose sums are those of the owners' paper: 9,848 and 66,500",
        annotations_from="https://prior.allenai.org/projects/charades (Charades.zip)",
        videos_from="https://prior.allenai.org/projects/charades (Charades_v1_480.zip, or the original size)",
        terms="the owners' license.txt, which comes with the files: non-commercial use.",
        features_from=f"{OPENTAD}/charades (VGG, I3D, VideoMAE)",
        feature_terms="those of the owners' license.txt: non-commercial use.",
    ),
    "hacs": Dataset(
        title="HACS Segments 1.1.1",
        read=formats.hacs,
        num_classes=200,
        published={TRAINING: Counts(videos=37613), VALIDATION: Counts(videos=5981)},
        counts_from="https://github.com/hangzhaomit/HACS-dataset (of instances only a sum: 139 thousand)",
        annotations_from="https://github.com/hangzhaomit/HACS-dataset (HACS_v1.1.1.zip)",
        videos_from="https://github.com/hangzhaomit/HACS-dataset (download_videos.py; a form for videos that are gone)",
        terms="read them in the owners' form; the videos are from YouTube.",
        features_from=(
            "https://github.com/qinzhi-0110/Temporal-Context-Aggregation-Network-Pytorch (SlowFast), "
            f"{OPENTAD}/hacs (the same), http://hacs.csail.mit.edu/hacs_segments_features.zip (I3D)"
        ),
        feature_terms=NO_FEATURE_TERMS,
    ),
    "fineaction": Dataset(
        title="FineAction",
        read=formats.fineaction,
        num_classes=106,
        published={TRAINING: Counts(8440, 57752), VALIDATION: Counts(4174, 24236)},
        counts_from="the literature",
        annotations_from="https://openxlab.org.cn/datasets/OpenDataLab/FineAction (raw/annotations_gt.json)",
        videos_from="https://openxlab.org.cn/datasets/OpenDataLab/FineAction (raw/video)",
        terms="read them on that page; https://github.com/Richard-61/FineAction states none.",
        features_from=(
            "https://github.com/OpenGVLab/VideoMAEv2/blob/master/docs/TAD.md (VideoMAEv2), "
            "https://github.com/OpenGVLab/InternVideo/tree/main/Downstream/Temporal-Action-Localization (VideoMAE)"
        ),
        feature_terms=NO_FEATURE_TERMS,
    ),
}
