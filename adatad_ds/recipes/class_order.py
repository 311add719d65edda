"""Classes of the logits of AdaTAD's published detectors; the checkpoints do not name them.

The authors number the labels of their annotation file in sorted order (OpenTAD, get_class_index). Where these are the
dataset's own names, sorting gives the order; otherwise it is listed here.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from adatad_ds.errors import ConfigError, summarize_list

MOST_NAMED = 5  # labels in a message


@dataclass(frozen=True)
class ClassOrder:
    """The classes of a published detector.

    Attributes:
        spellings: class names by logit, one tuple for each way in which annotation files spell them; empty: the
            sorted labels, whatever they are.
    """

    spellings: tuple[tuple[str, ...], ...] = ()

    def names(self, labels: Collection[str], *, source: str) -> tuple[str, ...]:
        """Class names by logit, spelled as in the annotations.

        Args:
            labels: all labels of the annotations.
            source: name of the detector, for messages.

        Raises:
            ConfigError: a label is not among the detector's classes.
        """
        if not self.spellings:
            return tuple(sorted(labels))
        fewest = min(([label for label in sorted(labels) if label not in names] for names in self.spellings), key=len)
        if fewest:
            raise ConfigError(
                f"{source} detects {len(self.spellings[0])} classes, {_quoted(self.spellings[0])}; of the annotations' "
                f"labels, {_quoted(fewest)} are not among them. Use the annotations of its dataset; or, to train on "
                "other classes, --set head.reset_classifier=true"
            )
        return next(names for names in self.spellings if set(labels) <= set(names))


def describe_logits(classes: Sequence[str]) -> str:
    """One line with the class of each logit."""
    return "class logits: " + ", ".join(f"{logit} {name}" for logit, name in enumerate(classes))


def _quoted(names: Sequence[str]) -> str:
    return summarize_list([repr(name) for name in names], limit=MOST_NAMED, separator=", ")


def _epic(kind: str, names: Sequence[str], *, without: Collection[int] = ()) -> ClassOrder:
    """By class id: OpenTAD spells the labels id_000, id_001, ...; adatad-ds prepare-data their names, or verb_0, ..."""
    ids = [index for index in range(len(names)) if index not in without]
    spellings = ([names[i] for i in ids], [f"id_{i:03d}" for i in ids], [f"{kind}_{i}" for i in ids])
    return ClassOrder(spellings=tuple(map(tuple, spellings)))


_THUMOS14 = """
BaseballPitch BasketballDunk Billiards CleanAndJerk CliffDiving CricketBowling CricketShot Diving FrisbeeCatch
GolfSwing HammerThrow HighJump JavelinThrow LongJump PoleVault Shotput SoccerPenalty TennisSwing ThrowDiscus
VolleyballSpiking
"""
# By class id, from EPIC_100_verb_classes.csv and EPIC_100_noun_classes.csv (EPIC-KITCHENS-100, Damen et al., IJCV 2022)
_EPIC_VERBS = """
take put wash open close insert turn-on cut turn-off pour mix move remove throw dry shake scoop adjust squeeze
peel empty press flip turn check scrape fill apply fold scrub break pull pat lift hold eat wrap filter look unroll
sort hang sprinkle rip spray cook add roll search crush stretch knead divide set feel rub soak brush sharpen drop
drink slide water gather attach turn-down coat transition wear measure increase unscrew wait lower form smell use
grate screw let-go finish stab serve uncover unwrap choose lock flatten switch carry season unlock prepare bake
mark bend unfreeze
"""
_EPIC_NOUNS = """
tap spoon plate cupboard knife pan lid bowl drawer sponge glass hand fridge cup fork bottle onion cloth
board:chopping bag spatula container liquid:washing box hob dough package water meat pot potato oil cheese bread
food tray bin pepper salt colander jar carrot top tomato kettle pasta oven sauce skin paper maker:coffee garlic
towel egg rubbish rice mushroom chicken cutlery coffee glove can leaf sink milk heat jug aubergine salad chilli
dishwasher mixture cucumber clothes peach flour courgette filter butter scissors chopstick tofu blender olive mat
spice sausage peeler:potato napkin cover microwave pizza button towel:kitchen vegetable stock grater ladle yoghurt
cereal wrap:plastic broccoli sugar brush biscuit lemon juicer wrap scale rest rack:drying alarm salmon freezer
light spreads squash leek cap fish lettuce curry seed foil machine:washing corn soup oatmeal onion:spring clip
lighter ginger tea nut vinegar holder pin:rolling pie powder burger book shell:egg tongs cream pork oregano banana
processor:food paste recipe liquid choi:pak cooker:slow plug utensil noodle salami kitchen teapot floor tuna lime
omelette bacon sandwich phone thermometer orange basket parsley spinner:salad tablet presser coriander
opener:bottle cake avocado lentil blueberry fan:extractor cellar:salt hummus chair juice pancake bean:green
toaster apple chocolate ice knob handle wine pea pith yeast coconut fishcakes spinach apron raisin basil grape
kale wire asparagus paprika mango caper drink stalk turmeric whetstone kiwi bean thyme finger:lady beef whisk
blackberry slicer control:remote label celery cabbage hoover breadstick roll cocktail crisp ladder beer pan:dust
battery powder:washing backpack cumin cutter:pizza air pear quorn funnel wall strawberry almond tv scotch:egg
shelf straw stand machine:sous:vide masher guard:hand shrimp fruit artichoke cork cherry sprout mat:sushi
stick:crab ring:onion pestle window gin bar mint heater grass:lemon rubber gherkin breadcrumb watch melon cinnamon
popcorn dumpling rosemary power syrup candle pineapple sheets soda raspberry airer balloon turkey computer key
pillow pen face plum whiskey door:kitchen tape camera cd extract:vanilla
"""
_ONLY_IN_TEST_VIDEOS = (270, 275, 286, 289, 290, 294, 296)  # nouns: the published detectors know the other 293

PUBLISHED_ORDERS = {  # by dataset
    "thumos14": ClassOrder(spellings=(tuple(_THUMOS14.split()),)),
    "activitynet": ClassOrder(),
    "charades": ClassOrder(),
    "ego4d_mq": ClassOrder(),
    "epic_verb": _epic("verb", _EPIC_VERBS.split()),
    "epic_noun": _epic("noun", _EPIC_NOUNS.split(), without=_ONLY_IN_TEST_VIDEOS),
    # multithumos: the spelling of the labels in the authors' file is unknown. hacs, fineaction: nothing is published.
}
